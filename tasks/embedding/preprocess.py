"""From decoded images to a backbone's input."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from tasks.records import Preprocess

_RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def crop(image: Image.Image, how: Preprocess) -> NDArray[np.uint8]:
    """Resizes the shorter side and cuts the centre.

    Args:
        image: RGB, any size.

    Returns:
        [size, size, 3].
    """
    width, height = image.size
    scale = how.resize / min(width, height)
    resized = (max(how.resize, round(width * scale)), max(how.resize, round(height * scale)))
    left, top = (resized[0] - how.size) // 2, (resized[1] - how.size) // 2
    # Only the part of the original that the crop shows is resampled.
    sx, sy = width / resized[0], height / resized[1]
    box = (left * sx, top * sy, (left + how.size) * sx, (top + how.size) * sy)
    return np.asarray(image.resize((how.size, how.size), _RESAMPLING[how.interpolation], box=box))


def standardise(crops: Sequence[NDArray[np.uint8]], how: Preprocess) -> torch.Tensor:
    """Scales to [0, 1] and standardises each channel: B crops [S, S, 3] to [B, 3, S, S] float32, in
    the memory order of the crops (channels last), which is the quickest on a CPU."""
    x = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).float()
    std = torch.tensor(how.std).view(1, 3, 1, 1)
    mean = torch.tensor(how.mean).view(1, 3, 1, 1)
    return x.mul_(1 / (255 * std)).sub_(mean / std)
