"""What the model has wrong in the test split, the worst first."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tasks.data.labels import names
from tasks.records import Evaluation
from tasks.report import pictures
from tasks.report.blocks import Gallery, Tile
from tasks.report.words import number, percent

SHOWN = 12  # images
NO_LABEL = "(no label)"
NO_ANSWER = "no usable answer"

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Errors:
    """The test samples that the model has wrong; of numbers those that it is furthest off."""

    count: int  # of labels and classes: wrong samples; of numbers all
    digests: frozenset[str]  # of those that are wrong; of numbers none
    worst: Gallery | None


def errors(evaluation: Evaluation, data: Path) -> Errors | None:
    """Reads `predictions.parquet`; None where there is none that can be read.

    The worst errors are those in which the model was surest of the wrong class; of labels, those
    whose labels it gave the least probability; of numbers, those furthest off.
    """
    try:
        frame = pd.read_parquet(evaluation.path / "predictions.parquet")
    except (OSError, ValueError):
        return None
    if evaluation.target == "number":
        return _of_numbers(frame, data)
    return _of_labels(frame, data) if evaluation.target == "labels" else _of_classes(frame, data)


def _of_classes(frame: pd.DataFrame, data: Path) -> Errors:
    wrong = frame[frame["predicted"].isna() | (frame["predicted"] != frame["label"])]
    # Of equally sure ones the digest decides, so that the page is the same again.
    worst = wrong.sort_values(["confidence", "digest"], ascending=[False, True]).head(SHOWN)
    tiles = [
        _tile(
            data,
            str(row["path"]),
            ("labelled", str(row["label"])),
            ("answer", _said(row["predicted"])),
            ("sure by", percent(float(row["confidence"]), 0)),
        )
        for row in worst.to_dict("records")
    ]
    title = "Surest of a wrong answer" if tiles else ""
    return Errors(len(wrong), frozenset(wrong["digest"]), Gallery(tiles, title) if tiles else None)


def _of_labels(frame: pd.DataFrame, data: Path) -> Errors:
    names = [str(column)[2:] for column in frame.columns if str(column).startswith("p:")]
    p = frame[[f"p:{name}" for name in names]].to_numpy(dtype=np.float64)  # [N, C]
    given = [_names(label) for label in frame["label"]]
    truth = np.array([[name in labels for name in names] for labels in given], dtype=bool)
    truth = truth.reshape(p.shape)
    said = [None if answer is None else _names(answer) for answer in frame["predicted"]]
    is_wrong = np.array([answer != labels for answer, labels in zip(said, given, strict=True)], dtype=bool)
    loss = -np.log(np.clip(np.where(truth, p, 1 - p), 1e-12, 1)).sum(axis=1)
    order = [at for at in np.argsort(-np.nan_to_num(loss), kind="stable").tolist() if is_wrong[at]]
    tiles = [
        _tile(
            data,
            str(frame["path"].iloc[at]),
            ("labelled", _listed(given[at])),
            ("answer", _listed(said[at])),
        )
        for at in order[:SHOWN]
    ]
    gallery = Gallery(tiles, "Furthest from their labels") if tiles else None
    return Errors(int(is_wrong.sum()), frozenset(frame["digest"][is_wrong]), gallery)


def _of_numbers(frame: pd.DataFrame, data: Path) -> Errors:
    truth, said = _floats(frame["label"]), _floats(frame["predicted"])
    off = np.abs(said - truth)
    order = np.argsort(-np.nan_to_num(off, nan=np.inf), kind="stable")[:SHOWN].tolist()
    tiles = [
        _tile(
            data,
            str(frame["path"].iloc[at]),
            ("labelled", number(float(truth[at]))),
            ("answer", number(float(said[at]))),
            ("off by", number(float(off[at]))),
        )
        for at in order
    ]
    return Errors(len(frame), frozenset(), Gallery(tiles, "Furthest off") if tiles else None)


def _tile(data: Path, path: str, *lines: tuple[str, str]) -> Tile:
    return Tile(pictures.sample(data, path) or "", path, lines)


def _said(predicted: object) -> str:
    return predicted if isinstance(predicted, str) else NO_ANSWER


def _names(labels: str) -> frozenset[str]:
    return frozenset(names(labels))


def _listed(labels: frozenset[str] | None) -> str:
    return NO_ANSWER if labels is None else ", ".join(sorted(labels)) or NO_LABEL


def _floats(column: "pd.Series[str]") -> Floats:
    return np.array([float(value) if value is not None else np.nan for value in column], dtype=np.float64)
