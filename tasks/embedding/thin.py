"""Thinner networks: an architecture whose layers keep a part of their channels, with the weights that
these had. Of every layer the same, evenly spaced channels are kept, so that what was trained together
stays together (weight selection, Xu et al. 2024, https://arxiv.org/abs/2311.18823).

For networks of convolutions, linear layers and normalisation. What they compute is only a beginning: a
thin network has to be trained.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tasks.errors import BackboneError

_IMAGE = 3  # channels


def thin(network: nn.Module, width: float, name: str) -> None:
    """Keeps `width` of the channels of every layer, in place; the image's own channels stay.

    Args:
        width: above 0, at most 1.
        name: of the backbone, for messages.

    Raises:
        BackboneError: a part of the network has weights that don't go by channel.
    """
    for path, module in network.named_modules():
        own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        if isinstance(module, nn.Conv2d):
            _convolution(module, width, name)
        elif isinstance(module, nn.Linear):
            for tensor in own:
                _shorten(tensor, width, range(tensor.ndim))
            module.out_features, module.in_features = module.weight.shape
        elif isinstance(module, _BatchNorm | nn.LayerNorm):
            for tensor in own:
                _shorten(tensor, width, range(tensor.ndim))  # a counter of batches has no axis
            if isinstance(module, _BatchNorm):
                module.num_features = _kept(module.num_features, width)
            else:
                module.normalized_shape = tuple(_kept(count, width) for count in module.normalized_shape)
        elif own:
            kind = type(module).__name__
            raise BackboneError(
                f"{name}: {path or 'the network'} ({kind}) has weights that can't be thinned; choose a"
                " network of convolutions, or leave the width out"
            )


def _convolution(module: nn.Conv2d, width: float, name: str) -> None:
    groups = module.groups
    each = (module.in_channels // groups, module.out_channels // groups)  # channels of a group
    inside = [] if module.in_channels == _IMAGE else [1]
    if groups > 1 and each[0] == 1:  # filters of one channel each
        module.groups, inside = _kept(groups, width), []
    elif groups > 1 and any(_kept(groups * count, width) != groups * _kept(count, width) for count in each):
        raise BackboneError(f"{name}: {groups} groups of channels can't be thinned to {width}; try 0.5")
    _shorten(module.weight, width, [0, *inside])
    if module.bias is not None:
        _shorten(module.bias, width, [0])
    module.out_channels = len(module.weight)
    module.in_channels = module.groups * module.weight.shape[1]


def _shorten(tensor: Tensor, width: float, axes: Iterable[int]) -> None:
    """Keeps the part of these axes."""
    found = tensor.data
    for axis in axes:
        count = tensor.shape[axis]
        kept = _kept(count, width)
        found = found.index_select(axis, torch.arange(kept) * count // kept)
    tensor.data = found


def _kept(channels: int, width: float) -> int:
    return max(1, round(channels * width))
