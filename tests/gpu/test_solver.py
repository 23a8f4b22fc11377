"""The solver on CUDA, against the one on the CPU. Skipped without a GPU."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tasks.head.calibrate import Link
from tasks.head.solver import Solutions, solve

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


def solved(link: Link, device: str, memory_bytes: int = 1 << 30) -> tuple[Solutions, NDArray[np.float32]]:
    chance = np.random.default_rng(0)
    y = np.arange(3000) % 4
    x = (chance.normal(size=(4, 40))[y] + 2 * chance.normal(size=(3000, 40))) * np.logspace(0, -2, 40)
    found = solve(
        x.astype(np.float32),
        y if link == "softmax" else np.eye(4)[y],
        classes=4,
        link=link,
        strengths=(1e-3, 0.1),
        rows=np.arange(3000)[None] % 3 != np.arange(3)[:, None],
        parts=(10, 30),
        tolerance=1e-5,
        device=device,
        memory_bytes=memory_bytes,
    )
    return found, found.logits(x.astype(np.float32))


@pytest.mark.parametrize("link", ["softmax", "sigmoid"])
def test_gpu__finds_the_minimum_that_the_cpu_finds(link: Link) -> None:
    (there, theirs), (_, here) = solved(link, "cuda"), solved(link, "cpu")
    assert there.gradient.max() <= 1e-5
    np.testing.assert_allclose(theirs, here, atol=5e-3)


def test_gpu__reads_in_blocks_with_the_same_result() -> None:
    (_, held), (_, read) = solved("softmax", "cuda"), solved("softmax", "cuda", memory_bytes=0)
    np.testing.assert_allclose(read, held, atol=5e-3)
