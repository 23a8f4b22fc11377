import numpy as np
import pytest

from tasks.evaluation.learning import FRACTIONS, Trained, doubled, fits, part, points
from tasks.evaluation.sums import Floats, Ints

STRATA = ["rare"] * 2 + ["common"] * 40
KEYS = [str(number) for number in range(42)]


def trained(
    samples: list[int], values: list[float], draws: Floats | None = None, fraction: float = 1
) -> list[Trained]:
    """Heads whose resamples all give the value itself, or these [P, B]."""
    every = np.tile(np.array(values)[:, None], 50) if draws is None else draws
    return [Trained(fraction, *one) for one in zip(samples, values, every, strict=True)]


def test_part__is_a_share_of_every_stratum_rounded_up() -> None:
    rows = part(STRATA, KEYS, 0.1, "s")
    assert [sum(STRATA[row] == name for row in rows) for name in ("rare", "common")] == [1, 4]
    assert list(rows) == sorted(rows)
    assert list(part(STRATA, KEYS, 1, "s")) == list(range(42))


def test_part__smaller_share_is_part_of_the_larger() -> None:
    tenth, half = (set(part(STRATA, KEYS, share, "s").tolist()) for share in (0.1, 0.5))
    assert tenth < half
    assert tenth != set(part(STRATA, KEYS, 0.1, "t").tolist())


def test_part__groups_are_taken_whole() -> None:
    groups = [str(number // 4) for number in range(40)]
    rows = part([""] * 40, groups, 0.2, "s")
    assert len(rows) == 8
    assert len({groups[row] for row in rows}) == 2


def test_fits__each_fraction_is_repeated_and_the_whole_is_not() -> None:
    seen: list[Ints] = []

    def judge(rows: Ints) -> tuple[float, Floats]:
        seen.append(rows)
        return float(len(rows)), np.zeros(3)

    found = fits(judge, STRATA, KEYS, 2, seed=0)
    assert [one.fraction for one in found] == [0.1, 0.1, 0.25, 0.25, 0.5, 0.5, 1.0]
    assert [one.samples for one in found] == [len(rows) for rows in seen] == [5, 5, 11, 11, 21, 21, 42]
    assert list(seen[0]) != list(seen[1])
    assert found[-1].value == 42
    assert FRACTIONS[-1] == 1
    assert fits(judge, STRATA, KEYS, 0, seed=0) == []


def test_points__are_means_and_ranges() -> None:
    found = points([*trained([10, 12], [0.5, 0.7], fraction=0.1), *trained([100], [0.9])])
    assert [(p.fraction, p.samples, p.low, p.high) for p in found] == [
        (0.1, 11, 0.5, 0.7),
        (1, 100, 0.9, 0.9),
    ]
    assert found[0].value == pytest.approx(0.6)


def test_doubled__continues_a_power_law() -> None:
    # error = n^-.5: 1/10 at 100 samples, and 1/sqrt(200) at 200.
    law = trained([25, 50, 100], [1 - 25**-0.5, 1 - 50**-0.5, 1 - 0.1])
    found = doubled(law, "accuracy", 1000, 0.05, seed=0)
    assert found is not None
    assert found.value == pytest.approx(1 - 200**-0.5)
    # Nothing is uncertain: the points lie on the law, and so does every resample.
    assert (found.low, found.high) == pytest.approx((found.value, found.value))


def test_doubled__of_a_loss_is_a_loss() -> None:
    found = doubled(trained([25, 50, 100], [0.8, 0.4, 0.2]), "log_loss", 1000, 0.05, seed=0)
    assert found is not None
    assert found.value == pytest.approx(0.1)


def test_doubled__promises_no_loss() -> None:
    # It got worse with more samples: by chance, one hopes; it is expected to stay where it is.
    found = doubled(trained([25, 50, 100], [0.9, 0.8, 0.7]), "accuracy", 1000, 0.05, seed=0)
    assert found is not None
    assert found.value == pytest.approx(0.7)


def test_doubled__interval_holds_the_noise_of_repeats_and_of_the_test_samples() -> None:
    sizes = [25, 25, 50, 50, 100]
    exact = np.array([0.6, 0.6, 0.7, 0.7, 0.775])
    shaky = exact + np.array([0.04, -0.04, 0.03, -0.03, 0])

    def width(values: Floats, noise: float) -> float:
        draws = values[:, None] + noise * np.random.default_rng(0).normal(size=200)  # alike for all
        found = doubled(trained(sizes, list(values), draws), "accuracy", 1000, 0.05, seed=0)
        assert found is not None
        assert found.low <= found.value <= found.high <= 1
        return found.high - found.low

    assert width(exact, 0) < width(shaky, 0) < width(shaky, 0.03)
    assert width(exact, 0) < width(exact, 0.03)


def test_doubled__perfect_scores_are_no_reason_to_fail() -> None:
    found = doubled(trained([25, 50, 100], [0.9, 1.0, 1.0]), "accuracy", 100, 0.05, seed=0)
    assert found is not None
    assert 1 - 0.5 / 100 <= found.value <= 1


@pytest.mark.parametrize(
    ("samples", "values"),
    [([], []), ([50, 100], [0.5, 0.6]), ([100] * 4, [0.5] * 4), ([25, 50, 100], [0.5, np.nan, 0.6])],
)
def test_doubled__says_nothing_of_too_little(samples: list[int], values: list[float]) -> None:
    assert doubled(trained(samples, values), "accuracy", 100, 0.05, seed=0) is None
