"""The log of a real server: a line for each step of a life, none for a request, nothing that a caller could forge."""

from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from forwardpass_proto import grpc_service_pb2 as pb

FORGED = 'x\n{"time": "2026-01-01T00:00:00Z", "level": "info", "message": "serving", "address": "forged"}\x1b[2J'

LIFE = [
    "starting", "device", "metrics page", "version loading", "version warmed and proved", "version ready",
    "model ready", "serving", "stopping", "calls ended", "version draining", "stopped",
]  # fmt: skip


def send_everything(client: Any) -> None:
    """Requests that go well, and requests that go wrong in every way that a caller can think of."""
    rows = np.ones((1, 3), np.float32)
    futures = [client.infer_future("scale", rows) for _ in range(100)]
    futures += [client.infer_future(name, rows) for name in ("nobody", FORGED, "x" * 10_000, "../../etc")]
    futures += [client.infer_future("scale", rows, version=version) for version in ("7", "x", FORGED)]
    futures += [client.infer_future("scale", np.ones((1, 5), np.float32))]
    futures += [client.infer_future("scale", rows, timeout_s=1e-6) for _ in range(20)]
    channel = client.channel
    for method in ("ModelInfer", "ModelMetadata", "RepositoryIndex", "NoSuchMethod", "ModelStreamInfer"):
        call = channel.unary_unary(f"/inference.GRPCInferenceService/{method}")
        futures += [call.future(body, timeout=20) for body in (b"", b"\xff\xff\xff", FORGED.encode())]
        futures += [call.future(b"", timeout=20, metadata=[("x-hostile", "a" * 8000), ("authorization", "Bearer x")])]
    for future in futures:
        future.exception()
    gone = client.infer_future("scale", rows)
    gone.cancel()
    with pytest.raises(grpc.RpcError):
        client.call(
            "RepositoryModelLoad", pb.RepositoryModelLoadRequest(model_name=FORGED), pb.RepositoryModelLoadResponse
        )


def test_a_life_has_its_lines_and_requests_have_none(serve: Any, publish: Any) -> None:
    publish("scale", 2.0)
    with serve() as server:
        client = server.client()
        send_everything(client)
        server.terminate()
        assert server.wait() == 0
        while (line := server._news.get(timeout=10)) is not None:
            server.lines.append(line)
    said = [line["message"] for line in server.lines]
    assert [message for message in said if message in LIFE] == LIFE
    served = said[: said.index("stopping")]
    assert served == LIFE[: len(served)], "and nothing else: requests leave no line"
    steps = [message.split(maxsplit=1)[0] for message in said[len(served) :]]
    assert set(steps) <= {"stopping", "stopping:", "drained", "waited", "calls", "version", "stopped"}
    assert len(steps) <= 10
    assert {line["level"] for line in server.lines} == {"info"}
    assert not [raw for raw in server.raw if not raw.startswith("{")], "every line is one JSON object"
    assert all(line.isprintable() for line in (raw.rstrip("\n") for raw in server.raw))


def test_names_of_files_are_escaped_and_cut(serve: Any, publish: Any, bare: Any, root: Path) -> None:
    publish("scale", 2.0)
    (root / "bro\nken\x1b[31m").mkdir()
    bare("unreadable", 1).write_bytes(b"no model" * 1000)
    with serve() as server:
        server.wait_for("serving")
        server.terminate()
        assert server.wait() == 0
    assert all(raw.rstrip("\n").isprintable() for raw in server.raw)
    assert all(len(raw) < 5000 for raw in server.raw)
    failed = [line for line in server.lines if line["message"] == "version failed"]
    assert [line["model"] for line in failed] == ["unreadable"]
