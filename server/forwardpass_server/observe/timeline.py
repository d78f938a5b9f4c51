"""When one request passed each stage of the server: seven stamps, and how many rows rode with it.

Stamps are `time.monotonic_ns()` values; 0 means "not reached". The stages in their order, with who stamps:

    received   the transport: the whole message has arrived        loop thread
    decoded    rpc: the message is parsed                          loop thread
    queued     scheduling: it waits for an instance                loop thread
    taken      scheduling: an instance took it into a batch        instance thread (loop thread for inline models)
    run_start  scheduling: the batch is stacked, the model starts  same thread
    run_end    scheduling: the model has answered                  same thread
    encoded    rpc: the reply's bytes are ready                    same thread
"""


class Timeline:
    """The stamps of one request, in nanoseconds of the monotonic clock. Written by one thread at a time."""

    __slots__ = (
        "batch_rows",
        "decoded_ns",
        "encoded_ns",
        "queued_ns",
        "received_ns",
        "run_end_ns",
        "run_start_ns",
        "taken_ns",
    )

    def __init__(self, received_ns: int = 0) -> None:
        self.received_ns = received_ns
        self.decoded_ns = 0
        self.queued_ns = 0
        self.taken_ns = 0
        self.run_start_ns = 0
        self.run_end_ns = 0
        self.encoded_ns = 0
        self.batch_rows = 0
        """Rows of the run that it rode in."""

    def stages_ns(self) -> dict[str, int]:
        """How long each stage took, in nanoseconds; a stage that was not reached is left out.

        The keys, in order: `decode`, `check` (decoded to queued), `queue`, `stack`, `run`, `encode` (split and encode).
        """
        stamps = (
            ("decode", self.received_ns, self.decoded_ns),
            ("check", self.decoded_ns, self.queued_ns),
            ("queue", self.queued_ns, self.taken_ns),
            ("stack", self.taken_ns, self.run_start_ns),
            ("run", self.run_start_ns, self.run_end_ns),
            ("encode", self.run_end_ns, self.encoded_ns),
        )
        return {stage: end - start for stage, start, end in stamps if start and end}
