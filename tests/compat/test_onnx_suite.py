"""Every model of ONNX's own test suite that ONNX Runtime runs right is served right, asked by tritonclient.

Three times over: with the suite's own data as golden examples, so that the server proves each model first; as a bare
Triton repository, whose models load in a trial process first; and with the batch dimension opened, so that the server
must find out by itself which of a thousand unforeseen models may be batched.
"""

import contextlib
import queue
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
import tritonclient.grpc as triton
from compat import onnx_suite, reference
from compat.environments import Downloads
from compat.onnx_suite import Case, Example
from conformance.process import REQUESTS, RUNS, ServerProcess

from forwardpass_server.lifecycle import repository
from forwardpass_server.lifecycle.repository import GoldenSet
from forwardpass_server.tensors.signature import MAX_BATCH_SIZE

pytestmark = [pytest.mark.compat, pytest.mark.timeout(1200)]

MODELS_A_SERVER = 120
"""A server is given a minute to start, and a batched model warms every batch size: 0.1 to 0.3 s."""
BURST = 3
"""How often each example is sent at once."""
BARE = 32
"""One in so many is served without a manifest as well: a trial process takes 0.7 s, longer than all the rest."""

Start = Callable[..., ServerProcess]
Report = Callable[..., None]


@pytest.fixture(scope="module")
def suite(downloads: Downloads) -> tuple[list[Case], Counter[str]]:
    return onnx_suite.read(downloads.unpacked("onnx==1.16.2") / "onnx/backend/test/data")


@pytest.fixture(scope="module")
def refusals(suite: tuple[list[Case], Counter[str]]) -> dict[str, str]:
    """Why ONNX Runtime does not run a case right, by its name, for those that it does not."""
    found = {case.name: reference.refusal(case) for case in suite[0]}
    return {name: why for name, why in found.items() if why is not None}


@pytest.fixture(scope="module")
def right(suite: tuple[list[Case], Counter[str]], refusals: dict[str, str]) -> list[Case]:
    return [case for case in suite[0] if case.name not in refusals]


def test_every_case_that_onnx_runtime_runs_right_is_served_right(
    suite: tuple[list[Case], Counter[str]],
    refusals: dict[str, str],
    right: list[Case],
    start: Start,
    tmp_path: Path,
    report: Report,
) -> None:
    cases, not_carried = suite
    wrong: dict[str, str] = {}
    for number, chunk in enumerate(chunks(right, MODELS_A_SERVER)):
        root = tmp_path / f"repository-{number}"
        for case in chunk:
            publish(root, case)
        server = start(root, "--model-control-mode=none", "--require-manifest")
        wrong |= wrongs(server.target, chunk)
        server.stop()

    report("cases of the ONNX backend test suite 1.16.2:", len(cases) + not_carried.total())
    report("  run right by ONNX Runtime:", len(right))
    report("  served right, asked by tritonclient:", len(right) - len(wrong))
    report("  the rest:")
    reasons = not_carried + Counter(f"ONNX Runtime: {summary(why)}" for why in refusals.values())
    for reason, count in reasons.most_common():
        report(f"    {count:4} {reason}")
    assert not wrong, listed(wrong)
    assert len(right) > 1200, "the suite is not what it was, or ONNX Runtime is not"


def test_a_bare_repository_of_them_is_served_right(right: list[Case], start: Start, tmp_path: Path) -> None:
    chosen = right[::BARE]
    for case in chosen:
        version = tmp_path / "repository" / case.name / "1"
        version.mkdir(parents=True)
        shutil.copyfile(case.model, version / "model.onnx")
    server = start(tmp_path / "repository", "--model-control-mode=none")
    assert not (wrong := wrongs(server.target, chosen)), listed(wrong)
    server.stop()


def test_which_models_may_be_batched_is_found_out_right(
    right: list[Case], start: Start, tmp_path: Path, report: Report
) -> None:
    # Sums, sorts, shuffles and softmaxes along the first dimension, indices into it, shapes made of it: whatever the
    # suite has, now with a first dimension that looks like a batch; asked in bursts of different rows.
    models: dict[str, bytes] = {}
    chosen = []
    for case in right:
        model = open_first_dimension(case)
        if model is not None and reference.refusal(case, model) is None:
            models[case.name] = model
            chosen.append(in_company(case, model))
    wrong: dict[str, str] = {}
    requests = runs = 0.0
    for number, chunk in enumerate(chunks(chosen, MODELS_A_SERVER)):
        root = tmp_path / f"repository-{number}"
        for case in chunk:
            publish(root, case, models[case.name])
        server = start(root, "--model-control-mode=none", "--require-manifest")
        wrong |= wrongs(server.target, chunk)
        requests, runs = requests + server.total(REQUESTS), runs + server.total(RUNS)
        server.stop()

    report("the same models with the first dimension opened:", len(chosen))
    report(f"  served right: {len(chosen) - len(wrong)}; {requests:.0f} requests in {runs:.0f} runs")
    assert not wrong, listed(wrong)
    assert runs < requests, "nothing was batched, so nothing was shown"


def publish(root: Path, case: Case, model: bytes | None = None) -> None:
    """A version of the case's model, with the suite's data sets as they are for golden examples; or of another model,
    with none."""
    # The suite writes BF16 as the bit patterns of UINT16, which is another type: no example of this model.
    honest = "BF16" not in {datatype for _, datatype in (*case.inputs, *case.outputs)}
    golden = case.data_sets if model is None and honest else ()

    def build(folder: Path) -> repository.Contents:
        (folder / "model.onnx").write_bytes(case.model.read_bytes() if model is None else model)
        for data in golden:
            shutil.copytree(data, folder / data.name)
        return {"golden": [GoldenSet(folder=data.name, atol=case.atol, rtol=case.rtol) for data in golden]}

    repository.publish(root, case.name, build)


def open_first_dimension(case: Case) -> bytes | None:
    """The model with "batch" for the first dimension of every input and output; None where these are not one size.

    Nor the nine networks, into whose reshapes one row is written; nor what has more rows than a batch may.
    """
    if not case.data_sets:
        return None
    model = onnx.load(case.model)
    weights = {weight.name for weight in model.graph.initializer}
    values = [*(value for value in model.graph.input if value.name not in weights), *model.graph.output]
    dims = [value.type.tensor_type.shape.dim for value in values]
    if not case.inputs or not all(dims):
        return None
    sizes = {each[0].dim_value for each in dims}
    if len(sizes) != 1 or max(sizes) > MAX_BATCH_SIZE:
        return None
    for each in dims:
        each[0].dim_param = "batch"
    del model.graph.value_info[:]  # shapes in between were worked out for one size
    return model.SerializeToString()


def in_company(case: Case, model: bytes) -> Case:
    """The case with further examples: the same rows in other order, if ONNX Runtime has an answer to them."""
    session = reference.open_session(model)
    examples = list(case.examples)
    for example in case.examples:
        rolled = Example(tuple(np.roll(array, 1, 0) for array in example.inputs), ())
        with contextlib.suppress(Exception):  # it has no common base class; an index may be out of range now
            examples.append(replace(rolled, outputs=tuple(reference.run(session, case, rolled))))
    return replace(case, examples=tuple(examples))


def wrongs(target: str, cases: Sequence[Case]) -> dict[str, str]:
    """What is wrong with the served answers, by the name of the case; empty when all is well."""
    with triton.InferenceServerClient(target) as client:
        found = {case.name: wrong(client, case) for case in cases}
    return {name: what for name, what in found.items() if what is not None}


def wrong(client: triton.InferenceServerClient, case: Case) -> str | None:
    """What is wrong with the answers to the examples of a case, all sent at once, several times over."""
    arrived = queue.SimpleQueue[tuple[Example, triton.InferResult, triton.InferenceServerException | None]]()
    outputs = [triton.InferRequestedOutput(name) for name, _ in case.outputs]

    def send(example: Example) -> None:
        def arrive(result: triton.InferResult, error: triton.InferenceServerException | None) -> None:
            arrived.put((example, result, error))

        inputs = [to_input(*each, array) for each, array in zip(case.inputs, example.inputs, strict=True)]
        client.async_infer(case.name, inputs, arrive, outputs=outputs, client_timeout=60.0)

    for example in case.examples * BURST:
        send(example)
    differences = set()
    for example, result, error in [arrived.get(timeout=90.0) for _ in case.examples * BURST]:
        answers = [] if error else [to_array(result, *each) for each in case.outputs]
        differences.add(str(error) if error else case.difference(example, answers))
    return next(iter(differences - {None}), None)


def to_input(name: str, datatype: str, array: np.ndarray) -> triton.InferInput:
    """The tensor of a request. tritonclient takes BF16 as ml_dtypes' type, and strings as objects."""
    sent = triton.InferInput(name, array.shape, datatype)
    sent.set_data_from_numpy(array.astype(ml_dtypes.bfloat16) if datatype == "BF16" else array)
    return sent


def to_array(result: triton.InferResult, name: str, datatype: str) -> np.ndarray:
    """The tensor of an answer, in the form that the suite compares."""
    array = result.as_numpy(name)
    if datatype == "BF16":
        return array.astype(np.float32)
    return onnx_suite.as_text(array) if datatype == "BYTES" else array


def chunks(cases: Sequence[Case], size: int) -> Iterator[Sequence[Case]]:
    return (cases[start : start + size] for start in range(0, len(cases), size))


KINDS = {
    "another answer": "another answer",
    "NOT_IMPLEMENTED": "no kernel for it on the CPU",
    "is not a registered function/op": "no such operator",
    "locale": "wants the locale en_US, which this machine lacks",
    "Batchwise recurrent operations": "no recurrent networks with the batch first",
}
"""What its refusals say, and what that means."""


def summary(refusal: str) -> str:
    """A refusal without what is particular to one case."""
    return next((meaning for mark, meaning in KINDS.items() if mark in refusal), refusal[:100])


def listed(wrong: dict[str, str]) -> str:
    return f"{len(wrong)}:\n" + "\n".join(f"{name}: {what}" for name, what in wrong.items())
