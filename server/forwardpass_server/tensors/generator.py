"""What a graph must look like to be served as a generator of text, and what its metadata say about it.

One run advances every row by as many tokens as its inputs `forced` and `uniform` are wide. A prompt is read by the same
runs: a token in `forced` comes next, whatever the model would have written; -1 lets it write. What a text has been so
far is in its states, which a run takes and gives back, and in the last token, which has not been fed yet.

    token        INT64 [batch, 1]        the last token read or written
    forced       INT64 [batch, steps]    the token that must come, or -1
    uniform      FP32 [batch, steps]     random numbers of [0, 1), for the tokens that are written
    temperature  FP32 [batch, 1]         0: the likeliest token
    top_k        INT64 [batch, 1]        0: off; may be left out of a graph
    top_p        FP32 [batch, 1]         1: off; may be left out of a graph
    any states   [batch, …]              zeros at the beginning of a text; of any type and fixed shape
    → tokens     INT64 [batch, steps]    forced ones as they came
    → the states after it, of the same types and shapes
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from forwardpass_server.errors import LoadFailed
from forwardpass_server.tensors.dtypes import BYTES, FP32, INT64, Dtype
from forwardpass_server.tensors.signature import Signature
from forwardpass_server.tensors.specs import TensorSpec
from forwardpass_server.tensors.vocabulary import Vocabulary

TASK, GENERATE = "forwardpass.task", "generate"
GENERATION = "forwardpass.generation"
FORMAT = 1
STEPS_MAX = 1024
"""The widest run that a graph may offer, in tokens."""
VOCABULARY_MAX = 1 << 20
"""Tokens of the largest vocabulary."""

ON_WIRE = Signature((TensorSpec("prompt", BYTES, (1,)),), (TensorSpec("text", BYTES, (1,)),), max_batch_size=0)
"""What callers see of any generator."""

_INPUTS: Mapping[str, tuple[Dtype, bool]] = {
    "token": (INT64, False),
    "forced": (INT64, True),
    "uniform": (FP32, True),
    "temperature": (FP32, False),
    "top_k": (INT64, False),
    "top_p": (FP32, False),
}
"""Type of each input that is no state, and whether it is as wide as the run (else it has one column)."""
_OPTIONAL = ("top_k", "top_p")


@dataclass(frozen=True, kw_only=True)
class State:
    """One state: where it goes in, where it comes out, and what one row of it is."""

    input: int
    output: int
    dtype: Dtype
    shape: tuple[int, ...]
    """Without the batch."""

    @property
    def nbytes(self) -> int:
        """Of one row."""
        size = self.dtype.itemsize
        for dim in self.shape:
            size *= dim
        return size


@dataclass(frozen=True, kw_only=True)
class Generator:
    """A graph that was found to be a generator.

    Args:
        signature: of the graph.
        vocabulary: its tokens.
        inputs: the place of each input that is no state, by name.
        states: all of them.
        tokens: the place of the output `tokens`.
        steps_max: tokens of the longest run.
    """

    signature: Signature
    vocabulary: Vocabulary
    inputs: Mapping[str, int]
    states: tuple[State, ...]
    tokens: int
    steps_max: int

    @property
    def row_bytes(self) -> int:
        """What the states and the last token of one text take."""
        return sum(state.nbytes for state in self.states) + INT64.itemsize


def is_generator(metadata: Mapping[str, str]) -> bool:
    """Whether the metadata of a graph say that it is one."""
    return metadata.get(TASK) == GENERATE


def read(metadata: Mapping[str, str], signature: Signature) -> Generator:
    """The generator that a graph is.

    Args:
        metadata: `metadata_props` of the file.
        signature: of its graph.

    Raises:
        LoadFailed: the graph is no such generator; says what was expected and what is there.
    """
    stated = _stated(metadata)
    vocabulary = _vocabulary(stated)
    steps_max = _number(stated, "steps_max", 1, STEPS_MAX)
    inputs = {spec.name: index for index, spec in enumerate(signature.inputs)}
    outputs = {spec.name: index for index, spec in enumerate(signature.outputs)}
    states = tuple(_state(pair, signature, inputs, outputs) for pair in _pairs(stated))
    places = {name: index for name, index in inputs.items() if index not in {state.input for state in states}}
    _check_inputs(places, signature)
    taken = [state.output for state in states]
    if "tokens" not in outputs or sorted([*taken, outputs["tokens"]]) != list(range(len(outputs))):
        raise _wrong(f"outputs are 'tokens' and each state once, and the graph has {_listed(outputs)}")
    _check(signature.outputs[outputs["tokens"]], INT64, (None, None), "output")
    if not signature.max_batch_size:
        raise _wrong("every input and output begins with one dynamic dimension, the batch; in this graph they do not")
    return Generator(
        signature=signature,
        vocabulary=vocabulary,
        inputs=places,
        states=states,
        tokens=outputs["tokens"],
        steps_max=steps_max,
    )


def _stated(metadata: Mapping[str, str]) -> dict[str, Any]:
    text = metadata.get(GENERATION)
    if text is None:
        raise _wrong(f"the metadata have no {GENERATION}")
    try:
        stated = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _wrong(f"{GENERATION} is no JSON: {error}") from error
    if not isinstance(stated, dict) or stated.get("format") != FORMAT:
        raise _wrong(f"{GENERATION} is an object with format {FORMAT}; export the model again, or update the server")
    return stated


def _vocabulary(stated: Mapping[str, Any]) -> Vocabulary:
    tokens = stated.get("vocabulary")
    if not isinstance(tokens, list) or not all(isinstance(each, str) for each in tokens) or not any(tokens):
        raise _wrong("vocabulary is a list of strings, not all of them empty")
    if len(tokens) > VOCABULARY_MAX:
        raise _wrong(f"vocabulary has {len(tokens)} tokens; at most {VOCABULARY_MAX}")
    replacement = stated.get("replacement")
    if replacement is not None:
        _number(stated, "replacement", 0, len(tokens) - 1)
    try:
        "".join(tokens).encode()
    except UnicodeEncodeError as error:
        raise _wrong(f"vocabulary has a token that UTF-8 cannot carry ({error.reason})") from error
    return Vocabulary(tokens, replacement)


def _pairs(stated: Mapping[str, Any]) -> list[tuple[str, str]]:
    pairs = stated.get("states")
    if not isinstance(pairs, list) or not all(
        isinstance(each, dict) and isinstance(each.get("input"), str) and isinstance(each.get("output"), str)
        for each in pairs
    ):
        raise _wrong('states is a list of {"input": name, "output": name}')
    return [(each["input"], each["output"]) for each in pairs]


def _state(pair: tuple[str, str], signature: Signature, inputs: Mapping[str, int], outputs: Mapping[str, int]) -> State:
    given, made = pair
    if given not in inputs or made not in outputs or given in _INPUTS:
        raise _wrong(f"there is no state {given!r} → {made!r}: inputs {_listed(inputs)}; outputs {_listed(outputs)}")
    before, after = signature.inputs[inputs[given]], signature.outputs[outputs[made]]
    row = before.shape[1:]
    fixed = tuple(dim for dim in row if isinstance(dim, int))
    if not before.ranked or not before.shape or len(fixed) != len(row) or before.dtype is BYTES or before.optional:
        raise _wrong(f"state {given!r} is a required tensor of numbers and fixed shape, got {_text(before)}")
    _check(after, before.dtype, (None, *fixed), "output")
    return State(input=inputs[given], output=outputs[made], dtype=before.dtype, shape=fixed)


def _check_inputs(places: Mapping[str, int], signature: Signature) -> None:
    wanted = [name for name in _INPUTS if name not in _OPTIONAL]
    missing = [name for name in wanted if name not in places]
    unknown = [name for name in places if name not in _INPUTS]
    if missing or unknown:
        raise _wrong(
            f"inputs: missing {_listed(missing) or 'none'}; neither known nor a state {_listed(unknown) or 'none'}"
        )
    for name, index in places.items():
        dtype, wide = _INPUTS[name]
        _check(signature.inputs[index], dtype, (None, None if wide else 1), "input")


def _check(spec: TensorSpec, dtype: Dtype, shape: tuple[int | None, ...], role: str) -> None:
    """Dimensions that are None must be dynamic; the others may also be, since exporters lose them."""
    fits = (
        spec.ranked
        and spec.dtype is dtype
        and len(spec.shape) == len(shape)
        and all(not isinstance(has, int) or has == wanted for has, wanted in zip(spec.shape, shape, strict=True))
    )
    if not fits:
        expected = ", ".join("?" if dim is None else str(dim) for dim in shape)
        raise _wrong(f"{role} {spec.name!r} is {dtype.wire}[{expected}], got {_text(spec)}")


def _number(stated: Mapping[str, Any], key: str, least: int, most: int) -> int:
    value = stated.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise _wrong(f"{key} is an integer from {least} to {most}, got {value!r}")
    return value


def _wrong(what: str) -> LoadFailed:
    return LoadFailed(f"{TASK} is '{GENERATE}', but the graph is no generator: {what}")


def _text(spec: TensorSpec) -> str:
    return f"{spec.dtype.wire}{spec.shape_text()}"


def _listed(names: Any) -> str:
    return ", ".join(f"'{name}'" for name in names)
