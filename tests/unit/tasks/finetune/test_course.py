import json
from typing import Any

import pytest
import torch

from tasks.finetune.checkpoint import State
from tasks.finetune.course import Course, Weights, choose, ranked
from tasks.params import FinetuneParams
from tasks.records import Epoch

NAN = float("nan")


def epoch(number: int, score: float, loss: float = 1.0) -> Epoch:
    return Epoch(
        epoch=number, step=number, loss=1.0, validation_loss=loss, validation=score, learning_rate=0.1,
        seconds=1.0, samples_per_s=1.0,
    )  # fmt: skip


def weights(value: float) -> Weights:
    return {"w": torch.tensor([float(value)])}


def course(scores: list[float], losses: list[float] | None = None, **values: Any) -> Course:
    """After an epoch for each score; the weights are the epoch's number."""
    made, params = Course(), FinetuneParams.model_validate({"epochs": 100, **values})
    for number, score in enumerate(scores, start=1):
        found = epoch(number, score, losses[number - 1] if losses else 1.0)
        made.end_epoch(found, weights(number), params)
    return made


def test_ranked__by_score_then_by_loss_then_the_earlier_one() -> None:
    history = [epoch(1, 0.5, 2), epoch(2, 0.7, 3), epoch(3, 0.7, 1), epoch(4, 0.5, 2)]
    assert ranked(history) == [3, 2, 1, 4]


def test_ranked__what_is_no_number_is_worst() -> None:
    scores = [NAN, 0.2, NAN, 0.9, NAN]
    assert ranked([epoch(n, score) for n, score in enumerate(scores, 1)]) == [4, 2, 1, 3, 5]
    # Of numbers whose validation samples are all alike there is no score at all.
    losses = [3.0, NAN, 1.0]
    assert ranked([epoch(n, NAN, loss) for n, loss in enumerate(losses, 1)]) == [3, 1, 2]


@pytest.mark.parametrize(
    ("values", "kept"),
    [({}, [4]), ({"soup": 2}, [1, 3, 4]), ({"patience": 3}, [3, 4]), ({"soup": 3, "patience": 1}, [1, 3, 4])],
)
def test_course__keeps_the_weights_that_may_be_taken(values: dict[str, Any], kept: list[int]) -> None:
    made = course([0.8, 0.1, 0.9, 0.2], **values)
    assert list(made.kept) == kept
    assert all(made.kept[number]["w"].item() == number for number in kept)


@pytest.mark.parametrize(
    ("losses", "ended"),
    [
        ([0.5], False),
        ([0.5, 0.6], False),
        ([0.5, 0.6, 0.5], True),  # as low is not lower
        ([0.5, 0.6, 0.4], False),
        ([NAN, 0.6, 0.7], False),
        ([NAN, 0.6, 0.7, 0.8], True),
    ],
)
def test_course__patience(losses: list[float], ended: bool) -> None:
    made = course([0.5] * len(losses), losses)
    assert made.ended(FinetuneParams(epochs=10, patience=2)) == ended
    assert not made.ended(FinetuneParams(epochs=10))
    assert made.ended(FinetuneParams(epochs=len(losses)))


def test_course__comes_back_from_a_checkpoint() -> None:
    made = course([0.5, NAN], soup=2)
    made.step, made.seconds, made.losses, made.epoch_began = 7, 8.5, 0.25, 6.0
    made.prepared = {"here": {"views": 3.0}}
    state = State(7, made.tensors(), json.loads(json.dumps(made.values())))
    again = Course.of(state)
    assert again.values()["history"] == made.values()["history"]  # NaN is not itself
    assert (again.step, again.seconds, again.losses, again.epoch_began) == (7, 8.5, 0.25, 6.0)
    assert again.prepared == made.prepared
    assert {n: w["w"].item() for n, w in again.kept.items()} == {1: 1.0, 2: 2.0}


def chosen(made: Course, scores: dict[float, float], **values: Any) -> tuple[str, float, float]:
    """Name, weight and score; `scores` by weight, that before training is 0."""
    params = FinetuneParams.model_validate({"epochs": 100, **values})
    name, taken, score = choose(params, weights(0), made, lambda w: scores[round(w["w"].item(), 3)])
    return name, taken["w"].item(), score


def test_choose__last_epoch_unless_training_may_end_early() -> None:
    assert chosen(course([0.9, 0.5]), {}) == ("last", 2, 0.5)
    assert chosen(course([0.9, 0.5], patience=3), {}, patience=3) == ("epoch 1", 1, 0.9)
    assert chosen(course([0.5, 0.9], patience=3), {}, patience=3) == ("last", 2, 0.9)


def test_choose__soup_of_the_best_epochs() -> None:
    made = course([0.7, 0.1, 0.8], soup=2)
    # The mean of epochs 3 and 1 is 2.
    assert chosen(made, {3: 0.8, 2: 0.9}, soup=2) == ("soup of 2", 2, 0.9)
    assert chosen(made, {3: 0.8, 2: 0.7}, soup=2) == ("last", 3, 0.8)
    assert chosen(made, {3: 0.8, 2: 0.8}, soup=2) == ("last", 3, 0.8)  # not better


def test_choose__interpolation_is_with_what_would_be_taken() -> None:
    made = course([0.9, 0.5], patience=2)
    found = chosen(made, {0.25: 0.1, 0.5: 0.2, 0.75: 0.95}, interpolate=True, patience=2)
    assert found == ("interpolated 0.75", 0.75, 0.95)


def test_choose__weights_with_a_score_are_better_than_without() -> None:
    found = chosen(course([NAN]), {0.25: NAN, 0.5: 0.2, 0.75: 0.1}, interpolate=True)
    assert found == ("interpolated 0.5", 0.5, 0.2)
