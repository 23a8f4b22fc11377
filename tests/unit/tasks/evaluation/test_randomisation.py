from itertools import product
from math import comb

import numpy as np
import pytest
from scipy.stats import norm

from tasks.evaluation.randomisation import one_sided


def test_one_sided__nothing_differs() -> None:
    assert one_sided(np.zeros(50)) == (1.0, 1.0)


def test_one_sided__one_sample_proves_nothing() -> None:
    assert one_sided(np.array([0.0, 0.3, 0.0])) == (0.5, 1.0)


def test_one_sided__few_are_tried_in_all_ways() -> None:
    added = np.array([0.5, 0.2, -0.1, 0.4, 0.3])
    reached = [sum(s * a for s, a in zip(sign, added, strict=True)) for sign in product((1, -1), repeat=5)]
    expected = sum(value >= added.sum() - 1e-12 for value in reached) / 32
    assert one_sided(added)[0] == pytest.approx(expected)


@pytest.mark.parametrize(("better", "worse"), [(14, 6), (30, 10), (9, 21), (13, 0), (60, 40)])
def test_one_sided__of_accuracy_is_mcnemars_exact_test(better: int, worse: int) -> None:
    added = np.array([1.0] * better + [-1.0] * worse + [0.0] * 30) / 100
    n = better + worse
    exact = sum(comb(n, k) for k in range(better, n + 1)) / 2**n
    got = one_sided(added)[0]
    assert exact * 0.999 <= got <= 1.25 * exact


@pytest.mark.parametrize("k", [13, 16])
def test_one_sided__unequal_contributions_as_in_all_ways(k: int) -> None:
    generator = np.random.default_rng(k)
    added = generator.exponential(size=k) * np.where(generator.random(k) < 0.8, 1, -1)
    reached = np.zeros(1)
    for size in np.abs(added):
        reached = np.concatenate([reached + size, reached - size])
    exact = float((reached >= added.sum() - 1e-12).mean())
    assert one_sided(added)[0] == pytest.approx(exact, rel=0.15)


def test_one_sided__many_are_normal() -> None:
    added = np.random.default_rng(0).normal(0.05, 1.0, size=5000)
    expected = float(norm.sf(added.sum() / np.sqrt((added**2).sum())))
    assert one_sided(added)[0] == pytest.approx(expected, rel=0.02)


def test_one_sided__is_small_enough_for_a_hundred_slices() -> None:
    # 18 of 20 against: Holm asks the least of 100 p-values for .05 / 100.
    added = np.array([-1.0] * 18 + [1.0] * 2)
    exact = sum(comb(20, k) for k in range(18, 21)) / 2**20
    assert exact <= one_sided(added)[1] <= 0.0005


def test_one_sided__one_sample_does_not_decide_alone() -> None:
    added = np.array([100.0] + [-1e-3, 1e-3] * 20)
    # Its own sign is +, and of 40 coins at least 20 are heads.
    assert one_sided(added)[0] == pytest.approx((1 + comb(40, 20) / 2**40) / 2 / 2, rel=0.01)


def test_one_sided__far_tail_is_positive_and_ordered() -> None:
    p = [one_sided(np.array([1.0] * good + [-1.0] * (400 - good)))[0] for good in (240, 300, 380, 400)]
    assert p == sorted(p, reverse=True)
    assert p[-1] == pytest.approx(0.5**400)


def test_one_sided__does_not_depend_on_the_unit() -> None:
    added = np.random.default_rng(1).normal(0.2, 1.0, size=40)
    assert one_sided(added * 1e-9) == pytest.approx(one_sided(added))


def test_one_sided__errs_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    sizes = generator.exponential(size=30)
    p = [one_sided(sizes * generator.choice([-1, 1], size=30))[0] for _ in range(1000)]
    # 1,000 trials: .05 has a standard error of .007.
    assert np.mean(np.array(p) <= 0.05) == pytest.approx(0.05, abs=0.02)
