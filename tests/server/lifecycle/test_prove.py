"""The proof: an answer that is wrong alone, in company, or in one place only is found and named."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from forwardpass_server.lifecycle.prove import Golden, ProofFailed, Run, prove, read
from forwardpass_server.lifecycle.repository import GoldenSet, Tolerance
from forwardpass_server.tensors import dtypes
from forwardpass_server.tensors.signature import Signature, TensorSpec

BATCHED = Signature(
    (TensorSpec("x", dtypes.FP32, ("batch", 3)),), (TensorSpec("y", dtypes.FP32, ("batch", 3)),), max_batch_size=8
)
ALONE = Signature(BATCHED.inputs, BATCHED.outputs, max_batch_size=0)
BUCKETS = (1, 2, 4, 8)


def golden(name: str, x: Any, y: Any, *, atol: float = 1e-6, rtol: float = 0.0) -> Golden:
    inputs, outputs = [np.asarray(x, np.float32)], [np.asarray(y, np.float32)]
    return Golden(name=name, inputs=[*inputs], outputs=[*outputs], tolerances=(Tolerance(atol=atol, rtol=rtol),))


def rows(*numbers: float) -> np.ndarray:
    return np.array([[number] * 3 for number in numbers], np.float32)


class Model:
    """y = 2x, recorded; `wrong` may spoil the outputs of a batch."""

    def __init__(self, wrong: Any = None) -> None:
        self.batches: list[np.ndarray] = []
        self._wrong = wrong

    def __call__(self, inputs: Sequence[np.ndarray | None], outputs: Sequence[int]) -> list[np.ndarray]:
        x = inputs[0]
        assert x is not None
        assert list(outputs) == [0]
        self.batches.append(x)
        y = 2 * x
        return [y if self._wrong is None else self._wrong(x, y)]


EXAMPLES = [golden("set_0", rows(1, 2), rows(2, 4)), golden("set_1", rows(3), rows(6))]


def test_each_example_runs_alone_and_its_rows_in_every_bucket() -> None:
    model = Model()
    runs = prove(model, BATCHED, EXAMPLES, BUCKETS)
    assert runs == len(model.batches)
    assert [len(batch) for batch in model.batches[:2]] == [2, 1]
    for bucket in BUCKETS:
        seen = {row[0] for batch in model.batches if len(batch) == bucket for row in batch}
        assert seen == {1, 2, 3}, bucket


def test_a_model_that_is_not_batched_runs_alone_only() -> None:
    model = Model()
    assert prove(model, ALONE, EXAMPLES, BUCKETS) == 2


def test_a_wrong_answer_is_named_with_example_output_place_error_and_tolerance() -> None:
    def spoil_third_column(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        spoilt = y.copy()
        spoilt[1:, 2] += 0.25
        return spoilt

    with pytest.raises(ProofFailed) as caught:
        prove(Model(spoil_third_column), BATCHED, EXAMPLES, BUCKETS)
    for part in ("'set_0'", "'y'", "at [1, 2]", "alone", "max error 0.25", "got 4.25, recorded 4", "tolerance 1e-06"):
        assert part in str(caught.value)


def test_an_answer_that_depends_on_the_other_rows_is_found_and_its_owner_named() -> None:
    """As a normalisation over the batch does: right for each example alone, wrong among others."""

    def shift_by_company(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return y + np.where(x == 3, np.float32(len(x) > 1), 0).astype(np.float32)

    with pytest.raises(ProofFailed) as caught:
        prove(Model(shift_by_company), BATCHED, EXAMPLES, BUCKETS)
    for part in ("'set_1'", "in a batch of 2", "max error 1"):
        assert part in str(caught.value)


def test_an_answer_that_depends_on_its_place_in_the_batch_is_found() -> None:
    def spoil_last_of_many(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        spoilt = y.copy()
        if len(x) == 8:
            spoilt[7] = 0
        return spoilt

    with pytest.raises(ProofFailed, match="in a batch of 8"):
        prove(Model(spoil_last_of_many), BATCHED, EXAMPLES, BUCKETS)


def test_a_shape_that_differs_is_named_with_both() -> None:
    with pytest.raises(ProofFailed, match=r"shape \[2, 2\], recorded \[2, 3\]"):
        prove(Model(lambda x, y: y[:, :2]), ALONE, EXAMPLES, ())


def test_the_tolerance_is_absolute_plus_relative_to_what_was_recorded() -> None:
    example = golden("set", rows(50), rows(100), atol=0.5, rtol=0.01)
    prove(Model(lambda x, y: y + np.float32(1.5)), ALONE, [example], ())
    with pytest.raises(ProofFailed, match=r"tolerance 1\.5"):
        prove(Model(lambda x, y: y + np.float32(1.51)), ALONE, [example], ())


@pytest.mark.parametrize("recorded", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_must_be_the_same(recorded: float) -> None:
    example = golden("set", rows(1), rows(recorded), atol=1e9)
    prove(Model(lambda x, y: np.full_like(y, recorded)), ALONE, [example], ())
    for other in (0.0, np.nan, np.inf, -np.inf):
        if not np.array_equal(other, recorded, equal_nan=True):
            with pytest.raises(ProofFailed):
                prove(Model(lambda x, y, value=other: np.full_like(y, value)), ALONE, [example], ())


def test_nan_where_a_number_was_recorded_is_no_pass() -> None:
    with pytest.raises(ProofFailed, match="max error inf"):
        prove(Model(lambda x, y: np.full_like(y, np.nan)), ALONE, [golden("s", rows(1), rows(2), atol=1e30)], ())


def answering(answer: np.ndarray) -> Run:
    """A model that always gives this answer."""
    return lambda inputs, outputs: [answer]


def test_integers_and_text_must_be_equal_whatever_the_tolerance() -> None:
    for dtype, want, got in (
        (dtypes.INT64, np.array([[1, 2]]), np.array([[1, 3]])),
        (dtypes.BYTES, np.array([["a", "b"]], object), np.array([["a", "c"]], object)),
        (dtypes.BOOL, np.array([[True, False]]), np.array([[True, True]])),
    ):
        signature = Signature(ALONE.inputs, (TensorSpec("y", dtype, ("batch", 2)),), 0)
        loose = (Tolerance(atol=100, rtol=100),)
        example = Golden(name="set", inputs=[rows(1)], outputs=[want], tolerances=loose)
        prove(answering(want), signature, [example], ())
        with pytest.raises(ProofFailed, match=r"at \[0, 1\].*must be equal"):
            prove(answering(got), signature, [example], ())


def test_bfloat16_is_compared_as_numbers_and_not_as_bits() -> None:
    signature = Signature(ALONE.inputs, (TensorSpec("y", dtypes.BF16, ("batch",)),), 0)
    one, next_up = np.array([0x3F80], np.uint16), np.array([0x3F81], np.uint16)
    example = Golden(name="s", inputs=[rows(1)], outputs=[one], tolerances=(Tolerance(atol=0.01, rtol=0),))
    prove(lambda inputs, outputs: [next_up], signature, [example], ())
    strict = Golden(name="s", inputs=[rows(1)], outputs=[one], tolerances=(Tolerance(atol=0.001, rtol=0),))
    with pytest.raises(ProofFailed, match=r"max error 0\.0078"):
        prove(lambda inputs, outputs: [next_up], signature, [strict], ())


def test_examples_of_different_shapes_are_not_mixed() -> None:
    dynamic = Signature(
        (TensorSpec("x", dtypes.FP32, ("batch", None)),), (TensorSpec("y", dtypes.FP32, ("batch", None)),), 8
    )
    long = golden("long", np.ones((2, 5)), np.full((2, 5), 2))
    model = Model()
    prove(model, dynamic, [*EXAMPLES, long], BUCKETS)
    assert {batch.shape[1] for batch in model.batches} == {3, 5}


def write(folder: Path, name: str, array: np.ndarray | TensorProto, tensor_name: str = "") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    tensor = array if isinstance(array, TensorProto) else numpy_helper.from_array(array, tensor_name)
    (folder / name).write_bytes(tensor.SerializeToString())


SET = GoldenSet(folder="set", atol=1e-3, rtol=0.0, outputs={"z": Tolerance(atol=1.0, rtol=0.0)})
TWO = Signature(
    (TensorSpec("a", dtypes.FP32, ("batch",)), TensorSpec("b", dtypes.INT64, ("batch",))),
    (TensorSpec("y", dtypes.FP32, ("batch",)), TensorSpec("z", dtypes.FP32, ("batch",))),
    8,
)
A, B = np.ones(2, np.float32), np.ones(2, np.int64)


def test_tensors_are_matched_by_name_before_number(tmp_path: Path) -> None:
    write(tmp_path / "set", "input_0.pb", B, "b")
    write(tmp_path / "set", "input_1.pb", A, "a")
    write(tmp_path / "set", "output_0.pb", A, "z")
    (example,) = read(tmp_path, [SET], TWO)
    assert [None if x is None else x.dtype for x in example.inputs] == [np.float32, np.int64]
    assert example.outputs[0] is None
    assert [tolerance.atol for tolerance in example.tolerances] == [1e-3, 1.0]


def test_tensors_without_names_are_matched_by_number(tmp_path: Path) -> None:
    write(tmp_path / "set", "input_0.pb", A)
    write(tmp_path / "set", "input_1.pb", B)
    write(tmp_path / "set", "output_1.pb", A)
    (example,) = read(tmp_path, [SET], TWO)
    assert example.outputs[0] is None
    assert example.outputs[1] is not None


def external() -> TensorProto:
    tensor = TensorProto(name="a", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="/etc/hostname")
    return tensor


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"input_0.pb": ("a", A), "output_0.pb": ("y", A)}, "no input 'b'"),
        ({"input_0.pb": ("a", A), "input_1.pb": ("b", B)}, "records no output"),
        ({"input_0.pb": ("q", A)}, "'q', which is unknown"),
        ({"input_0.pb": ("a", A), "input_1.pb": ("a", A)}, "there twice"),
        ({"input_9.pb": ("", A)}, "unknown"),
        ({"input_0.pb": ("a", A.astype(np.float64))}, "DOUBLE; the model's 'a' is FLOAT"),
        ({"input_0.pb": ("a", external())}, "in another file"),
        ({"input_0.pb": ("a", TensorProto(name="a", data_type=1, dims=[7], raw_data=b"123"))}, "cannot be read"),
    ],
)
def test_a_bad_example_is_refused_with_its_name(tmp_path: Path, files: dict[str, Any], reason: str) -> None:
    for name, (tensor_name, array) in files.items():
        write(tmp_path / "set", name, array, tensor_name)
    with pytest.raises(ProofFailed, match="'set'") as caught:
        read(tmp_path, [SET], TWO)
    assert reason in str(caught.value)


def test_a_file_that_is_no_tensor_is_named(tmp_path: Path) -> None:
    write(tmp_path / "set", "input_0.pb", A)
    (tmp_path / "set" / "input_0.pb").write_bytes(b"\xff\xff\xff")
    with pytest.raises(ProofFailed, match=r"input_0\.pb is not a tensor"):
        read(tmp_path, [SET], TWO)


def test_an_example_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ProofFailed, match="no input"):
        read(tmp_path, [SET], TWO)


def test_bfloat16_examples_are_read_as_bit_patterns(tmp_path: Path) -> None:
    signature = Signature((TensorSpec("a", dtypes.BF16, (2,)),), (TensorSpec("y", dtypes.BF16, (2,)),), 0)
    tensor = onnx.helper.make_tensor("a", TensorProto.BFLOAT16, [2], b"\x80\x3f\x00\x40", raw=True)
    write(tmp_path / "set", "input_0.pb", tensor)
    tensor.name = "y"
    write(tmp_path / "set", "output_0.pb", tensor)
    (example,) = read(tmp_path, [SET], signature)
    assert example.inputs[0] is not None
    assert example.inputs[0].dtype == np.uint16
    assert example.inputs[0].tolist() == [0x3F80, 0x4000]


def test_a_model_without_inputs_has_examples_of_answers_alone(tmp_path: Path) -> None:
    constant = Signature((), BATCHED.outputs, max_batch_size=0)
    write(tmp_path / "set", "output_0.pb", A)
    (example,) = read(tmp_path, [GoldenSet(folder="set", atol=0.0, rtol=0.0)], constant)
    assert prove(lambda inputs, outputs: [A], constant, [example], ()) == 1
    with pytest.raises(ProofFailed, match="max error 1"):
        prove(lambda inputs, outputs: [A + 1], constant, [example], ())
