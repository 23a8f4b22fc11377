"""Folding batch normalisation into the convolution before it: fewer passes over the memory."""

import copy
from collections import defaultdict
from collections.abc import Callable, Collection
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves


def fused(network: nn.Module, example: Tensor, keep: Collection[str] = ()) -> nn.Module:
    """A copy of a network in evaluation mode that computes the same in fewer steps.

    Folded are a convolution and the batch normalisation behind it among the children of one module,
    where a forward pass shows that the second alone gets what the first gave. Symbolic tracing,
    which PyTorch's own tool relies on, fails on many of timm's networks.

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
        and not any(wanted.startswith(f"{names[bn]}.") for wanted in keep)
    ]
    follows = _watched(network, example, {m for _, conv, _, bn in pairs for m in (conv, bn)})
    for parent, conv, name, bn in pairs:
        if not follows(conv, bn):
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
) -> Callable[[nn.Module, nn.Module], bool]:
    """Runs a forward pass, and tells whether it called two of the modules once each, the second, and
    nothing else, with what the first gave."""
    gave, got = defaultdict(list), defaultdict(list)  # all kept alive, so that no two share an id
    uses = _Uses()

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        got[module].append(inputs[0])
        gave[module].append(output)
        uses.of[id(output)] = 0

    hooks = [module.register_forward_hook(note) for module in modules]
    with torch.inference_mode(), uses:
        network(example)
    for hook in hooks:
        hook.remove()

    def follows(first: nn.Module, second: nn.Module) -> bool:
        if len(gave[first]) != 1 or len(got[second]) != 1:
            return False
        return gave[first][0] is got[second][0] and uses.of[id(gave[first][0])] == 1

    return follows


class _Uses(TorchFunctionMode):
    """How many calls took each tensor and gave another; asking for its shape does not count."""

    def __init__(self) -> None:
        super().__init__()
        self.of: dict[int, int] = defaultdict(int)  # id of a tensor -> calls

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if any(isinstance(leaf, Tensor) for leaf in tree_leaves(result)):
            for given in {id(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}:
                self.of[given] += 1
        return result
