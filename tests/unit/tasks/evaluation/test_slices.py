import numpy as np
import pandas as pd

from tasks.evaluation import slices
from tasks.evaluation.slices import MISSING, OTHER, Outputs, rows_of
from tasks.params import EvaluationParams

PARAMS = EvaluationParams(bootstrap=100)


def test_rows_of__values_and_what_has_none() -> None:
    test = pd.DataFrame({"site": ["b", "a", None, "b"], "day": [1, 1, 2, 2]})
    got = {name: rows.tolist() for name, rows in rows_of(test, ["site", "day"])}
    assert got == {f"site={MISSING}": [2], "site=a": [1], "site=b": [0, 3], "day=1": [0, 1], "day=2": [2, 3]}


def test_rows_of__rare_values_of_a_long_column_are_one_slice() -> None:
    values = [f"{i:03d}" for i in range(slices.SLICE_VALUES)] * 2 + ["x", "y"]
    got = dict(rows_of(pd.DataFrame({"id": values}), ["id"]))
    assert len(got) == slices.SLICE_VALUES + 1
    assert len(got[f"id={OTHER}"]) == 2


def outputs(champion: bool) -> Outputs:
    truth = np.array([0, 1, 1, 1])
    right = np.eye(2)[truth]
    return Outputs("class", truth, list("abcd"), right, np.eye(2)[[0, 0, 0, 1]] if champion else None)


def test_measure__class_that_a_slice_lacks_is_left_out_of_its_means() -> None:
    test = pd.DataFrame({"site": ["n", "s", "s", "s"]})
    got = slices.measure(test, ["site"], outputs(True), PARAMS)
    assert got.samples == {"site=n": 1, "site=s": 3}
    assert got.metrics["site=s"]["balanced_accuracy"].value == 1
    difference = got.differences["site=s"]["balanced_accuracy"]
    assert difference.value == 1 - 1 / 3
    assert (difference.p_better, difference.p_worse) == (1 / 4, 1)  # two coins


def test_measure__without_a_champion_nothing_is_compared() -> None:
    got = slices.measure(pd.DataFrame({"site": list("aabb")}), ["site"], outputs(False), PARAMS)
    assert got.differences == {}


def test_measure__without_slice_columns_there_is_nothing() -> None:
    got = slices.measure(pd.DataFrame({"site": list("aabb")}), [], outputs(True), PARAMS)
    assert (got.metrics, got.samples, got.differences) == ({}, {}, {})
