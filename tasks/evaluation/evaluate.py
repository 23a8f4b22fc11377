"""All numbers on the test split, for the challenger and beside it the champion."""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from tasks.errors import DataError
from tasks.evaluation import plots
from tasks.evaluation.compare import differences, on_classes
from tasks.evaluation.metrics import Bootstrap, Floats, bootstrap, distributions, reliability
from tasks.params import EvaluationParams
from tasks.records import Evaluation, Interval, Manifest, digest_of

SLICE_VALUES = 100  # of a slice column, the most frequent; a column of ids is no column of slices
OTHER = "(other)"  # the slice of the samples with rarer values
MISSING = "(missing)"  # the slice of the samples that have no value in a slice column


@dataclass(frozen=True)
class ChampionResult:
    """What the champion says about the test split."""

    version: str
    classes: tuple[str, ...]
    probabilities: Floats  # [N, C'], in the order of the manifest's test rows


def run(
    out: Path,
    manifest: Manifest,
    probabilities: Floats,
    classes: Sequence[str],
    champion: ChampionResult | None,
    params: EvaluationParams,
) -> Evaluation:
    """Evaluates the challenger, and compares it with the champion on the same samples.

    Writes metrics.json, predictions.parquet, confusion.{png,csv} and reliability.{png,csv}.
    Probabilities that are not finite do not raise: the metrics are NaN, and the gate fails.
    Challenger and champion may know different classes (see `on_classes`).

    Args:
        out: an existing folder.
        manifest: whose test rows are meant, in the order of manifest.parquet.
        probabilities: [N, C] of the challenger.
        classes: [C] its classes.
        champion: the same of the version that serves today; None where there is none.
        params: of the bootstrap and the calibration bins.

    Raises:
        DataError: the probabilities do not fit the manifest's test rows or the classes.
    """
    frame = pd.read_parquet(manifest.file)
    test = frame[frame["split"] == "test"].reset_index(drop=True)
    _check_shape("challenger", probabilities, len(test), classes)
    if champion is not None:
        _check_shape(
            f"champion version {champion.version}", champion.probabilities, len(test), champion.classes
        )

    truth = test["label"].astype(str)
    own = sorted({*classes, *truth})  # what is reported class by class
    known = [*own, *sorted(set(champion.classes if champion else ()) - set(own))]  # columns of the metrics
    y = truth.map({label: i for i, label in enumerate(known)}).to_numpy(dtype=np.int64)  # [N]
    p = on_classes(probabilities, classes, known)  # [N, K]
    result = _bootstrap(p, y, params)
    theirs = q = None
    if champion is not None:
        q = on_classes(champion.probabilities, champion.classes, known)  # [N, K]
        theirs = _bootstrap(q, y, params)
    per_slice, slice_samples = _slices(test, manifest.slices, p, y, params)

    points = {name: value for name, value in result.points.items() if math.isfinite(value)}
    (out / "metrics.json").write_text(json.dumps({**points, "samples": len(test)}, indent=2) + "\n")
    predicted = _predicted(p, known)
    _write_predictions(out / "predictions.parquet", test, p, predicted, classes, known, q)
    judged = predicted.notna()
    plots.confusion(out, truth[judged].tolist(), predicted[judged].tolist(), own)
    plots.reliability(out, reliability(p, y, bins=params.calibration_bins), result.points["ece"])

    return Evaluation(
        digest=_digest(manifest, probabilities, classes, champion, params),
        folder=str(out),
        samples=len(test),
        metrics=result.intervals(),
        per_class=result.per_class(own),
        per_slice=per_slice,
        slice_samples=slice_samples,
        champion_version=champion.version if champion else None,
        champion_metrics=theirs.intervals() if theirs else None,
        differences=differences(result, theirs) if theirs else {},
    )


def _check_shape(whose: str, probabilities: Floats, samples: int, classes: Sequence[str]) -> None:
    if probabilities.shape != (samples, len(classes)):
        raise DataError(
            f"{whose}: probabilities {list(probabilities.shape)} do not fit the manifest's "
            f"{samples:,} test samples and {len(classes):,} classes; predict this manifest's test rows again"
        )


def _bootstrap(p: Floats, y: np.ndarray, params: EvaluationParams) -> Bootstrap:
    return bootstrap(p, y, resamples=params.bootstrap, seed=params.seed, bins=params.calibration_bins)


def _slices(
    test: pd.DataFrame, columns: Sequence[str], p: Floats, y: np.ndarray, params: EvaluationParams
) -> tuple[dict[str, dict[str, Interval]], dict[str, int]]:
    """`column=value` -> metrics of its test samples, and how many they are."""
    metrics, samples = {}, {}
    for column in columns:
        missing = test[column].isna()
        values = test[column].astype(object).map(str).mask(missing, MISSING)
        frequent = values.value_counts().index[:SLICE_VALUES]
        values = values.where(values.isin(frequent), OTHER)
        for value, rows in sorted(values.groupby(values).indices.items()):
            metrics[f"{column}={value}"] = _bootstrap(p[rows], y[rows], params).intervals()
            samples[f"{column}={value}"] = len(rows)
    return metrics, samples


def _predicted(p: Floats, known: Sequence[str]) -> pd.Series:
    """The top class of each row [N]; none where the row is not a distribution."""
    top = pd.Series(np.asarray(known, dtype=object)[p.argmax(axis=1)], dtype=object)
    return top.where(distributions(p), None)


def _write_predictions(
    file: Path,
    test: pd.DataFrame,
    p: Floats,
    predicted: pd.Series,
    classes: Sequence[str],
    known: Sequence[str],
    champion: Floats | None,
) -> None:
    columns = {
        "digest": test["digest"],
        "path": test["path"],
        "label": test["label"],
        "predicted": predicted,
        "confidence": np.where(predicted.notna(), p.max(axis=1), np.nan),
        **{f"p:{label}": p[:, known.index(label)] for label in classes},
    }
    if champion is not None:
        columns["champion_predicted"] = _predicted(champion, known)
    pd.DataFrame(columns).to_parquet(file, index=False)


def _digest(
    manifest: Manifest,
    probabilities: Floats,
    classes: Sequence[str],
    champion: ChampionResult | None,
    params: EvaluationParams,
) -> str:
    """Over all inputs; probabilities count by their bytes, so that NaN has a digest too."""
    theirs = champion and [champion.version, list(champion.classes), _bytes_digest(champion.probabilities)]
    return digest_of(
        "evaluation", manifest.digest, list(classes), _bytes_digest(probabilities), theirs, params
    )


def _bytes_digest(values: Floats) -> str:
    return hashlib.sha256(np.ascontiguousarray(values, dtype="<f8").tobytes()).hexdigest()
