"""What leaves training: one trained network in the shape in which it will be served.

`run` builds it; `export`, `verify` and `publish` read it. The one thing to know: `module` is what is exported and may
hold operators without an eager value (the fused ONNX LSTM); `reference` computes the same function in plain torch, and
parity is measured against it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Generator, Tensor, nn

Tensors = tuple[Tensor, ...]
Examples = Callable[[int, Generator], Tensors]


@dataclass(frozen=True)
class Exportable:
    """A trained network, ready to export; everything in it is on the CPU.

    Attributes:
        module: in eval mode; called positionally in the order of `input_names`, gives a tensor or a tuple of tensors
            in the order of `output_names`. Preprocessing and the final activation are inside.
        reference: the same function in eager torch, always giving a tuple; what parity is measured against.
        input_names: as served.
        output_names: as served.
        dynamic: for each input, its dynamic axes by name; axis 0 is always `batch`.
        examples: `(batch, generator)` → that many real held-out inputs, in the order of `input_names`;
            equal generator states give equal examples.
        further_examples: by name, other kinds of call that parity and the golden examples must also cover;
            a sequence model names `step` here: one time step with carried state.
        metadata: for the ONNX file's `metadata_props`; keys start with `forwardpass.`.
        states: of a network whose answers depend on the call before: which output is the next call's which input,
            output by input name.
        companions: text files that travel beside the ONNX file in the version folder, by name.
    """

    module: nn.Module
    reference: Callable[..., Tensors]
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    dynamic: Mapping[str, Mapping[int, str]]
    examples: Examples
    metadata: Mapping[str, str]
    further_examples: Mapping[str, Examples] = field(default_factory=dict)
    states: Mapping[str, str] = field(default_factory=dict)
    companions: Mapping[str, str] = field(default_factory=dict)
