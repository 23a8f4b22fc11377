"""The verdict in words: what was decided, on which numbers, and by which checks."""

import math
from collections.abc import Sequence

from tasks.records import Check, Decision, Evaluation
from tasks.report.blocks import Cell, Fact, Part, Section, Table, Text, Tone
from tasks.report.words import (
    SHARES,
    check_title,
    compared,
    coverage,
    headline_metric,
    in_a_sentence,
    metric_title,
    number,
    percent,
    plural,
    signed,
    value_of,
)

TONES: dict[str, Tone] = {"better": "good", "worse": "bad"}  # of words.compared

MODES = {
    "non_inferior": "The model may be worse than the champion by no more than the margin, and that must "
    "be shown beyond chance.",
    "superior": "The model must be better than the champion beyond chance.",
    "absolute": "The champion is not asked; the model must meet the fixed limits.",
}


def verdict(decision: Decision) -> str:
    """The verdict in one line."""
    if decision.passed:
        return "Passed: this model may be registered"
    return "Failed: this model is not registered"


def failed(decision: Decision) -> list[Check]:
    """The checks that failed, in the gate's order."""
    return [check for check in decision.reasons if not check.passed]


def summary(decision: Decision, evaluation: Evaluation) -> list[str]:
    """How good the model is, and beside the champion, in a sentence each."""
    return [told for told in (_quality(evaluation), _comparison(decision, evaluation)) if told]


def checks(decision: Decision) -> str:
    """How many checks passed, in a sentence."""
    wrong, all_of_them = failed(decision), len(decision.reasons)
    if not all_of_them:
        return "No check was made, and so nothing speaks for the model."
    if not wrong:
        return f"It passed all {plural(all_of_them, 'check')}." if all_of_them > 1 else "It passed the check."
    return f"{len(wrong)} of {plural(all_of_them, 'check')} failed."


def _quality(evaluation: Evaluation) -> str:
    name = headline_metric(evaluation.metrics)
    if name is None:
        return ""
    samples = f"{plural(evaluation.samples, 'test image')} that it was not trained on"
    measured = evaluation.metrics[name]
    if not math.isfinite(measured.value):
        return f"Its answers for {samples} can't be judged: the {in_a_sentence(name)} is not a number."
    told = value_of(name, measured.value)
    span = f"({coverage(evaluation.alpha)} interval {_span(name, measured.low, measured.high)})"
    if name == "accuracy":
        return f"Of {samples}, it gets {told} right {span}."
    if name == "subset_accuracy":
        return f"Of {samples}, it gets every label of {told} right {span}."
    return f"On {samples}, it is off by {told} in the mean {span}."


def _comparison(decision: Decision, evaluation: Evaluation) -> str:
    version = decision.champion_version
    if version is None:
        return "There is no champion yet that it could be compared with."
    metric = gate_metric(decision)
    difference = evaluation.differences.get(metric) if metric else None
    if metric is None or difference is None or not math.isfinite(difference.value):
        return f"It could not be compared with the champion, version {version}."
    word = compared(metric, difference)
    told = {
        "better": "It is better than",
        "worse": "It is worse than",
    }.get(word, "There is no clear difference from")
    by = _points(metric, difference.value)
    low, high = _points(metric, difference.low), _points(metric, difference.high)
    unit = "\u00a0percentage points" if metric in SHARES else ""
    return (
        f"{told} the champion (version {version}) on the same images: {in_a_sentence(metric)} "
        f"{by}{unit}, {coverage(evaluation.alpha)} interval {low} to {high}."
    )


def _span(name: str, low: float, high: float) -> str:
    if name in SHARES:  # one sign for both
        return f"{number(100 * low, 1)} to {percent(high)}"
    return f"{number(low)} to {number(high)}"


def _points(name: str, value: float) -> str:
    return signed(100 * value, 1) if name in SHARES else signed(value)


def gate_metric(decision: Decision) -> str | None:
    """The metric on which the gate compared."""
    name = decision.thresholds.get("metric")
    return name if isinstance(name, str) else None


def facts(decision: Decision, evaluation: Evaluation) -> list[Fact]:
    """The numbers of the headline."""
    wrong, all_of_them = len(failed(decision)), len(decision.reasons)
    found = []
    main = headline_metric(evaluation.metrics)
    second = gate_metric(decision)
    for name in dict.fromkeys(name for name in (main, second) if name in evaluation.metrics):
        assert name is not None
        measured = evaluation.metrics[name]
        told = value_of(name, measured.value)
        span = _span(name, measured.low, measured.high) if math.isfinite(measured.value) else ""
        found.append(Fact(told, metric_title(name), span))
    difference = evaluation.differences.get(second) if second else None
    if second and difference is not None:
        word = compared(second, difference)
        points = " points" if second in SHARES else ""
        told = f"{_points(second, difference.value)}{points}"
        found.append(Fact(told, "Against the champion", word, TONES.get(word, "plain")))
    found.append(Fact(f"{evaluation.samples:,}", "Test images", "not trained on"))
    passed = f"{all_of_them - wrong} of {all_of_them}"
    found.append(Fact(passed, "Checks passed", "", "bad" if wrong or not all_of_them else "good"))
    return found


def decided(decision: Decision) -> Section:
    """Every check of the gate with its numbers."""
    rows: Sequence[Sequence[Cell]] = [
        (
            Cell("passed", tone="good") if check.passed else Cell("failed", tone="bad"),
            Cell(check_title(check), note=check.check),
            Cell(check.detail),
        )
        for check in decision.reasons
    ]
    mode = MODES.get(decision.mode, "")
    if decision.champion_version is None and decision.mode != "absolute":
        mode = "There is no champion yet, so that the fixed limits decide."
    parts: list[Part] = [
        Table(("", "Check", "Numbers and reason"), rows, numeric=9),
        Text(f"This verdict is sealed by the digest {decision.digest}."),
    ]
    return Section(
        "decision",
        "What was decided, and why",
        f"Each line is a check; one that fails, or that can't be made, keeps the model out. {mode}",
        parts,
    )
