"""`regraft:pixels`: no network, but what one has to beat."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from tasks.records import Preprocess

SIDE = 16
_SIZE = 64  # px of the crop


class PixelMeans(nn.Module):
    """The mean of each colour over each of 16 x 16 squares: crops [B, 3, S, S] to [B, 768]."""

    def __init__(self) -> None:
        super().__init__()
        # Not a weight worth the name; but a backbone has a file of weights, and a precision.
        self.gain = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return functional.adaptive_avg_pool2d(x, SIDE).flatten(1) * self.gain


def preprocess(size: int | None) -> Preprocess:
    """The shorter side as a whole, in values from 0 to 1."""
    side = size or _SIZE
    return Preprocess(resize=side, size=side, interpolation="bilinear", mean=(0, 0, 0), std=(1, 1, 1))
