"""Where models run: from `--device` to execution providers, and the proof that it came to that.

ONNX Runtime lists a provider that it cannot load, falls back to the CPU with a printed line, and goes on. Here the
library is loaded and a session made on it before anything is promised, Python's own fallback is off, and the provider
of every session is read back and compared. `auto` may end on the CPU, and then `Plan.fallback_reason` says why.
"""

import ctypes
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TypeAlias

import onnxruntime as ort
from onnx import TensorProto, helper

from forwardpass_server.errors import StartFailed

log = logging.getLogger(__name__)

VERSION: str = ort.__version__
"""Of the installed ONNX Runtime."""

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"

_DEVICE = re.compile(r"(auto|cpu|(?P<kind>cuda|tensorrt)(:(?P<index>\d{1,3}))?)")
_LIBRARY = {CUDA: "libonnxruntime_providers_cuda.so", TENSORRT: "libonnxruntime_providers_tensorrt.so"}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The execution providers of a session, in order of preference.

    Attributes:
        device: what it comes to: "cpu", "cuda:0", "tensorrt:0".
        providers: names and options as ONNX Runtime takes them; the first must be the one that runs.
        fallback_reason: why `auto` ended on the CPU; None where the device is the one that was asked for.
    """

    device: str
    providers: tuple[tuple[str, dict[str, str]], ...]
    fallback_reason: str | None = None

    @property
    def expected(self) -> str:
        """The provider that a session must report first."""
        return self.providers[0][0]


Probe: TypeAlias = Callable[[Plan], str | None]
"""Tries a plan on this machine: None when it works, else what is missing."""


def resolve(
    device: str,
    *,
    available: Callable[[], Sequence[str]] = ort.get_available_providers,
    probe: "Probe | None" = None,
) -> Plan:
    """The plan for a device, tried on this machine.

    Args:
        device: `auto` (CUDA if it works, else CPU), `cpu`, `cuda[:n]`, `tensorrt[:n]`; n counts from 0, default 0.
        available: the providers that the installed ONNX Runtime was built with.
        probe: tries a plan; `try_plan` when None.

    Raises:
        StartFailed: no such device, or it cannot be had; says what is missing and what to do.
    """
    probe = probe or try_plan
    match = _DEVICE.fullmatch(device)
    if match is None:
        raise StartFailed(f"device '{device}' is not one of auto, cpu, cuda, cuda:N, tensorrt, tensorrt:N")
    if device == "cpu":
        return _cpu()
    kind, index = match["kind"] or "cuda", int(match["index"] or 0)
    plan = _gpu(kind, index)
    missing = _not_built(plan.expected, available()) or probe(plan)
    if missing is None:
        return plan
    if device == "auto":
        return _cpu(fallback_reason=missing)
    raise StartFailed(f"device '{device}' cannot be had: {missing}; mend that, or ask for --device cpu or auto")


def for_model(
    plan: Plan,
    *,
    on_cpu: bool = False,
    tensorrt: Mapping[str, str] | None = None,
    available: Callable[[], Sequence[str]] = ort.get_available_providers,
    probe: "Probe | None" = None,
) -> Plan:
    """Where one model runs, by its own wishes and within the server's plan.

    Args:
        plan: the server's.
        on_cpu: the model asks for the CPU.
        tensorrt: options of TensorRT, if the model asks for it; on a server without GPU it goes without.
        available: the providers that the installed ONNX Runtime was built with.
        probe: tries a plan; `try_plan` when None.

    Returns:
        `plan` itself where TensorRT cannot be had; that is logged.
    """
    if on_cpu:
        return plan if plan.expected == CPU else _cpu()
    if tensorrt is None or plan.expected == CPU:
        return plan
    with_tensorrt = _gpu("tensorrt", int(plan.device.partition(":")[2]))
    missing = _not_built(TENSORRT, available()) or (probe or try_plan)(with_tensorrt)
    if missing is not None:
        log.warning("TensorRT, which a model asks for, cannot be had; it runs on %s: %s", plan.device, missing)
        return plan
    (name, options), *others = with_tensorrt.providers
    return replace(with_tensorrt, providers=((name, {**options, **tensorrt}), *others))


def _cpu(fallback_reason: str | None = None) -> Plan:
    return Plan(device="cpu", providers=((CPU, {}),), fallback_reason=fallback_reason)


def _gpu(kind: str, index: int) -> Plan:
    # TF32 rounds the inputs of a matrix product to 10 bits of mantissa; answers must not depend on the card's age.
    cuda = (CUDA, {"device_id": str(index), "use_tf32": "0"})
    tensorrt = ((TENSORRT, {"device_id": str(index)}),) if kind == "tensorrt" else ()
    return Plan(device=f"{kind}:{index}", providers=(*tensorrt, cuda, (CPU, {})))


def _not_built(provider: str, available: Sequence[str]) -> str | None:
    """What to install when this ONNX Runtime was built without `provider`."""
    if provider in available:
        return None
    return (
        f"the installed ONNX Runtime {ort.__version__} was built without {provider} (it has {', '.join(available)}); "
        "install forwardpass[server,cuda] in place of forwardpass[server,cpu]"
    )


def try_plan(plan: Plan) -> str | None:
    """Load the libraries of a plan and run a small model on it.

    Returns:
        None when it works; else what is missing, in one line.
    """
    preload()
    try:
        session = ort.InferenceSession(_identity(), _quiet(), **arguments(plan))
    except Exception as error:
        log.info("%s does not start", plan.expected, exc_info=True)
        return missing_library(plan.expected) or _one_line(error)
    got = session.get_providers()
    if got[0] != plan.expected:
        return missing_library(plan.expected) or f"ONNX Runtime gave {got[0]} instead of {plan.expected}"
    return None


@cache
def preload() -> None:
    """Load the CUDA and cuDNN libraries that came as Python packages, once a process. Does nothing on a CPU build."""
    if CUDA in ort.get_available_providers():
        ort.preload_dlls()


def missing_library(provider: str) -> str | None:
    """The shared library that keeps a provider from loading, in the dynamic linker's words; None when it loads."""
    folder = Path(ort.__file__).parent / "capi"
    try:
        # The provider's library takes its symbols from this one.
        ctypes.CDLL(str(folder / "libonnxruntime_providers_shared.so"), mode=ctypes.RTLD_GLOBAL)
        ctypes.CDLL(str(folder / _LIBRARY[provider]))
    except OSError as error:
        return _one_line(error)
    return None


def arguments(plan: Plan) -> dict[str, object]:
    """What `onnxruntime.InferenceSession` takes for a plan, with its own fallback switched off."""
    return {
        "providers": [name for name, _ in plan.providers],
        "provider_options": [options for _, options in plan.providers],
        "enable_fallback": 0,
    }


def _quiet() -> ort.SessionOptions:
    """Options of the trial session: its failures are reported by us."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    return options


def _identity() -> bytes:
    """A model that every provider can run."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "probe", [x], [y])
    model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])
    return bytes(model.SerializeToString())


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
