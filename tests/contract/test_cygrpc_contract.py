"""Every name and behaviour of grpcio's private module that the server stands on: a new grpcio fails here first.

The names come from the fence, `transport/core.py`, read as source, so that a name used there and not tried here is a
failure as well. The behaviours are those that the transport would break on in silence.
"""

import ast
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc._cython import cygrpc

from forwardpass_server.transport import single_thread

CORE = Path(__file__).resolve().parents[2] / "server/forwardpass_server/transport/core.py"

# Every attribute of `cygrpc` that the fence uses.
NAMES = {
    "CompletionQueue",
    "CompletionType",
    "ReceiveCloseOnServerOperation",
    "ReceiveMessageOperation",
    "SendInitialMetadataOperation",
    "SendMessageOperation",
    "SendStatusFromServerOperation",
    "Server",
    "auth_context",
}

FLAGS = 0


class Ground:
    """A server on the bare module: one queue, polled by the test."""

    def __init__(self, *arguments: tuple[str, int]) -> None:
        self.queue = cygrpc.CompletionQueue()
        self.server = cygrpc.Server((("grpc.so_reuseport", 0), *arguments), False)
        self.server.register_completion_queue(self.queue)
        self.port = self.server.add_http2_port(b"127.0.0.1:0")
        self.server.start()
        self.channel = grpc.insecure_channel(
            f"127.0.0.1:{self.port}", options=(("grpc.use_local_subchannel_pool", 1),)
        )  # fmt: skip

    def post(self, tag: object = "call") -> None:
        assert self.server.request_call(self.queue, self.queue, tag) in {None, 0}

    def event(self, tag: object = None) -> Any:
        """The next event, which must come soon and carry `tag`."""
        event = self.queue.poll(deadline=time.time() + 10)
        assert event.tag is not None, f"no event came, expected {tag}"
        if tag is not None:
            assert event.tag == tag
        return event

    def call(self, method: str = "/a/b", body: bytes = b"1", **kwargs: Any) -> tuple[Any, Any]:
        """A call of the stock client: its future, and its event."""
        self.post()
        future = self.channel.unary_unary(method).future(body, **kwargs)
        return future, self.event("call")

    def close(self) -> None:
        self.channel.close()
        self.server.shutdown(self.queue, "shutdown")
        self.server.cancel_all_calls()
        while self.event().tag != "shutdown":
            pass
        self.queue.shutdown()
        while self.queue.poll(deadline=None).completion_type != cygrpc.CompletionType.queue_shutdown:
            pass
        self.server.destroy()


@contextmanager
def ground(*arguments: tuple[str, int]) -> Iterator[Ground]:
    made = Ground(*arguments)
    try:
        yield made
    finally:
        made.close()


def receive(call: Any) -> int:
    return int(call.start_server_batch((cygrpc.ReceiveMessageOperation(FLAGS),), "message"))


def answer(call: Any, body: bytes = b"2", tag: object = "answered") -> int:
    return int(
        call.start_server_batch(
            (
                cygrpc.SendInitialMetadataOperation((), FLAGS),
                cygrpc.SendMessageOperation(body, FLAGS),
                cygrpc.SendStatusFromServerOperation((), 0, b"", FLAGS),
                cygrpc.ReceiveCloseOnServerOperation(FLAGS),
            ),
            tag,
        )
    )


def test_the_fence_uses_exactly_the_names_tried_here() -> None:
    used = {
        node.attr
        for node in ast.walk(ast.parse(CORE.read_text()))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "cygrpc"
    }
    assert used == NAMES
    assert all(hasattr(cygrpc, name) for name in NAMES)
    assert isinstance(int(cygrpc.CompletionType.queue_shutdown), int)


def test_grpcio_is_in_the_range_that_the_server_asks_for() -> None:
    project = (CORE.parents[3] / "pyproject.toml").read_text()
    bounds = re.search(r'"grpcio>=(\d+)\.(\d+),<(\d+)\.(\d+)"', project)
    assert bounds is not None
    low, high = tuple(map(int, bounds.groups()[:2])), tuple(map(int, bounds.groups()[2:]))
    installed = tuple(map(int, grpc.__version__.split(".")[:2]))
    if os.environ.get("FORWARDPASS_NEWEST_GRPCIO") != "1":  # CI tries the newest one on purpose
        assert low <= installed < high


def test_one_call_is_three_events_and_its_parts_have_their_types() -> None:
    with ground() as it:
        future, event = it.call("/some/Method", b"request", metadata=(("x-a", "1"), ("x-bin", b"\xff")), timeout=60)
        assert event.success is True or event.success == 1
        assert event.call_details.method == b"/some/Method"
        assert event.call_details.host.startswith(b"127.0.0.1")
        assert 50 < event.call_details.deadline - time.time() < 61
        assert [tuple(pair) for pair in event.invocation_metadata if pair[0].startswith("x-")] == [
            ("x-a", "1"),
            ("x-bin", b"\xff"),
        ]
        assert event.call.peer().startswith(b"ipv4:127.0.0.1")
        assert receive(event.call) == 0
        message = it.event("message")
        assert message.success
        body = message.batch_operations[0].message()
        assert type(body) is bytes
        assert body == b"request"
        assert answer(event.call) == 0
        done = it.event("answered")
        assert done.success
        assert done.batch_operations[3].cancelled() is False
        assert future.result() == b"2"


def test_no_deadline_is_a_time_beyond_all_others() -> None:
    with ground() as it:
        future, event = it.call()
        assert event.call_details.deadline > 1e18
        answer(event.call)
        it.event("answered")
        future.result()


def test_a_tag_is_any_object_and_comes_back_itself() -> None:
    with ground() as it:

        def tag(_event: object) -> None:
            """Ours are callables."""

        it.post(tag)
        future = it.channel.unary_unary("/a/b").future(b"")
        event = it.event()
        assert event.tag is tag
        answer(event.call, tag=tag)
        assert it.event().tag is tag
        future.result()


def test_poll_waits_never_until_a_time_or_for_ever() -> None:
    with ground() as it:
        began = time.monotonic()
        for deadline in (0.0, time.time() - 1):
            event = it.queue.poll(deadline)
            assert event.tag is None
            assert event.completion_type != cygrpc.CompletionType.queue_shutdown
        assert time.monotonic() - began < 1
        it.post()
        futures: list[grpc.Future] = []
        threading.Timer(0.3, lambda: futures.append(it.channel.unary_unary("/a/b").future(b""))).start()
        event = it.queue.poll(None)
        assert event.tag == "call"
        answer(event.call)
        it.event("answered")


def test_a_second_answer_gives_an_error_code_and_does_not_raise() -> None:
    with ground() as it:
        future, event = it.call()
        assert answer(event.call) == 0
        assert answer(event.call, tag="never") == 8
        it.event("answered")
        assert future.result() == b"2"


def test_a_batch_may_start_on_any_thread() -> None:
    with ground() as it:
        future, event = it.call()
        codes: list[int] = []
        thread = threading.Thread(target=lambda: codes.append(answer(event.call)))
        thread.start()
        it.event("answered")
        thread.join()
        assert codes == [0]
        assert future.result() == b"2"


def test_an_empty_batch_rings_on_a_live_call_and_on_a_finished_one_whose_caller_has_gone() -> None:
    with ground() as it:
        future, event = it.call()
        assert event.call.start_server_batch((), "bell") == 0
        it.event("bell")
        answer(event.call)
        it.event("answered")
        future.result()
        it.channel.close()
        assert event.call.start_server_batch((), "bell") == 0
        it.event("bell")


def test_a_spare_server_rings_by_its_shutdown_and_may_be_made_again() -> None:
    with ground() as it:
        for _ in range(3):
            spare = cygrpc.Server((), False)
            spare.register_completion_queue(it.queue)
            spare.start()
            spare.shutdown(it.queue, "bell")
            it.event("bell")
            spare.destroy()
        unused = cygrpc.Server((), False)
        unused.register_completion_queue(it.queue)
        unused.start()
        del unused


def test_no_message_is_none_and_success_tells_a_half_close_from_one_too_large() -> None:
    with ground(("grpc.max_receive_message_length", 10)) as it:
        it.post()
        large = it.channel.unary_unary("/a/b").future(bytes(11))
        event = it.event("call")
        receive(event.call)
        message = it.event("message")
        assert message.batch_operations[0].message() is None
        assert not message.success
        assert answer(event.call) == 0, "an answer to one who has gone is taken and dropped"
        it.event("answered")
        assert large.code() is grpc.StatusCode.RESOURCE_EXHAUSTED

        it.post()
        empty = it.channel.stream_unary("/a/b").future(iter(()))
        event = it.event("call")
        receive(event.call)
        message = it.event("message")
        assert message.batch_operations[0].message() is None
        assert message.success
        answer(event.call)
        it.event("answered")
        assert empty.result() == b"2"


def test_a_caller_that_leaves_a_stream_gives_no_message_and_a_close() -> None:
    """Both events come, the first looking like a half-close; what tells them apart is the second."""
    with ground() as it:
        it.post()
        hold = threading.Event()
        held = (b"" for _ in range(1) if not hold.wait(10))  # sends nothing, then ends: a thread of gRPC's waits in it
        answers = it.channel.stream_stream("/a/b")(held)
        event = it.event("call")
        receive(event.call)
        assert event.call.start_server_batch((cygrpc.ReceiveCloseOnServerOperation(FLAGS),), "close") == 0
        answers.cancel()
        both = {(first := it.event()).tag: first, (second := it.event()).tag: second}
        assert set(both) == {"message", "close"}
        assert both["message"].batch_operations[0].message() is None
        assert both["close"].batch_operations[0].cancelled() is True
        hold.set()


def test_a_deadline_cancels_at_the_server_too() -> None:
    with ground() as it:
        future, event = it.call(timeout=0.1)
        event.call.start_server_batch((cygrpc.ReceiveCloseOnServerOperation(FLAGS),), "close")
        assert it.event("close").batch_operations[0].cancelled() is True
        assert future.code() is grpc.StatusCode.DEADLINE_EXCEEDED


def test_status_details_are_bytes_or_text_and_percent_encoded_by_the_core() -> None:
    with ground() as it:
        words = "\t\r\n%☺😈"
        future, event = it.call()
        event.call.start_server_batch(
            (
                cygrpc.SendInitialMetadataOperation((), FLAGS),
                cygrpc.SendStatusFromServerOperation((("x-bin", b"\x00"),), 9, words.encode(), FLAGS),
                cygrpc.ReceiveCloseOnServerOperation(FLAGS),
            ),
            "failed",
        )
        it.event("failed")
        assert (future.code(), future.details()) == (grpc.StatusCode.FAILED_PRECONDITION, words)
        assert dict(future.trailing_metadata())["x-bin"] == b"\x00"


def test_a_plaintext_caller_has_a_context_that_says_insecure() -> None:
    with ground() as it:
        future, event = it.call()
        context = cygrpc.auth_context(event.call)
        assert {str(k if isinstance(k, str) else k.decode()): v for k, v in context.items()}[
            "transport_security_type"
        ] == [b"insecure"]
        answer(event.call)
        it.event("answered")
        future.result()


def test_server_credentials_wrap_what_the_port_takes() -> None:
    assert "_credentials" in vars(grpc.ServerCredentials(object()))


def test_a_port_in_use_gives_0_or_raises_and_never_succeeds() -> None:
    with ground() as it:
        other = cygrpc.Server((("grpc.so_reuseport", 0),), False)
        other.register_completion_queue(it.queue)
        with suppress(RuntimeError):
            assert other.add_http2_port(b"127.0.0.1:%d" % it.port) == 0
        other.start()


def test_shutdown_returns_what_was_posted_without_success_and_request_call_then_raises() -> None:
    it = Ground()
    for _ in range(3):
        it.post()
    it.channel.close()
    it.server.shutdown(it.queue, "shutdown")
    events = [it.event() for _ in range(4)]
    posted = [event for event in events if event.tag == "call"]
    assert len(posted) == 3
    assert not any(event.success for event in posted)
    assert [event.tag for event in events if event.tag != "call"] == ["shutdown"]
    with pytest.raises(ValueError, match="shutting down"):
        it.post()
    it.queue.shutdown()
    for _ in range(3):
        event = it.queue.poll(None)
        assert event.tag is None
        assert event.completion_type == cygrpc.CompletionType.queue_shutdown
    it.server.destroy()


A_SERVER = """
from grpc._cython import cygrpc
server = cygrpc.Server((("grpc.so_reuseport", 0),), False)
server.register_completion_queue(cygrpc.CompletionQueue())
server.add_http2_port(b"127.0.0.1:0")
server.start()
"""


@pytest.mark.parametrize(("choice", "known"), [(single_thread.CHOICE, True), ("-no_such_thing", False)])
def test_the_core_knows_the_choice_of_who_reads_the_sockets(choice: str, known: bool) -> None:
    """`transport/single_thread.py`. A core says which names it does not know, and goes on."""
    environment = {**os.environ, single_thread.VARIABLE: choice}
    done = subprocess.run([sys.executable, "-c", A_SERVER], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert ("Unknown experiment" not in done.stderr) is known, done.stderr
