"""Manifests whose embeddings are in a cache."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import ArrayLike, NDArray

from tasks.embedding.cache import EmbeddingCache
from tasks.records import Block, Embeddings, Manifest, Target


def content(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()


def manifest(
    folder: Path,
    labels: Sequence[str],
    splits: Sequence[str],
    classes: Sequence[str],
    target: Target = "class",
    groups: Sequence[str] | None = None,
) -> Manifest:
    """Of samples 0, 1, …, in this order."""
    folder.mkdir(parents=True)
    columns = {
        "digest": [content(number) for number in range(len(labels))],
        "path": [f"{number}.png" for number in range(len(labels))],
        "label": list(labels),
        "split": list(splits),
        "group": list(groups or [""] * len(labels)),
    }
    pq.write_table(pa.table(columns), folder / "manifest.parquet")
    return Manifest(
        digest="m", folder=str(folder), target=target, samples=len(labels), classes=tuple(classes),
        slices=(), counts={}, conflicts=(), left_out=(), quarantined=0,
    )  # fmt: skip


def embeddings(root: Path, vectors: Mapping[str, ArrayLike]) -> Embeddings:
    """Of samples 0, 1, …: a block for each view, with the vectors [N, d]."""
    blocks = []
    for view, given in vectors.items():
        rows: NDArray[np.float32] = np.asarray(given, dtype=np.float32)
        name = hashlib.sha256(view.encode()).hexdigest()
        cache = EmbeddingCache(root, name, rows.shape[1])
        cache.append([content(number) for number in range(len(rows))], rows)
        blocks.append(Block(digest=name, layer="network", pooling=(), view=view, parts=(rows.shape[1],)))
    return Embeddings(digest="e", root=str(root), blocks=tuple(blocks), computed=0, cached=0)
