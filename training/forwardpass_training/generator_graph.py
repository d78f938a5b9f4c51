"""The generator's ONNX graph: a Scan whose body reads one token, advances the LSTMs, and samples the next token.

What it computes is what `models.sampling.write` computes; what it takes and gives stands there too. Two things to know:

The LSTM is written out in plain operators. On one EPYC core ONNX Runtime advances 64 texts 10 % faster so than by its
fused operator, and their states are the same bits alone and in any batch: the matrices belong to the body's own graph
level or the one above it, where the runtime packs them, and packed products add in one order for any number of rows.

Top-k and top-p need a sort, which costs a third of the speed. It stands in an If and runs only where a row asks for it.
"""

from collections.abc import Iterator

import numpy as np
import onnx
import onnx.parser
import torch
from numpy.typing import NDArray
from onnx import ModelProto, numpy_helper
from torch import Tensor

from forwardpass_training.models import CharLstm
from forwardpass_training.models.sampling import COLDEST, FIRST

IR_VERSION = 10

GATES = (0, 1, 3, 2)
"""Torch stacks the gates' rows as input, forget, cell, output; here the three with a sigmoid come first."""


def build(network: CharLstm, *, opset: int) -> ModelProto:
    """The graph with the network's weights in it."""
    model: ModelProto = onnx.parser.parse_model(_text(network, opset))
    for name, values in _constants(network).items():
        model.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
    return model


def _text(network: CharLstm, opset: int) -> str:
    layers, hidden = range(network.config.layers), network.config.hidden
    state = f"float[batch, {len(layers)}, {hidden}]"
    states = ", ".join(f"h_begin{i}, c_begin{i}" for i in layers)
    ends = ", ".join(f"h_end{i}, c_end{i}" for i in layers)
    return f"""
<ir_version: {IR_VERSION}, opset_import: ["" : {opset}]>
generator (
    int64[batch, 1] token, int64[batch, steps] forced, float[batch, steps] uniform,
    float[batch, 1] temperature, int64[batch, 1] top_k, float[batch, 1] top_p, {state} h0, {state} c0
) => (int64[batch, steps] tokens, {state} h1, {state} c1)
{{
    warmth = Max(temperature, coldest)
    every_k = Equal(top_k, zero)
    k = Where(every_k, vocabulary, top_k)
    every_p = GreaterOrEqual(top_p, one)
    p = Where(every_p, infinity, top_p)

    every_token = And(every_k, every_p)
    restricted = Not(every_token)
    restricted_int = Cast<to = 6>(restricted)
    any_restricted_int = ReduceMax<keepdims = 0>(restricted_int)
    any_restricted = Cast<to = 9>(any_restricted_int)

    above_zero = Max(uniform, first)
    uniforms = Unsqueeze(above_zero, axis_2)
    first_token = Squeeze(token, axis_1)
    {_unstack("h0", [f"h_begin{i}" for i in layers])}
    {_unstack("c0", [f"c_begin{i}" for i in layers])}

    last_token, {ends}, tokens = Scan<
        num_scan_inputs = 2, scan_input_axes = [1, 1], scan_output_axes = [1], body = {_step(network)}
    >(first_token, {states}, forced, uniforms)

    {_stack([f"h_end{i}" for i in layers], "h1")}
    {_stack([f"c_end{i}" for i in layers], "c1")}
}}
"""


def _step(network: CharLstm) -> str:
    """One token for every row; names from outside are constants, the settings and `any_restricted`."""
    layers = range(network.config.layers)
    state = f"float[batch, {network.config.hidden}]"
    now = ", ".join(f"{state} h{i}, {state} c{i}" for i in layers)
    after = ", ".join(f"{state} h_next{i}, {state} c_next{i}" for i in layers)
    cells = "\n".join(_cell(i) for i in layers)
    tokens = network.config.vocabulary
    return f"""step (int64[batch] last, {now}, int64[batch] forced_now, float[batch, 1] u)
        => (int64[batch] next, {after}, int64[batch] written)
    {{
        {cells}
        logits = Gemm(h_next{layers[-1]}, w_out, b_out)
        scaled = Div(logits, warmth)
        weights = Softmax<axis = 1>(scaled)

        kept = If<
            then_branch = some () => (float[batch, {tokens}] kept_some) {{ {_KEEP} }},
            else_branch = all () => (float[batch, {tokens}] kept_all) {{ kept_all = Identity(weights) }}
        >(any_restricted)

        cumulative = CumSum(kept, axis)
        total = Slice(cumulative, last_column, columns, axis_1)
        place = Mul(u, total)
        passed = Less(cumulative, place)
        passed_int = Cast<to = 7>(passed)
        sampled = ReduceSum<keepdims = 0>(passed_int, axis_1)

        free = Less(forced_now, zero)
        next = Where(free, sampled, forced_now)
        written = Identity(next)
    }}"""


_KEEP = """
    descending, order = TopK<axis = 1>(weights, columns)
    in_k = Less(ranks, k)
    in_k_float = Cast<to = 1>(in_k)
    top = Mul(descending, in_k_float)
    up_to = CumSum(top, axis)
    before = Sub(up_to, top)
    all_top = Slice(up_to, last_column, columns, axis_1)
    bound = Mul(all_top, p)
    in_p = Less(before, bound)
    in_both = And(in_k, in_p)
    chosen = Where(in_both, descending, infinity)
    least = ReduceMin<keepdims = 1>(chosen, axis_1)
    stays = GreaterOrEqual(weights, least)
    stays_float = Cast<to = 1>(stays)
    kept_some = Mul(weights, stays_float)
"""


def _cell(i: int) -> str:
    """One LSTM. What the first one's input adds to its gates is looked up: it depends on the token alone."""
    read = """
        seen = Gather(table, last)
        gates0 = Gemm(h0, w0, seen)"""
    joined = f"""
        both{i} = Concat<axis = 1>(h_next{i - 1}, h{i})
        gates{i} = Gemm(both{i}, w{i}, b{i})"""
    return f"""{joined if i else read}
        to_open{i}, to_add{i} = Split<axis = 1>(gates{i}, gate_columns)
        open{i} = Sigmoid(to_open{i})
        in{i}, forget{i}, out{i} = Split<axis = 1, num_outputs = 3>(open{i})
        candidate{i} = Tanh(to_add{i})
        remembered{i} = Mul(forget{i}, c{i})
        added{i} = Mul(in{i}, candidate{i})
        c_next{i} = Add(remembered{i}, added{i})
        shown{i} = Tanh(c_next{i})
        h_next{i} = Mul(out{i}, shown{i})"""


def _unstack(stacked: str, rows: list[str]) -> str:
    """[batch, layers, hidden] → a [batch, hidden] for each layer."""
    parts = [f"{row}_row" for row in rows]
    lines = [f"{', '.join(parts)} = Split<axis = 1, num_outputs = {len(rows)}>({stacked})"]
    lines += [f"{row} = Squeeze({part}, axis_1)" for row, part in zip(rows, parts, strict=True)]
    return "\n    ".join(lines)


def _stack(rows: list[str], stacked: str) -> str:
    """The inverse of `_unstack`."""
    parts = [f"{row}_row" for row in rows]
    lines = [f"{part} = Unsqueeze({row}, axis_1)" for row, part in zip(rows, parts, strict=True)]
    lines += [f"{stacked} = Concat<axis = 1>({', '.join(parts)})"]
    return "\n    ".join(lines)


def _constants(network: CharLstm) -> dict[str, NDArray[np.generic]]:
    tokens, hidden = network.config.vocabulary, network.config.hidden
    return {
        "vocabulary": np.array(tokens),
        "columns": np.array([tokens]),
        "last_column": np.array([tokens - 1]),
        "ranks": np.arange(tokens)[np.newaxis],
        "gate_columns": np.array([3 * hidden, hidden]),
        "axis": np.array(1),
        "axis_1": np.array([1]),
        "axis_2": np.array([2]),
        "zero": np.array(0),
        "one": np.array(1, np.float32),
        "infinity": np.array(np.inf, np.float32),
        "coldest": np.array(COLDEST, np.float32),
        "first": np.array(FIRST, np.float32),
        **dict(_weights(network)),
    }


def _weights(network: CharLstm) -> Iterator[tuple[str, NDArray[np.generic]]]:
    """Matrices as [inputs, outputs], gates in the order of `GATES`, both biases as one."""
    for i in range(network.config.layers):
        of_input, of_state, bias_of_input, bias_of_state = (
            _reorder(getattr(network.lstm, f"{kind}_l{i}").detach())
            for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        )
        bias = bias_of_input + bias_of_state
        if i == 0:
            yield "table", (network.token_table().detach() @ of_input.T + bias).numpy()
            yield "w0", of_state.T.numpy()
        else:
            yield f"w{i}", np.concatenate([of_input.T.numpy(), of_state.T.numpy()])
            yield f"b{i}", bias.numpy()
    yield "w_out", network.head.weight.detach().T.numpy()
    yield "b_out", network.head.bias.detach().numpy()


def _reorder(rows: Tensor) -> Tensor:
    blocks = rows.chunk(4)
    return torch.cat([blocks[gate] for gate in GATES])
