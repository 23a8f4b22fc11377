"""The model beside what it has to beat: the majority class, raw pixels, the same backbone with random
weights; and its learning curve."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tasks.data import units
from tasks.embedding.gather import parts
from tasks.errors import DataError
from tasks.evaluation import charts, compare, learning
from tasks.evaluation.metrics import Bootstrap, Truth, bootstrap
from tasks.evaluation.sums import Floats, Ints
from tasks.head import fitted
from tasks.head.fit import MEMORY_BYTES, split_data
from tasks.head.fitted import Calibration, FittedHead
from tasks.head.linear import Subset
from tasks.head.training import Samples, train, train_at
from tasks.params import EvaluationParams, HeadParams
from tasks.records import Baselines, Block, Embeddings, Head, Manifest, Target, digest_of

ROUGH = 1e-3  # of the gradient: on surface inspection the loss is the same to 1e-4
BACKBONE, RANDOM_WEIGHTS, RAW_PIXELS, MAJORITY = "backbone", "random_weights", "raw_pixels", "majority"


def run(
    out: Path,
    manifest: Manifest,
    embeddings: Embeddings,
    sample: Manifest | None,
    baseline_embeddings: Embeddings | None,
    head: Head,
    head_params: HeadParams,
    params: EvaluationParams,
    metric: str,
    *,
    memory_bytes: int = MEMORY_BYTES,
) -> Baselines:
    """Writes baselines.json, baselines.png and (where there is a curve) learning_curve.png.

    All rows are trained on the same samples of train and judged on the same of test: those of
    `sample`, where each row's strength is chosen by a cross-validation of its own, as the model's was
    (what suits the backbone's vectors does not suit pixels). Without a sample they are those of the
    manifest, and there are only the backbone, at the model's strength and with its calibration, and the
    majority class. The curve is of the whole manifest, at the model's strength and with its calibration:
    its last point is the model.

    Args:
        embeddings: of the blocks that the head stands on, of all samples.
        baseline_embeddings: of the sample, by the embedder of `backbone.baseline_embedder`.
        head: the model's; its files hold the calibration.
        metric: one of the target's.
        memory_bytes: larger matrices of embeddings are kept in a file.

    Raises:
        CacheError: an embedding is missing.
        RegistryError: the head's files are missing or damaged.
    """
    calibration = fitted.load(head.path).calibration
    teacher = _Teacher(manifest.target, manifest.classes, head, head_params, calibration)
    compared = sample or manifest
    judge = _Judge(compared, params)
    found: dict[str, Bootstrap] = {}
    for name, vectors in _inputs(embeddings, baseline_embeddings if sample else None):
        train_on = _samples(compared, vectors, memory_bytes)
        x, truth = split_data(compared, vectors, "test", memory_bytes=memory_bytes)
        fit = teacher.by_choice if sample else teacher.at_strength
        found[name] = judge(fit(train_on).outputs(x), truth)
    found[MAJORITY] = judge(majority(train_on.y, len(manifest.classes), len(truth), manifest.target), truth)
    transfer = None
    if RANDOM_WEIGHTS in found:
        differences = compare.differences(found[BACKBONE], found[RANDOM_WEIGHTS], params.alpha)
        transfer = differences[metric]
    trained, tested = _learned(manifest, embeddings, teacher, params, metric, memory_bytes)
    made = Baselines(
        digest="",
        folder=str(out),
        metric=metric,
        train_samples=len(train_on.y),
        test_samples=len(truth),
        rows={name: one.intervals(params.alpha)[metric] for name, one in found.items()},
        transfer=transfer,
        curve=learning.points(trained),
        doubled=learning.doubled(trained, metric, tested, params.alpha, params.seed),
    )
    told = made.model_dump(mode="json", exclude={"digest", "folder"})
    (out / "baselines.json").write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
    charts.baselines(out / "baselines.png", made, params.alpha)
    if made.curve:
        charts.learning_curve(out / "learning_curve.png", made, tested, params.alpha)
    return made.model_copy(update={"digest": digest_of(told)})


def majority(y: NDArray[np.generic], classes: int, samples: int, target: Target) -> Floats:
    """What who has seen the labels alone says of every sample, [samples, K]: the share of each class or
    label in train, or the mean number."""
    if target == "class":
        said = np.bincount(y.astype(np.int64), minlength=classes) / len(y)
    else:
        said = np.atleast_1d(y.astype(np.float64).mean(axis=0))
    return np.tile(said, (samples, 1))


@dataclass(frozen=True)
class _Teacher:
    """Trains heads of the model's kind."""

    target: Target
    classes: tuple[str, ...]
    head: Head
    params: HeadParams
    calibration: Calibration  # the model's

    @property
    def rough(self) -> HeadParams:
        """Comparisons to two digits need no more of the solver."""
        return self.params.model_copy(update={"tolerance": max(ROUGH, self.params.tolerance)})

    def at_strength(self, samples: Samples) -> FittedHead:
        """At the model's strength, with its calibration."""
        return self._fitted(samples, self.calibration)

    def _fitted(self, samples: Samples, calibration: Calibration | None) -> FittedHead:
        return train_at(
            samples,
            target=self.target,
            classes=self.classes,
            kind=self.head.kind,
            strength=self.head.strength,
            params=self.rough,
            calibration=calibration,
        )

    def by_choice(self, samples: Samples) -> FittedHead:
        """At the strength that cross-validation chooses; the model's where a class has too few samples
        for the folds, not calibrated: the model's calibration is for its own vectors."""
        params = self.rough.model_copy(update={"kind": self.head.kind, "inputs": "concatenated"})
        try:
            return train(samples, target=self.target, classes=self.classes, params=params).fitted
        except DataError:
            return self._fitted(samples, None)


class _Judge:
    """Outputs for the test rows of a manifest to numbers, always on the same resamples."""

    def __init__(self, manifest: Manifest, params: EvaluationParams) -> None:
        self._target, self._params = manifest.target, params
        self._groups = units.of_split(manifest, "test")

    def __call__(self, outputs: Floats, truth: Truth) -> Bootstrap:
        return bootstrap(
            outputs,
            truth,
            resamples=self._params.bootstrap,
            seed=self._params.seed,
            bins=self._params.calibration_bins,
            target=self._target,
            groups=self._groups,
        )


def _inputs(embeddings: Embeddings, baselines: Embeddings | None) -> Iterator[tuple[str, Embeddings]]:
    """What each row is trained on. The last block of the baselines is that of raw pixels; of those with
    random weights, the ones that the head stands on with trained weights."""
    yield BACKBONE, embeddings
    if baselines is None:
        return
    *networks, pixels = baselines.blocks
    wanted = {_taken(block) for block in embeddings.blocks}
    alike = [block.digest for block in networks if _taken(block) in wanted]
    if alike:
        yield RANDOM_WEIGHTS, baselines.select(alike)
    yield RAW_PIXELS, baselines.select([pixels.digest])


def _taken(block: Block) -> tuple[object, ...]:
    return block.layer, block.pooling, block.view, block.parts


def _samples(manifest: Manifest, embeddings: Embeddings, memory_bytes: int) -> Samples:
    x, y = split_data(manifest, embeddings, "train", memory_bytes=memory_bytes)
    return Samples(x, y, parts(embeddings), units.of_split(manifest, "train"), memory_bytes)


def _learned(
    manifest: Manifest,
    embeddings: Embeddings,
    teacher: _Teacher,
    params: EvaluationParams,
    metric: str,
    memory_bytes: int,
) -> tuple[list[learning.Trained], int]:
    """The heads of the learning curve, and the number of test samples that they are judged on."""
    if not params.learning_repeats:
        return [], 0
    samples = _samples(manifest, embeddings, memory_bytes)
    x, truth = split_data(manifest, embeddings, "test", memory_bytes=memory_bytes)
    judge, keys = _Judge(manifest, params), list(samples.groups or ())
    strata = [str(label) for label in samples.y] if manifest.target == "class" else [""] * len(keys)

    def of_rows(rows: Ints) -> tuple[float, Floats]:
        x_of_rows = Subset(samples.x, rows)  # read as needed: x may be larger than the memory
        groups = [keys[row] for row in rows]
        some = Samples(x_of_rows, samples.y[rows], samples.parts, groups, memory_bytes)
        found = judge(teacher.at_strength(some).outputs(x), truth)
        return found.points[metric], found.draws[metric]

    return learning.fits(of_rows, strata, keys, params.learning_repeats, params.seed), len(truth)
