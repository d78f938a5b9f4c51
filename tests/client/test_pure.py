"""The small pure parts: errors, statuses, retry policies, credentials, shapes, pictures, text."""

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import forwardpass.errors as e
from forwardpass import TLS, Client, InferResult, RetryPolicy, TensorMetadata, images, load, render, status
from forwardpass.credentials import channel_credentials
from forwardpass.fit import fit
from forwardpass.messages import health
from forwardpass.results import ModelMetadata
from forwardpass.retry import service_config
from forwardpass_proto import health_pb2

KINDS = [kind for kind in vars(e).values() if isinstance(kind, type) and issubclass(kind, e.ForwardpassError)]


@pytest.mark.parametrize("kind", KINDS)
def test_every_error_survives_pickling_with_all_it_carries(kind: type[e.ForwardpassError]) -> None:
    error = kind("full", code="X", model="m", address="a:1")
    if isinstance(error, e.Overloaded):
        error.retry_after_s = 0.5
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is kind
    assert vars(copy) == vars(error)
    assert str(copy) == "full [model 'm', server a:1, X]"


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    drawn = {}
    parents = {-4: "ForwardpassError"}
    for line in (e.__doc__ or "").splitlines():
        if "──" in line:
            depth = line.index("──")
            drawn[line.split("──")[1].split()[0]] = parents[max(key for key in parents if key < depth - 1)]
            parents = {key: name for key, name in parents.items() if key < depth}
            parents[depth] = line.split("──")[1].split()[0]
    real = {kind.__name__: kind.__bases__[0].__name__ for kind in KINDS if kind is not e.ForwardpassError}
    assert drawn == real


@pytest.mark.parametrize(
    ("trailers", "expected"),
    [
        ([("grpc-retry-pushback-ms", "40")], 0.04),
        ([("grpc-retry-pushback-ms", "0")], 0.0),
        ([("grpc-retry-pushback-ms", "soon")], None),
        ([("other", "40")], None),
        ([], None),
    ],
)
def test_retry_after_is_what_the_server_said(trailers: Any, expected: float | None) -> None:
    error = status.error_of("RESOURCE_EXHAUSTED", "full", trailers, model="m", address="a", deadline_s=1)
    assert isinstance(error, e.Overloaded)
    assert error.retry_after_s == expected


def test_an_exhaustion_whose_retry_is_forbidden_is_too_large() -> None:
    trailers = [("grpc-retry-pushback-ms", "-1")]
    error = status.error_of("RESOURCE_EXHAUSTED", "90 MiB queued at once", trailers, model="", address="", deadline_s=1)
    assert isinstance(error, e.TooLarge)


def test_a_status_without_words_still_says_something() -> None:
    error = status.error_of("INTERNAL", "", (), model="", address="a:1", deadline_s=1)
    assert str(error) == "the server gave no reason for INTERNAL [server a:1, INTERNAL]"


def test_the_servers_own_words_on_a_deadline_are_kept() -> None:
    error = status.error_of("DEADLINE_EXCEEDED", "queue cannot clear", (), model="", address="", deadline_s=1)
    assert error.reason == "queue cannot clear"


def test_the_service_config_says_what_the_policy_says() -> None:
    config = json.loads(service_config(RetryPolicy(attempts=4, initial_backoff_s=0.05), "round_robin"))
    policy = config["methodConfig"][0]["retryPolicy"]
    assert policy["maxAttempts"] == 4
    assert policy["initialBackoff"] == "0.050000000s"
    assert policy["retryableStatusCodes"] == ["UNAVAILABLE", "RESOURCE_EXHAUSTED"]
    assert config["healthCheckConfig"] == {"serviceName": ""}
    assert "healthCheckConfig" not in json.loads(service_config(None, "pick_first"))
    assert "methodConfig" not in json.loads(service_config(None, "pick_first"))


@pytest.mark.parametrize(
    "settings",
    [
        {"attempts": 1},
        {"attempts": 6},
        {"initial_backoff_s": 0},
        {"initial_backoff_s": 5},
        {"backoff_multiplier": 0.5},
        {"codes": ("BUSY",)},
        {"codes": ("OK",)},
        {"codes": ()},
    ],
)
def test_a_policy_that_grpc_would_reject_is_refused(settings: Any) -> None:
    with pytest.raises(e.ClientMisused, match="retr"):
        RetryPolicy(**settings)


def test_certificate_files_that_cannot_work_are_named(tmp_path: Path) -> None:
    (tmp_path / "junk.pem").write_text("junk")
    with pytest.raises(e.ClientMisused, match=r"ca_file '.*none.pem' cannot be read"):
        channel_credentials(TLS(ca_file=tmp_path / "none.pem"))
    with pytest.raises(e.ClientMisused, match=r"ca_file '.*junk.pem' holds no PEM block 'CERTIFICATE'"):
        channel_credentials(TLS(ca_file=tmp_path / "junk.pem"))
    with pytest.raises(e.ClientMisused, match="both cert_file and key_file"):
        channel_credentials(TLS(cert_file=tmp_path / "junk.pem"))


def test_a_key_in_place_of_a_certificate_is_noticed(certificates: Any) -> None:
    with pytest.raises(e.ClientMisused, match=r"cert_file .* holds no PEM block 'CERTIFICATE'"):
        channel_credentials(TLS(cert_file=certificates.client_key, key_file=certificates.client_key))
    with pytest.raises(e.ClientMisused, match=r"key_file .* holds no PEM block 'PRIVATE KEY'"):
        channel_credentials(TLS(cert_file=certificates.client_cert, key_file=certificates.client_cert))


def test_a_token_never_travels_in_plaintext_unless_told() -> None:
    with pytest.raises(e.ClientMisused, match="plaintext"):
        Client("models:8001", token="secret")
    Client("models:8001", token="secret", allow_plaintext_token=True).close()
    Client("grpcs://models:443", token="secret").close()
    Client("unix:/run/x.sock", token="secret").close()


def test_a_health_status_from_the_future_is_unknown() -> None:
    assert health(health_pb2.HealthCheckResponse(status=17)) == "UNKNOWN"  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "wanted", "expected"),
    [
        ((), (-1, 1), (1, 1)),
        ((3,), (-1, 1), (3, 1)),
        ((2,), (-1, 2), (1, 2)),
        ((6,), (-1, 2), (3, 2)),
        ((28, 28), (-1, 28, 28), (1, 28, 28)),
        ((5,), (-1, -1), (1, 5)),
        ((), (-1,), (1,)),
        ((2, 128), (-1, 2, 128), (1, 2, 128)),
        ((3,), (-1, 2), None),
        ((4, 28), (-1, 28, 28), None),
        ((1, 1), (-1, 1), None),
        ((7,), (-1, 0), None),
    ],
)
def test_fit(given: Any, wanted: Any, expected: Any) -> None:
    assert fit(given, wanted) == expected
    if expected is not None:
        np.zeros(given).reshape(expected)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((-1, 28, 30), images.Layout(28, 30, 1, None)),
        ((-1, 3, 224, 225), images.Layout(224, 225, 3, 0)),
        ((-1, 224, 225, 3), images.Layout(224, 225, 3, -1)),
        ((-1, 1, -1, -1), images.Layout(-1, -1, 1, 0)),
    ],
)
def test_where_height_width_and_channels_are(shape: Any, expected: images.Layout) -> None:
    assert images.layout(shape, "image") == expected


@pytest.mark.parametrize("shape", [(-1, 10), (10,), (), (-1, 4, 8, 8), (-1, 3, 3, 3, 3)])
def test_shapes_that_are_no_picture(shape: Any) -> None:
    with pytest.raises(e.InvalidRequest, match="no picture"):
        images.layout(shape, "image")


@pytest.mark.parametrize("datatype", ["BOOL", "INT8", "BYTES"])
def test_datatypes_that_hold_no_picture(datatype: str, tmp_path: Path) -> None:
    from PIL import Image

    Image.new("L", (4, 4)).save(tmp_path / "p.png")
    with pytest.raises(e.InvalidRequest, match=f"takes {datatype}"):
        images.load(tmp_path / "p.png", TensorMetadata("x", datatype, (-1, 4, 4)), invert=False)


def test_a_transparent_picture_is_put_on_white(tmp_path: Path) -> None:
    from PIL import Image

    Image.new("RGBA", (2, 2), (0, 0, 0, 0)).save(tmp_path / "p.png")
    pixels, choices = images.load(tmp_path / "p.png", TensorMetadata("x", "UINT8", (-1, -1, -1)), invert=False)
    assert pixels.tolist() == [[[255, 255], [255, 255]]]
    assert "put on white where transparent" in choices


def answer(**arrays: Any) -> InferResult:
    return InferResult({k: np.asarray(v) for k, v in arrays.items()}, "m", "3", "", {}, {})


def test_many_rows_are_cut_with_a_word() -> None:
    text = render.result(answer(p=np.full((12, 2), 0.5, np.float32)), ["cat", "dog"], "#")
    assert text.count("row ") == 10
    assert "and 2 more rows" in text
    assert "  cat  0.5000  ###############" in text


def test_labels_that_do_not_match_are_not_used() -> None:
    assert "cat" not in render.result(answer(p=np.array([[0.2, 0.3, 0.5]], np.float32)), ["cat", "dog"])


@pytest.mark.parametrize("array", [[[0.5, 0.6]], [0.5], 1.0, np.zeros((0, 3)), [1, 0], [[-1.0, 2.0]], [[np.nan, 1.0]]])
def test_what_is_no_distribution(array: Any) -> None:
    assert not render.is_distribution(np.asarray(array))


def test_json_of_numbers_and_bytes_that_json_lacks() -> None:
    facts = render.result_as_json(answer(x=[np.nan, -np.inf], t=np.array([b"ok", b"\xff"], object)), [])
    assert json.loads(json.dumps(facts, allow_nan=False))["outputs"] == {
        "x": {"shape": [2], "data": ["NaN", "-Infinity"]},
        "t": {"shape": [2], "data": ["ok", {"base64": "/w=="}]},
    }


def test_percentiles_are_latencies_that_were_seen() -> None:
    seen = load.Load(seconds=2.0, latencies_s=[0.003, 0.001, 0.002, 0.004])
    assert [seen.percentile_s(percent) for percent in (50, 90, 99, 100)] == [0.002, 0.004, 0.004, 0.004]
    assert seen.rate == 2.0


def test_random_inputs_fit_the_signature() -> None:
    tensors = tuple(
        TensorMetadata(name, name, (-1, -1, 3)) for name in ("FP32", "BF16", "UINT8", "INT64", "BYTES", "BOOL")
    )
    made: Any = load.random_inputs(ModelMetadata("m", ("1",), "", tensors, (), {}), rows=4)
    assert {name: array.shape for name, array in made.items()} == {tensor.name: (4, 1, 3) for tensor in tensors}
    assert made["INT64"].dtype == np.int64
