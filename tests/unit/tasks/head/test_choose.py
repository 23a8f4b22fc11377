import numpy as np
import pytest

from tasks.errors import DataError
from tasks.head.choose import choose_blocks, fold_losses, one_standard_error, score, unit_losses
from tasks.records import Block


def block(layer: str, view: str = "identity", digest: str = "0123456789") -> Block:
    return Block(digest=digest, layer=layer, pooling=("mean",), view=view, parts=(1,))


def test_score__is_the_mean_and_its_standard_error() -> None:
    found = score(np.array([0.9, 1.1]))
    assert found.value == pytest.approx(1.0)
    assert found.standard_error == pytest.approx(0.1)  # √(.02) / √2


def test_one_standard_error__takes_the_first_within_it() -> None:
    # The least mean is 1.0, of the last, with the standard error 0.1.
    best = np.array([0.9, 1.1])
    assert one_standard_error(np.stack([best + 0.11, best + 0.09, best])) == 1
    assert one_standard_error(np.stack([best + 0.09, best + 0.2, best])) == 0
    assert one_standard_error(np.stack([best, best + 0.01])) == 0


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_one_standard_error__loss_that_is_no_number_is_named(bad: float) -> None:
    with pytest.raises(DataError, match=r"candidate 2 of 2: the losses on what .* numbers \(0.9, "):
        one_standard_error(np.array([[0.9, 1.1], [0.9, bad]]))
    with pytest.raises(DataError, match=r"a: the losses on what was held out"):
        choose_blocks([block("a"), block("b")], lambda _: np.array([bad, 1.0]))


def test_fold_losses__are_weighted_means() -> None:
    losses, folds = np.array([1.0, 2.0, 3.0, 5.0]), np.array([0, 0, 1, 1])
    np.testing.assert_allclose(fold_losses(losses, folds), [1.5, 4.0])
    np.testing.assert_allclose(fold_losses(losses, folds, np.array([1.0, 3.0, 1.0, 1.0])), [1.75, 4.0])


def test_choose_blocks__adds_what_helps_and_leaves_out_what_does_not() -> None:
    gains = {0: 0.1, 1: 0.5, 2: -0.1, 3: 0.2}
    folds = np.array([0.0, 0.4, 0.8])  # one harder than the other: no matter

    def losses_of(places: tuple[int, ...]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        return 2 - sum(gains[place] for place in places) + folds

    blocks = [block(name) for name in "abcd"]
    chosen, tried = choose_blocks(blocks, losses_of)
    assert chosen == (0, 1, 3)
    # Four alone, three beside b, two beside b and d, and c beside all of these.
    assert set(tried) == {
        "a",
        "b",
        "c",
        "d",
        "a + b",
        "b + c",
        "b + d",
        "a + b + d",
        "b + c + d",
        "a + b + c + d",
    }
    assert tried["b + d"].value == pytest.approx(2 - 0.7 + 0.4)


def test_choose_blocks__what_helps_by_chance_is_left_out() -> None:
    losses = {
        (0,): np.array([1.0, 1.0, 1.0]),
        (1,): np.array([2.0, 2.0, 2.0]),
        (0, 1): np.array([0.8, 1.1, 1.0]),  # .033 better, with the standard error .088
    }
    chosen, _ = choose_blocks([block("a"), block("b")], losses.__getitem__)
    assert chosen == (0,)


def test_choose_blocks__names_tell_views_and_backbones_apart() -> None:
    blocks = [block("a"), block("a", "hflip"), block("b", digest="1" * 10), block("b", digest="2" * 10)]
    _, tried = choose_blocks(blocks, lambda places: np.array([float(len(places)), 1.0]))
    assert set(tried) >= {"a", "a of hflip", "b (11111111)", "b (22222222)"}


def test_unit_losses__mean_is_that_of_the_samples_and_their_error_that_of_the_units() -> None:
    losses, units = np.array([1.0, 2.0, 6.0]), np.array([0, 0, 1])
    # Mean 3; the units' sums of differences from it are -3 and 3, times 2 units / 3 samples.
    np.testing.assert_allclose(unit_losses(losses, units), [1.0, 5.0])
    # Weights 1, 1, 2: mean 3.75; sums -4.5 and 4.5, times 2 / 4.
    np.testing.assert_allclose(unit_losses(losses, units, np.array([1.0, 1.0, 2.0])), [1.5, 6.0])
    np.testing.assert_allclose(unit_losses(losses, np.arange(3)), losses)


def test_one_standard_error__of_many_units_names_the_bad_ones_alone() -> None:
    losses = np.ones((2, 200))
    losses[1, 7] = np.nan
    with pytest.raises(DataError, match=r"candidate 2 of 2: .* not all numbers \(nan\);"):
        one_standard_error(losses)
