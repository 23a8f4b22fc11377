"""Folding batch normalisation into the convolution before it: fewer passes over the memory."""

import copy
from collections.abc import Collection
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights


def fused(network: nn.Module, example: Tensor, keep: Collection[str] = ()) -> nn.Module:
    """A copy of a network in evaluation mode that computes the same in fewer steps.

    Folded are a convolution and the batch normalisation behind it among the children of one module,
    where a forward pass shows that the second gets what the first gave. Symbolic tracing, which
    PyTorch's own tool relies on, fails on many of timm's networks.

    Args:
        example: an input [B, 3, S, S].
        keep: names of modules whose outputs are wanted, so that they stay.
    """
    network = copy.deepcopy(network)
    names = {module: name for name, module in network.named_modules()}
    pairs = [
        (parent, conv, name, bn)
        for parent in network.modules()
        for (_, conv), (name, bn) in _neighbours(parent)
        if isinstance(conv, nn.Conv2d)
        and isinstance(bn, nn.BatchNorm2d)
        and bn.running_mean is not None
        and names[conv] not in keep
    ]
    gave, got = _watched(network, example, {m for _, conv, _, bn in pairs for m in (conv, bn)})
    for parent, conv, name, bn in pairs:
        if gave.get(conv) is None or gave.get(conv) != got.get(bn):
            continue
        assert bn.running_mean is not None
        assert bn.running_var is not None
        conv.weight, conv.bias = fuse_conv_bn_weights(
            conv.weight, conv.bias, bn.running_mean, bn.running_var, bn.eps, bn.weight, bn.bias
        )
        # timm's normalisation layers end in an activation of their own.
        setattr(parent, name, getattr(bn, "act", nn.Identity()))
    return network.eval().requires_grad_(False)


def _neighbours(parent: nn.Module) -> list[tuple[tuple[str, nn.Module], tuple[str, nn.Module]]]:
    children = list(parent.named_children())
    return list(pairwise(children))


def _watched(
    network: nn.Module, example: Tensor, modules: set[nn.Module]
) -> tuple[dict[nn.Module, int], dict[nn.Module, int]]:
    """The number of the tensor that each module gave, and got, in a forward pass."""
    tensors: list[Tensor] = []  # all kept alive, so that no two share an address
    gave: dict[nn.Module, int] = {}
    got: dict[nn.Module, int] = {}

    def number(tensor: Tensor) -> int:
        for at, known in enumerate(tensors):
            if known is tensor:
                return at
        tensors.append(tensor)
        return len(tensors) - 1

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        got[module], gave[module] = number(inputs[0]), number(output)

    hooks = [module.register_forward_hook(note) for module in modules]
    with torch.inference_mode():
        network(example)
    for hook in hooks:
        hook.remove()
    return gave, got
