import numpy as np
import pytest
from numpy.typing import NDArray

from tasks.head.judging import Judging, Samples
from tasks.params import HeadParams

PARAMS = HeadParams(folds=4)


def samples(groups: list[str] | None = None, validation: NDArray[np.bool_] | None = None) -> Samples:
    """Forty samples of two classes."""
    return Samples(np.zeros((40, 2), np.float32), np.arange(40) % 2, (2,), groups, validation=validation)


def test_judging__folds_of_all_samples_take_turns() -> None:
    judging = Judging.of(samples(), "class", PARAMS)
    assert np.bincount(judging.fits).tolist() == [10, 10, 10, 10]
    np.testing.assert_array_equal(judging.folds, judging.fits)
    np.testing.assert_array_equal(judging.rows, np.arange(40))


def test_judging__one_fit_has_all_but_the_validation_samples() -> None:
    apart = np.arange(40) >= 24
    judging = Judging.of(samples(validation=apart), "class", PARAMS)
    assert judging.fits.tolist() == [-1] * 24 + [0] * 16
    assert judging.rows.tolist() == list(range(24, 40))
    # Folds are of the validation samples alone, each with both classes.
    y = np.arange(24, 40) % 2
    assert [np.bincount(y[judging.folds == fold]).tolist() for fold in range(4)] == [[2, 2]] * 4
    assert judging.units is not None
    assert len(set(judging.units.tolist())) == 16


def test_judging__group_is_one_unit_of_one_fold() -> None:
    groups = [f"g{number // 4}" for number in range(40)]
    judging = Judging.of(samples(groups, np.arange(40) >= 20), "class", PARAMS)
    assert judging.units is not None
    assert judging.units.tolist() == [unit for unit in range(5) for _ in range(4)]
    for unit in range(5):
        assert len(set(judging.folds[judging.units == unit].tolist())) == 1
    for fold in range(4):
        others = np.flatnonzero(judging.units_without(fold))
        assert set(others.tolist()) == set(judging.units[judging.folds != fold].tolist())


def test_judging__two_folds_would_leave_one_to_calibrate_by() -> None:
    judging = Judging.of(samples(validation=np.arange(40) >= 20), "class", HeadParams(folds=2))
    assert set(judging.folds.tolist()) == {0, 1, 2}


def test_means__are_of_folds_or_of_units() -> None:
    losses, folds = np.array([1.0, 2.0, 6.0, 8.0]), np.array([0, 0, 1, 1])
    np.testing.assert_allclose(Judging(folds, folds).means(losses, None), [1.5, 7.0])
    each = Judging(np.zeros(4, np.int64), folds, np.arange(4))
    np.testing.assert_allclose(each.means(losses, None), losses)


def test_fitted__are_the_rows_that_are_not_set_apart() -> None:
    x, y, rows = samples(validation=np.arange(40) >= 24).fitted()
    assert (x.shape, len(y), rows.tolist()) == ((24, 2), 24, list(range(24)))
    assert samples().fitted()[2].tolist() == list(range(40))
    assert pytest.approx(0) == np.abs(np.asarray(x[:])).max()
