"""Texts that a model writes: the request, and what is known of a text while its pieces arrive. Pure.

A generator takes `prompt` (BYTES [1]) and answers on a stream: `text` (BYTES [1]) in each response, the prompt not
repeated, and in the last one what the text came to.
"""

from collections.abc import Sequence

from forwardpass import messages, stream_reply
from forwardpass.errors import InvalidRequest, MalformedReply
from forwardpass.results import Parameter
from forwardpass_proto import grpc_service_pb2 as pb

STOPS_MAX = 8

FINAL = "triton_final_response"


def generate_request(
    model: str,
    prompt: str,
    *,
    version: str,
    request_id: str,
    max_tokens: int | None,
    temperature: float | None,
    top_k: int | None,
    top_p: float | None,
    seed: int | None,
    stop: str | Sequence[str],
) -> pb.ModelInferRequest:
    """The request for a text; what is None is left to the server.

    Raises:
        InvalidRequest: the prompt is no text, or there are too many stop strings; ranges are the server's to judge.
    """
    if not isinstance(prompt, str):
        raise InvalidRequest(f"a prompt is a str, got {type(prompt).__name__}", model=model)
    stops = [stop] if isinstance(stop, str) and stop else list(stop)
    if len(stops) > STOPS_MAX:
        raise InvalidRequest(f"{len(stops)} stop strings; at most {STOPS_MAX}", model=model)
    settings: dict[str, Parameter | None] = {
        "max_tokens": max_tokens,
        "temperature": None if temperature is None else float(temperature),
        "top_k": top_k,
        "top_p": None if top_p is None else float(top_p),
        "seed": seed,
        **{f"stop_{number}" if number > 1 else "stop": each for number, each in enumerate(stops, 1)},
    }
    request = pb.ModelInferRequest(model_name=model, model_version=version, id=request_id)
    raw = prompt.encode()
    request.inputs.add(name="prompt", datatype="BYTES", shape=[1])
    request.raw_input_contents.append(len(raw).to_bytes(4, "little") + raw)
    messages.set_parameters(request, {key: value for key, value in settings.items() if value is not None})
    return request


class Generated:
    """What is known of a text; base of `Text` and `AsyncText`."""

    def __init__(self) -> None:
        self._pieces: list[str] = []
        self._end: dict[str, Parameter] | None = None
        self.model_version = ""
        """The version that writes; "" until the first piece is here."""

    @property
    def text(self) -> str:
        """All pieces that have arrived, as one."""
        return "".join(self._pieces)

    @property
    def finish_reason(self) -> str:
        """Why the text ended: "length" (it has `max_tokens`) or "stop" (a stop string came); "" while it goes on."""
        return str((self._end or {}).get("finish_reason", ""))

    @property
    def generated_tokens(self) -> int:
        """Tokens that were written, a stop string's included; 0 while the text goes on."""
        return int((self._end or {}).get("generated_tokens", 0))

    @property
    def seed(self) -> int | None:
        """With which the same request gets the same text again; None while the text goes on."""
        seed = (self._end or {}).get("seed")
        return None if seed is None else int(seed)

    def _take(self, reply: pb.ModelStreamInferResponse) -> str:
        """The piece in a reply, which is "" in the last one at most.

        Raises:
            ForwardpassError: the reply says that the text failed, or holds none.
        """
        result = stream_reply.result(reply)
        self.model_version = result.model_version
        if result.parameters.get(FINAL) is True:
            self._end = dict(result.parameters)
        if "text" not in result:
            if self._end is not None:
                return ""
            raise MalformedReply(f"a piece of text came without 'text'; it has {', '.join(result) or 'nothing'}")
        piece = str(b"".join(result["text"].ravel()), "utf-8", "replace")
        self._pieces.append(piece)
        return piece

    def _ended(self) -> None:
        """The stream is at its end. Raises MalformedReply where the text is not."""
        if self._end is None:
            raise MalformedReply(f"the stream ended before the text did, after {len(self.text)} characters")
