"""The gradient of a network's scores with respect to its input, as plain operators that export to ONNX.

torch.export refuses `torch.func.vjp` and `torch.autograd.grad` inside a forward. So the vector-Jacobian product is
traced first, by `make_fx`, with the parameters as inputs, into a graph of ordinary operators, and that graph is what
gets exported. The exporter has no counterpart for the backward operators of convolution and pooling; `DECOMPOSITIONS`
writes them as the forward operators that they are.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch._decomp import core_aten_decompositions
from torch.func import functional_call, vjp
from torch.fx.experimental.proxy_tensor import make_fx

from forwardpass_server.lifecycle.repository import Tolerance
from forwardpass_training.errors import ExportFailed
from forwardpass_training.exportable import Exportable, Tensors
from forwardpass_training.models.served import Activated

aten = torch.ops.aten

FLIPPED_SHARE = 0.1
"""What a gradient may differ by from one computed elsewhere, as a share of its largest value.

A gradient jumps where a ReLU opens or a pooling finds another winner. A unit whose sum lies within rounding of such a
place falls on either side of it, depending on the order of additions, and the gradients behind it differ by a product
of weights: among 400 images of mnist_cnn_best, 6 had such a unit somewhere on their way of 32 points, and their
integrated gradients differed by up to 0.0017, of 1.18. A wrong graph differs by about as much as it has to say.
"""

# Rows of the traced example; sizes 0 and 1 would be taken for constants.
_TRACED_ROWS = 3


def scored(exportable: Exportable) -> tuple[nn.Module, nn.Module]:
    """The network up to its scores (logits, or the numbers of a regression), and the activation behind them.

    Gradients are taken of scores, since a confident softmax is flat: its gradient vanishes where the network is sure.

    Raises:
        ExportFailed: the network has several inputs, or none of its inputs can be varied continuously.
    """
    if len(exportable.input_names) != 1 or len(exportable.output_names) != 1:
        raise ExportFailed(
            f"gradients are taken of networks with one input and one output; this one has "
            f"{', '.join(exportable.input_names)} → {', '.join(exportable.output_names)}"
        )
    module = exportable.module
    network: nn.Module = module.network if isinstance(module, Activated) else module
    activation: nn.Module = module.activation if isinstance(module, Activated) else nn.Identity()
    example = exportable.examples(_TRACED_ROWS, torch.Generator().manual_seed(0))[0]
    with torch.no_grad():
        try:
            moved = float((network(example.float()) - network(example)).abs().max())
        except RuntimeError as exc:
            raise ExportFailed(f"the network does not take its input as float32, so it has no gradient: {exc}") from exc
    if moved:
        raise ExportFailed(
            f"the network answers differently (by {moved:.3g}) when its {example.dtype} input comes as float32, so a "
            "gradient with respect to it would be another network's; convert by `.float()` inside the network"
        )
    return network, activation


class InputGradient(nn.Module):
    """x [batch, …] float32, direction [batch, scores] → scores, and the gradient [batch, …] of scores · direction.

    Args:
        network: in eval mode, x → scores; traced here, its parameters are copied.
        example: one x, of three rows.

    Raises:
        ExportFailed: the network cannot be traced.
    """

    def __init__(self, network: nn.Module, example: Tensor) -> None:
        super().__init__()
        state = {**dict(network.named_parameters()), **dict(network.named_buffers())}
        self.names = tuple(f"state_{index}" for index in range(len(state)))
        for name, tensor in zip(self.names, state.values(), strict=True):
            self.register_buffer(name, tensor.detach().clone())

        def forward_and_back(values: Sequence[Tensor], x: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
            def score(x: Tensor) -> Tensor:
                answer: Tensor = functional_call(network, dict(zip(state, values, strict=True)), (x,))
                return answer

            made = vjp(score, x)
            return made[0], made[1](direction)[0]

        with torch.no_grad():
            direction = torch.randn(network(example).shape, generator=torch.Generator().manual_seed(0))
        trace = make_fx(forward_and_back, tracing_mode="symbolic", decomposition_table=dict(DECOMPOSITIONS))
        try:
            self.graph = trace(self._state(), example, direction)
        except RuntimeError as exc:
            raise ExportFailed(f"the gradient of this network cannot be written as a graph: {exc}") from exc

    def forward(self, x: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
        scores, gradient = self.graph(self._state(), x, direction)
        return scores, gradient

    def _state(self) -> list[Tensor]:
        return [getattr(self, name) for name in self.names]


class _Differentiable(nn.Module):
    """given [batch, …], direction [batch, scores] → scores, gradient."""

    def __init__(self, network: nn.Module, example: Tensor) -> None:
        super().__init__()
        self.gradient = InputGradient(network, example.float())

    def forward(self, given: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
        scores, gradient = self.gradient(given.float(), direction)
        return scores, gradient


def differentiable(exportable: Exportable) -> Exportable:
    """A network's scores and their gradient along a direction that the caller gives, to be exported like any other.

    Inputs are the network's own and `direction` [batch, scores]; outputs `scores` and `gradient`, shaped as the input.

    Raises:
        ExportFailed: there is no gradient to take.
    """
    network, _ = scored(exportable)
    (example,) = exportable.examples(_TRACED_ROWS, torch.Generator().manual_seed(0))
    with torch.no_grad():
        width = network(example).shape[-1]

    def examples(batch: int, generator: Generator) -> Tensors:
        (given,) = exportable.examples(batch, generator)
        return given, torch.randn(batch, width, generator=generator)

    def reference(given: Tensor, direction: Tensor) -> Tensors:
        x = given.float().requires_grad_()
        with torch.enable_grad():
            scores = network(x)
            (gradient,) = torch.autograd.grad((scores * direction).sum(), x)
        return scores.detach(), gradient

    return dataclasses.replace(
        exportable,
        module=_Differentiable(network, example).eval().requires_grad_(False),
        reference=reference,
        input_names=(*exportable.input_names, "direction"),
        output_names=("scores", "gradient"),
        dynamic={**exportable.dynamic, "direction": {0: "batch"}},
        examples=examples,
    )


def flipping(output: str, largest: float, share: float = FLIPPED_SHARE) -> dict[str, Tolerance]:
    """The tolerance of a gradient whose largest absolute value is known."""
    return {output: Tolerance(atol=share * largest, rtol=0.0)}


def _convolution_backward(
    gradient: Tensor,
    x: Tensor,
    weight: Tensor,
    _bias_sizes: Any,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    transposed: bool,
    _output_padding: list[int],
    groups: int,
    _output_mask: list[bool],
) -> tuple[Tensor, None, None]:
    """The gradient with respect to x alone, as a transposed convolution; weights have none here."""
    if transposed:
        raise NotImplementedError("the gradient of a transposed convolution")
    reach = [(size - 1) * step for size, step in zip(weight.shape[2:], dilation, strict=True)]
    # what the stride left over at the far end of each axis
    left_over = [
        (size + 2 * pad - far - 1) % step
        for size, pad, far, step in zip(x.shape[2:], padding, reach, stride, strict=True)
    ]
    back = aten.convolution(gradient, weight, None, stride, padding, dilation, True, left_over, groups)
    return back, None, None


def _max_pool2d_backward(
    gradient: Tensor,
    x: Tensor,
    _kernel_size: list[int],
    _stride: list[int],
    _padding: list[int],
    _dilation: list[int],
    _ceil_mode: bool,
    indices: Tensor,
) -> Tensor:
    """Each value goes back to the place that won its window; `indices` count along the flattened plane of x."""
    planes = torch.zeros_like(x).flatten(-2)
    return planes.scatter_add(-1, indices.flatten(-2), gradient.flatten(-2)).reshape(x.shape)


def _avg_pool2d_backward(
    gradient: Tensor,
    x: Tensor,
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None,
) -> Tensor:
    """Each value is shared out over its window: a transposed convolution, channel by channel, with equal weights."""
    if ceil_mode or (any(padding) and not count_include_pad):
        raise NotImplementedError("the gradient of an average pooling whose windows differ in size")
    rows, columns = kernel_size
    share = 1 / (divisor_override or rows * columns)
    channels = x.shape[1]
    weight = gradient.new_full((channels, 1, rows, columns), share)
    stride = list(stride) or list(kernel_size)
    left_over = [
        (size + 2 * pad - kernel) % step
        for size, pad, kernel, step in zip(x.shape[2:], padding, kernel_size, stride, strict=True)
    ]
    back: Tensor = aten.convolution(gradient, weight, None, stride, padding, [1, 1], True, left_over, channels)
    return back


DECOMPOSITIONS: Mapping[Any, Callable[..., Any]] = {
    **{operator: rule for operator, rule in dict(core_aten_decompositions()).items() if "backward" in str(operator)},
    aten.convolution_backward.default: _convolution_backward,
    aten.max_pool2d_with_indices_backward.default: _max_pool2d_backward,
    aten.avg_pool2d_backward.default: _avg_pool2d_backward,
}
"""Backward operators in forward ones. torch knows most; the exporter's own table stays in charge of everything else."""
