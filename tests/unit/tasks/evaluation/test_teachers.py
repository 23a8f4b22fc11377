import numpy as np
import pytest

from tasks.errors import DataError
from tasks.evaluation.evaluate import ChampionResult
from tasks.evaluation.student import named
from tasks.evaluation.teachers import averaged

FIRST = ChampionResult("q", ("a", "b"), np.array([[0.75, 0.25], [0.5, 0.5]]))
SECOND = ChampionResult("r", ("b", "owl", "a"), np.array([[0.25, 0.5, 0.25], [0.25, 0.25, 0.5]]))


def test_averaged__one_teacher_speaks_for_itself() -> None:
    found = averaged([FIRST], ("a", "b"), "class")
    assert (found.version, found.classes) == ("q", ("a", "b"))
    assert np.array_equal(found.outputs, FIRST.outputs)


def test_averaged__classes_in_the_students_order_without_those_that_it_lacks() -> None:
    found = averaged([FIRST, SECOND], ("b", "a"), "class")
    assert found.version == named(["q", "r"])
    # SECOND without its owl: (.25, .25) / .5 and (.25, .5) / .75.
    expected = [[(0.25 + 0.5) / 2, (0.75 + 0.5) / 2], [(0.5 + 1 / 3) / 2, (0.5 + 2 / 3) / 2]]
    np.testing.assert_allclose(found.outputs, expected)


def test_averaged__labels_are_each_their_own() -> None:
    found = averaged([FIRST, SECOND], ("b", "a"), "labels")
    np.testing.assert_allclose(found.outputs, [[0.25, 0.5], [0.375, 0.5]])


def test_averaged__numbers() -> None:
    one, other = (ChampionResult(name, (), np.array([[value]])) for name, value in (("q", 1.0), ("r", 4.0)))
    assert averaged([one, other], (), "number").outputs.tolist() == [[2.5]]


def test_averaged__teacher_that_says_nothing_of_these_classes_has_no_number() -> None:
    mute = ChampionResult("q", ("a", "b", "owl"), np.array([[0.0, 0.0, 1.0]]))
    assert np.isnan(averaged([mute], ("a", "b"), "class").outputs).all()


def test_averaged__lacking_class_or_teacher_is_refused() -> None:
    with pytest.raises(DataError, match="teacher q does not know owl; name another"):
        averaged([FIRST], ("a", "owl"), "class")
    with pytest.raises(DataError, match="there is no teacher"):
        averaged([], ("a",), "class")
