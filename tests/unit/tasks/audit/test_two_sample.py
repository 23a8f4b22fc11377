import numpy as np
import pytest
from scipy.stats import kstest

from tasks.audit.two_sample import MOST, c2st, chosen, shuffled


def test_c2st__sets_apart_are_told_apart() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((60, 3)), rng.standard_normal((40, 3)) + 8
    got = c2st("a and b", a.astype(np.float32), b.astype(np.float32))
    assert (got.between, got.samples, got.accuracy) == ("a and b", (60, 40), 1.0)
    # All of 20 and 20 right: one way out of binomial(40, 20).
    assert got.p_value == pytest.approx(1 / 137_846_528_820)


def test_c2st__of_equal_sets_the_p_value_is_no_smaller_than_uniform() -> None:
    rng = np.random.default_rng(1)
    p = [c2st("", *np.split(rng.standard_normal((80, 2)).astype(np.float32), 2)).p_value for _ in range(60)]
    assert kstest(p, "uniform", alternative="greater").pvalue > 0.01


def test_shuffled__is_an_order_of_the_seed_alone() -> None:
    digests = [f"{number:064x}" for number in range(100)]
    assert shuffled(digests, 1) == shuffled(digests[::-1], 1)
    assert shuffled(digests, 1) != shuffled(digests, 2)
    assert sorted(shuffled(digests, 1)) == digests
    assert len(chosen([str(number) for number in range(MOST + 1)], 0)) == MOST
