"""What a trained network looks like from outside: names, dynamic axes, and the final activation inside the graph."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from forwardpass_training.exportable import Tensors
from forwardpass_training.models.char_lstm import CharLstm
from forwardpass_training.models.fused_lstm import FusedCharLstm
from forwardpass_training.task import Task


@dataclass(frozen=True)
class Served:
    """The part of an `Exportable` that follows from the network alone; its fields are described there."""

    module: nn.Module
    reference: Callable[..., Tensors]
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    dynamic: dict[str, dict[int, str]]
    states: dict[str, str] = field(default_factory=dict)


class Activated(nn.Module):
    """A network and the activation that turns its logits into probabilities."""

    def __init__(self, network: nn.Module, activation: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.activation(self.network(x))
        return y


def activation(task: Task) -> nn.Module:
    """What turns the network's output into what callers want: numbers as they are, logits into probabilities."""
    match task:
        case "regression":
            return nn.Identity()
        case "binary":
            return nn.Sigmoid()
        case "multiclass" | "language":
            return nn.Softmax(-1)


def served(network: nn.Module, task: Task) -> Served:
    """Prepare a trained network for export. The network is put into eval mode and used, not copied."""
    network.eval().requires_grad_(False)
    if isinstance(network, CharLstm):
        return _served_language_model(network)
    output = {"regression": "y", "binary": "probability"}.get(task, "probabilities")
    input_name = getattr(network, "input_name", "x")
    module: nn.Module = folded(network)
    twin: nn.Module = network
    if task != "regression":
        module, twin = (Activated(inner, activation(task)).eval() for inner in (module, network))

    @torch.no_grad()
    def reference(x: Tensor) -> Tensors:
        return (twin(x),)

    return Served(module, reference, (input_name,), (output,), {input_name: {0: "batch"}})


def folded(network: nn.Module) -> nn.Module:
    """A copy in which each batch normalisation behind a convolution (in a Sequential) is part of that convolution."""
    copied = copy.deepcopy(network)
    for layers in [module for module in copied.modules() if isinstance(module, nn.Sequential)]:
        for index in range(len(layers) - 1):
            conv, norm = layers[index], layers[index + 1]
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                layers[index], layers[index + 1] = fuse_conv_bn_eval(conv, norm), nn.Identity()
    return copied


def _served_language_model(network: CharLstm) -> Served:
    """Logits, not probabilities: whoever samples applies a temperature first."""

    @torch.no_grad()
    def reference(tokens: Tensor, h0: Tensor, c0: Tensor) -> Tensors:
        logits, h1, c1 = network(tokens, h0, c0)
        return logits, h1, c1

    dynamic = {"tokens": {0: "batch", 1: "time"}, "h0": {0: "batch"}, "c0": {0: "batch"}}
    names = ("tokens", "h0", "c0"), ("logits", "h1", "c1")
    return Served(FusedCharLstm(network).eval(), reference, *names, dynamic, {"h0": "h1", "c0": "c1"})
