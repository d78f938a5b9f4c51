"""`forwardpass explain`: the answer with its reasons, in words and as a picture, against a real server."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from forwardpass import explain_picture, explanation
from forwardpass.cli import main
from forwardpass.explanation import Explanation
from forwardpass.images import layout

ANSWER = np.array([[0.1, 0.9, 0.0]], np.float32)


def give(reply: Any, **arrays: np.ndarray) -> None:
    for name, array in arrays.items():
        reply.outputs.add(name=name, datatype="FP32", shape=list(array.shape))
        reply.raw_output_contents.append(array.astype(np.float32).tobytes())


@pytest.fixture
def attributions() -> np.ndarray:
    """Row 0 speaks for the answer, row 1 against it."""
    array = np.zeros((1, 4, 4), np.float32)
    array[0, 0] = [1, 2, 3, 4]
    array[0, 1, :2] = -2
    return array


@pytest.fixture
def explained(server: Any, make_model: Any, attributions: np.ndarray) -> Any:
    """A server of `mnist` and `mnist_explain`, which agree."""

    def plain(request: Any, reply: Any) -> None:
        give(reply, probabilities=ANSWER)

    def with_reasons(request: Any, reply: Any) -> None:
        error = np.array([[0.5]])
        give(
            reply,
            probabilities=ANSWER,
            saliency=abs(attributions),
            integrated_gradients=attributions,
            completeness_error=error,
        )

    image = [("image", "UINT8", [-1, 4, 4])]
    probabilities = ("probabilities", "FP32", [-1, 3])
    reasons = [("saliency", "FP32", [-1, 4, 4]), ("integrated_gradients", "FP32", [-1, 4, 4])]
    server.models["mnist"] = make_model(image, [probabilities], plain)
    explainer = make_model(image, [probabilities, *reasons, ("completeness_error", "FP32", [-1, 1])], with_reasons)
    explainer.properties["forwardpass.labels"] = json.dumps(["zero", "one", "two"])
    server.models["mnist_explain"] = explainer
    return server


@pytest.fixture
def run(server: Any, capsys: Any) -> Any:
    def call(*arguments: str) -> tuple[int, str, str]:
        code = main(["explain", *arguments, "--url", server.address])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture
def digit(tmp_path: Path) -> str:
    pixels = np.zeros((4, 4), np.uint8)
    pixels[:2] = 200
    Image.fromarray(pixels).save(tmp_path / "digit.png")
    return f"image=@{tmp_path / 'digit.png'}"


def test_the_likeliest_class_is_explained_in_words(explained: Any, run: Any, digit: str) -> None:
    code, out, err = run("mnist", digit)
    assert code == 0, err
    assert "one   0.9000" in out
    assert "the score of 'one' is +5.5 against an empty input; attributed +6 (completeness error +0.5)" in out
    assert "most for     [0, 3] +4,  [0, 2] +3,  [0, 1] +2" in out
    assert "most against [1, 0] -2,  [1, 1] -2" in out
    assert err == ""


def test_json_holds_every_array_and_what_the_score_gained(explained: Any, run: Any, digit: str) -> None:
    facts = json.loads(run("mnist", digit, "--json")[1])
    assert facts["model"] == "mnist_explain"
    assert facts["gained"] == [5.5]
    assert facts["outputs"]["integrated_gradients"]["data"][0][1] == [-2, -2, 0, 0]


def test_the_picture_shows_what_speaks_for_the_answer_in_blue_and_against_it_in_orange(
    explained: Any, run: Any, digit: str, tmp_path: Path
) -> None:
    assert run("mnist", digit, "--out", str(tmp_path / "why.png"))[0] == 0
    picture = np.asarray(Image.open(tmp_path / "why.png").convert("RGB")).astype(int)
    side, top = 300, explain_picture.MARGIN + explain_picture.HEAD + explain_picture.TITLE
    left = explain_picture.MARGIN + 2 * (side + explain_picture.GAP)
    cells = picture[top : top + side, left : left + side].reshape(4, 75, 4, 75, 3)[:, 37, :, 37]
    red, blue = cells[..., 0], cells[..., 2]
    assert (blue[0] > red[0]).all()
    assert (np.diff(red[0]) < 0).all()  # deeper with each element, as they grow
    assert (red[1, :2] > blue[1, :2]).all()
    assert (cells[2:] == 255).all()
    given = picture[top : top + side, explain_picture.MARGIN : explain_picture.MARGIN + side]
    assert (given[10] == 255).all()  # stretched from its darkest to its lightest
    assert (given[-10] == 0).all()


def test_an_explanation_of_another_version_is_said_to_be_one(explained: Any, run: Any, digit: str) -> None:
    explained.models["mnist"].run = lambda request, reply: give(reply, probabilities=ANSWER[:, ::-1])
    code, _, err = run("mnist", digit)
    assert code == 0
    assert "version 1 of 'mnist' answers otherwise than the network explained here" in err


def test_a_model_that_is_not_served_itself_is_explained_with_a_remark(explained: Any, run: Any, digit: str) -> None:
    del explained.models["mnist"]
    code, _, err = run("mnist", digit)
    assert code == 0
    assert "may explain another version" in err


def test_a_model_without_explanation_says_who_publishes_one(explained: Any, run: Any, digit: str) -> None:
    del explained.models["mnist_explain"]
    code, _, err = run("mnist", digit)
    assert code == 1
    assert "'mnist' is explained by 'mnist_explain', which `forwardpass-train explain` publishes" in err


def test_a_model_that_explains_nothing_is_refused_by_its_outputs(explained: Any, run: Any, digit: str) -> None:
    code, _, err = run("mnist", digit, "--explainer", "mnist")
    assert code == 1
    assert "'mnist' explains nothing: of one input it must give one answer, saliency" in err


def test_no_picture_is_drawn_of_a_table_and_nothing_is_asked(
    explained: Any, run: Any, make_model: Any, tmp_path: Path
) -> None:
    explained.models["mnist_explain"].inputs = [("x", "FP32", [-1, 10])]
    code, _, err = run("mnist", "x=[1]", "--out", str(tmp_path / "why.png"))
    assert code == 1
    assert "is no picture" in err
    assert "ModelInfer" not in [rpc for rpc, _ in explained.calls]


@pytest.mark.parametrize("name", ["nowhere/why.png", "why.docx"])
def test_a_picture_that_cannot_be_written_is_a_mistake_of_the_caller(
    explained: Any, run: Any, digit: str, tmp_path: Path, name: str
) -> None:
    code, _, err = run("mnist", digit, "--out", str(tmp_path / name))
    assert code == 2
    assert "cannot be written as a picture" in err


@pytest.mark.parametrize("shape", [(4, 6), (1, 4, 6), (3, 4, 6), (4, 6, 3)])
def test_pictures_of_every_layout_are_drawn_even_when_nothing_speaks(shape: tuple[int, ...], tmp_path: Path) -> None:
    nothing = np.zeros(shape, np.float32)
    each = Explanation(np.array([0.5]), 0, "0", nothing.astype(np.uint8), nothing, nothing, 0.0)
    explain_picture.save(tmp_path / "why.png", [each, each], layout((-1, *shape), "image"), model="m")
    with Image.open(tmp_path / "why.png") as picture:
        assert picture.width == 2 * explain_picture.MARGIN + 3 * 300 + 2 * explain_picture.GAP


def test_what_the_score_gained_is_the_attributed_less_the_error(attributions: np.ndarray) -> None:
    result = {
        "y": np.array([[3.0]]),
        "saliency": attributions,
        "integrated_gradients": attributions,
        "completeness_error": np.array([[2.0]]),
    }
    (each,) = explanation.read(attributions, result, [])
    assert (each.name, each.gained) == ("0", 4.0)
