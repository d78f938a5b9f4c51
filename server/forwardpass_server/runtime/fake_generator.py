"""A generator whose texts can be worked out by hand: as a plain function, as a run in numpy, and as an ONNX graph.

    s' = (3 s + token + 1) mod 31
    next = (s' + floor(u · temperature · top_p · V)) mod V, and mod top_k where that is set

All of it is exact in float32, so that the three agree to the last token, alone and in any batch.
"""

import json
import threading
from collections.abc import Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper

from forwardpass_server.scheduling.termination import Termination
from forwardpass_server.scheduling.text import Sampling
from forwardpass_server.scheduling.uniforms import Uniforms
from forwardpass_server.tensors import generator
from forwardpass_server.tensors.dtypes import FP32, INT64
from forwardpass_server.tensors.generator import Generator
from forwardpass_server.tensors.signature import Signature, TensorSpec

CHARACTERS = tuple("abcdefghijklmnopqrstuvwxyz .\n")
STEPS_MAX = 32
MODULUS = 31
INPUTS = (
    TensorSpec("token", INT64, ("batch", 1)),
    TensorSpec("forced", INT64, ("batch", "steps")),
    TensorSpec("uniform", FP32, ("batch", "steps")),
    TensorSpec("temperature", FP32, ("batch", 1)),
    TensorSpec("top_k", INT64, ("batch", 1)),
    TensorSpec("top_p", FP32, ("batch", 1)),
    TensorSpec("s0", FP32, ("batch", 1)),
)
OUTPUTS = (TensorSpec("tokens", INT64, ("batch", "steps")), TensorSpec("s1", FP32, ("batch", 1)))


def metadata(characters: Sequence[str] = CHARACTERS, *, replacement: int | None = None) -> dict[str, str]:
    """What a file of this generator says about itself."""
    stated = {
        "format": 1,
        "vocabulary": [*characters],
        "states": [{"input": "s0", "output": "s1"}],
        "steps_max": STEPS_MAX,
        "replacement": replacement,
    }
    return {generator.TASK: generator.GENERATE, generator.GENERATION: json.dumps(stated)}


def fake_generator(characters: Sequence[str] = CHARACTERS, *, replacement: int | None = None) -> Generator:
    """The contract of this generator, as it is read from a file."""
    return generator.read(metadata(characters, replacement=replacement), Signature(INPUTS, OUTPUTS, 64))


def right_text(prompt: str, sampling: Sampling, characters: Sequence[str] = CHARACTERS) -> str:
    """What a prompt goes on with, worked out token by token; no stop strings."""
    size = len(characters)
    uniform = np.zeros(sampling.max_tokens, np.float32)
    Uniforms(sampling.seed).fill(uniform)
    state, wrote = 0, []
    tokens = [characters.index(character) for character in prompt]
    for at in range(len(tokens) - 1):
        state = (3 * state + tokens[at] + 1) % MODULUS
    token = tokens[-1]
    for u in uniform:
        state = (3 * state + token + 1) % MODULUS
        shift = u * np.float32(sampling.temperature) * np.float32(sampling.top_p) * np.float32(size)
        token = (state + int(np.floor(shift))) % size
        token %= sampling.top_k or size
        wrote.append(token)
    return "".join(characters[each] for each in wrote)


class FakeGeneratorRun:
    """The model, as a `scheduling.runner.Run`; may be held, told to fail, and asked what it saw.

    Args:
        generator: its contract.
    """

    def __init__(self, generator: Generator) -> None:
        self._generator = generator
        self.rows: list[int] = []
        """Of each run that began."""
        self.steps: list[int] = []
        self.poison: int | None = None
        """A token that makes any run that is fed it fail."""
        self.error: Exception | None = None
        """What such a run raises, or, without poison, every run."""
        self._free = threading.Event()
        self._free.set()
        self._began = threading.Condition()

    def __call__(
        self, inputs: Sequence[np.ndarray | None], outputs: Sequence[int], termination: Termination | None = None, /
    ) -> list[np.ndarray]:
        given = {spec.name: array for spec, array in zip(INPUTS, inputs, strict=True) if array is not None}
        forced = given["forced"]
        with self._began:
            self.rows.append(len(forced))
            self.steps.append(forced.shape[1])
            self._began.notify_all()
        ended = threading.Event()
        if termination is not None:
            termination.arm(lambda: self._end(ended))
        self._free.wait()
        if ended.is_set():
            self._free.clear()
            raise RuntimeError("ended")
        if self.error is not None and (self.poison is None or (given["token"] == self.poison).any()):
            raise self.error
        size = len(self._generator.vocabulary)
        token, state = given["token"][:, 0], given["s0"][:, 0]
        scale = given["temperature"][:, 0]
        top_k, top_p = given["top_k"][:, 0], given["top_p"][:, 0]
        tokens = np.empty_like(forced)
        for step in range(forced.shape[1]):
            state = np.mod(np.float32(3) * state + token.astype(np.float32) + np.float32(1), np.float32(MODULUS))
            shift = np.floor(given["uniform"][:, step] * scale * top_p * np.float32(size))
            token = np.mod(state.astype(np.int64) + shift.astype(np.int64), size)
            token = np.where(top_k > 0, np.mod(token, np.maximum(top_k, 1)), token)
            token = np.where(forced[:, step] >= 0, forced[:, step], token)
            tokens[:, step] = token
        made = [tokens, state[:, None].astype(np.float32)]
        return [made[index] for index in outputs]

    def _end(self, ended: threading.Event) -> None:
        ended.set()
        self._free.set()

    def hold(self) -> None:
        """Let runs begin and not end."""
        self._free.clear()

    def release(self) -> None:
        """Let held and further runs end."""
        self._free.set()

    def wait_runs(self, count: int, timeout_s: float = 20.0) -> bool:
        """Block until so many runs have begun; False when that took longer than `timeout_s` seconds."""
        with self._began:
            return self._began.wait_for(lambda: len(self.rows) >= count, timeout_s)


def graph(characters: Sequence[str] = CHARACTERS, *, replacement: int | None = None) -> onnx.ModelProto:
    """The same as a file: one Scan over the steps."""
    size = len(characters)
    constants = {"three": 3.0, "one": 1.0, "modulus": float(MODULUS), "size_f": float(size)}
    nodes = [
        helper.make_node("Constant", [], [name], value=helper.make_tensor(name, TensorProto.FLOAT, [], [value]))
        for name, value in constants.items()
    ]
    nodes += [
        helper.make_node("Constant", [], [name], value=helper.make_tensor(name, TensorProto.INT64, shape, value))
        for name, shape, value in (("size", [], [size]), ("zero", [], [0]), ("unit", [], [1]), ("axis", [1], [1]))
    ]
    nodes += [
        helper.make_node("Max", ["top_k", "unit"], ["k"]),
        helper.make_node("Greater", ["top_k", "zero"], ["has_k"]),
        helper.make_node(
            "Scan",
            ["token", "s0", "forced", "uniform"],
            ["last", "s1", "tokens"],
            num_scan_inputs=2,
            scan_input_axes=[1, 1],
            scan_output_axes=[1],
            body=_body(),
        ),
    ]
    made = helper.make_graph(
        nodes,
        "generator",
        [helper.make_tensor_value_info(spec.name, spec.dtype.onnx, spec.shape) for spec in INPUTS],
        [helper.make_tensor_value_info(spec.name, spec.dtype.onnx, spec.shape) for spec in OUTPUTS],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(model, metadata(characters, replacement=replacement))
    onnx.checker.check_model(model, full_check=True)
    return model


def _body() -> onnx.GraphProto:
    """One step. [batch, 1] tensors, but for what is scanned, which is [batch]."""
    steps = (
        ("Unsqueeze", ["forced_t", "axis"], "forced_c"),
        ("Unsqueeze", ["uniform_t", "axis"], "uniform_c"),
        ("Cast", ["token_in"], "token_f"),
        ("Mul", ["three", "s_in"], "s3"),
        ("Add", ["s3", "token_f"], "s4"),
        ("Add", ["s4", "one"], "s5"),
        ("Mod", ["s5", "modulus"], "s_out"),
        ("Mul", ["uniform_c", "temperature"], "u1"),
        ("Mul", ["u1", "top_p"], "u2"),
        ("Mul", ["u2", "size_f"], "u3"),
        ("Floor", ["u3"], "u4"),
        ("Add", ["s_out", "u4"], "n1"),
        ("CastInt", ["n1"], "n2"),
        ("Mod", ["n2", "size"], "n3"),
        ("Mod", ["n3", "k"], "n4"),
        ("Where", ["has_k", "n4", "n3"], "n5"),
        ("Less", ["forced_c", "zero"], "free"),
        ("Where", ["free", "n5", "forced_c"], "token_out"),
        ("Squeeze", ["token_out", "axis"], "token_t"),
    )
    nodes = []
    for kind, inputs, output in steps:
        if kind in ("Cast", "CastInt"):
            to = TensorProto.FLOAT if kind == "Cast" else TensorProto.INT64
            nodes.append(helper.make_node("Cast", inputs, [output], to=to))
        elif kind == "Mod" and output == "s_out":
            nodes.append(helper.make_node("Mod", inputs, [output], fmod=1))
        else:
            nodes.append(helper.make_node(kind, inputs, [output]))

    def value(name: str, kind: int, *shape: str | int) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, kind, shape)

    whole, real = TensorProto.INT64, TensorProto.FLOAT
    return helper.make_graph(
        nodes,
        "step",
        [
            value("token_in", whole, "batch", 1),
            value("s_in", real, "batch", 1),
            value("forced_t", whole, "batch"),
            value("uniform_t", real, "batch"),
        ],
        [value("token_out", whole, "batch", 1), value("s_out", real, "batch", 1), value("token_t", whole, "batch")],
    )
