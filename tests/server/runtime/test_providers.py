"""From --device to a plan: what works is used, what is missing is named, nothing falls back in silence."""

import ctypes

import onnxruntime as ort
import pytest

from forwardpass_server.errors import StartFailed
from forwardpass_server.runtime import providers
from forwardpass_server.runtime.providers import CPU, CUDA, TENSORRT, Plan, resolve, try_plan

EVERYTHING = (TENSORRT, CUDA, CPU)
NO_CUDNN = "libcudnn.so.9: cannot open shared object file: No such file or directory"


def works(plan: Plan) -> str | None:
    return None


def lacks_cudnn(plan: Plan) -> str | None:
    return NO_CUDNN


def test_the_cpu_is_always_there() -> None:
    plan = resolve("cpu")
    assert (plan.device, plan.expected, plan.fallback_reason) == ("cpu", CPU, None)
    assert try_plan(plan) is None


@pytest.mark.parametrize(
    ("device", "expected", "names", "index"),
    [
        ("cuda", "cuda:0", [CUDA, CPU], "0"),
        ("cuda:3", "cuda:3", [CUDA, CPU], "3"),
        ("tensorrt:1", "tensorrt:1", [TENSORRT, CUDA, CPU], "1"),
        ("auto", "cuda:0", [CUDA, CPU], "0"),
    ],
)
def test_a_gpu_that_works_is_used(device: str, expected: str, names: list[str], index: str) -> None:
    plan = resolve(device, available=lambda: EVERYTHING, probe=works)
    assert plan.device == expected
    assert [name for name, _ in plan.providers] == names
    assert plan.providers[0][1]["device_id"] == index
    assert plan.fallback_reason is None


def test_answers_do_not_depend_on_tf32() -> None:
    plan = resolve("cuda", available=lambda: EVERYTHING, probe=works)
    assert plan.providers[0][1]["use_tf32"] == "0"


def test_auto_falls_back_aloud() -> None:
    plan = resolve("auto", available=lambda: EVERYTHING, probe=lacks_cudnn)
    assert plan.device == "cpu"
    assert plan.fallback_reason == NO_CUDNN


@pytest.mark.parametrize("device", ["cuda", "cuda:1", "tensorrt"])
def test_a_gpu_that_was_asked_for_and_cannot_be_had_refuses_to_start_and_names_what_is_missing(device: str) -> None:
    with pytest.raises(StartFailed, match=rf"'{device}' cannot be had: libcudnn\.so\.9.*--device cpu or auto"):
        resolve(device, available=lambda: EVERYTHING, probe=lacks_cudnn)


def test_a_build_without_cuda_says_what_to_install() -> None:
    with pytest.raises(StartFailed, match=r"built without CUDAExecutionProvider .*forwardpass\[server,cuda\]"):
        resolve("cuda", available=lambda: (CPU,))
    reason = resolve("auto", available=lambda: (CPU,)).fallback_reason
    assert reason
    assert "built without" in reason


@pytest.mark.parametrize("device", ["", "gpu", "cuda:", "cuda:-1", "cuda:x", "cpu:0", "CUDA", "cuda:1000", "cpu\n"])
def test_other_devices_are_refused_with_the_list(device: str) -> None:
    with pytest.raises(StartFailed, match="not one of auto, cpu, cuda"):
        resolve(device)


GPU = Plan(device="cuda:0", providers=((CUDA, {"device_id": "0"}), (CPU, {})))


class OnTheCpu:
    """A session that ONNX Runtime made on the CPU although CUDA was asked for."""

    def __init__(self, *_: object, **__: object) -> None: ...

    def get_providers(self) -> list[str]:
        return [CPU]


def test_a_session_that_silently_ended_on_the_cpu_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort, "InferenceSession", OnTheCpu)
    monkeypatch.setattr(providers, "missing_library", lambda _: None)
    assert try_plan(GPU) == f"ONNX Runtime gave {CPU} instead of {CUDA}"


def test_the_linkers_words_are_preferred(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str, mode: int = 0) -> None:
        raise OSError(NO_CUDNN)

    monkeypatch.setattr(ort, "InferenceSession", OnTheCpu)
    monkeypatch.setattr(ctypes, "CDLL", refuse)
    assert try_plan(GPU) == NO_CUDNN


def test_a_session_that_raises_is_a_reason_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("CUDA failure 35:\n  driver version is insufficient")

    monkeypatch.setattr(ort, "InferenceSession", refuse)
    monkeypatch.setattr(providers, "missing_library", lambda _: None)
    assert try_plan(GPU) == "CUDA failure 35: driver version is insufficient"


def test_onnxruntimes_own_fallback_is_off() -> None:
    given = providers.arguments(GPU)
    assert given["enable_fallback"] == 0
    assert given["providers"] == [CUDA, CPU]
    assert given["provider_options"] == [{"device_id": "0"}, {}]


class TestForModel:
    """Where one model runs, by its own wishes."""

    gpu = providers.Plan(device="cuda:1", providers=((providers.CUDA, {"device_id": "1"}), (providers.CPU, {})))
    cpu = providers.Plan(device="cpu", providers=((providers.CPU, {}),), fallback_reason="no GPU")

    def test_a_model_that_says_nothing_runs_where_the_server_does(self) -> None:
        assert providers.for_model(self.gpu) is self.gpu
        assert providers.for_model(self.cpu) is self.cpu

    def test_a_model_for_the_cpu_runs_there(self) -> None:
        assert providers.for_model(self.gpu, on_cpu=True).providers == ((providers.CPU, {}),)
        assert providers.for_model(self.cpu, on_cpu=True) is self.cpu

    def test_tensorrt_is_nothing_without_a_gpu(self) -> None:
        assert providers.for_model(self.cpu, tensorrt={"trt_fp16_enable": "1"}) is self.cpu

    def test_tensorrt_that_cannot_be_had_is_said_and_gone_without(self, caplog: pytest.LogCaptureFixture) -> None:
        def missing(_plan: providers.Plan) -> str:
            return "libnvinfer.so.10: cannot open shared object file"

        assert (
            providers.for_model(self.gpu, tensorrt={}, probe=missing, available=lambda: [providers.TENSORRT])
            is self.gpu
        )
        assert "libnvinfer" in caplog.text

    def test_tensorrt_runs_on_the_servers_gpu_with_the_models_options(self) -> None:
        options = {"trt_fp16_enable": "1"}
        plan = providers.for_model(
            self.gpu, tensorrt=options, probe=lambda _plan: None, available=lambda: [providers.TENSORRT]
        )
        assert plan.device == "tensorrt:1"
        assert plan.providers[0] == (providers.TENSORRT, {"device_id": "1", "trt_fp16_enable": "1"})
        assert [name for name, _ in plan.providers] == [providers.TENSORRT, providers.CUDA, providers.CPU]
