"""A matrix of embeddings in blocks of rows, held in memory or read anew for each pass.

Rows are centred (float32 products of rows far from 0 would lose digits) and, within their block,
sorted so that those which the same folds are fitted on lie together: a held-out row then costs a
fold nothing. Blocks are the same wherever the matrix is held, and so are the bits of the sums.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

BLOCK_BYTES = 32 << 20  # of a block with its logits; more gains nothing, and a GPU is busy with it
SAMPLE = 4096  # rows, at least, of the sample that curvature is estimated from


class Matrix(Protocol):
    """What rows are read from: an array, a memory map, or anything that is sliced like one."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, rows: slice, /) -> Any: ...


@dataclass(frozen=True)
class Piece:
    """Rows of a block that the same folds are fitted on."""

    start: int  # within the block
    stop: int
    first: int  # the place of its first row among all rows kept
    folds: Tensor  # [F] bool


@dataclass(frozen=True)
class _Block:
    start: int  # in the matrix
    stop: int
    order: NDArray[np.int64]  # rows kept, within the block
    pieces: tuple[Piece, ...]


class Blocks:
    """Rows of `x` [N, D] that at least one fold is fitted on.

    Args:
        rows: [F, N], which rows each fold is fitted on; few distinct columns, as folds have.
        outputs: numbers that a row of the problem's logits has, over all folds.
        memory_bytes: a matrix larger than this is read block by block in each pass.
    """

    def __init__(
        self,
        x: Matrix,
        rows: NDArray[np.bool_],
        *,
        outputs: int,
        dtype: torch.dtype,
        device: torch.device,
        memory_bytes: int,
    ) -> None:
        n, self.d = x.shape
        self._x, self._dtype, self._device = x, dtype, device
        size = max(256, BLOCK_BYTES // ((self.d + outputs) * dtype.itemsize))
        count = -(-n // size)
        edges = [n * block // count for block in range(count + 1)]
        self._blocks: list[_Block] = []
        kept = 0
        for start, stop in pairwise(edges):
            block = _block(rows, start, stop, kept, device)
            kept += len(block.order)
            self._blocks.append(block)
        self.order = np.concatenate([block.start + block.order for block in self._blocks])
        self._held: list[Tensor] | None = None
        self.centre = self._mean()
        if n * self.d * dtype.itemsize <= memory_bytes:
            self._held = [block for block, _ in self]

    def __iter__(self) -> Iterator[tuple[Tensor, tuple[Piece, ...]]]:
        """Each block's centred rows [B, D], sorted into its pieces."""
        if self._held is not None:
            for x, block in zip(self._held, self._blocks, strict=True):
                yield x, block.pieces
            return
        with ThreadPoolExecutor(1) as reader:  # the next block is read while this one is computed
            coming = reader.submit(self._read, self._blocks[0])
            for block, following in zip(self._blocks, [*self._blocks[1:], None], strict=True):
                x = coming.result()
                if following is not None:
                    coming = reader.submit(self._read, following)
                yield x, block.pieces

    def sample(self) -> Tensor:
        """Centred rows spread evenly over all kept, [n, D]: four for each dimension, or all."""
        step = max(1, len(self.order) // max(SAMPLE, 4 * self.d))
        return torch.cat([x[::step] for x, _ in self])

    def _mean(self) -> Tensor:
        total = torch.zeros(self.d, dtype=torch.float64)
        for block in self._blocks:
            rows = self._rows(block)
            total += rows.sum(0).double()
        return (total / max(len(self.order), 1)).to(self._device, self._dtype)

    def _rows(self, block: _Block) -> Tensor:
        kind = np.float64 if self._dtype == torch.float64 else np.float32
        rows = torch.from_numpy(np.array(self._x[block.start : block.stop], dtype=kind))  # a copy
        if len(block.order) == block.stop - block.start and len(block.pieces) == 1:
            return rows
        return rows[torch.from_numpy(block.order)]

    def _read(self, block: _Block) -> Tensor:
        return self._rows(block).to(self._device).sub_(self.centre)


def _block(rows: NDArray[np.bool_], start: int, stop: int, kept: int, device: torch.device) -> _Block:
    packed = np.packbits(rows[:, start:stop], axis=0)  # [bytes, B]
    patterns, which = np.unique(packed, axis=1, return_inverse=True)
    which = which.reshape(-1)
    pieces: list[Piece] = []
    order: list[NDArray[np.int64]] = []
    at = 0
    for pattern in range(patterns.shape[1]):
        folds = np.unpackbits(patterns[:, pattern], count=len(rows)).astype(bool)
        if not folds.any():
            continue
        members = np.flatnonzero(which == pattern)
        pieces.append(Piece(at, at + len(members), kept + at, torch.from_numpy(folds).to(device)))
        order.append(members)
        at += len(members)
    return _Block(start, stop, np.concatenate(order or [np.empty(0, np.int64)]), tuple(pieces))
