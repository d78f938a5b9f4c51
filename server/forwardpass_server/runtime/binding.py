"""Runs some of whose tensors stay on the device: the states of sequences, which no run but the next wants to see."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import onnxruntime as ort
from onnxruntime.capi.onnxruntime_pybind11_state import OrtDevice, SessionIOBinding

from forwardpass_server.errors import InvalidRequest, RunFailed
from forwardpass_server.runtime.blame import blame
from forwardpass_server.runtime.providers import Plan
from forwardpass_server.runtime.session import Session, _run_options, _terminable
from forwardpass_server.scheduling.runner import Run
from forwardpass_server.scheduling.termination import Termination

_KINDS = {"cpu": OrtDevice.cpu, "cuda": OrtDevice.cuda}


def device_of(plan: Plan) -> tuple[str, int]:
    """The device as ONNX Runtime names it: ("cuda", 0). TensorRT's tensors are CUDA's."""
    kind, _, index = plan.device.partition(":")
    return ("cpu" if kind == "cpu" else "cuda"), int(index or 0)


def bound(session: Session, resident: Collection[int], plan: Plan) -> Run:
    """`session.run` with some outputs left on the device.

    Args:
        session: where it runs.
        resident: indices of those outputs; they are answered as `OrtValue`s, which are taken as inputs, too.
        plan: the session's.
    """
    kind, index = device_of(plan)
    there = OrtDevice(_KINDS[kind](), OrtDevice.default_memory(), index)
    here = OrtDevice(OrtDevice.cpu(), OrtDevice.default_memory(), 0)

    def run(inputs: Sequence[Any], outputs: Sequence[int], termination: Termination | None = None, /) -> list[Any]:
        handle = session._handle
        if handle is None:
            raise RunFailed("the session was closed")
        try:
            binding = SessionIOBinding(handle)
            kept = []  # a binding does not own the arrays that it was given
            for spec, value in zip(session.signature.inputs, inputs, strict=True):
                if isinstance(value, ort.OrtValue):
                    binding.bind_ortvalue_input(spec.name, value._get_c_value())
                elif value is not None:
                    if session._refuses_empty and not value.size:
                        raise session.no_elements(spec.name, value)
                    kept.append(ort.OrtValue.ortvalue_from_numpy(np.require(value, requirements=["C", "ALIGNED"])))
                    binding.bind_ortvalue_input(spec.name, kept[-1]._get_c_value())
            for output in outputs:
                binding.bind_output(session.signature.outputs[output].name, there if output in resident else here)
            handle.run_with_iobinding(binding, _run_options() if termination is None else _terminable(termination))
            values = binding.get_outputs()
            return [
                ort.OrtValue(values[number]) if output in resident else values[number].numpy()
                for number, output in enumerate(outputs)
            ]
        except InvalidRequest:
            raise
        except Exception as error:
            raise blame(error) from error

    return run
