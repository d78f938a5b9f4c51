"""What an explanation graph answers, row by row, and in words. Pure.

Such a graph stands beside the model that it explains, under the name `<model>_explain`. It gives the model's own answer
and, for the likeliest class: `saliency` (where a small change moves the score), `integrated_gradients` (how much of the
score each element accounts for, against an empty input) and `completeness_error` (what their sum lacks or exceeds).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from forwardpass import render
from forwardpass.errors import InvalidRequest
from forwardpass.results import InferResult, ModelMetadata, TensorMetadata

SUFFIX = "_explain"
SALIENCY, ATTRIBUTIONS, ERROR = OUTPUTS = ("saliency", "integrated_gradients", "completeness_error")

MOST_ELEMENTS = 3

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True, eq=False)
class Explanation:
    """Why one row was answered as it was.

    Args:
        answer: [classes], or [1] of a model with one output.
        best: index of what is explained.
        name: of what is explained: its label, or its number.
        given: the row itself, as `saliency` and `attributions` in shape.
        saliency: not negative.
        attributions: positive for the answer, negative against it.
        error: sum of `attributions` minus what the score gained over that of an empty input.
    """

    answer: Array
    best: int
    name: str
    given: Array
    saliency: Array
    attributions: Array
    error: float

    @property
    def gained(self) -> float:
        """Score of the answer minus that of an empty input."""
        return float(self.attributions.sum(dtype=np.float64)) - self.error


def explainer_of(model: str) -> str:
    """The name of the model that explains `model`; of one that explains, its own."""
    return model if model.endswith(SUFFIX) else f"{model}{SUFFIX}"


def check_explains(metadata: ModelMetadata) -> TensorMetadata:
    """The one input of a model that explains.

    Raises:
        InvalidRequest: it is another kind of model.
    """
    missing = [name for name in OUTPUTS if name not in {tensor.name for tensor in metadata.outputs}]
    if missing or len(metadata.inputs) != 1 or len(metadata.outputs) != 1 + len(OUTPUTS):
        raise InvalidRequest(
            f"'{metadata.name}' explains nothing: of one input it must give one answer, {', '.join(OUTPUTS)}; it has "
            f"{', '.join(tensor.name for tensor in metadata.outputs)}"
        )
    return metadata.inputs[0]


def answer_name(names: Sequence[str]) -> str:
    """The output that is the model's own answer."""
    (name,) = [name for name in names if name not in OUTPUTS]
    return name


def read(given: Array, result: Mapping[str, Array], labels: Sequence[str]) -> list[Explanation]:
    """One explanation a row.

    Args:
        given: [rows, …] as sent.
        result: what came back.
        labels: class names; may be empty.
    """
    answers = result[answer_name(list(result))]
    answers = answers.reshape(len(answers), -1)
    explanations = []
    for row, answer in enumerate(answers):
        best = int(answer.argmax())
        name = labels[best] if len(labels) == len(answer) else str(best)
        explanations.append(
            Explanation(
                answer=answer,
                best=best,
                name=name,
                given=given[row],
                saliency=result[SALIENCY][row],
                attributions=result[ATTRIBUTIONS][row],
                error=float(result[ERROR].reshape(len(answers))[row]),
            )
        )
    return explanations


def text(result: InferResult, explanations: Sequence[Explanation], labels: Sequence[str], bar: str = "█") -> str:
    """The answer as of any model, and for each row what spoke most for it and against it."""
    name = answer_name(list(result))
    own = InferResult(
        {name: result[name]}, result.model_name, result.model_version, result.id, result.parameters, result.trailers
    )
    blocks = [render.result(own, labels, bar)]
    for row, each in enumerate(explanations):
        of_row = f"row {row}: " if len(explanations) > 1 else ""
        what = f"the score of '{each.name}'" if len(each.answer) > 1 else "the score"
        blocks.append(
            f"{of_row}{what} is {each.gained:+.4g} against an empty input; attributed {each.gained + each.error:+.4g} "
            f"(completeness error {each.error:+.2g})"
        )
        order = np.argsort(each.attributions, axis=None, kind="stable")
        blocks.append(_elements("for", each.attributions, order[::-1], 1))
        blocks.append(_elements("against", each.attributions, order, -1))
    return "\n".join(blocks)


def as_json(result: InferResult, explanations: Sequence[Explanation], labels: Sequence[str]) -> dict[str, Any]:
    """The whole answer, and what each row gained."""
    return {**render.result_as_json(result, labels), "gained": [each.gained for each in explanations]}


def _elements(side: str, attributions: Array, order: Array, sign: int) -> str:
    chosen = [index for index in order[:MOST_ELEMENTS] if attributions.flat[index] * sign > 0]
    places = [
        f"{[int(axis) for axis in np.unravel_index(index, attributions.shape)]} {attributions.flat[index]:+.3g}"
        for index in chosen
    ]
    return f"  most {side:<8}{',  '.join(places) or 'nothing'}"
