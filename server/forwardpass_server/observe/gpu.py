"""What the GPUs of this machine are doing, as NVIDIA's management library (NVML) says.

The library comes with the driver, so where it is missing there is no GPU and there are no such metrics. It is called by
its C names and never linked: nothing of it is needed to build, install or test the server.

Thread: those of the page; NVML may be asked by several at once.
"""

import ctypes
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from forwardpass_server.logs import event

log = logging.getLogger(__name__)

LIBRARY = "libnvidia-ml.so.1"
UUID_BYTES = 96


class _Utilization(ctypes.Structure):
    """Percent of the last sample period (up to a second) in which a kernel ran, and in which memory was accessed."""

    _fields_ = (("gpu", ctypes.c_uint), ("memory", ctypes.c_uint))


class _Memory(ctypes.Structure):
    """Bytes."""

    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One GPU now. None where its driver does not say.

    Args:
        busy_ratio: share of the last second in which some kernel ran; not how much of the GPU that kernel filled.
        power_watts: drawn now.
        energy_joules: drawn since the driver was loaded.
    """

    gpu: str
    uuid: str
    busy_ratio: float | None = None
    memory_used_bytes: float | None = None
    memory_total_bytes: float | None = None
    power_watts: float | None = None
    energy_joules: float | None = None


class Gpus:
    """The GPUs that this process may see.

    Args:
        library: NVML, loaded and initialised.
    """

    def __init__(self, library: Any) -> None:
        self._library = library
        self._handles: list[tuple[str, ctypes.c_void_p]] = []
        count = ctypes.c_uint()
        self._ask("nvmlDeviceGetCount_v2", ctypes.byref(count))
        for index in range(count.value):
            handle, uuid = ctypes.c_void_p(), ctypes.create_string_buffer(UUID_BYTES)
            found = self._ask("nvmlDeviceGetHandleByIndex_v2", ctypes.c_uint(index), ctypes.byref(handle))
            if found and self._ask("nvmlDeviceGetUUID", handle, uuid, ctypes.c_uint(UUID_BYTES)):
                self._handles.append((uuid.value.decode("ascii", "replace"), handle))

    def read(self) -> list[Reading]:
        """All of them, in NVML's order."""
        return [self._read(str(index), uuid, handle) for index, (uuid, handle) in enumerate(self._handles)]

    def _read(self, gpu: str, uuid: str, handle: ctypes.c_void_p) -> Reading:
        busy, memory = _Utilization(), _Memory()
        milliwatts, millijoules = ctypes.c_uint(), ctypes.c_ulonglong()
        has_busy = self._ask("nvmlDeviceGetUtilizationRates", handle, ctypes.byref(busy))
        has_memory = self._ask("nvmlDeviceGetMemoryInfo", handle, ctypes.byref(memory))
        has_power = self._ask("nvmlDeviceGetPowerUsage", handle, ctypes.byref(milliwatts))
        has_energy = self._ask("nvmlDeviceGetTotalEnergyConsumption", handle, ctypes.byref(millijoules))
        return Reading(
            gpu=gpu,
            uuid=uuid,
            busy_ratio=busy.gpu / 100 if has_busy else None,
            memory_used_bytes=float(memory.used) if has_memory else None,
            memory_total_bytes=float(memory.total) if has_memory else None,
            power_watts=milliwatts.value / 1e3 if has_power else None,
            energy_joules=millijoules.value / 1e3 if has_energy else None,
        )

    def _ask(self, function: str, *arguments: Any) -> bool:
        """Whether NVML answered; older drivers lack some functions, and some devices some answers."""
        try:
            return int(getattr(self._library, function)(*arguments)) == 0
        except AttributeError:
            return False


def find() -> Gpus | None:
    """The GPUs, or None where there is no driver."""
    try:
        library = ctypes.CDLL(LIBRARY)
    except OSError:
        return None
    if library.nvmlInit_v2() != 0:
        event(log, logging.WARNING, "no metrics of the GPU: its management library does not start", library=LIBRARY)
        return None
    return Gpus(library)


def collect(readings: list[Reading]) -> Iterator[Metric]:
    """The readings as metrics."""
    labels = ["gpu", "uuid"]
    busy = GaugeMetricFamily(
        "gpu_busy_ratio", "Share of the last second in which a kernel ran; not how full the GPU was.", labels=labels
    )
    used = GaugeMetricFamily("gpu_memory_used_bytes", "Memory in use, by whatever process.", labels=labels)
    total = GaugeMetricFamily("gpu_memory_total_bytes", "Memory of the GPU.", labels=labels)
    power = GaugeMetricFamily("gpu_power_watts", "Power drawn.", labels=labels)
    energy = CounterMetricFamily("gpu_energy_joules", "Energy drawn since the driver was loaded.", labels=labels)
    for reading in readings:
        for family, value in (
            (busy, reading.busy_ratio),
            (used, reading.memory_used_bytes),
            (total, reading.memory_total_bytes),
            (power, reading.power_watts),
            (energy, reading.energy_joules),
        ):
            if value is not None:
                family.add_metric([reading.gpu, reading.uuid], value)
    yield from (busy, used, total, power, energy)
