"""What disturbed images cost: the metric on test samples with noise, blur, JPEG, brightness and contrast
at three strengths each, the challenger beside the champion."""

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tasks.data import units
from tasks.embedding.disturb import blocks_of
from tasks.embedding.views import DISTURBANCES, STRENGTHS
from tasks.evaluation import charts, compare, predict
from tasks.evaluation.metrics import ALPHA, Bootstrap, Truth, bootstrap, interval
from tasks.evaluation.sums import Floats
from tasks.head.fit import split_data
from tasks.params import LOWER_IS_BETTER
from tasks.records import Embeddings, Interval, Manifest, Robustness, digest_of

RESAMPLES = 1000


@dataclass(frozen=True)
class _Resampling:
    """Of all measurements alike, so that they are paired."""

    groups: list[str]  # [N]
    resamples: int
    seed: int


@dataclass(frozen=True)
class _Measured:
    """The metric of a model, undisturbed and disturbed."""

    metric: str
    clean: Bootstrap
    disturbed: dict[str, tuple[Bootstrap, ...]]  # by strength

    @property
    def value(self) -> float:
        return self.clean.points[self.metric]

    @property
    def values(self) -> dict[str, tuple[float, ...]]:
        return {name: tuple(one.points[self.metric] for one in of) for name, of in self.disturbed.items()}

    @property
    def loss(self) -> float:
        """How much worse the metric is in the mean; NaN where any is undefined."""
        worse = self.value - float(np.mean([value for of in self.values.values() for value in of]))
        return -worse if self.metric in LOWER_IS_BETTER else worse

    @property
    def losses(self) -> Floats:
        """[B], the same on each resample."""
        disturbed = [one.draws[self.metric] for of in self.disturbed.values() for one in of]
        worse: Floats = self.clean.draws[self.metric] - np.mean(disturbed, axis=0)
        return -worse if self.metric in LOWER_IS_BETTER else worse


def run(
    out: Path,
    sample: Manifest,
    embeddings: Embeddings,
    head_folder: Path,
    champion_embeddings: Embeddings | None,
    champion_folder: Path | None,
    metric: str,
    *,
    resamples: int = RESAMPLES,
    alpha: float = ALPHA,
    seed: int = 0,
) -> Robustness:
    """Also whether the two models lose alike: the paired bootstrap of (own loss - champion's loss) over the
    same samples.

    Writes robustness.csv (model, disturbance, strength, value; strength 0 is undisturbed) and
    robustness.png.

    Args:
        sample: its test samples are judged.
        embeddings: of these, by the embedder that `embedding.disturb.disturbed` makes of the head's.
        champion_embeddings: the same of the champion's; None: there is no champion.
        metric: one of the target's.
        resamples, alpha, seed: of the interval of the difference.

    Raises:
        CacheError: an embedding is missing.
        RegistryError: a folder holds no readable head.
    """
    _, truth = split_data(sample, blocks_of(embeddings, None), "test")
    alike = _Resampling(units.of_split(sample, "test"), resamples, seed)
    ours = _measured(sample, truth, embeddings, head_folder, metric, alike)
    theirs: _Measured | None = None
    if champion_embeddings is not None and champion_folder is not None:
        theirs = _measured(sample, truth, champion_embeddings, champion_folder, metric, alike)
    made = Robustness(
        digest="",
        folder=str(out),
        samples=len(truth),
        metric=metric,
        clean=ours.value,
        disturbed=ours.values,
        loss=ours.loss,
        champion_clean=theirs.value if theirs else None,
        champion_disturbed=theirs.values if theirs else None,
        champion_loss=theirs.loss if theirs else None,
        difference=_difference(ours, theirs, alpha) if theirs else None,
    )
    _write_csv(out / "robustness.csv", {"challenger": ours, "champion": theirs})
    charts.robustness(out / "robustness.png", made)
    return made.model_copy(update={"digest": digest_of(made.model_dump(mode="json", exclude={"folder"}))})


def _difference(ours: _Measured, theirs: _Measured, alpha: float) -> Interval:
    """Of the losses; a single unit has no interval."""
    size = ours.clean.size
    point = ours.loss - theirs.loss
    if size < 2:
        return Interval(value=point, low=np.nan, high=np.nan)
    return interval(point, ours.losses - theirs.losses, units=size, alpha=alpha)


def _measured(
    sample: Manifest,
    truth: Truth,
    embeddings: Embeddings,
    head_folder: Path,
    metric: str,
    alike: _Resampling,
) -> _Measured:
    def of(disturbance: str | None) -> Bootstrap:
        outputs, classes = predict.test_outputs(sample, blocks_of(embeddings, disturbance), head_folder)
        return bootstrap(
            *_placed(outputs, classes, truth, sample),
            resamples=alike.resamples,
            seed=alike.seed,
            target=sample.target,
            groups=alike.groups,
        )

    disturbed = {name: tuple(of(f"{name}-{strength}") for strength in STRENGTHS) for name in DISTURBANCES}
    return _Measured(metric, of(None), disturbed)


def _placed(
    outputs: Floats, classes: tuple[str, ...], truth: Truth, sample: Manifest
) -> tuple[Floats, Truth]:
    """Outputs and truth with the manifest's columns. Classes that only this model (an older champion) knows
    follow, true of no sample; labels that it alone knows are left out, as in the evaluation."""
    if sample.target == "number":
        return outputs, truth
    if sample.target == "labels":
        return compare.on_labels(outputs, classes, sample.classes), truth
    foreign = [name for name in classes if name not in sample.classes]
    return compare.on_classes(outputs, classes, (*sample.classes, *foreign)), truth


def _write_csv(file: Path, models: dict[str, _Measured | None]) -> None:
    with file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(("model", "disturbance", "strength", "value"))
        for model, measured in models.items():
            if measured is None:
                continue
            writer.writerow((model, "none", 0, measured.value))
            for name, values in measured.values.items():
                writer.writerows((model, name, *one) for one in zip(STRENGTHS, values, strict=True))
