"""Averages of weights: over the steps (EMA), between before and after (WiSE-FT), over epochs (soup).

All take state dicts, buffers included. Floating-point tensors are averaged, also the statistics of
batch normalisation; of integers and truth values (counters) the newer are copied.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from tasks.errors import FinetuneError


class Average:
    """The exponential moving average of a network's tensors over the steps.

    The decay of update t = 0, 1, ... is min(decay, (1 + t) / (10 + t)), so that the weights before
    training weigh little soon, as in tf.train.ExponentialMovingAverage,
    https://www.tensorflow.org/api_docs/python/tf/train/ExponentialMovingAverage
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        """From the tensors as they are now; at least float32, which a small step is not lost in."""
        self.updates = 0
        self._decay = decay
        self._averages = {
            name: tensor.detach().to(_wide(tensor), copy=True) for name, tensor in model.state_dict().items()
        }

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """After each step of the optimiser."""
        decay = min(self._decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        current = model.state_dict()
        _check_same(self._averages, current)
        floating = [name for name, tensor in self._averages.items() if tensor.is_floating_point()]
        newer = [current[name].to(self._averages[name].dtype) for name in floating]
        # All of them in a few kernels.
        torch._foreach_lerp_([self._averages[name] for name in floating], newer, 1 - decay)
        for name in self._averages.keys() - set(floating):
            self._averages[name].copy_(current[name])

    def tensors(self) -> dict[str, Tensor]:
        """The averages, by the names of the state dict; the next update changes them."""
        return dict(self._averages)

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor], updates: int) -> None:
        """Goes on from `tensors()` after so many updates.

        Raises:
            FinetuneError: they are of another network.
        """
        _check_same(self._averages, tensors)
        for name, average in self._averages.items():
            average.copy_(tensors[name])
        self.updates = updates


def interpolated(before: Mapping[str, Tensor], after: Mapping[str, Tensor], part: float) -> dict[str, Tensor]:
    """(1 - part) before + part after; 0 and 1 give either bit for bit.
    "Robust fine-tuning of zero-shot models", https://arxiv.org/abs/2109.01903

    Raises:
        FinetuneError: they are of different networks.
    """
    _check_same(before, after)
    return {name: _between(before[name], newer, part) for name, newer in after.items()}


def greedy_soup(
    candidates: Sequence[Mapping[str, Tensor]], judge: Callable[[Mapping[str, Tensor]], float]
) -> tuple[dict[str, Tensor], int]:
    """The mean of some candidates: each in its turn stays in it if the mean is then no worse.
    Recipe 1 of "Model soups", https://arxiv.org/abs/2203.05482

    Args:
        candidates: best first, at least one.
        judge: score on validation, higher is better; NaN keeps a candidate out.

    Returns:
        The mean, and of how many candidates.
    """
    soup, count = dict(candidates[0]), 1
    best = judge(soup)
    for candidate in candidates[1:]:
        mean = interpolated(soup, candidate, 1 / (count + 1))
        score = judge(mean)
        if score >= best:
            soup, count, best = mean, count + 1, score
    return soup, count


def _between(before: Tensor, after: Tensor, part: float) -> Tensor:
    if not after.is_floating_point():
        return after.clone()
    return torch.lerp(before.to(_wide(after)), after.to(_wide(after)), part).to(after.dtype)


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32) if tensor.is_floating_point() else tensor.dtype


def _check_same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> None:
    shapes = [{name: tensor.shape for name, tensor in tensors.items()} for tensors in (one, other)]
    if shapes[0] != shapes[1]:
        name = min(name for name in {**one, **other} if shapes[0].get(name) != shapes[1].get(name))
        raise FinetuneError(f"{name}: is missing or of another shape in one of two networks to be averaged")
