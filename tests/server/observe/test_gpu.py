"""NVML seen through a stand-in: what a driver says, and what it does not."""

import ctypes
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from forwardpass_server.observe import gpu
from forwardpass_server.observe.gpu import Gpus
from forwardpass_server.observe.metrics import Metrics


class Nvml:
    """Two GPUs, by NVML's C names; takes what `ctypes.byref` gives. `silent` functions fail, as on some devices."""

    def __init__(self, *silent: str) -> None:
        self._silent = silent

    def __getattr__(self, name: str) -> Any:
        if name == "nvmlDeviceGetTotalEnergyConsumption":
            raise AttributeError(name)  # an older driver
        return lambda *arguments: 3 if name in self._silent else getattr(self, f"_{name}")(*arguments)

    def _nvmlDeviceGetCount_v2(self, count: Any) -> int:  # noqa: N802 - its name
        count._obj.value = 2
        return 0

    def _nvmlDeviceGetHandleByIndex_v2(self, index: ctypes.c_uint, handle: Any) -> int:  # noqa: N802
        handle._obj.value = 1000 + index.value
        return 0

    def _nvmlDeviceGetUUID(self, handle: ctypes.c_void_p, uuid: Any, size: ctypes.c_uint) -> int:  # noqa: N802
        uuid.value = f"GPU-{handle.value}".encode()
        return 0

    def _nvmlDeviceGetUtilizationRates(self, handle: ctypes.c_void_p, busy: Any) -> int:  # noqa: N802
        busy._obj.gpu, busy._obj.memory = 37, 11
        return 0

    def _nvmlDeviceGetMemoryInfo(self, handle: ctypes.c_void_p, memory: Any) -> int:  # noqa: N802
        memory._obj.total, memory._obj.free, memory._obj.used = 80 << 30, 60 << 30, 20 << 30
        return 0

    def _nvmlDeviceGetPowerUsage(self, handle: ctypes.c_void_p, milliwatts: Any) -> int:  # noqa: N802
        milliwatts._obj.value = 250_500
        return 0


def page(library: Nvml, *, triton_names: bool = False) -> tuple[CollectorRegistry, str]:
    metrics = Metrics(methods=[], build={}, gpus=Gpus(library).read, triton_names=triton_names)
    return metrics.registry, generate_latest(metrics.registry).decode()


def test_each_gpu_shows_what_it_does() -> None:
    registry, _ = page(Nvml())
    for number in ("0", "1"):
        labels = {"gpu": number, "uuid": f"GPU-100{number}"}
        assert registry.get_sample_value("gpu_busy_ratio", labels) == 0.37
        assert registry.get_sample_value("gpu_memory_used_bytes", labels) == 20 << 30
        assert registry.get_sample_value("gpu_memory_total_bytes", labels) == 80 << 30
        assert registry.get_sample_value("gpu_power_watts", labels) == 250.5
        assert registry.get_sample_value("gpu_energy_joules_total", labels) is None, "the driver is too old to say"


def test_what_a_device_does_not_say_is_left_out() -> None:
    registry, text = page(Nvml("nvmlDeviceGetPowerUsage"))
    assert registry.get_sample_value("gpu_busy_ratio", {"gpu": "0", "uuid": "GPU-1000"}) == 0.37
    assert "gpu_power_watts{" not in text


def test_tritons_names_have_the_same_figures() -> None:
    registry, _ = page(Nvml(), triton_names=True)
    assert registry.get_sample_value("nv_gpu_utilization", {"gpu_uuid": "GPU-1001"}) == 0.37
    assert registry.get_sample_value("nv_gpu_memory_used_bytes", {"gpu_uuid": "GPU-1001"}) == 20 << 30
    assert registry.get_sample_value("nv_gpu_power_usage", {"gpu_uuid": "GPU-1001"}) == 250.5


def test_without_a_driver_there_are_no_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "LIBRARY", "libno-such-thing.so.1")
    assert gpu.find() is None
    assert b"gpu_" not in generate_latest(Metrics(methods=[], build={}).registry)
