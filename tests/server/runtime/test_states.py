"""States beside a model: on the host, and on a device, which is the CPU here, by the same calls as on any other."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from forwardpass_server.errors import InvalidRequest, RunFailed
from forwardpass_server.runtime import states
from forwardpass_server.runtime.binding import bound
from forwardpass_server.runtime.providers import resolve
from forwardpass_server.runtime.session import Session
from forwardpass_server.runtime.states import DeviceStates, HostStates, StateSpec
from forwardpass_server.scheduling.stateful import Layout, StatefulModel
from forwardpass_server.tensors import dtypes
from forwardpass_server.tensors.signature import Signature

PLAN = resolve("cpu")
ROWS = 7

Make = Callable[..., HostStates | DeviceStates]


def on_host(specs: list[StateSpec], *, batched: bool) -> HostStates:
    return HostStates(specs, ROWS, batched=batched)


def on_device(specs: list[StateSpec], *, batched: bool) -> DeviceStates:
    return DeviceStates(specs, ROWS, batched=batched, plan=PLAN)


def there(array: np.ndarray, make: Make) -> Any:
    return array if make is on_host else ort.OrtValue.ortvalue_from_numpy(array)


def here(value: object) -> np.ndarray:
    return value.numpy() if isinstance(value, ort.OrtValue) else np.asarray(value)


def numbers(*rows: int) -> np.ndarray:
    return np.array(rows, np.int64)


@pytest.mark.parametrize("make", [on_host, on_device])
@pytest.mark.parametrize("dtype", [dtypes.FP32, dtypes.FP16, dtypes.FP64, dtypes.INT64, dtypes.UINT8, dtypes.BOOL])
@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
def test_rows_are_read_as_they_were_written_and_no_others_change(
    make: Make, dtype: dtypes.Dtype, shape: tuple[int, ...]
) -> None:
    kept = make([StateSpec(dtype=dtype, initial=np.ones(shape, dtype.numpy))], batched=True)
    new = np.asarray(np.arange(2 * int(np.prod(shape))).reshape(2, *shape) % 2, dtype.numpy)
    kept.scatter(numbers(5, 2), [there(new, make)])
    (read,) = kept.gather(numbers(2, 5, 0, 1))
    assert np.array_equal(here(read), np.stack([new[1], new[0], np.ones(shape), np.zeros(shape)]).astype(dtype.numpy))
    assert here(read).dtype == dtype.numpy


@pytest.mark.parametrize("make", [on_host, on_device])
@pytest.mark.parametrize("shape", [(), (2, 3)])
def test_a_model_without_batches_has_states_without_them(make: Make, shape: tuple[int, ...]) -> None:
    kept = make([StateSpec(dtype=dtypes.FP32, initial=np.ones(shape, np.float32))], batched=False)
    assert here(kept.gather(numbers(0))[0]).shape == shape
    kept.scatter(numbers(4), [there(np.full(shape, 7, np.float32), make)])
    assert np.array_equal(here(kept.gather(numbers(4))[0]), np.full(shape, 7, np.float32))
    assert np.array_equal(here(kept.gather(numbers(0))[0]), np.ones(shape, np.float32))


def test_rows_on_a_device_are_written_in_place() -> None:
    kept = on_device([StateSpec(dtype=dtypes.FP32, initial=np.zeros(3, np.float32))], batched=True)
    before = kept._tensors[0]._tensor.data_ptr()
    kept.scatter(numbers(3), [there(np.ones((1, 3), np.float32), on_device)])
    assert kept._tensors[0]._tensor.data_ptr() == before
    assert np.array_equal(kept._tensors[0]._tensor.numpy()[3], np.ones(3))


@pytest.fixture
def session(tmp_path: Path) -> Session:
    """x FP32 [b, 2], h FP32 [b, 2] → y = next = x + h."""
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["b", 2]) for name in ("x", "h")]
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["b", 2]) for name in ("y", "next")]
    nodes = [helper.make_node("Add", ["x", "h"], ["next"]), helper.make_node("Identity", ["next"], ["y"])]
    graph = helper.make_graph(nodes, "sum", inputs, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return Session(path, Signature.from_onnx(path), PLAN)


LAYOUT = Layout(inputs=2, given=(0,), states=((1, 1),), controls=(), outputs=(0,), batched=True)
SPECS = [StateSpec(dtype=dtypes.FP32, initial=np.full(2, 10, np.float32))]


@pytest.mark.parametrize("make", [on_host, on_device])
def test_a_model_steps_its_rows_and_answers_from_the_host(make: Make, session: Session) -> None:
    run = session.run if make is on_host else bound(session, [1], PLAN)
    model = StatefulModel(run, make(SPECS, batched=True), LAYOUT)
    x = np.array([[1, 2], [3, 4]], np.float32)
    (first,) = model.run([x, numbers(0, 0), numbers(1, 3)], [0])
    assert isinstance(first, np.ndarray)
    assert np.array_equal(first, x + 10)
    (second,) = model.run([x[::-1].copy(), numbers(3, 1), numbers(4, 2)], [0])
    assert np.array_equal(second, x[::-1] + x[::-1] + 10)
    # What was read is still there: a run that must be repeated reads it again.
    (again,) = model.run([x[:1], numbers(1), numbers(2)], [0])
    assert np.array_equal(again, x[:1] + x[:1] + 10)


def test_a_run_on_a_device_blames_as_any_other(session: Session) -> None:
    run = bound(session, [1], PLAN)
    with pytest.raises((InvalidRequest, RunFailed)):
        run([np.ones((1, 2), np.float32), np.ones((1, 3), np.float32)], [0])
    session.close()
    with pytest.raises(RunFailed, match="closed"):
        run([np.ones((1, 2), np.float32), np.ones((1, 2), np.float32)], [0])


def test_states_are_on_the_host_beside_the_cpu_and_on_the_device_beside_any_other(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, kept = states.beside(session, PLAN, SPECS, rows=3, outputs=[1], batched=True)
    assert run == session.run
    assert isinstance(kept, HostStates)
    monkeypatch.setattr(states, "CPU", "another")  # the plan's provider is then that of a device
    run, kept = states.beside(session, PLAN, SPECS, rows=3, outputs=[1], batched=True)
    assert isinstance(kept, DeviceStates)
    (y, following) = run([np.ones((1, 2), np.float32), kept.gather(numbers(0))[0]], [0, 1])
    assert np.array_equal(y, np.full((1, 2), 11, np.float32))
    assert isinstance(following, ort.OrtValue)
