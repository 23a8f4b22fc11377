"""From a decoded image to the backbone's input."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tasks.records import Preprocess

_RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def preprocess(image: Image.Image, how: Preprocess) -> NDArray[np.float32]:
    """Resizes the shorter side, cuts the centre, scales to [0, 1] and standardises each channel.

    Args:
        image: RGB, any size.

    Returns:
        [3, size, size], float32.
    """
    width, height = image.size
    scale = how.resize / min(width, height)
    resized = (max(how.resize, round(width * scale)), max(how.resize, round(height * scale)))
    left, top = (resized[0] - how.size) // 2, (resized[1] - how.size) // 2
    # Only the part of the original that the crop shows is resampled.
    sx, sy = width / resized[0], height / resized[1]
    box = (left * sx, top * sy, (left + how.size) * sx, (top + how.size) * sy)
    crop = image.resize((how.size, how.size), _RESAMPLING[how.interpolation], box=box)
    pixels = np.asarray(crop, dtype=np.float32).transpose(2, 0, 1) / np.float32(255)
    mean = np.asarray(how.mean, dtype=np.float32)[:, None, None]
    std = np.asarray(how.std, dtype=np.float32)[:, None, None]
    return (pixels - mean) / std
