import math

import pytest

from tasks.finetune.schedule import factor


def test_schedule__rises_in_equal_parts_and_warm_up_ends_at_one() -> None:
    assert [factor(step, 100, 4) for step in range(5)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])


def test_schedule__falls_as_a_half_cosine() -> None:
    # A quarter, half and three quarters of the way from step 20 to step 100.
    expected = [(1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2]
    assert [factor(step, 100, 20) for step in (40, 60, 80)] == pytest.approx(expected)


def test_schedule__no_step_is_lost_and_the_end_is_zero() -> None:
    assert factor(0, 10, 0) == 1
    assert all(factor(step, 10, 3) > 0 for step in range(10))
    assert factor(10, 10, 3) == 0


def test_schedule__warm_up_may_last_for_all_steps() -> None:
    assert [factor(step, 3, 3) for step in range(4)] == pytest.approx([0.25, 0.5, 0.75, 0.0])
