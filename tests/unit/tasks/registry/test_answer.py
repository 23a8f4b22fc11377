import numpy as np

from tasks.head.fitted import Calibration, FittedHead
from tasks.head.linear import Linear
from tasks.records import Confidence, Conformal, Target
from tasks.registry.answer import COLUMNS, answers


def head(target: Target, *classes: str) -> FittedHead:
    outputs = max(1, len(classes))
    model = Linear(np.zeros(1), np.ones(1), np.zeros((outputs, 1)), np.zeros(outputs))
    kind = {"class": "logistic", "labels": "multilabel", "number": "ridge"}[target]
    return FittedHead(target, kind, classes, model, Calibration.none(outputs))  # type: ignore[arg-type]


def test_class__thresholds_say_which_answers_are_sure_and_which_classes_possible() -> None:
    sure = head("class", "a", "b", "c").with_thresholds(
        Confidence(precision=0.99, threshold=0.8, answered=0.5), Conformal(coverage=0.9, threshold=0.15)
    )
    answer = answers(sure, np.array([[0.9, 0.06, 0.04], [0.2, 0.65, 0.15]]))
    assert tuple(answer) == COLUMNS["class"]
    assert (answer["label"], answer["confidence"]) == (["a", "b"], [0.9, 0.65])
    assert answer["accepted"] == [True, False]
    assert answer["prediction_set"] == [["a"], ["a", "b", "c"]]
    assert answer["probabilities"][0] == {"a": 0.9, "b": 0.06, "c": 0.04}


def test_class__without_thresholds_nothing_is_sure_and_all_is_possible() -> None:
    answer = answers(head("class", "a", "b"), np.array([[1.0, 0.0]]))
    assert (answer["accepted"], answer["prediction_set"]) == ([False], [["a", "b"]])


def test_labels__are_those_with_even_odds_or_better() -> None:
    answer = answers(head("labels", "a", "b"), np.array([[0.5, 0.9], [0.49, 0.1]]))
    assert tuple(answer) == COLUMNS["labels"]
    assert answer["labels"] == [["a", "b"], []]
    assert answer["probabilities"][1] == {"a": 0.49, "b": 0.1}


def test_number__is_a_value() -> None:
    assert answers(head("number"), np.array([[1.5], [-2.0]])) == {"value": [1.5, -2.0]}


def test_no_images__give_empty_columns() -> None:
    assert answers(head("class", "a", "b"), np.empty((0, 2))) == {name: [] for name in COLUMNS["class"]}
    assert answers(head("number"), np.empty((0, 1))) == {"value": []}
