"""The samples of a manifest as the audits see them, and their embeddings, a part at a time."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tasks.data.labels import names
from tasks.embedding.gather import open_caches
from tasks.records import Embeddings, Manifest, Target

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

_CHUNK_BYTES = 64 << 20  # of embeddings in memory at a time


@dataclass(frozen=True)
class Rows:
    """The rows of a manifest, in its order."""

    target: Target
    classes: tuple[str, ...]
    frame: pd.DataFrame  # digest, path, label, split, group

    @classmethod
    def of(cls, manifest: Manifest) -> "Rows":
        columns = ["digest", "path", "label", "split", "group"]
        return cls(
            manifest.target, manifest.classes, pq.read_table(manifest.file, columns=columns).to_pandas()
        )

    def __len__(self) -> int:
        return len(self.frame)

    def text(self, column: str) -> list[str]:
        return [str(value) for value in self.frame[column]]

    def of_split(self, split: str) -> Bools:
        """Which rows [N] are of a split."""
        mask: Bools = (self.frame["split"] == split).to_numpy(dtype=np.bool_)
        return mask

    @cached_property
    def contents(self) -> list[str]:
        """The digest of each distinct content, in the order of its first row."""
        return list(dict.fromkeys(self.text("digest")))

    @cached_property
    def content_of(self) -> Ints:
        """Where in `contents` each row's content is, [N]."""
        at = {digest: number for number, digest in enumerate(self.contents)}
        return np.array([at[digest] for digest in self.text("digest")], dtype=np.int64)

    @cached_property
    def first_row(self) -> Ints:
        """The first row of each content."""
        _, first = np.unique(self.content_of, return_index=True)
        return first.astype(np.int64)

    @cached_property
    def truth(self) -> Bools:
        """Which of the C classes each row is labelled with, [N, C]; of a number C is 0."""
        at = {name: number for number, name in enumerate(self.classes)}
        truth = np.zeros((len(self), len(self.classes)), dtype=np.bool_)
        if self.target == "class":
            truth[np.arange(len(self)), [at[label] for label in self.text("label")]] = True
        elif self.target == "labels":
            for row, label in enumerate(self.text("label")):
                truth[row, [at[name] for name in names(label)]] = True
        return truth


class Vectors:
    """The embeddings [N, D] in their caches, which are opened once."""

    def __init__(self, embeddings: Embeddings) -> None:
        self._caches = open_caches(embeddings.blocks, Path(embeddings.root))
        self.dim = embeddings.dim

    def take(self, digests: Sequence[str]) -> Floats:
        """The embeddings of `digests`, [len(digests), D].

        Raises:
            CacheError: some are not in the cache.
        """
        out = np.empty((len(digests), self.dim), dtype=np.float32)
        start = 0
        for cache in self._caches.values():
            cache.gather(digests, out=out[:, start : start + cache.dim])
            start += cache.dim
        return out

    def chunks(self, digests: Sequence[str]) -> Iterator[tuple[int, Floats]]:
        """(start, embeddings) of consecutive parts of `digests`."""
        step = max(1, _CHUNK_BYTES // (4 * self.dim))
        for start in range(0, len(digests), step):
            yield start, self.take(digests[start : start + step])

    def present(self, digests: Sequence[str]) -> list[str]:
        """Those of `digests` of which every block is in the cache."""
        lacking = {digest for cache in self._caches.values() for digest in cache.missing(digests)}
        return [digest for digest in digests if digest not in lacking]
