"""Low-rank adapters (LoRA, https://arxiv.org/abs/2106.09685): of each weight only W + (alpha / r) B A is
trained, with B [out, r] and A [r, in] of a small rank r; B is 0 at the start, so nothing changes yet."""

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

SCALE = 2.0  # alpha / r: the same at every rank, so that the learning rate need not be tuned anew


class LowRank(nn.Module):
    """The weight [out, ...] of a layer plus its adapter."""

    def __init__(self, weight: Tensor, rank: int, chance: torch.Generator) -> None:
        super().__init__()
        out, into = len(weight), weight[0].numel()
        rank = min(rank, out, into)  # beyond that an adapter can do no more
        bound = into**-0.5  # as torch's own layers begin
        drawn = (torch.rand(rank, into, generator=chance) * 2 - 1) * bound
        self.a = nn.Parameter(drawn.to(weight))  # [r, in]
        self.b = nn.Parameter(weight.new_zeros(out, rank))  # [out, r]

    def forward(self, weight: Tensor) -> Tensor:
        return weight + SCALE * (self.b @ self.a).view(weight.shape)


def attach(network: nn.Module, rank: int, seed: int) -> list[str]:
    """Gives each linear layer and each convolution without groups an adapter, and freezes all else.

    Returns:
        The names of the layers.
    """
    chance = torch.Generator().manual_seed(seed)
    network.requires_grad_(False)
    names = []
    for name, layer in list(network.named_modules()):
        if isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.groups == 1):
            parametrize.register_parametrization(layer, "weight", LowRank(layer.weight, rank, chance))
            names.append(name)
    return names


def merge(network: nn.Module) -> None:
    """Adds each adapter to its weight; the tensors then have the names that they had before `attach`."""
    for layer in list(network.modules()):
        if parametrize.is_parametrized(layer, "weight"):
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
