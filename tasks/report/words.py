"""Metrics, checks and numbers in the words of somebody who doesn't know the code."""

import math
import re
import unicodedata
from collections.abc import Mapping

from tasks.params import LOWER_IS_BETTER
from tasks.records import Check, Difference, Interval

TEXT_LENGTH = 200  # characters of a text from the data
_SPACE = re.compile(r"[^\S\u00a0]+")

METRIC_TITLES = {
    "accuracy": "Accuracy",
    "balanced_accuracy": "Balanced accuracy",
    "macro_f1": "Macro F1",
    "micro_f1": "Micro F1",
    "subset_accuracy": "Subset accuracy",
    "log_loss": "Log loss",
    "brier": "Brier score",
    "ece": "Calibration error",
    "r2": "Explained variance (R²)",
    "mae": "Mean absolute error",
    "rmse": "Root mean squared error",
}
METRIC_MEANINGS = {
    "accuracy": "Share of the test samples that it gets right.",
    "balanced_accuracy": "Share that it gets right of each class, averaged over the classes: rare ones count as much as frequent ones.",  # noqa: E501
    "macro_f1": "Balance of wrong alarms and misses (F1) of each class, averaged over the classes.",
    "micro_f1": "Balance of wrong alarms and misses (F1) over all labels of all samples together.",
    "subset_accuracy": "Share of the test samples of which every label is right.",
    "log_loss": "How much probability it gives to what is true; certain and wrong costs most.",
    "brier": "Mean squared error of the probabilities.",
    "ece": "How far stated probabilities are from how often they come true (ECE).",
    "r2": "Share of the variance that it explains; 0: no better than the mean.",
    "mae": "How far it is off, in the mean, in the unit of the labels.",
    "rmse": "Like the mean absolute error, but large errors count more.",
}
SHARES = frozenset({"accuracy", "balanced_accuracy", "macro_f1", "micro_f1", "subset_accuracy"})

# What a check is about; of a check that is not listed here, its own name is told.
CHECK_TITLES = {
    "min_test_samples": "Number of test images",
    "champion": "Comparison with the champion",
    "slices": "Parts of the data against the champion",
    "calibration": "Trust in its probabilities",
    "robustness": "Disturbed images",
    "leakage": "Near-duplicates of test images in training",
    "group_leaks": "Groups on both sides of the split",
    "quarantined": "Unusable files",
    "label_errors": "Wrong labels",
    "latency": "Speed",
    "size": "Size",
    "package": "Package equals what was judged",
}
# What it means that a check failed.
CHECK_FAILURES = {
    "min_test_samples": "There are too few test images to decide anything.",
    "champion": "It was not shown to hold its ground against the model that serves today.",
    "slices": "For a part of the data it is worse than the model that serves today, or that can't be told.",
    "calibration": "Its probabilities are not what they say.",
    "robustness": "Disturbed images cost it more than the model that serves today.",
    "leakage": "Too many test images have near-duplicates in training: the numbers look too good.",
    "group_leaks": "Groups lie on both sides of the split: the numbers look too good.",
    "quarantined": "Too many files of the data could not be used.",
    "label_errors": "Too many labels of the data seem to be wrong.",
    "latency": "It answers too slowly.",
    "size": "Its package is too large.",
    "package": "The package does not give the answers that were judged.",
}
# The section of the page that has the numbers of a check, by the beginning of its name.
CHECK_SECTIONS = {
    "min_test_samples": "metrics",
    "floor": "metrics",
    "champion": "metrics",
    "slices": "slices",
    "calibration": "calibration",
    "robustness": "robustness",
    "leakage": "audit",
    "group_leaks": "audit",
    "quarantined": "data",
    "label_errors": "audit",
    "latency": "speed",
    "size": "speed",
    "package": "speed",
}


def visible(text: str, length: int = TEXT_LENGTH) -> str:
    """Text from the data that hides nothing: control and direction characters become �, white space
    a single space (but one that must not break stays); long texts are cut."""
    shown = "".join(
        "�" if not (c.isprintable() or c.isspace()) or unicodedata.category(c) == "Cf" else c for c in text
    )
    shown = _SPACE.sub(" ", shown).strip()
    return shown if len(shown) <= length else shown[: length - 1] + "…"


def metric_title(name: str) -> str:
    """`balanced_accuracy` -> `Balanced accuracy`."""
    return METRIC_TITLES.get(name, name.replace("_", " ").capitalize())


def in_a_sentence(name: str) -> str:
    """A metric's title within a sentence."""
    title = metric_title(name)
    return title[:1].lower() + title[1:]


def check_title(check: Check) -> str:
    """What a check is about: `floor.accuracy` with threshold .7 -> `Accuracy at least 0.7`."""
    kind, _, metric = check.check.partition(".")
    if kind == "floor" and metric:
        bound = "at most" if metric in LOWER_IS_BETTER else "at least"
        limit = "" if check.threshold is None else f" {bound} {check.threshold:g}"
        return metric_title(metric) + limit
    return CHECK_TITLES.get(check.check, check.check.replace("_", " ").capitalize())


def check_failure(check: Check) -> str:
    """What it means that a check failed, in a sentence."""
    kind, _, metric = check.check.partition(".")
    if kind == "floor" and metric:
        extreme = "high" if metric in LOWER_IS_BETTER else "low"
        return f"Its {in_a_sentence(metric)} is too {extreme}, whatever serves today."
    return CHECK_FAILURES.get(check.check, f"The check {check_title(check)} failed.")


def check_section(check: Check) -> str:
    """The anchor of the section that has the numbers of a check; empty: none has them."""
    return CHECK_SECTIONS.get(check.check.partition(".")[0], "")


def number(value: float | None, digits: int = 3) -> str:
    """`0.831`, `1,234`, `not a number`; none: `–`."""
    if value is None:
        return "–"
    if not math.isfinite(value):
        return "not a number"
    if abs(value) >= 1000:
        return f"{value:,.0f}".replace("-", "−")
    return f"{value:.{digits}f}".replace("-", "−")


def signed(value: float, digits: int = 3) -> str:
    """`+0.004`, `−0.006`, `0.000`."""
    return number(value, digits) if value <= 0 or not math.isfinite(value) else f"+{number(value, digits)}"


def percent(share: float | None, digits: int = 1) -> str:
    """`83.1 %`; the space does not break."""
    if share is None:
        return "–"
    return f"{100 * share:.{digits}f}\u00a0%" if math.isfinite(share) else "not a number"


def value_of(name: str, value: float) -> str:
    """A metric's value in a sentence: shares in per cent."""
    return percent(value) if name in SHARES else number(value)


def bounds(interval: Interval | Difference, *, plus: bool = False) -> str:
    """`0.809 – 0.850`; not a number: nothing."""
    if not (math.isfinite(interval.low) and math.isfinite(interval.high)):
        return ""
    told = signed if plus else number
    return f"{told(interval.low)} to {told(interval.high)}"


def compared(metric: str, difference: Difference) -> str:
    """`better`, `worse`, or that the test set can't tell."""
    if not all(map(math.isfinite, (difference.value, difference.low, difference.high))):
        return "not a number"
    low, high = oriented(metric, difference)
    if low > 0:
        return "better"
    return "worse" if high < 0 else "no clear difference"


def oriented(metric: str, difference: Difference) -> tuple[float, float]:
    """The interval turned so that above 0 is better."""
    if metric in LOWER_IS_BETTER:
        return -difference.high, -difference.low
    return difference.low, difference.high


def coverage(alpha: float) -> str:
    """`95 %`: what the intervals cover."""
    return f"{100 * (1 - alpha):g}\u00a0%"


def plural(count: int, one: str, many: str = "") -> str:
    """`1 class`, `2 classes`."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def headline_metric(metrics: Mapping[str, Interval]) -> str | None:
    """The metric that is understood without explanation."""
    return next((name for name in ("accuracy", "subset_accuracy", "mae") if name in metrics), None)
