"""Stack and split: everybody gets their own rows, and nobody's memory is used twice."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forwardpass_server.errors import RunFailed
from forwardpass_server.scheduling.batch import merge_key, split, stack, wanted_outputs
from forwardpass_server.scheduling.fake import make_request
from forwardpass_server.scheduling.request import Array, Request


def requests(*rows: int, outputs: tuple[int, ...] = (0,)) -> list[Request]:
    start = np.cumsum((0, *rows))
    return [
        make_request([np.arange(a * 3, (a + n) * 3, dtype=np.float32).reshape(n, 3)], outputs=outputs)[0]
        for a, n in zip(start, rows, strict=False)
    ]


def test_a_request_alone_is_not_copied() -> None:
    batch = requests(2)
    assert stack(batch)[0] is batch[0].inputs[0]


@given(st.lists(st.integers(1, 5), min_size=1, max_size=12), st.integers(1, 3))
def test_split_undoes_stack(rows: list[int], outputs: int) -> None:
    batch = requests(*rows, outputs=tuple(range(outputs)))
    (stacked,) = stack(batch)
    assert stacked is not None
    assert stacked.shape == (sum(rows), 3)
    answers = [stacked + number for number in range(outputs)]
    parts = split(answers, tuple(range(outputs)), batch, sum(rows))
    for request, part in zip(batch, parts, strict=True):
        mine = request.inputs[0]
        assert mine is not None
        assert len(part) == outputs
        for number, output in enumerate(part):
            np.testing.assert_array_equal(output, mine + number)


def test_each_gets_only_the_outputs_it_asked_for_in_its_own_order() -> None:
    """Conformance 30."""
    batch = [make_request([np.zeros((1, 1), np.float32)], outputs=outputs)[0] for outputs in ((2, 0), (1,), (0,))]
    wanted = wanted_outputs(batch)
    assert wanted == (0, 1, 2)
    answers = [np.array([[10 * index + row] for row in range(3)]) for index in wanted]
    parts = split(answers, wanted, batch, 3)
    assert [[int(output[0, 0]) for output in part] for part in parts] == [[20, 0], [11], [2]]


def test_an_order_that_all_agree_on_is_kept() -> None:
    batch = [make_request([np.zeros((1, 1))], outputs=(2, 0))[0] for _ in range(2)]
    assert wanted_outputs(batch) == (2, 0)


@pytest.mark.parametrize("answer", [np.zeros((1, 3)), np.zeros(()), np.zeros((4, 3))])
def test_an_output_without_a_row_per_row_fails_the_run_with_its_shape(answer: Array) -> None:
    with pytest.raises(RunFailed, match=r"batch of 3 rows.*max_batch_size"):
        split([answer], (0,), requests(2, 1), 3)


def test_one_request_may_get_any_shape() -> None:
    assert split([np.ones(())], (0,), requests(2), 2)[0][0].shape == ()


def test_strings_are_stacked() -> None:
    batch = [make_request([np.array([["a\0b"], [""]], dtype=object)])[0], make_request([np.array([["é"]], object)])[0]]
    (stacked,) = stack(batch)
    assert stacked is not None
    assert stacked.tolist() == [["a\0b"], [""], ["é"]]


def test_optional_inputs_are_absent_together() -> None:
    batch = [make_request([np.ones((1, 1)), None])[0] for _ in range(2)]
    assert stack(batch)[1] is None


def test_the_merge_key_tells_shapes_and_absent_inputs_apart_and_not_rows() -> None:
    a, b, c = np.zeros((1, 3)), np.zeros((2, 3)), np.zeros((1, 4))
    assert merge_key([a, None]) == merge_key([b, None])
    assert merge_key([a, None]) != merge_key([c, None])
    assert merge_key([a, None]) != merge_key([a, a])


def test_two_runs_do_not_share_memory() -> None:
    first, second = (stack(requests(2, 3))[0] for _ in range(2))
    assert first is not None
    assert second is not None
    assert not np.shares_memory(first, second)
