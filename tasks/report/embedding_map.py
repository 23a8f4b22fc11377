"""Where the samples lie as the head sees them: their embeddings in two dimensions."""

import importlib.util
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from tasks.embedding.gather import gather, parts
from tasks.records import Embeddings, Manifest, Target
from tasks.report import figures

SAMPLES = 3000  # on the map; of more, those with the smallest digests
SEED = 0  # of UMAP; the map is a picture, and no number comes from it


@dataclass(frozen=True)
class EmbeddingMap:
    """What was drawn, for the caption."""

    method: str  # PCA or UMAP
    samples: int
    of: int
    explained: float | None  # share of the variance that the two axes of PCA show


def draw(file: Path, manifest: Manifest, embeddings: Embeddings, wrong: frozenset[str]) -> EmbeddingMap:
    """Writes the map of the manifest's samples as a PNG.

    Args:
        wrong: digests of the test samples that the model has wrong.

    Raises:
        CacheError: an embedding is missing.
    """
    frame = pd.read_parquet(manifest.file, columns=["digest", "label", "split"])
    # A hash of the content chooses: the same samples again, and old ones stay when new ones come.
    frame = frame.drop_duplicates("digest").sort_values("digest", ignore_index=True)
    shown = frame.head(SAMPLES)
    x = _standardised(gather(embeddings, shown["digest"].tolist()), parts(embeddings))
    # One BLAS thread: sums are then added in the same order whatever the number of cores.
    with threadpool_limits(1, user_api="blas"):
        places, explained, method = _places(x)
    numbers = np.array([float(value) for value in shown["label"]]) if manifest.target == "number" else None
    groups = {} if numbers is not None else _groups(shown["label"].astype(str), manifest.target)
    marked = (shown["digest"].isin(wrong) & (shown["split"] == "test")).to_numpy()
    of = "" if len(shown) == len(frame) else f" of {len(frame):,}"
    title = f"{method} of the embeddings, {len(shown):,}{of} samples"
    figures.embedding_map(file, places, groups, marked, title, numbers)
    return EmbeddingMap(method, len(shown), len(frame), explained)


def principal_components(x: NDArray[np.float64]) -> tuple[NDArray[np.float64], float]:
    """The two directions of most variance: coordinates [N, 2] of the rows, and the share of the
    variance that they show.

    From the smaller of the two Gram matrices; each axis is turned so that its greatest coordinate is
    positive, because the sign of an eigenvector is arbitrary.
    """
    n, d = x.shape
    centred = x - x.mean(axis=0)
    if d <= n:
        values, vectors = np.linalg.eigh(centred.T @ centred)
        places = centred @ vectors[:, ::-1][:, :2]
    else:
        values, vectors = np.linalg.eigh(centred @ centred.T)
        places = vectors[:, ::-1][:, :2] * np.sqrt(np.maximum(values[::-1][:2], 0))
    places = np.pad(places, ((0, 0), (0, 2 - places.shape[1])))  # of one sample or dimension
    greatest = np.abs(places).argmax(axis=0)
    places = places * np.where(places[greatest, [0, 1]] < 0, -1.0, 1.0)
    total = float(np.maximum(values, 0).sum())
    return places, float(np.maximum(values[::-1][:2], 0).sum()) / total if total > 0 else 0.0


def _places(x: NDArray[np.float64]) -> tuple[NDArray[np.float64], float | None, str]:
    if importlib.util.find_spec("umap") is not None and len(x) > 15:  # its number of neighbours
        umap = importlib.import_module("umap")
        reducer = umap.UMAP(n_components=2, random_state=SEED, n_jobs=1)
        return np.asarray(reducer.fit_transform(x), dtype=np.float64), None, "UMAP"
    places, explained = principal_components(x)
    return places, explained, "PCA"


def _standardised(x: NDArray[np.float32], lengths: tuple[int, ...]) -> NDArray[np.float64]:
    """Each part divided by one scale (the root of its mean variance), as the head does it."""
    scaled = x.astype(np.float64)
    start = 0
    for length in lengths:
        block = scaled[:, start : start + length]
        block /= np.sqrt(block.var(axis=0).mean()) or 1.0
        start += length
    return scaled


def _groups(labels: "pd.Series[str]", target: Target) -> dict[str, NDArray[np.bool_]]:
    """Name -> its samples, the largest first. Of labels: those with this label alone, and the
    others together."""
    if target == "labels":
        several = labels.str.contains("|", regex=False)
        labels = labels.mask(several, "(several labels)").mask(labels == "", "(no label)")
    sizes = labels.value_counts()
    order = sorted(sizes.index, key=lambda name: (-int(sizes[name]), name))
    coloured, rest = order[: len(figures.COLOURS)], order[len(figures.COLOURS) :]
    groups = {name: (labels == name).to_numpy() for name in coloured}
    return {**groups, f"{len(rest):,} more": labels.isin(rest).to_numpy()} if rest else groups
