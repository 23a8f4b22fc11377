"""What a disturbance does to a crop.

Five of the corruptions of ImageNet-C (Hendrycks and Dietterich 2019, https://arxiv.org/abs/1903.12261)
at its severities 1, 3 and 5, here strengths 1, 2 and 3: Gaussian noise, Gaussian blur, JPEG,
brightness and contrast. They are applied to the uint8 crop, as there.

All is computed in whole numbers (those of the blur are held by float64, which is exact up to 2^53), and
the noise comes from a hash: a disturbed crop depends on the crop, the sample's digest and the view
alone, bit for bit, whatever the machine, its threads and the batch; JPEG also on Pillow's library.
"""

import hashlib
import math
from collections.abc import Sequence
from functools import lru_cache
from io import BytesIO
from statistics import NormalDist

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from tasks.embedding.views import divided

Pixels = NDArray[np.uint8]  # [S, S, 3]

# Of strength 1, 2 and 3: the parameters of ImageNet-C at severities 1, 3 and 5.
_NOISE = (0.08, 0.18, 0.38)  # standard deviation, of the range from black to white
_BLUR = (1, 3, 6)  # standard deviation, px of an image of 224 px
_JPEG = (25, 15, 7)  # quality
_BRIGHTNESS = (0.1, 0.3, 0.5)  # added to the value (of hue, saturation, value)
_CONTRAST = (8, 4, 1)  # twentieths of the contrast that are left

_BLUR_SIDE = 224
_WEIGHT = 2**15  # sum of a blur's weights
_DRAWS = 2**16  # distinct values of the noise


def disturb(crops: Tensor, view: str, digests: Sequence[str]) -> Tensor:
    """Disturbs crops as their view says.

    Args:
        crops: uint8 [N, 3, S, S], as the view shows the images undisturbed.
        view: such as `hflip+noise-2`.
        digests: of the N samples' bytes, hex; the noise depends on them.

    Returns:
        uint8 [N, 3, S, S], channels last in memory; `crops` themselves where the view is undisturbed.
    """
    disturbance = divided(view)[1]
    if disturbance is None:
        return crops
    if len(digests) != len(crops):
        raise ValueError(f"{view} of {len(crops)} crops needs as many digests, not {len(digests)}")
    kind, _, number = disturbance.partition("-")
    strength = int(number) - 1
    found = np.empty((len(crops), *crops.shape[2:], 3), dtype=np.uint8)  # [N, S, S, 3]
    for at, (image, digest) in enumerate(zip(crops.permute(0, 2, 3, 1).numpy(), digests, strict=True)):
        if kind == "noise":
            found[at] = _noisy(image, strength, f"{digest} {view}")
        elif kind == "blur":
            found[at] = _blurred(image, strength)
        elif kind == "jpeg":
            found[at] = _compressed(image, _JPEG[strength])
        elif kind == "brightness":
            found[at] = _brighter(image, round(255 * _BRIGHTNESS[strength]))
        else:
            found[at] = _flatter(image, _CONTRAST[strength])
    return torch.from_numpy(found).permute(0, 3, 1, 2)


@lru_cache(maxsize=len(_NOISE))
def _quantiles(strength: int) -> NDArray[np.int16]:
    """Equally likely values of the noise, rounded to pixel values."""
    normal = NormalDist(0, 255 * _NOISE[strength])
    return np.array([round(normal.inv_cdf((k + 0.5) / _DRAWS)) for k in range(_DRAWS)], dtype=np.int16)


def _noisy(image: Pixels, strength: int, seed: str) -> Pixels:
    drawn = np.frombuffer(hashlib.shake_128(seed.encode()).digest(2 * image.size), dtype="<u2")
    noise = _quantiles(strength)[drawn].reshape(image.shape)
    noisy: Pixels = np.clip(image + noise, 0, 255).astype(np.uint8)
    return noisy


@lru_cache(maxsize=16)
def _blurring(size: int, strength: int) -> Tensor:
    """The blur along one axis, [S, S] float64 whole numbers; each row sums to _WEIGHT. Beyond the
    border lies what is at the border."""
    deviation = _BLUR[strength] * size / _BLUR_SIDE
    reach = math.ceil(4 * deviation)
    bell = [math.exp(-0.5 * (step / deviation) ** 2) for step in range(-reach, reach + 1)]
    weights = np.array([round(_WEIGHT * value / sum(bell)) for value in bell])
    weights[reach] += _WEIGHT - weights.sum()
    matrix = np.zeros((size, size))
    for row in range(size):
        np.add.at(matrix[row], np.clip(np.arange(row - reach, row + reach + 1), 0, size - 1), weights)
    return torch.from_numpy(matrix)


def _blurred(image: Pixels, strength: int) -> Pixels:
    along = _blurring(len(image), strength)
    channels = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1), dtype=np.float64))
    sums = along @ channels @ along.T  # [3, S, S], at most 255 * 2^30
    blurred: Pixels = (sums / _WEIGHT**2 + 0.5).floor().to(torch.uint8).permute(1, 2, 0).numpy()
    return blurred


def _compressed(image: Pixels, quality: int) -> Pixels:
    file = BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


def _brighter(image: Pixels, more: int) -> Pixels:
    """Raises the value, the largest of the three channels, and keeps their ratios (hue, saturation)."""
    value = image.max(axis=2, keepdims=True).astype(np.int32)  # [S, S, 1]
    raised = np.minimum(value + more, 255)
    known = np.maximum(value, 1)
    scaled = (2 * raised * image + known) // (2 * known)  # int32, rounded
    brighter: Pixels = np.where(value > 0, scaled, raised).astype(np.uint8)
    return brighter


def _flatter(image: Pixels, twentieths: int) -> Pixels:
    """Brings each channel nearer to its mean."""
    places = image.shape[0] * image.shape[1]
    sums = image.sum(axis=(0, 1), dtype=np.int64)  # [3]
    weighted = np.arange(256)[:, None] * twentieths * places + sums * (20 - twentieths)  # [256, 3]
    table = ((2 * weighted + 20 * places) // (40 * places)).astype(np.uint8)  # rounded
    flatter: Pixels = table[image, np.arange(3)]
    return flatter
