"""All numbers on the test split, for the challenger and beside it the champion."""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from tasks.data import units
from tasks.data.labels import names
from tasks.errors import DataError
from tasks.evaluation import plots, predictions, slices
from tasks.evaluation.calibration import chance_ece, reliability, selective
from tasks.evaluation.compare import differences, mcnemar, on_classes, on_labels
from tasks.evaluation.metrics import Truth
from tasks.evaluation.slices import Outputs
from tasks.evaluation.sums import Floats, right, sound
from tasks.params import EvaluationParams
from tasks.records import Confidence, Conformal, Evaluation, Manifest, McNemar, Selective, Target, digest_of


@dataclass(frozen=True)
class ChampionResult:
    """What the champion says about the test split."""

    version: str
    classes: tuple[str, ...]  # of a number none
    outputs: Floats  # [N, K], in the order of the manifest's test rows


def run(
    out: Path,
    manifest: Manifest,
    outputs: Floats,
    classes: Sequence[str],
    champion: ChampionResult | None,
    params: EvaluationParams,
    *,
    confidence: Confidence | None = None,
    conformal: Conformal | None = None,
) -> Evaluation:
    """Evaluates the challenger, and compares it with the champion on the same samples.

    Writes metrics.json and predictions.parquet; of classes confusion.{png,csv}, of classes and labels
    reliability.{png,csv}, of numbers predicted.{png,csv}.
    Outputs that are not finite do not raise: the metrics are NaN, and the gate fails.
    Samples of one group, or with the same content, are resampled together.

    Challenger and champion may know different classes (see `on_classes`). A new class counts against a
    champion that can't say it; how many samples have one is counted, since a class that was only renamed
    looks alike. Labels are judged each by itself, so those that the champion alone knows are left out:
    true of no sample, they would only dilute the means over labels.

    Args:
        out: an existing folder.
        manifest: whose test rows are meant, in the order of manifest.parquet.
        outputs: [N, K] of the challenger (see `predict.test_outputs`).
        classes: [K] its classes; of a number none.
        champion: the same of the version that serves today; None where there is none.
        params: of the bootstrap and the calibration bins.
        confidence, conformal: the head's thresholds, tried on these samples.

    Raises:
        DataError: the outputs do not fit the manifest's test rows or the classes, or a label is none of
            the target.
    """
    frame = pd.read_parquet(manifest.file)
    test = frame[frame["split"] == "test"].reset_index(drop=True)
    target = manifest.target
    _check_shape("challenger", outputs, len(test), classes, target)
    if champion is not None:
        whose = f"champion version {champion.version}"
        _check_shape(whose, champion.outputs, len(test), champion.classes, target)

    theirs = set(champion.classes) if champion else set()
    own = sorted({*classes, *_names(test, target)})  # what is reported class by class
    # Columns of the metrics. Probabilities of classes sum to 1 with those that only the champion knows.
    known = [*own, *sorted(theirs - set(own))] if target == "class" else own
    unknown = sorted(_names(test, target) - theirs) if champion else []
    both = Outputs(
        target=target,
        truth=_truth(test, known, target),
        units=_units(test),
        challenger=_placed(outputs, classes, known, target),
        champion=_placed(champion.outputs, champion.classes, known, target) if champion else None,
    )
    result, serving = both.bootstrapped(params)
    by_slice = slices.measure(test, manifest.slices, both, params)

    points = {name: value for name, value in result.points.items() if math.isfinite(value)}
    (out / "metrics.json").write_text(json.dumps({**points, "samples": len(test)}, indent=2) + "\n")
    predictions.write(
        out / "predictions.parquet",
        test,
        both.challenger,
        both.champion,
        target=target,
        classes=classes,
        known=known,
    )
    _plot(out, test, both, own, known, params, result.points)

    return Evaluation(
        digest=_digest(manifest, outputs, classes, champion, params, confidence, conformal),
        folder=str(out),
        target=target,
        samples=len(test),
        units=result.size,
        alpha=params.alpha,
        metrics=result.intervals(params.alpha),
        standard_errors=result.standard_errors(),
        chance_ece=_chance(both, params),
        per_class=result.per_class(own, params.alpha) if target != "number" else {},
        per_slice=by_slice.metrics,
        slice_samples=by_slice.samples,
        slice_units=by_slice.units,
        selective=_selective(both, outputs, classes, known, confidence, conformal),
        champion_version=champion.version if champion else None,
        champion_metrics=serving.intervals(params.alpha) if serving else None,
        unknown_classes=tuple(unknown),
        unknown_samples=_with_any(test, unknown, target),
        differences=differences(result, serving, params.alpha) if serving else {},
        mcnemar=_mcnemar(both),
        slice_differences=by_slice.differences,
    )


def _check_shape(whose: str, outputs: Floats, samples: int, classes: Sequence[str], target: Target) -> None:
    columns = 1 if target == "number" else len(classes)
    if outputs.shape != (samples, columns) or (target == "number" and classes):
        raise DataError(
            f"{whose}: outputs {list(outputs.shape)} do not fit the manifest's {samples:,} test samples and "
            f"{'their numbers' if target == 'number' else f'{columns:,} classes'}; "
            "predict this manifest's test rows again"
        )


def _names(test: pd.DataFrame, target: Target) -> set[str]:
    """The classes or labels that the test samples have."""
    if target == "number":
        return set()
    given = test["label"].fillna("").astype(str)
    return set(given) if target == "class" else {name for label in given for name in _labels(label)}


def _labels(label: str) -> list[str]:
    return list(names(label))


def _truth(test: pd.DataFrame, known: Sequence[str], target: Target) -> Truth:
    if target == "number":
        y = pd.to_numeric(test["label"], errors="coerce").to_numpy(dtype=np.float64)
        if bad := int((~np.isfinite(y)).sum()):
            raise DataError(f"{bad:,} of {len(y):,} test samples have a label that is no finite number")
        return np.asarray(y)
    column = {label: i for i, label in enumerate(known)}
    given = test["label"].fillna("").astype(str)
    if target == "class":
        return np.array([column[name] for name in given], dtype=np.int64)
    truth = np.zeros((len(test), len(known)), dtype=np.bool_)
    for row, label in enumerate(given):
        truth[row, [column[name] for name in _labels(label)]] = True
    return truth


def _units(test: pd.DataFrame) -> list[str]:
    """What is drawn together [N]: samples of one group or content."""
    groups = test["group"].fillna("").astype(str) if "group" in test else pd.Series([""] * len(test))
    return units.keys(groups.tolist(), test["digest"].astype(str).tolist())


def _with_any(test: pd.DataFrame, names: Sequence[str], target: Target) -> int:
    """How many test samples have one of these classes or labels."""
    given = test["label"].fillna("").astype(str)
    return sum(not set(names).isdisjoint([label] if target == "class" else _labels(label)) for label in given)


def _placed(outputs: Floats, classes: Sequence[str], known: Sequence[str], target: Target) -> Floats:
    if target == "number":
        return np.asarray(outputs, dtype=np.float64)
    if target == "labels":
        return on_labels(outputs, classes, known)
    return on_classes(outputs, classes, known)


def _chance(both: Outputs, params: EvaluationParams) -> float | None:
    if both.target == "number":
        return None
    if not sound(both.challenger, both.target).all():
        return math.nan
    return chance_ece(
        both.challenger, both.truth, seed=params.seed, bins=params.calibration_bins, target=both.target
    )


def _selective(
    both: Outputs,
    outputs: Floats,
    classes: Sequence[str],
    known: Sequence[str],
    confidence: Confidence | None,
    conformal: Conformal | None,
) -> Selective | None:
    if both.target != "class":
        return None
    own = {known.index(label): column for column, label in enumerate(classes)}
    label = np.array([own.get(int(column), -1) for column in both.truth], dtype=np.int64)
    return selective(np.asarray(outputs, dtype=np.float64), label, confidence, conformal)


def _mcnemar(both: Outputs) -> McNemar | None:
    """Of the samples that are all right; none where a model can't be judged."""
    if both.target == "number" or both.champion is None:
        return None
    if not (sound(both.challenger, both.target).all() and sound(both.champion, both.target).all()):
        return None
    return mcnemar(
        right(both.challenger, both.truth, both.target), right(both.champion, both.truth, both.target)
    )


def _plot(
    out: Path,
    test: pd.DataFrame,
    both: Outputs,
    own: Sequence[str],
    known: Sequence[str],
    params: EvaluationParams,
    points: dict[str, float],
) -> None:
    said = predictions.predicted(both.challenger, known, both.target)
    judged = said.notna()
    if both.target == "number":
        plots.predicted(out, both.truth[judged].tolist(), said[judged].tolist(), points["r2"])
        return
    if both.target == "class":
        # A class that only the champion knows has probability 0 here: it is never the top one.
        plots.confusion(out, test["label"].astype(str)[judged].tolist(), said[judged].tolist(), own)
    bins = reliability(both.challenger, both.truth, bins=params.calibration_bins, target=both.target)
    plots.reliability(out, bins, points["ece"], target=both.target)


def _digest(
    manifest: Manifest,
    outputs: Floats,
    classes: Sequence[str],
    champion: ChampionResult | None,
    params: EvaluationParams,
    confidence: Confidence | None,
    conformal: Conformal | None,
) -> str:
    """Over all inputs; outputs count by their bytes, so that NaN has a digest too."""
    theirs = champion and [champion.version, list(champion.classes), _bytes_digest(champion.outputs)]
    thresholds = [threshold and threshold.model_dump() for threshold in (confidence, conformal)]
    return digest_of(
        "evaluation", manifest.digest, list(classes), _bytes_digest(outputs), theirs, params, thresholds
    )


def _bytes_digest(values: Floats) -> str:
    return hashlib.sha256(np.ascontiguousarray(values, dtype="<f8").tobytes()).hexdigest()
