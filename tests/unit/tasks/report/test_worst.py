from pathlib import Path

import pandas as pd

from tasks.records import Evaluation, Target
from tasks.report import worst
from tests.unit.tasks.report.example import run_of


def evaluated(folder: Path, target: Target, rows: dict[str, list[object]]) -> Evaluation:
    evaluation = run_of(folder, target).evaluation
    count = len(rows["label"])
    named = {"digest": [f"d{at}" for at in range(count)], "path": [f"{at}.png" for at in range(count)]}
    pd.DataFrame({**named, **rows}).to_parquet(evaluation.path / "predictions.parquet")
    return evaluation


def paths(errors: worst.Errors | None) -> list[str]:
    assert errors is not None
    assert errors.worst is not None
    return [tile.path for tile in errors.worst.tiles]


def test_errors__of_classes_begin_with_the_surest(tmp_path: Path) -> None:
    rows: dict[str, list[object]] = {
        "label": ["a", "a", "a", "b"],
        "predicted": ["a", "b", "b", None],
        "confidence": [0.9, 0.6, 0.8, float("nan")],
    }
    errors = worst.errors(evaluated(tmp_path, "class", rows), tmp_path)
    assert paths(errors) == ["2.png", "1.png", "3.png"]  # what was no answer comes last
    assert errors is not None
    assert (errors.count, errors.digests) == (3, frozenset({"d1", "d2", "d3"}))


def test_errors__of_labels_begin_with_the_furthest_from_their_labels(tmp_path: Path) -> None:
    rows: dict[str, list[object]] = {
        "label": ["a|b", "", "b", "a"],
        "predicted": ["a|b", "a", "a", "a"],
        "p:a": [0.9, 0.6, 0.9, 0.7],
        "p:b": [0.8, 0.1, 0.1, 0.4],
    }
    # -ln of (.4 · .9) for 1, of (.1 · .1) for 2; 0 and 3 are right.
    errors = worst.errors(evaluated(tmp_path, "labels", rows), tmp_path)
    assert paths(errors) == ["2.png", "1.png"]
    assert errors is not None
    assert errors.worst is not None
    assert errors.worst.tiles[1].lines == (("labelled", "(no label)"), ("answer", "a"))


def test_errors__of_numbers_begin_with_the_furthest_off(tmp_path: Path) -> None:
    rows: dict[str, list[object]] = {"label": ["1.0", "2.0", "3.0"], "predicted": [1.5, 4.0, float("nan")]}
    errors = worst.errors(evaluated(tmp_path, "number", rows), tmp_path)
    assert paths(errors) == ["2.png", "1.png", "0.png"]
    assert errors is not None
    assert errors.digests == frozenset()


def test_errors__without_predictions_are_none(tmp_path: Path) -> None:
    evaluation = run_of(tmp_path).evaluation
    (evaluation.path / "predictions.parquet").write_bytes(b"damaged")
    assert worst.errors(evaluation, tmp_path) is None
