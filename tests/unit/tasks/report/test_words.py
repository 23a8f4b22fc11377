import math

import pytest

from tasks.records import Check, Difference, Interval
from tasks.report import words


def check(name: str, threshold: float | None = None) -> Check:
    return Check(check=name, passed=False, detail="", threshold=threshold)


def between(low: float, high: float) -> Difference:
    return Difference(
        metric="", value=(low + high) / 2, low=low, high=high, standard_error=0.1, p_better=0.5, p_worse=0.5
    )


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\n b\t\x00c", "a b �c"),
        ("x\u202egpj.exe", "x�gpj.exe"),
        ("83.1\u00a0%", "83.1\u00a0%"),
        ("Straße 猫", "Straße 猫"),
        ("x" * 300, "x" * 199 + "…"),
    ],
)
def test_visible__hides_nothing(text: str, shown: str) -> None:
    assert words.visible(text) == shown


@pytest.mark.parametrize(
    ("value", "told"),
    [(0.8314, "0.831"), (-0.5, "−0.500"), (12345.6, "12,346"), (math.nan, "not a number"), (None, "–")],
)
def test_number__is_told(value: float | None, told: str) -> None:
    assert words.number(value) == told


@pytest.mark.parametrize(
    ("metric", "low", "high", "word"),
    [
        ("accuracy", 0.01, 0.03, "better"),
        ("accuracy", -0.03, -0.01, "worse"),
        ("accuracy", -0.01, 0.02, "no clear difference"),
        ("accuracy", 0.0, 0.02, "no clear difference"),
        ("log_loss", 0.01, 0.03, "worse"),
        ("log_loss", -0.03, -0.01, "better"),
        ("accuracy", math.nan, math.nan, "not a number"),
    ],
)
def test_compared__follows_the_direction_of_the_metric(
    metric: str, low: float, high: float, word: str
) -> None:
    assert words.compared(metric, between(low, high)) == word


@pytest.mark.parametrize(
    ("found", "title", "failure"),
    [
        (
            check("floor.balanced_accuracy", 0.65),
            "Balanced accuracy at least 0.65",
            "Its balanced accuracy is too low, whatever serves today.",
        ),
        (
            check("floor.ece", 0.15),
            "Calibration error at most 0.15",
            "Its calibration error is too high, whatever serves today.",
        ),
        (check("latency", 50), "Speed", "It answers too slowly."),
        (check("new_thing"), "New thing", "The check New thing failed."),
    ],
)
def test_check__is_told_in_words(found: Check, title: str, failure: str) -> None:
    assert words.check_title(found) == title
    assert words.check_failure(found) == failure


def test_checks__each_has_a_title_a_failure_and_a_section() -> None:
    assert set(words.CHECK_TITLES) == set(words.CHECK_FAILURES) == set(words.CHECK_SECTIONS) - {"floor"}


def test_bounds__of_no_numbers_are_empty() -> None:
    assert words.bounds(Interval(value=0.5, low=0.4, high=0.6)) == "0.400 to 0.600"
    assert words.bounds(Interval(value=math.nan, low=math.nan, high=math.nan)) == ""
