import math
from math import comb

import pytest
from scipy.stats import norm, poisson

from tasks.evaluation.power import detectable, fewest
from tests.unit.tasks.evaluation.judged import difference, evaluation

Z = norm.ppf(0.975) + norm.ppf(0.8)


def test_detectable__is_what_the_paired_standard_error_allows() -> None:
    compared = evaluation(version="3", differences=(difference(0.0, -0.02, 0.02),), samples=100_000)
    assert detectable(compared, "balanced_accuracy") == pytest.approx(Z * 0.01)


def test_detectable__without_a_champion_models_are_taken_as_unrelated() -> None:
    assert detectable(evaluation(samples=100_000), "balanced_accuracy") == pytest.approx(
        Z * math.sqrt(2) * 0.02
    )


def test_detectable__a_count_shows_no_less_than_a_few_samples() -> None:
    same = difference(0.0, 0.0, 0.0).model_copy(update={"standard_error": 0.0})
    found = evaluation(version="3", differences=(same,), samples=50).model_copy(
        update={"standard_errors": {"balanced_accuracy": 0.0}}
    )
    assert detectable(found, "balanced_accuracy") == pytest.approx(fewest(0.05) / 50)


def test_detectable__groups_count_once() -> None:
    found = evaluation(samples=1000, units=20)
    assert detectable(found, "balanced_accuracy") == pytest.approx(fewest(0.05) / 20)


@pytest.mark.parametrize("alpha", [0.01, 0.05, 0.2])
def test_fewest__is_seen_by_a_sign_test_four_times_of_five(alpha: float) -> None:
    needed = next(k for k in range(1, 50) if comb(k, k) / 2**k <= alpha / 2)
    assert poisson.sf(needed - 1, fewest(alpha)) == pytest.approx(0.8)


def test_detectable__is_unknown_without_numbers() -> None:
    assert math.isnan(detectable(evaluation(), "log_loss"))
    assert math.isnan(detectable(evaluation(samples=0), "balanced_accuracy"))
    assert math.isnan(detectable(evaluation(units=0), "balanced_accuracy"))
    broken = difference(0.0, 0.0, 0.0).model_copy(update={"standard_error": math.nan})
    assert math.isnan(detectable(evaluation(version="3", differences=(broken,)), "balanced_accuracy"))
