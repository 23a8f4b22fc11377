import numpy as np

from tasks.evaluation.predictions import predicted


def test_predicted__row_that_can_not_be_judged_has_no_answer() -> None:
    assert predicted(np.array([[0.2, 0.8], [np.nan, 1.0]]), ["a", "b"], "class").tolist() == ["b", None]
    assert predicted(np.array([[0.7, 0.8], [np.nan, 1.0]]), ["a", "b"], "labels").tolist() == ["a|b", None]
    numbers = predicted(np.array([[1.5], [np.inf]]), [], "number")
    assert numbers[0] == 1.5
    assert np.isnan(numbers[1])


def test_predicted__no_label_from_a_half_on_is_an_empty_answer() -> None:
    assert predicted(np.array([[0.49, 0.5], [0.1, 0.1]]), ["a", "b"], "labels").tolist() == ["b", ""]


def test_predicted__of_no_samples() -> None:
    assert predicted(np.empty((0, 2)), ["a", "b"], "class").tolist() == []
    assert predicted(np.empty((0, 2)), ["a", "b"], "labels").tolist() == []
