"""Where the names of classes come from, and what a file that cannot be read does to the load."""

import json
from pathlib import Path

import pytest

from forwardpass_proto import model_config_pb2 as pb
from forwardpass_server.errors import LoadFailed
from forwardpass_server.lifecycle import labels
from forwardpass_server.tensors import dtypes
from forwardpass_server.tensors.signature import Signature, TensorSpec

SIGNATURE = Signature((), tuple(TensorSpec(name, dtypes.FP32, ("batch", 3)) for name in ("p", "q")), max_batch_size=8)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    return folder


def read(model: Path, config: pb.ModelConfig | None = None, **metadata: str) -> dict[str, tuple[str, ...]]:
    given = {key.replace("_", "."): value for key, value in metadata.items()}
    return labels.read(model, model.parent, config, given, SIGNATURE)


def test_a_model_without_labels_has_none(model: Path) -> None:
    assert read(model) == {}


def test_the_list_in_the_onnx_file_is_of_every_output(model: Path) -> None:
    (model / "labels.txt").write_text("other\n")
    assert read(model, forwardpass_labels=json.dumps(["a", "b"])) == {"p": ("a", "b"), "q": ("a", "b")}


@pytest.mark.parametrize("text", ["", "{", "{}", "[1]", "null", '"a"'])
def test_metadata_of_somebody_else_are_no_labels(model: Path, text: str) -> None:
    assert read(model, forwardpass_labels=text) == {}


@pytest.mark.parametrize("ends", ["\n", "\r\n"])
def test_the_file_beside_the_versions_has_one_a_line(model: Path, ends: str) -> None:
    (model / "labels.txt").write_bytes(ends.join(["a", "", "été", ""]).encode())
    assert read(model)["p"] == ("a", "", "été")


def test_the_file_that_the_configuration_names_is_of_its_output(model: Path) -> None:
    (model / "labels.txt").write_text("x\ny\n")
    (model / "fruit.txt").write_text("apple\npear\n")
    config = pb.ModelConfig(output=[pb.ModelOutput(name="q", label_filename="fruit.txt")])
    assert read(model, config) == {"p": ("x", "y"), "q": ("apple", "pear")}


@pytest.mark.parametrize("name", ["nothing.txt", "../secret.txt", "/etc/passwd", "bad.txt", "folder"])
def test_a_file_that_cannot_be_read_fails_the_load_by_name(model: Path, name: str) -> None:
    (model / "bad.txt").write_bytes(b"\xff\xfe")
    (model / "folder").mkdir()
    (model.parent.parent / "secret.txt").write_text("secret")
    config = pb.ModelConfig(output=[pb.ModelOutput(name="q", label_filename=name)])
    with pytest.raises(LoadFailed) as caught:
        read(model, config)
    assert "secret" not in str(caught.value).replace("secret.txt", "")
