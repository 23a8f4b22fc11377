"""Thinner networks: an architecture whose layers keep a part of their channels, with the weights that
these had. Of every layer the same, evenly spaced channels are kept, so that what was trained together
stays together (weight selection, Xu et al. 2024, https://arxiv.org/abs/2311.18823).

For networks of convolutions, linear layers and batch normalisation, if nothing but these fixes how many
channels there are. What they compute is only a beginning: a thin network has to be trained.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tasks.errors import BackboneError

_IMAGE = 3  # channels
_ALIKE = 1e-3  # of the greatest number: what rounding may change
_MISFITS = (RuntimeError, ValueError, TypeError, AttributeError, LookupError, AssertionError)
_OTHERS = "take another width, such as 0.5, or another network, such as timm:resnet18"


def thin(network: nn.Module, width: float, name: str) -> None:
    """Keeps `width` of the channels of every layer, in place; the image's own channels stay.

    Args:
        width: above 0, at most 1.
        name: of the backbone, for messages.

    Raises:
        BackboneError: a part of the network is none of the layers that are known here.
    """
    for path, module in network.named_modules():
        own = _own(module)
        if isinstance(module, nn.Conv2d):
            inside = [1]
            if module.in_channels == _IMAGE:
                inside = []
            elif module.groups == module.in_channels:  # filters of one channel each
                module.groups, inside = _kept(module.groups, width), []
            for tensor in own:
                _shorten(tensor, width, [0, *inside] if tensor is module.weight else [0])
            module.out_channels = len(module.weight)
            module.in_channels = module.groups * module.weight.shape[1]
        elif isinstance(module, nn.Linear):
            for tensor in own:
                _shorten(tensor, width, range(tensor.ndim))
            module.out_features, module.in_features = module.weight.shape
        elif isinstance(module, _BatchNorm):
            for tensor in own:
                _shorten(tensor, width, range(tensor.ndim))  # the counter of batches has no axis
            module.num_features = _kept(module.num_features, width)
        elif own:
            place = f"{path or 'the network'} ({type(module).__name__})"
            raise BackboneError(
                f"{name}: can't be thinned: {place} is no convolution, linear layer or batch normalisation;"
                f" {_OTHERS}"
            )


@torch.inference_mode()
def require_thinnable(make: Callable[[], nn.Module], width: float, size: int, name: str) -> None:
    """Tries whether a network goes by channel: one in which all other channels are silent must say in
    those that are kept what the thin one says.

    Args:
        make: gives the whole network; its weights don't matter.
        size: of the images, px.
        name: of the backbone, for messages.

    Raises:
        BackboneError: it does not, or does not take images of this size.
    """
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        whole, small = make().eval(), make().eval()
        images = torch.randn(1, _IMAGE, size, size)
        for tensor in whole.state_dict().values():
            if tensor.ndim == 1:  # as drawn, some are zeros, which hide what comes before them
                tensor.uniform_(0.5, 1.5)
    small.load_state_dict(whole.state_dict())
    thin(small, width, name)
    try:
        whole(images)
    except _MISFITS as error:
        raise BackboneError(f"{name}: does not take {size} px images ({_said(error)})") from None
    for module in whole.modules():
        for tensor in _own(module):
            if tensor.ndim:
                tensor[_silent(len(tensor), width)] = 0
    wanted: Tensor = whole(images)  # [1, D]
    try:
        found: Tensor = small(images)  # [1, its part of D]
        misfit = "" if _agree(found, wanted, width) else "its channels get mixed up"
    except _MISFITS as error:
        misfit = _said(error)
    if misfit:
        raise BackboneError(f"{name}: can't be thinned to {width:g} ({misfit}); {_OTHERS}")


def _agree(found: Tensor, wanted: Tensor, width: float) -> bool:
    kept = wanted[:, ~_silent(wanted.shape[1], width)]
    return found.shape == kept.shape and bool((found - kept).abs().max() <= _ALIKE * kept.abs().max())


def _own(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(recurse=False), *module.buffers(recurse=False)]


def _said(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def _shorten(tensor: Tensor, width: float, axes: Iterable[int]) -> None:
    """Keeps the part of these axes."""
    found = tensor.data
    for axis in axes:
        found = found.index_select(axis, _places(tensor.shape[axis], width))
    tensor.data = found


def _silent(channels: int, width: float) -> Tensor:
    """Which channels are left out, [C] bool."""
    left_out = torch.ones(channels, dtype=torch.bool)
    left_out[_places(channels, width)] = False
    return left_out


def _places(channels: int, width: float) -> Tensor:
    """The numbers of the channels that are kept."""
    kept = _kept(channels, width)
    return torch.arange(kept) * channels // kept


def _kept(channels: int, width: float) -> int:
    return max(1, round(channels * width))
