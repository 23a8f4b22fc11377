"""Mixup and cutmix: a batch in which each sample is mixed with another one, and so are their targets.

Legend: B samples, K outputs, H and W sides of the crop in px.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from tasks.finetune.batches import Batch
from tasks.params.finetune import MIXES, Augmentation

_MIX = 2  # of the streams of random numbers that a seed gives, the one of mixing
# Zhang et al., https://arxiv.org/abs/1710.09412, have .1 to .4 for ImageNet; torchvision's and timm's
# recipes .2.
_MIXUP_ALPHA = 0.2
_CUTMIX_ALPHA = 1.0  # Yun et al., https://arxiv.org/abs/1905.04899: any share is as likely


def mixed(batch: Batch, names: Sequence[Augmentation], seed: int, step: int) -> Batch:
    """The batch by one of mixup and cutmix, as far as `names` has them; else as it is.

    Which, the pairs and the share are a function of seed and step. `rows` and `views` stay those of
    the samples that keep the share.
    """
    known = [name for name in MIXES if name in names]
    if not known:
        return batch
    random = np.random.default_rng((seed, step, _MIX))
    name = known[random.integers(len(known))]
    other = torch.from_numpy(random.permutation(len(batch.x))).to(batch.x.device)
    if name == "mixup":
        share = float(random.beta(_MIXUP_ALPHA, _MIXUP_ALPHA))
        whole = share * batch.x.float() + (1 - share) * batch.x[other].float()
        x = whole.round().to(batch.x.dtype) if batch.x.dtype == torch.uint8 else whole
    else:
        x, share = _pasted(batch.x, other, random)
    y, weight = _targets(batch, other, share)
    return replace(batch, x=x, y=y, weight=weight)


def _pasted(x: Tensor, other: Tensor, random: np.random.Generator) -> tuple[Tensor, float]:
    """[B, 3, H, W] with a box of the others in it, and the share of the area that is left."""
    height, width = x.shape[2:]
    side = float(np.sqrt(1 - random.beta(_CUTMIX_ALPHA, _CUTMIX_ALPHA)))  # as a part of the image's
    top, bottom = _span(height, side, random)
    left, right = _span(width, side, random)
    result = x.clone(memory_format=torch.preserve_format)
    result[:, :, top:bottom, left:right] = x[other, :, top:bottom, left:right]
    return result, 1 - (bottom - top) * (right - left) / (height * width)


def _span(length: int, side: float, random: np.random.Generator) -> tuple[int, int]:
    """A stretch around a random middle, cut off at the edges."""
    middle, half = int(random.integers(length)), int(side * length) // 2
    return max(0, middle - half), min(length, middle + half)


def _targets(batch: Batch, other: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Targets [B, K] and weights [B] with which the loss of a class or of labels, which is linear in
    the target, is share · w · loss(y) + (1 - share) · w' · loss(y') of the two samples."""
    own, others = share * batch.weight, (1 - share) * batch.weight[other]
    weight = own + others
    # Of two without a label it does not matter.
    part = torch.where(weight > 0, own / weight.clamp_min(torch.finfo(weight.dtype).tiny), share)[:, None]
    return part * batch.y + (1 - part) * batch.y[other], weight
