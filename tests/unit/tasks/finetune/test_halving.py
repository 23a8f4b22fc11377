import math
from collections.abc import Mapping

import pytest

from tasks.errors import FinetuneError
from tasks.finetune.halving import Train, candidates, halve, settled
from tasks.params import FinetuneParams
from tasks.records import Backbone, Epoch, Preprocess, Tuned

FULL = FinetuneParams(method="full", learning_rate=3e-3, epochs=10)
BACKBONE = Backbone(
    digest="b", name="timm:test_resnet", weights="w", weights_digest="w", library="timm 1",
    preprocess=Preprocess(
        resize=32, size=32, interpolation="bilinear", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)
    ),
    precision="float32", blocks=(),
)  # fmt: skip


def tuned(params: FinetuneParams, validation: float, loss: float = 0.5) -> Tuned:
    last = Epoch(
        epoch=params.epochs, step=params.epochs, loss=0.4, validation_loss=loss, validation=validation,
        learning_rate=0.0, seconds=1.0, samples_per_s=100.0,
    )  # fmt: skip
    return Tuned(
        digest="t", folder="", backbone=BACKBONE, method=params.method, history=(last,), chosen="last",
        validation=validation, trained=1, parameters=1, steps=1, batch=1, accumulate=1,
        precision="float32", hardware="cpu", seconds=1.0, cached_s=0.0,
    )  # fmt: skip


def by_rate(validation: Mapping[float, float], losses: Mapping[float, float] | None = None) -> Train:
    """Trains to what is written; without an entry it can't be trained."""

    def train(params: FinetuneParams) -> Tuned:
        rate = params.learning_rate
        if rate not in validation:
            raise FinetuneError(f"the loss at {rate:g} is no number")
        return tuned(params, validation[rate], (losses or {}).get(rate, 0.5))

    return train


def at(*rates: float, epochs: int = 2) -> list[FinetuneParams]:
    return [FULL.model_copy(update={"learning_rate": rate, "epochs": epochs}) for rate in rates]


def test_candidates__are_three_rates_and_last_blocks() -> None:
    found = candidates(FULL, epochs=2)
    assert [(one.method, one.epochs) for one in found] == [("full", 2)] * 3 + [("last_blocks", 2)]
    assert [one.learning_rate for one in found] == pytest.approx([1e-3, 3e-3, 9e-3, 3e-3])
    for one in found:  # each is one that the parameters allow
        assert FinetuneParams.model_validate(one.model_dump()) == one


def test_candidates__soup_is_of_no_more_epochs_than_there_are() -> None:
    wished = FULL.changed(soup=3, epochs=9)
    assert [one.soup for one in candidates(wished, epochs=2)] == [2] * 4
    assert {one.soup for one in candidates(wished, epochs=1)} == {0}
    assert settled(wished, candidates(wished, epochs=2)[-1]) == wished.changed(method="last_blocks")


def test_candidates__none_comes_twice() -> None:
    wished = FinetuneParams(method="last_blocks", cached_views=4, epochs=10)
    found = candidates(wished, epochs=1)
    assert [one.method for one in found] == ["last_blocks"] * 3
    assert {one.cached_views for one in found} == {4}


def test_candidates__no_rate_is_beyond_what_the_parameters_allow() -> None:
    found = candidates(FULL.model_copy(update={"learning_rate": 6.0}), epochs=1)
    assert [one.learning_rate for one in found] == pytest.approx([2.0, 6.0, 6.0])


def test_halve__the_better_half_is_trained_anew_with_twice_the_epochs() -> None:
    found = halve(at(1.0, 2.0, 3.0, 4.0), by_rate({1.0: 0.6, 2.0: 0.9, 3.0: 0.7, 4.0: 0.8}), rounds=3)
    trained = [(point.learning_rate, point.epochs) for point in found.points]
    assert trained == [(1.0, 2), (2.0, 2), (3.0, 2), (4.0, 2), (2.0, 4), (4.0, 4), (2.0, 8)]
    assert (found.best.learning_rate, found.best.epochs) == (2.0, 8)
    assert found.tuned.history[-1].epoch == 8


def test_halve__a_longer_training_may_turn_the_order() -> None:
    def train(params: FinetuneParams) -> Tuned:
        slow = params.learning_rate == 1.0
        return tuned(params, params.epochs / 10 if slow else 0.3)  # 0.2 after 2 epochs, 0.4 after 4

    found = halve(at(1.0, 2.0, 3.0), train, rounds=2)
    # Of three the better half is two: 2 and 3, which tie, so that 1 is out.
    assert [point.learning_rate for point in found.points] == [1.0, 2.0, 3.0, 2.0, 3.0]
    found = halve(at(1.0, 2.0, epochs=4), train, rounds=1)
    assert found.best.learning_rate == 1.0


def test_halve__of_equals_the_lower_loss_then_the_first() -> None:
    equal = {1.0: 0.8, 2.0: 0.8, 3.0: 0.8}
    assert halve(at(1.0, 2.0, 3.0), by_rate(equal, {2.0: 0.4}), rounds=1).best.learning_rate == 2.0
    assert halve(at(1.0, 2.0, 3.0), by_rate(equal), rounds=1).best.learning_rate == 1.0


def test_halve__what_is_no_number_is_last() -> None:
    found = halve(at(1.0, 2.0), by_rate({1.0: math.nan, 2.0: 0.1}), rounds=1)
    assert found.best.learning_rate == 2.0


def test_halve__what_can_not_be_trained_is_out() -> None:
    found = halve(at(1.0, 2.0, 3.0), by_rate({1.0: 0.5, 3.0: 0.6}), rounds=2)
    assert [point.learning_rate for point in found.points] == [1.0, 2.0, 3.0, 3.0]
    assert math.isnan(found.points[1].validation)
    assert found.best.learning_rate == 3.0


def test_halve__a_later_failure_leaves_what_went_well() -> None:
    def train(params: FinetuneParams) -> Tuned:
        if params.epochs > 2:
            raise FinetuneError("no memory")
        return tuned(params, params.learning_rate / 10)

    found = halve(at(1.0, 2.0), train, rounds=3)
    assert (found.best.learning_rate, found.best.epochs, found.tuned.validation) == (2.0, 2, 0.2)


def test_halve__if_nothing_can_be_trained_that_is_said() -> None:
    with pytest.raises(FinetuneError, match=r"no candidate .* the last: the loss at 2 is no number"):
        halve(at(1.0, 2.0), by_rate({}), rounds=2)


@pytest.mark.parametrize(("some", "rounds"), [([], 1), (at(1.0), 0)])
def test_halve__nothing_has_no_best(some: list[FinetuneParams], rounds: int) -> None:
    with pytest.raises(ValueError, match="have no best"):
        halve(some, by_rate({1.0: 0.5}), rounds)


def test_settled__takes_method_and_rate_alone() -> None:
    best = FULL.model_copy(update={"method": "last_blocks", "learning_rate": 0.5, "epochs": 2})
    found = settled(FULL, best)
    assert (found.method, found.learning_rate, found.epochs) == ("last_blocks", 0.5, 10)
