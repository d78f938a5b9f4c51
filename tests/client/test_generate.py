"""Texts, read as they are written: by the blocking client, by asyncio, and on a terminal."""

import asyncio
import contextlib
import gc
import io
import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import grpc
import pytest

from forwardpass import AsyncClient, AsyncText, Client
from forwardpass import errors as e
from forwardpass.cli import main
from forwardpass_proto import grpc_service_pb2 as pb


class Writer:
    """A server's generator that says `pieces`; remembers what was asked, and whether its reader left."""

    def __init__(self, pieces: list[str], **end: Any) -> None:
        self.pieces = pieces
        self.end = {"finish_reason": "length", "generated_tokens": sum(map(len, pieces)), "seed": 7} | end
        self.asked: pb.ModelInferRequest | None = None
        self.sent = 0
        self.left = threading.Event()
        self.go_on = threading.Event()
        self.go_on.set()
        self.fails_with: tuple[Any, str] | None = None

    def __call__(self, requests: Iterator[pb.ModelInferRequest], context: Any) -> Iterator[pb.ModelStreamInferResponse]:
        context.add_callback(self.left.set)
        self.asked = next(requests)
        for piece in self.pieces:
            self.sent += 1
            yield self._reply(piece)
            while not self.go_on.wait(0.02):
                if not context.is_active():
                    return
        if self.fails_with:
            context.abort(*self.fails_with)
        yield self._reply("", **self.end, triton_final_response=True)

    def _reply(self, piece: str, **parameters: Any) -> pb.ModelStreamInferResponse:
        assert self.asked is not None
        reply = pb.ModelInferResponse(model_name=self.asked.model_name, model_version="3", id=self.asked.id)
        reply.outputs.add(name="text", datatype="BYTES", shape=[1])
        raw = piece.encode()
        reply.raw_output_contents.append(len(raw).to_bytes(4, "little") + raw)
        for key, value in parameters.items():
            kind = {bool: "bool_param", int: "int64_param", str: "string_param"}[type(value)]
            setattr(reply.parameters[key], kind, value)
        return pb.ModelStreamInferResponse(infer_response=reply)


@pytest.fixture
def writing(server: Any) -> Callable[..., Writer]:
    def start(pieces: list[str], **end: Any) -> Writer:
        server.stream = Writer(pieces, **end)
        writer: Writer = server.stream
        return writer

    return start


Read = Callable[..., tuple[list[str], Any]]


@pytest.fixture(params=["blocking", "asyncio"])
def read(request: Any, server: Any) -> Read:
    """Reads a text to its end, with either client; gives its pieces and the text. Errors come out."""

    def blocking(*arguments: Any, **settings: Any) -> tuple[list[str], Any]:
        with Client(server.address, deadline_s=20, retry=None) as client:
            text = client.generate(*arguments, **settings)
            return list(text), text

    def awaited(*arguments: Any, **settings: Any) -> tuple[list[str], Any]:
        async def collect() -> tuple[list[str], Any]:
            async with AsyncClient(server.address, deadline_s=20, retry=None) as client:
                text = client.generate(*arguments, **settings)
                return [piece async for piece in text], text

        return asyncio.run(collect())

    return blocking if request.param == "blocking" else awaited


def parameters(request: pb.ModelInferRequest) -> dict[str, Any]:
    return {key: getattr(value, value.WhichOneof("parameter_choice")) for key, value in request.parameters.items()}


def test_pieces_come_in_order_and_the_end_says_what_the_text_came_to(writing: Any, read: Read) -> None:
    writing(["To ", "be, ", "ör ünot"], finish_reason="stop", generated_tokens=15, seed=-5)
    pieces, text = read("shakespeare", "HAMLET:")
    assert pieces == ["To ", "be, ", "ör ünot"]
    assert text.text == "To be, ör ünot"
    assert (text.finish_reason, text.generated_tokens, text.seed, text.model_version) == ("stop", 15, -5, "3")


def test_the_request_holds_the_prompt_and_only_the_settings_that_were_given(
    writing: Any, read: Read, server: Any
) -> None:
    writer = writing(["x"])
    read("shakespeare", "ROMEO: ä\n")
    assert writer.asked is not None
    (tensor,) = writer.asked.inputs
    assert (tensor.name, tensor.datatype, list(tensor.shape)) == ("prompt", "BYTES", [1])
    assert writer.asked.raw_input_contents[0][4:].decode() == "ROMEO: ä\n"
    assert parameters(writer.asked) == {}
    assert dict(server.calls)["ModelStreamInfer"]["triton_grpc_error"] == "true"
    read("shakespeare", "R", max_tokens=9, temperature=0, top_k=3, top_p=1, seed=2**60, stop=["A", "B"], request_id="r")
    assert parameters(writer.asked) == {
        "max_tokens": 9,
        "temperature": 0.0,
        "top_k": 3,
        "top_p": 1.0,
        "seed": 2**60,
        "stop": "A",
        "stop_2": "B",
    }
    assert writer.asked.parameters["temperature"].WhichOneof("parameter_choice") == "double_param"
    assert writer.asked.id == "r"
    read("shakespeare", "R", stop="AB")
    assert parameters(writer.asked) == {"stop": "AB"}


def test_an_error_of_the_server_has_its_kind_and_the_text_keeps_what_came(writing: Any, client: Client) -> None:
    writing(["To "]).fails_with = (grpc.StatusCode.INVALID_ARGUMENT, "the prompt has 'é' at 3")
    text = client.generate("shakespeare", "Caf\u00e9")
    with pytest.raises(e.InvalidRequest, match="the prompt has 'é' at 3") as caught:
        list(text)
    assert (caught.value.model, caught.value.address) == ("shakespeare", client.url)
    assert text.text == "To "
    assert text.finish_reason == ""


def test_words_in_the_stream_are_an_error_too(server: Any, read: Read) -> None:
    server.stream = lambda _requests, _context: iter([pb.ModelStreamInferResponse(error_message="out of ink")])
    with pytest.raises(e.ServerFault, match="out of ink") as caught:
        read("shakespeare", "x")
    assert (caught.value.model, caught.value.address) == ("shakespeare", server.address)


def test_a_stream_that_ends_before_the_text_is_no_text(server: Any, read: Read) -> None:
    server.stream = lambda requests, _context: iter([Writer([])._reply("To ")] if next(requests) is None else [])
    with pytest.raises(e.MalformedReply, match="ended before the text did, after 0 characters"):
        read("shakespeare", "x")


def test_an_answer_without_text_is_refused(server: Any, read: Read) -> None:
    answer = pb.ModelInferResponse(model_name="m")
    answer.outputs.add(name="y", datatype="FP32", shape=[0])
    answer.raw_output_contents.append(b"")
    server.stream = lambda _requests, _context: iter([pb.ModelStreamInferResponse(infer_response=answer)])
    with pytest.raises(e.MalformedReply, match="without 'text'; it has y"):
        read("m", "x")


@pytest.mark.parametrize(
    ("prompt", "settings", "said"),
    [
        (b"bytes", {}, "a prompt is a str, got bytes"),
        ("x", {"stop": ["s"] * 9}, "9 stop strings; at most 8"),
        ("x", {"max_tokens": 2**70}, "parameter 'max_tokens'"),
        ("x", {"seed": [1]}, "parameter 'seed'"),
    ],
)
def test_what_cannot_be_said_is_refused_before_anything_is_sent(
    read: Read, server: Any, prompt: Any, settings: Any, said: str
) -> None:
    with pytest.raises(e.InvalidRequest, match=said):
        read("shakespeare", prompt, **settings)
    assert server.count("ModelStreamInfer") == 0


@pytest.mark.parametrize("how", ["forgotten", "closed", "with"])
def test_leaving_a_text_ends_it_on_the_server(writing: Any, client: Client, how: str) -> None:
    writer = writing(["a", "b", "c"])
    writer.go_on.clear()
    if how == "forgotten":
        for piece in client.generate("shakespeare", "x"):
            assert piece == "a"
            break
        gc.collect()
    elif how == "closed":
        text = client.generate("shakespeare", "x")
        assert next(text) == "a"
        text.close()
        text.close()
        with pytest.raises(e.CallCancelled):
            next(text)
    else:
        with client.generate("shakespeare", "x") as text:
            assert next(text) == "a"
    assert writer.left.wait(10)
    assert writer.sent == 1


@pytest.mark.parametrize("how", ["cancelled", "closed", "with"])
def test_leaving_an_awaited_text_ends_it_on_the_server(writing: Any, server: Any, how: str) -> None:
    writer = writing(["a", "b", "c"])
    writer.go_on.clear()

    async def leave() -> None:
        async with AsyncClient(server.address, deadline_s=20) as client:
            text = client.generate("shakespeare", "x")
            assert await anext(text) == "a"
            if how == "cancelled":
                waiting = asyncio.ensure_future(anext(text))
                await asyncio.sleep(0)
                waiting.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await waiting
            elif how == "closed":
                await text.close()
                with pytest.raises(e.CallCancelled):
                    await anext(text)
            else:
                async with text:
                    pass
            assert await asyncio.to_thread(writer.left.wait, 10)

    asyncio.run(leave())
    assert writer.sent == 1


def test_a_deadline_holds_for_the_whole_text(writing: Any, read: Read) -> None:
    writing(["a", "b"]).go_on.clear()
    with pytest.raises(e.DeadlineExceeded, match=r"no answer within 0\.3 s"):
        read("shakespeare", "x", deadline_s=0.3)


def test_a_client_that_is_closed_ends_its_texts(writing: Any, server: Any) -> None:
    writing(["a", "b"]).go_on.clear()
    client = Client(server.address, deadline_s=20)
    text = client.generate("shakespeare", "x")
    assert next(text) == "a"
    client.close()
    with pytest.raises(e.CallCancelled, match="the client was closed"):
        next(text)
    with pytest.raises(e.ClientMisused, match="the client is closed"):
        client.generate("shakespeare", "x")


def test_many_texts_at_once_do_not_mix(writing: Any, server: Any) -> None:
    class Own(Writer):
        def __call__(self, requests: Any, context: Any) -> Any:
            first = next(requests)
            prompt = first.raw_input_contents[0][4:].decode()
            return Writer([prompt] * 20)(iter([first]), context)

    server.stream = Own([])

    async def together() -> list[str]:
        async with AsyncClient(server.address, deadline_s=20) as client:

            async def one(prompt: str) -> str:
                return "".join([piece async for piece in client.generate("m", prompt)])

            return await asyncio.gather(*(one(f"<{number}>") for number in range(16)))

    assert asyncio.run(together()) == [f"<{number}>" * 20 for number in range(16)]


def test_both_kinds_of_text_tell_the_same() -> None:
    assert issubclass(AsyncText, AsyncIterator)
    public = [{name for name in dir(kind) if not name.startswith("_")} for kind in (AsyncText, _text_kind())]
    assert public[0] == public[1]


def _text_kind() -> type:
    from forwardpass import Text

    return Text


# ------------------------------------------------------------------------------------------------- the command line


def run(capsys: Any, server: Any, *arguments: str) -> tuple[int, str, str]:
    code = main(["generate", *arguments, "--url", server.address])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_the_command_shows_the_text_and_says_how_fast_it_came(writing: Any, server: Any, capsys: Any) -> None:
    writer = writing(["To be, ", "or not"])
    code, out, err = run(capsys, server, "shakespeare", "HAMLET:", "--seed", "7", "--temperature", "0.8", "--stop", "X")
    assert (code, out) == (0, "To be, or not\n")
    assert err.startswith("13 characters in ")
    assert "characters/s, the first after " in err
    assert err.endswith("ended by length; seed 7\n")
    assert parameters(writer.asked) == {"seed": 7, "temperature": 0.8, "stop": "X"}


def test_the_command_writes_each_piece_as_it_comes(writing: Any, server: Any, monkeypatch: Any) -> None:
    writer = writing(["a", "b"])
    writer.go_on.clear()

    class Terminal(io.StringIO):
        def flush(self) -> None:
            if self.getvalue() == "a":
                writer.go_on.set()  # the second piece is written only when the first has been shown

    shown = Terminal()
    monkeypatch.setattr("sys.stdout", shown)
    assert main(["generate", "m", "x", "--url", server.address]) == 0
    assert shown.getvalue() == "ab\n"


def test_the_command_reads_standard_input_and_prints_json(
    writing: Any, server: Any, capsys: Any, monkeypatch: Any
) -> None:
    writing(["é"])
    monkeypatch.setattr("sys.stdin", io.StringIO("from a\nfile"))
    code, out, err = run(capsys, server, "m", "-", "--json")
    assert (code, err) == (0, "")
    told = json.loads(out)
    assert (told["prompt"], told["text"], told["finish_reason"], told["seed"]) == ("from a\nfile", "é", "length", 7)
    assert told["seconds"] >= told["first_piece_s"] > 0


def test_a_text_that_breaks_off_is_shown_as_far_as_it_came(writing: Any, server: Any, capsys: Any) -> None:
    writing(["To be"]).fails_with = (grpc.StatusCode.INTERNAL, "id 5")
    code, out, err = run(capsys, server, "m", "x")
    assert (code, out) == (1, "To be\n")
    assert err.startswith("forwardpass: id 5 [model 'm'")


def test_a_text_has_more_time_than_a_prediction(writing: Any, server: Any, capsys: Any) -> None:
    seen = []

    def remember(requests: Any, context: Any) -> Any:
        seen.append(context.time_remaining())
        return Writer(["a"])(requests, context)

    server.stream = remember
    with contextlib.suppress(SystemExit):
        run(capsys, server, "m", "x")
        run(capsys, server, "m", "x", "--deadline-s", "5")
    assert 30 < seen[0] < 61
    assert seen[1] < 6
