import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tasks.head import blocks
from tasks.head.blocks import Blocks

ROWS = np.array([[1, 1, 0, 0, 1, 0], [0, 1, 1, 0, 1, 0]], dtype=bool)  # rows 3 and 5 are of no fold
X = np.arange(12, dtype=np.float64).reshape(6, 2)


def made(x: NDArray[np.float64], rows: NDArray[np.bool_], memory: int) -> Blocks:
    return Blocks(x, rows, outputs=4, dtype=torch.float64, device=torch.device("cpu"), memory_bytes=memory)


@pytest.mark.parametrize("memory", [0, 1 << 20])
def test_blocks__rows_of_the_same_folds_lie_together(memory: int) -> None:
    of = made(X, ROWS, memory)
    ((x, pieces),) = list(of)
    assert {tuple(piece.folds.tolist()): of.order[piece.start : piece.stop].tolist() for piece in pieces} == {
        (True, False): [0],
        (True, True): [1, 4],
        (False, True): [2],
    }
    assert [(piece.start, piece.first) for piece in pieces] == [(0, 0), (1, 1), (2, 2)]
    np.testing.assert_array_equal(x.numpy() + of.centre.numpy(), X[of.order])
    np.testing.assert_allclose(of.centre.numpy(), X[[0, 1, 2, 4]].mean(axis=0))


@pytest.mark.parametrize("memory", [0, 1 << 20])
def test_blocks__many_hold_every_row_once(memory: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 1)  # 256 rows, the least
    x = np.arange(1400, dtype=np.float64).reshape(700, 2)
    rows = np.arange(700)[None] % 2 == np.arange(2)[:, None]
    of = made(x, rows, memory)
    read = list(of)
    assert [len(block) for block, _ in read] == [233, 233, 234]
    assert sorted(of.order.tolist()) == list(range(700))
    for block, pieces in read:
        for piece in pieces:
            place = of.order[piece.first : piece.first + piece.stop - piece.start]
            np.testing.assert_allclose(block[piece.start : piece.stop] + of.centre, x[place])
            (fold,) = np.flatnonzero(piece.folds.numpy())
            assert set(place % 2) == {fold}


def test_sample__has_all_of_few_rows_and_some_of_many() -> None:
    assert len(made(X, ROWS, 0).sample()) == 4
    many = np.zeros((20_000, 2))
    found = made(many, np.ones((1, 20_000), dtype=bool), 1 << 20).sample()
    assert blocks.SAMPLE <= len(found) <= 2 * blocks.SAMPLE
