"""The head stage: regularised multinomial logistic regression on cached embeddings, its strength
chosen by cross-validation on the training split, its temperature on the validation split."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from scipy.special import log_softmax
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold
from threadpoolctl import threadpool_limits

from tasks.embedding.gather import gather, parts
from tasks.head.calibrate import fit_temperature
from tasks.head.folds import check_folds
from tasks.head.linear import LinearHead
from tasks.head.solver import Basis, solve
from tasks.params import HeadParams
from tasks.records import Embeddings, Head, Manifest, Split, digest_of


def run(out: Path, manifest: Manifest, embeddings: Embeddings, params: HeadParams) -> Head:
    """Fits the head and writes head.safetensors and head.json.

    Raises:
        DataError: a class has fewer training samples than there are folds.
        CacheError: an embedding is missing.
    """
    x, y = split_data(manifest, embeddings, "train")
    counts = np.bincount(y, minlength=len(manifest.classes)).tolist()
    check_folds(dict(zip(manifest.classes, counts, strict=True)), params.folds)
    # One BLAS thread a fit: sums are then added in the same order whatever the number of cores.
    with threadpool_limits(1, user_api="blas"):
        basis = Basis.of(_standardise(x, parts(embeddings))[0])
        losses = cross_validate(x, y, _groups(manifest), params, basis, parts(embeddings))
        strength = one_standard_error(losses)
        path = RegularisationPath(x, y, manifest.classes, basis, params.max_iterations, parts(embeddings))
        head = path.fit(strength)
    x_validation, y_validation = split_data(manifest, embeddings, "validation")
    head = replace(head, temperature=fit_temperature(head.logits(x_validation), y_validation))
    head.save(out)
    content = [(out / name).read_bytes().hex() for name in ("head.safetensors", "head.json")]
    return Head(
        digest=digest_of(*content),
        folder=str(out),
        classes=head.classes,
        strength=strength,
        strengths={str(c): float(loss.mean()) for c, loss in losses.items()},
        temperature=head.temperature,
    )


def split_data(
    manifest: Manifest, embeddings: Embeddings, split: Split
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The embeddings [N, D] and class indices [N] of a split, in the manifest's order."""
    table = pq.read_table(manifest.file, columns=["digest", "label"], filters=[("split", "=", split)])
    index = {name: i for i, name in enumerate(manifest.classes)}
    labels = np.array([index[name] for name in table["label"].to_pylist()], dtype=np.int64)
    return gather(embeddings, table["digest"].to_pylist()), labels


def _groups(manifest: Manifest) -> list[str]:
    """The group of each training sample, else its content, in the manifest's order."""
    table = pq.read_table(manifest.file, columns=["digest", "group"], filters=[("split", "=", "train")])
    pairs = zip(table["group"].to_pylist(), table["digest"].to_pylist(), strict=True)
    return [group or digest for group, digest in pairs]


def cross_validate(
    x: NDArray[np.float32],
    y: NDArray[np.int64],
    groups: Sequence[str],
    params: HeadParams,
    basis: Basis,
    parts: Sequence[int],
) -> dict[float, NDArray[np.float64]]:
    """Mean held-out log loss [folds] of each strength, from the most to the least regularised.

    Whatever is fitted is fitted within the folds; `basis` only says in which coordinates to look
    for the minimum. Once the loss has risen twice in a row, weaker regularisation is not tried:
    it overfits more, and its fits take longest.
    """
    # A group, or copies of one image, in two folds would let the head see what it is judged on.
    if len(set(groups)) < len(groups):
        folds = StratifiedGroupKFold(params.folds, shuffle=True, random_state=params.seed)
        split = folds.split(x, y, groups)
    else:
        split = StratifiedKFold(params.folds, shuffle=True, random_state=params.seed).split(x, y)
    classes = tuple(str(c) for c in range(int(y.max()) + 1))
    paths = [
        (RegularisationPath(x[fitted], y[fitted], classes, basis, params.max_iterations, parts), held_out)
        for fitted, held_out in split
    ]

    def held_out_loss(path: RegularisationPath, held_out: NDArray[np.int64]) -> float:
        log_p = log_softmax(path.fit(strength).logits(x[held_out]), axis=1)
        return -float(log_p[np.arange(len(held_out)), y[held_out]].mean())

    losses: dict[float, NDArray[np.float64]] = {}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for strength in sorted(params.strengths):
            # list() waits for the folds, so `strength` is the same for all of them.
            losses[strength] = np.array(list(pool.map(lambda fold: held_out_loss(*fold), paths)))
            recent = [loss.mean() for loss in losses.values()][-3:]
            if len(recent) == 3 and recent[0] < recent[1] < recent[2]:
                break
    return losses


def one_standard_error(losses: dict[float, NDArray[np.float64]]) -> float:
    """The most regularised strength whose loss is within one standard error of the least.

    Hastie et al., The Elements of Statistical Learning, 7.10.1. With few samples the least loss is
    least partly by luck (surface inspection: test log loss .480 instead of .496).
    """
    best = min(losses.values(), key=lambda loss: float(loss.mean()))
    bound = best.mean() + best.std(ddof=1) / np.sqrt(len(best))
    return min(strength for strength, loss in losses.items() if loss.mean() <= bound)


class RegularisationPath:
    """Fits of one set of samples at growing strengths C, each starting from the one before."""

    def __init__(
        self,
        x: NDArray[np.float32],
        y: NDArray[np.int64],
        classes: tuple[str, ...],
        basis: Basis,
        max_iterations: int,
        parts: Sequence[int],
    ) -> None:
        standard, self._mean, self._scale = _standardise(x, parts)
        self._z = standard @ basis.vectors
        self._y, self._classes, self._basis = y, classes, basis
        self._max_iterations = max_iterations
        self._solution: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None

    def fit(self, strength: float) -> LinearHead:
        """The head (temperature 1) at `strength`."""
        self._solution = solve(
            self._z,
            self._y,
            len(self._classes),
            strength,
            self._basis,
            self._solution,
            max_iterations=self._max_iterations,
        )
        weight = self._solution[0] @ self._basis.vectors.T
        return LinearHead(self._classes, self._mean, self._scale, weight, self._solution[1], temperature=1.0)


def _standardise(
    x: NDArray[np.float32], parts: Sequence[int]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Centred in each dimension, each part divided by one scale (the root of its mean variance).

    One scale for a part, because a backbone has dimensions that hardly ever fire: to blow each of them up to
    variance 1 raises their noise to the rank of signal (surface inspection: test log loss .495
    instead of .440).
    """
    mean = x.mean(axis=0, dtype=np.float64)
    standard = x.astype(np.float64) - mean
    variance = (standard**2).mean(axis=0)
    ends = np.cumsum(parts)
    deviations = [
        np.sqrt(variance[end - part : end].mean()) or 1.0  # all the same: they stay at 0
        for part, end in zip(parts, ends, strict=True)
    ]
    # By the number of parts, so that several do not count for more than one does.
    scale = np.repeat(deviations, parts) * np.sqrt(len(parts))
    return standard / scale, mean, scale
