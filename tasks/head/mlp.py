"""Training of a head with one hidden layer, and how long to train it.

AdamW (https://arxiv.org/abs/1711.05101) with dropout on the hidden units; what is chosen is the
number of epochs, because early stopping regularises as an L2 penalty does, and one run gives the
held-out logits of every candidate. AdamW is written out here, a dozen lines: torch's optimisers import
the whole of its compiler, which takes longer than most heads.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from tasks.head.linear import Matrix, Rows
from tasks.head.perceptron import Perceptron

EPOCHS = (2, 4, 8, 16, 32, 64)  # candidates
BATCH = 128
LEARNING_RATE = 1e-3
WEIGHT_DECAY = 1e-2
DROPOUT = 0.25
BETAS = (0.9, 0.999)  # of the moments


def train_epochs(
    x: Rows,
    y: NDArray[np.int64],
    classes: int,
    mean: Matrix,
    scale: Matrix,
    *,
    weight: Matrix | None,
    hidden: int,
    epochs: Sequence[int],
    seed: int,
) -> Iterator[Perceptron]:
    """The head after each of the numbers of `epochs`, which ascend.

    Args:
        x: [N, D], of which a batch at a time is held.
        y: [N], class indices.
        mean, scale: [D].
        weight: [N], of the samples in the loss; none: all the same.
        hidden: units.
    """
    import torch

    chance = torch.Generator().manual_seed(seed)
    center, width = torch.from_numpy(mean), torch.from_numpy(scale)
    weighed = np.ones(len(y)) if weight is None else weight * (len(y) / weight.sum())
    labels, weights = torch.from_numpy(y), torch.from_numpy(weighed).float()

    def uniform(*shape: int) -> torch.Tensor:  # ±1/√inputs, as torch's own layers begin
        bound = shape[-1] ** -0.5
        drawn: torch.Tensor = (torch.rand(shape, generator=chance) * 2 - 1) * bound
        return drawn.requires_grad_()

    w1, w2 = uniform(hidden, x.shape[1]), uniform(classes, hidden)
    b1, b2 = torch.zeros(hidden, requires_grad=True), torch.zeros(classes, requires_grad=True)
    weights_and_biases = (w1, w2, b1, b2)
    moments = [(torch.zeros_like(each), torch.zeros_like(each)) for each in weights_and_biases]
    steps = 0
    for epoch in range(1, max(epochs) + 1):
        for batch in torch.split(torch.randperm(len(y), generator=chance), BATCH):
            rows = np.asarray(x[batch.numpy()])
            standard = ((torch.from_numpy(rows).double() - center) / width).float()  # [B, D]
            active = torch.relu(standard @ w1.T + b1)  # [B, H]
            kept = torch.rand(active.shape, generator=chance) >= DROPOUT
            logits = (active * kept / (1 - DROPOUT)) @ w2.T + b2  # [B, C]
            loss = torch.nn.functional.cross_entropy(logits, labels[batch], reduction="none")
            (weights[batch] * loss).mean().backward()  # type: ignore[no-untyped-call]
            steps += 1
            with torch.no_grad():
                for each, (first, second) in zip(weights_and_biases, moments, strict=True):
                    gradient = each.grad
                    assert gradient is not None
                    first.lerp_(gradient, 1 - BETAS[0])
                    second.lerp_(gradient**2, 1 - BETAS[1])
                    if each.dim() == 2:  # how frequent a class is, its bias, is no matter of complexity
                        each.mul_(1 - LEARNING_RATE * WEIGHT_DECAY)
                    width_of_step = (second / (1 - BETAS[1] ** steps)).sqrt_().add_(1e-8)
                    each.addcdiv_(first, width_of_step, value=-LEARNING_RATE / (1 - BETAS[0] ** steps))
                    each.grad = None
        if epoch in epochs:
            arrays = [each.detach().numpy().copy() for each in (w1, b1, w2, b2)]
            yield Perceptron(mean, scale, *arrays)
