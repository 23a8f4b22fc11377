"""What disturbed images cost: the metric on test samples with noise, blur, JPEG, brightness and contrast
at three strengths each, the challenger beside the champion."""

import csv
from pathlib import Path

import numpy as np

from tasks.embedding.disturb import blocks_of
from tasks.embedding.views import DISTURBANCES, STRENGTHS
from tasks.evaluation import charts, compare, predict
from tasks.evaluation.metrics import Truth, measure
from tasks.evaluation.sums import Floats
from tasks.head.fit import split_data
from tasks.params import LOWER_IS_BETTER
from tasks.records import Embeddings, Manifest, Robustness, digest_of

Measured = tuple[float, dict[str, tuple[float, ...]]]  # undisturbed, and each disturbance by strength


def run(
    out: Path,
    sample: Manifest,
    embeddings: Embeddings,
    head_folder: Path,
    champion_embeddings: Embeddings | None,
    champion_folder: Path | None,
    metric: str,
) -> Robustness:
    """Writes robustness.csv (model, disturbance, strength, value; strength 0 is undisturbed) and
    robustness.png.

    Args:
        sample: its test samples are judged.
        embeddings: of these, by the embedder that `embedding.disturb.disturbed` makes of the head's.
        champion_embeddings: the same of the champion's; None: there is no champion.
        metric: one of the target's.

    Raises:
        CacheError: an embedding is missing.
        RegistryError: a folder holds no readable head.
    """
    _, truth = split_data(sample, blocks_of(embeddings, None), "test")
    clean, disturbed = _measured(sample, truth, embeddings, head_folder, metric)
    theirs: Measured | None = None
    if champion_embeddings is not None and champion_folder is not None:
        theirs = _measured(sample, truth, champion_embeddings, champion_folder, metric)
    made = Robustness(
        digest="",
        folder=str(out),
        samples=len(truth),
        metric=metric,
        clean=clean,
        disturbed=disturbed,
        loss=_loss(clean, disturbed, metric),
        champion_clean=theirs[0] if theirs else None,
        champion_disturbed=theirs[1] if theirs else None,
        champion_loss=_loss(*theirs, metric) if theirs else None,
    )
    _write_csv(out / "robustness.csv", {"challenger": (clean, disturbed), "champion": theirs})
    charts.robustness(out / "robustness.png", made)
    return made.model_copy(update={"digest": digest_of(made.model_dump(mode="json", exclude={"folder"}))})


def _measured(
    sample: Manifest, truth: Truth, embeddings: Embeddings, head_folder: Path, metric: str
) -> Measured:
    def value(disturbance: str | None) -> float:
        outputs, classes = predict.test_outputs(sample, blocks_of(embeddings, disturbance), head_folder)
        return measure(*_placed(outputs, classes, truth, sample), target=sample.target)[metric]

    return value(None), {
        name: tuple(value(f"{name}-{strength}") for strength in STRENGTHS) for name in DISTURBANCES
    }


def _placed(
    outputs: Floats, classes: tuple[str, ...], truth: Truth, sample: Manifest
) -> tuple[Floats, Truth]:
    """Outputs and truth with the manifest's columns, then those of the classes that only this model (an
    older champion) knows, which are true of no sample."""
    if sample.target == "number":
        return outputs, truth
    foreign = [name for name in classes if name not in sample.classes]
    outputs = compare.on_classes(outputs, classes, (*sample.classes, *foreign))
    if sample.target == "labels" and foreign:
        truth = np.concatenate([truth, np.zeros((len(truth), len(foreign)), dtype=np.bool_)], axis=1)
    return outputs, truth


def _write_csv(file: Path, models: dict[str, Measured | None]) -> None:
    with file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(("model", "disturbance", "strength", "value"))
        for model, measured in models.items():
            if measured is None:
                continue
            writer.writerow((model, "none", 0, measured[0]))
            for name, values in measured[1].items():
                writer.writerows((model, name, *one) for one in zip(STRENGTHS, values, strict=True))


def _loss(clean: float, disturbed: dict[str, tuple[float, ...]], metric: str) -> float:
    """How much worse the metric is in the mean; NaN where any is undefined."""
    worse = clean - float(np.mean([value for values in disturbed.values() for value in values]))
    return -worse if metric in LOWER_IS_BETTER else worse
