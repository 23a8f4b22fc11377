"""The trial: candidates of fine-tuning on few samples, by successive halving."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tasks.errors import FinetuneError
from tasks.params import FinetuneParams
from tasks.records import TrialPoint, Tuned

FACTORS = (1 / 3, 1.0, 3.0)  # of the wished learning rate
GREATEST_RATE = 10.0  # that the parameters allow

Train = Callable[[FinetuneParams], Tuned]


@dataclass(frozen=True)
class Halved:
    """What the trial came to."""

    points: tuple[TrialPoint, ...]  # every training, in order
    best: FinetuneParams  # as it was trained last: with the last round's epochs
    tuned: Tuned  # that training


def candidates(params: FinetuneParams, epochs: int) -> tuple[FinetuneParams, ...]:
    """The wished method at a third of its learning rate, at it, and at three times it, and last_blocks,
    which is quicker; each once.

    Args:
        epochs: of the first round.
    """
    rates = [rate for rate in (params.learning_rate * factor for factor in FACTORS) if rate <= GREATEST_RATE]
    found = [params.changed(learning_rate=rate, epochs=epochs) for rate in rates]
    if params.method != "last_blocks":
        found.append(params.changed(method="last_blocks", epochs=epochs))
    return tuple(found)


def halve(some: Sequence[FinetuneParams], train: Train, rounds: int) -> Halved:
    """Successive halving (Jamieson and Talwalkar 2016, https://arxiv.org/abs/1502.07943): in each round
    the survivors are trained, and the better half of them stays; the next round trains these anew, with
    twice the epochs. What is left at the end is the best; with further rounds it is trained on.

    They are trained anew, since a schedule that ends after few epochs is not the beginning of a longer
    one. Better is a higher `Tuned.validation`; of equals the lower validation loss at the end, then who
    comes first. A candidate that can't be trained (its loss is no number, it does not fit into the
    memory) is out.

    Args:
        some: the candidates, with the epochs of the first round.
        train: trains one; its samples are the caller's.
        rounds: how many there are; after log2(candidates) of them one is left.

    Raises:
        FinetuneError: none of them can be trained.
    """
    if not some or rounds < 1:
        raise ValueError(f"{len(some)} candidates in {rounds} rounds have no best")
    points: list[TrialPoint] = []
    alive, best = list(some), None
    for at in range(rounds):
        of_round: list[tuple[FinetuneParams, Tuned]] = []
        for candidate in alive:
            longer = candidate.changed(epochs=candidate.epochs * 2**at)
            try:
                tuned = train(longer)
            except FinetuneError as error:
                failure = error
                points.append(_point(longer, math.nan, math.nan))
                continue
            points.append(_point(longer, tuned.validation, _last_loss(tuned)))
            of_round.append((candidate, tuned))
        if not of_round and best is None:
            raise FinetuneError(f"no candidate of the trial could be trained; the last: {failure}")
        if not of_round:  # what went well for fewer epochs stays the best
            break
        of_round.sort(key=_rank)
        candidate, tuned = of_round[0]
        best = (candidate.changed(epochs=candidate.epochs * 2**at), tuned)
        alive = [candidate for candidate, _ in of_round[: math.ceil(len(of_round) / 2)]]
    assert best is not None
    return Halved(tuple(points), *best)


def settled(params: FinetuneParams, best: FinetuneParams) -> FinetuneParams:
    """The wished parameters with the method and the learning rate that the trial found best."""
    return params.changed(method=best.method, learning_rate=best.learning_rate)


def _point(params: FinetuneParams, validation: float, loss: float) -> TrialPoint:
    return TrialPoint(
        method=params.method,
        learning_rate=params.learning_rate,
        epochs=params.epochs,
        validation=validation,
        validation_loss=loss,
    )


def _last_loss(tuned: Tuned) -> float:
    return tuned.history[-1].validation_loss if tuned.history else math.nan


def _rank(one: tuple[FinetuneParams, Tuned]) -> tuple[float, float]:
    """Least is best; what is no number is last."""
    validation, loss = one[1].validation, _last_loss(one[1])
    return (
        -validation if math.isfinite(validation) else math.inf,
        loss if math.isfinite(loss) else math.inf,
    )
