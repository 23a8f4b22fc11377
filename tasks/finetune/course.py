"""How far a training has come, and which of its weights are taken in the end."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from torch import Tensor

from tasks.finetune.average import greedy_soup, interpolated
from tasks.finetune.checkpoint import State
from tasks.finetune.spent import Prepared
from tasks.params import FinetuneParams
from tasks.records import Epoch

Weights = dict[str, Tensor]

PARTS = (0.25, 0.5, 0.75)  # of the way from the weights before to those after, that interpolation tries


@dataclass
class Course:
    """How far a training has come."""

    step: int = 0  # steps taken
    seconds: float = 0.0  # from the first step on, all processes that worked on it one after the other
    losses: float = 0.0  # sum over the steps of the epoch
    loss: float = 0.0  # of the last step
    epoch_began: float = 0.0  # `seconds` when the epoch began
    history: list[Epoch] = field(default_factory=list)
    kept: dict[int, Weights] = field(default_factory=dict)  # number of an epoch -> its weights, on the CPU
    prepared: Prepared = field(default_factory=dict)  # before the first step, see `spent`

    @classmethod
    def of(cls, state: State) -> Self:
        """As a checkpoint has it."""
        values = state.values
        kept: dict[int, Weights] = {}
        for name, tensor in state.tensors.items():
            if name.startswith("kept."):
                _, epoch, rest = name.split(".", 2)
                kept.setdefault(int(epoch), {})[rest] = tensor
        return cls(
            step=state.step,
            seconds=values["seconds"],
            losses=values["losses"],
            epoch_began=values["epoch_began"],
            history=[Epoch.model_validate(epoch) for epoch in values["history"]],
            kept=kept,
            prepared=values["prepared"],
        )

    def values(self) -> dict[str, Any]:
        """What of it is no tensor, as JSON."""
        return {
            "seconds": self.seconds,
            "losses": self.losses,
            "epoch_began": self.epoch_began,
            "history": [epoch.model_dump(mode="json") for epoch in self.history],
            "prepared": self.prepared,
        }

    def tensors(self) -> Weights:
        """What of it is tensors, by name."""
        return {
            f"kept.{epoch}.{name}": tensor
            for epoch, weights in self.kept.items()
            for name, tensor in weights.items()
        }

    def prepared_s(self, what: str | None = None) -> float:
        """Seconds before the first step, of all attempts and machines; of one thing, or of all."""
        return sum(
            seconds for of in self.prepared.values() for name, seconds in of.items() if what in (name, None)
        )

    def ended(self, params: FinetuneParams) -> bool:
        """All epochs are over, or validation has not gained for as long as patience lasts."""
        done = len(self.history)
        if done >= params.epochs:
            return True
        best = min(self.history, key=lambda epoch: -_worth(-epoch.validation_loss), default=None)
        return bool(params.patience and best is not None and done - best.epoch >= params.patience)

    def end_epoch(self, epoch: Epoch, weights: Weights, params: FinetuneParams) -> None:
        """Keeps the weights of the last epoch and of the best ones, as many as may be needed."""
        self.history.append(epoch)
        self.losses = 0.0
        self.kept[epoch.epoch] = weights
        best = ranked(self.history)[: max(params.soup, 1 if params.patience else 0)]
        self.kept = {
            number: self.kept[number] for number in sorted({*best, epoch.epoch}) if number in self.kept
        }


def ranked(history: Sequence[Epoch]) -> list[int]:
    """Numbers of the epochs, the best on validation first."""
    best = sorted(
        history, key=lambda one: (-_worth(one.validation), -_worth(-one.validation_loss), one.epoch)
    )
    return [epoch.epoch for epoch in best]


def choose(
    params: FinetuneParams,
    before: Mapping[str, Tensor],
    course: Course,
    score: Callable[[Mapping[str, Tensor]], float],
) -> tuple[str, Weights, float]:
    """The weights that are taken: those of the last epoch, or of the best one where training could end
    early; a soup or a mixture with those before where validation says that it is better.

    Args:
        before: the weights that training started from.
        score: what validation says of weights.

    Returns:
        Their name, they themselves, and their score.
    """
    history, kept = course.history, course.kept
    last = history[-1].epoch
    taken = ranked(history)[0] if params.patience else last
    name = f"epoch {taken}" if taken != last else "last"
    found = (name, kept[taken], history[taken - 1].validation)
    tries: list[tuple[str, Weights]] = []
    if params.soup:
        weights, count = greedy_soup([kept[epoch] for epoch in ranked(history) if epoch in kept], score)
        if count > 1:
            tries.append((f"soup of {count}", weights))
    if params.interpolate:
        tries += [(f"interpolated {part:g}", interpolated(before, found[1], part)) for part in PARTS]
    for name, weights in tries:
        value = score(weights)
        if _worth(value) > _worth(found[2]):
            found = (name, weights, value)
    return found


def _worth(score: float) -> float:
    """What is no number is worse than all numbers."""
    return -math.inf if math.isnan(score) else score
