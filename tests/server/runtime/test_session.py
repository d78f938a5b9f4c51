"""Arrays through ONNX Runtime and back, and its errors in our words."""

import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from forwardpass_server.errors import InvalidRequest, LoadFailed, OutOfMemory, RunFailed
from forwardpass_server.runtime.providers import CUDA, Plan, resolve
from forwardpass_server.runtime.session import Session, SessionOptions, ort_options
from forwardpass_server.scheduling.termination import Termination
from forwardpass_server.tensors.signature import Signature

Model = Callable[[str], Path]


def load(path: Path, max_batch_size: int = 64) -> Session:
    return Session(path, Signature.from_onnx(path, max_batch_size), resolve("cpu"))


def test_an_answer_equals_that_of_onnxruntime_itself(model: Model) -> None:
    path = model("mlp")
    x = np.random.default_rng(0).standard_normal((7, 10), dtype=np.float32)
    (expected,) = ort.InferenceSession(str(path)).run(None, {"x": x})
    (answer,) = load(path).run([x], (0,))
    np.testing.assert_array_equal(answer, expected)


def test_outputs_come_in_the_order_asked_for(model: Model) -> None:
    session = load(model("two_by_two"))
    a, b = np.full((1, 2), 3, np.float32), np.full((1, 2), 1, np.float32)
    assert [float(output[0, 0]) for output in session.run([a, b], (1, 0))] == [2, 4]
    assert [float(output[0, 0]) for output in session.run([a, b], (0,))] == [4]


def test_every_bit_of_a_float_survives(model: Model) -> None:
    """Conformance 12: NaN with payload, infinities, negative zero, subnormals."""
    bits = np.array([[0x7FC00001, 0xFFC12345], [0x7F800000, 0xFF800000], [0x80000000, 0x00000001]], np.uint32)
    (answer,) = load(model("identity")).run([bits.view(np.float32)], (0,))
    np.testing.assert_array_equal(answer.view(np.uint32), bits)


def test_subnormals_are_computed_with_and_not_flushed(model: Model) -> None:
    tiny = np.full((1, 2), 1e-40, np.float32)
    total, _ = load(model("two_by_two")).run([tiny, tiny], (0, 1))
    np.testing.assert_array_equal(total, tiny + tiny)
    assert total[0, 0] > 0


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("identity_fp64", "f8"),
        ("identity_fp16", "f2"),
        ("identity_bool", "?"),
        ("identity_uint8", "u1"),
        ("identity_int64", "i8"),
    ],
)
@pytest.mark.parametrize("rows", [0, 1, 5])
def test_other_datatypes_and_no_rows_at_all(model: Model, name: str, dtype: str, rows: int) -> None:
    """Conformance 10 for zero rows."""
    x = np.random.default_rng(0).integers(0, 2, (rows, 2)).astype(dtype)
    (answer,) = load(model(name)).run([x], (0,))
    assert answer.dtype == x.dtype
    np.testing.assert_array_equal(answer, x)


@pytest.mark.parametrize("shape", [(2, 3), (0, 3), (4, 0)])
def test_bfloat16_travels_as_bit_patterns(model: Model, shape: tuple[int, int]) -> None:
    bits = np.random.default_rng(0).integers(0, 2**16, shape).astype(np.uint16)
    (answer,) = load(model("identity_bf16")).run([bits], (0,))
    assert answer.dtype == np.uint16
    np.testing.assert_array_equal(answer, bits)


def test_bfloat16_comes_out_of_a_model_that_takes_float32(model: Model) -> None:
    (answer,) = load(model("cast_bf16")).run([np.array([1.0, -2.0], np.float32)], (0,))
    np.testing.assert_array_equal(answer, np.array([0x3F80, 0xC000], np.uint16))


def test_strings_with_nul_empty_and_a_megabyte_survive(model: Model) -> None:
    """Conformance 13."""
    x = np.array(["a\0b", "", "é漢🎉", "x" * 2**20, "\0"], dtype=object)
    (answer,) = load(model("strings")).run([x], (0,))
    assert answer.tolist() == x.tolist()
    assert all(type(text) is str for text in answer)


def test_ten_million_one_byte_strings_survive(model: Model) -> None:
    """Conformance 14, the part of the model."""
    x = np.full(10_485_760, "a", dtype=object)
    x[-1] = "z"
    (answer,) = load(model("strings")).run([x], (0,))
    assert answer.shape == x.shape
    assert (answer[0], answer[-1]) == ("a", "z")


def test_a_scalar_has_no_dimensions(model: Model) -> None:
    (answer,) = load(model("scalar")).run([np.array(3, np.float32)], (0,))
    assert answer.shape == ()
    assert answer == 3


@pytest.mark.parametrize("offset", range(4))
def test_data_at_any_address_are_taken(model: Model, offset: int) -> None:
    x = np.random.default_rng(0).standard_normal((9, 10), dtype=np.float32)
    message = b"." * offset + x.tobytes()
    view = np.ndarray(x.shape, np.float32, message, offset)
    session = load(model("mlp"))
    np.testing.assert_array_equal(session.run([view], (0,))[0], session.run([x], (0,))[0])


def test_an_answer_is_not_the_callers_memory(model: Model) -> None:
    x = np.ones((2, 2), np.float32)
    session = load(model("identity"))
    (first,) = session.run([x], (0,))
    assert not np.shares_memory(first, x)
    x[:] = 5
    (second,) = session.run([x], (0,))
    assert first.max() == 1
    assert second.min() == 5


def test_data_that_the_model_refuses_are_the_callers_fault(model: Model) -> None:
    session = load(model("gather"))
    with pytest.raises(InvalidRequest, match=r"indices element out of data bounds, idx=7") as refused:
        session.run([np.array([0, 7])], (0,))
    assert "/" not in str(refused.value)
    assert session.run([np.array([2])], (0,))[0].tolist() == [[4, 5]]


def test_a_node_that_cannot_use_the_data_is_the_callers_fault_whatever_onnxruntime_calls_it(model: Model) -> None:
    session = load(model("reshape"))
    with pytest.raises(InvalidRequest, match=r"operator Reshape.*requested shape:\{1,2\}$"):
        session.run([np.zeros((3, 2), np.float32)], (0,))
    assert session.run([np.ones((1, 2), np.float32)], (0,))[0].shape == (1, 2)


@pytest.mark.parametrize(
    ("shape", "error"), [([2**40], OutOfMemory), ([2**40, 2**40], InvalidRequest), ([-1], InvalidRequest)]
)
def test_a_model_that_asks_for_too_much_memory_fails_its_run_alone(
    model: Model, shape: list[int], error: type[Exception]
) -> None:
    session = load(model("huge"), 0)
    with pytest.raises(error) as caught:
        session.run([np.array(shape)], (0,))
    assert type(caught.value) is error
    assert session.run([np.array([3])], (0,))[0].shape == (3,)


def test_metadata_and_provider_are_read_from_the_session(model: Model) -> None:
    session = load(model("mlp"))
    assert session.metadata["forwardpass.recipe"] == "mlp"
    assert session.provider == "CPUExecutionProvider"


@pytest.mark.parametrize("content", [b"", b"junk", None])
def test_a_file_that_does_not_load_says_why_and_not_where(model: Model, tmp_path: Path, content: bytes | None) -> None:
    good = model("mlp")
    bad = tmp_path / "bad.onnx"
    bad.write_bytes(good.read_bytes()[:-200] if content is None else content)
    with pytest.raises(LoadFailed, match=r"bad\.onnx") as failed:
        Session(bad, Signature.from_onnx(good), resolve("cpu"))
    assert str(tmp_path) not in str(failed.value)


def test_an_unknown_operator_is_named(tmp_path: Path) -> None:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Frobnicate", ["x"], ["y"], domain="com.example")], "g", [x], [y])
    path = tmp_path / "odd.onnx"
    onnx.save(
        helper.make_model(
            graph, ir_version=10, opset_imports=[helper.make_opsetid("", 18), helper.make_opsetid("com.example", 1)]
        ),
        path,
    )
    with pytest.raises(LoadFailed, match="Frobnicate"):
        load(path)


def test_a_signature_of_another_file_is_noticed(model: Model) -> None:
    with pytest.raises(LoadFailed, match=r"inputs \['a', 'b'\].*\['x'\]"):
        Session(model("mlp"), Signature.from_onnx(model("two_by_two")), resolve("cpu"))


def test_a_session_on_another_provider_than_planned_is_no_session(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What ONNX Runtime does where CUDA cannot load: it makes the session on the CPU and says nothing."""
    path = model("mlp")
    real = ort.InferenceSession
    monkeypatch.setattr(ort, "InferenceSession", lambda file, options, **_: real(file, options))
    plan = Plan(device="cuda:0", providers=((CUDA, {"device_id": "0"}), ("CPUExecutionProvider", {})))
    with pytest.raises(LoadFailed, match="was to run on CUDAExecutionProvider and ONNX Runtime put it on CPU"):
        Session(path, Signature.from_onnx(path), plan)


def test_a_closed_session_refuses(model: Model) -> None:
    x = np.ones((1, 2), np.float32)
    session = load(model("identity"))
    session.run([x], (0,))
    session.close()
    with pytest.raises(RunFailed, match="closed"):
        session.run([x], (0,))


def test_a_run_that_is_not_to_begin_fails_and_the_next_one_runs(model: Model) -> None:
    x = np.ones((1, 2), np.float32)
    session = load(model("identity"))
    termination = Termination()
    termination.ask()
    with pytest.raises(RunFailed, match="terminate"):
        session.run([x], (0,), termination)
    assert session.run([x], (0,), Termination())


def test_terminating_ends_a_run_that_would_not_end(tmp_path: Path) -> None:
    """A Loop of 2^40 turns; only RunOptions.terminate stops it."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["go_on"]),
            helper.make_node("Add", ["state", "state"], ["next"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state", TensorProto.FLOAT, [1]),
        ],
        [
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, [1]),
        ],
    )
    graph = helper.make_graph(
        [helper.make_node("Loop", ["turns", "yes", "x"], ["y"], body=body)],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
        [
            helper.make_tensor("turns", TensorProto.INT64, [], [2**40]),
            helper.make_tensor("yes", TensorProto.BOOL, [], [True]),
        ],
    )
    path = tmp_path / "loop.onnx"
    onnx.save(helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 18)]), path)
    session = load(path)
    started = threading.Event()
    termination = Termination()
    errors: list[Exception] = []
    handle = session._handle

    class Announced:
        """The handle, saying that a run is about to begin."""

        def run(self, *given: object) -> object:
            started.set()
            return handle.run(*given)

    session._handle = Announced()

    def run() -> None:
        try:
            session.run([np.ones(1, np.float32)], (0,), termination)
        except RunFailed as error:
            errors.append(error)

    running = threading.Thread(target=run)
    running.start()
    assert started.wait(10)
    termination.ask()
    running.join(30)
    assert not running.is_alive()
    assert "terminate" in str(errors[0])


def test_one_thread_by_default_and_no_spinning_above() -> None:
    one, two = (ort_options(SessionOptions(intra_op_threads=threads)) for threads in (1, 2))
    for options in (one, two):
        assert options.inter_op_num_threads == 1
        assert options.execution_mode == ort.ExecutionMode.ORT_SEQUENTIAL
    assert (one.intra_op_num_threads, two.intra_op_num_threads) == (1, 2)
    assert two.get_session_config_entry("session.intra_op.allow_spinning") == "0"


def test_senseless_options_are_named() -> None:
    with pytest.raises(ValueError, match="intra_op_threads is 0"):
        SessionOptions(intra_op_threads=0)


def test_several_threads_may_run_one_session(model: Model) -> None:
    session = load(model("mlp"))
    x = np.random.default_rng(0).standard_normal((3, 10), dtype=np.float32)
    expected = session.run([x], (0,))[0]
    wrong: list[int] = []

    def work() -> None:
        answers = [session.run([x], (0,))[0] for _ in range(200)]
        wrong.extend(index for index, answer in enumerate(answers) if not np.array_equal(answer, expected))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not wrong


def test_the_handle_under_the_wrapper_still_answers_as_the_wrapper_does(model: Model) -> None:
    """NOTE: `Session.run` leans on a private name of ONNX Runtime; a new release must be seen to still have it."""
    wrapper = ort.InferenceSession(str(model("identity")))
    x = np.ones((2, 2), np.float32)
    np.testing.assert_array_equal(
        wrapper._sess.run(["y"], {"x": x}, ort.RunOptions())[0], wrapper.run(["y"], {"x": x})[0]
    )


@pytest.mark.parametrize(
    ("level", "of_ort"),
    [(0, "ORT_ENABLE_ALL"), (1, "ORT_ENABLE_EXTENDED"), (-1, "ORT_ENABLE_BASIC"), (2, "ORT_DISABLE_ALL")],
)
def test_the_graph_is_optimised_by_tritons_numbers(level: int, of_ort: str) -> None:
    options = ort_options(SessionOptions(graph_level=level))
    assert options.graph_optimization_level == getattr(ort.GraphOptimizationLevel, of_ort)


def test_what_a_configuration_may_ask_of_a_session_reaches_it() -> None:
    asked = ort_options(SessionOptions(inter_op_threads=3, parallel=True, memory_arena=True, memory_pattern=False))
    assert asked.execution_mode == ort.ExecutionMode.ORT_PARALLEL
    assert (asked.inter_op_num_threads, asked.enable_cpu_mem_arena, asked.enable_mem_pattern) == (3, True, False)
    assert asked.get_session_config_entry("session.inter_op.allow_spinning") == "0"
    plain = ort_options(SessionOptions())
    assert plain.execution_mode == ort.ExecutionMode.ORT_SEQUENTIAL
    assert (plain.inter_op_num_threads, plain.enable_cpu_mem_arena, plain.enable_mem_pattern) == (1, False, True)


@pytest.mark.parametrize("wrong", [{"graph_level": 3}, {"inter_op_threads": 0}, {"intra_op_threads": -1}])
def test_options_that_cannot_be_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        SessionOptions(**wrong)  # type: ignore[arg-type]
