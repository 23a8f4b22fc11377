"""The sections on the model's answers for the test split: metrics, mistakes, probabilities, classes
and slices."""

import math
from collections.abc import Mapping
from pathlib import Path

from tasks.params import LOWER_IS_BETTER
from tasks.records import Difference, Evaluation, Head, Interval
from tasks.report import figures, pictures, worst
from tasks.report.blocks import Cell, Part, Picture, Section, Strip, Table, Text
from tasks.report.verdict import TONES
from tasks.report.words import (
    METRIC_MEANINGS,
    bounds,
    compared,
    coverage,
    in_a_sentence,
    metric_title,
    number,
    oriented,
    percent,
    plural,
    signed,
)

ROWS = 100  # of a table of classes or slices
FOREST = "On the right: blue is clearly better than the champion, red clearly worse, grey neither."


def metrics(evaluation: Evaluation) -> Section:
    """All metrics, beside the champion's."""
    theirs = evaluation.champion_metrics
    header = ["Metric", "This model"]
    if theirs is not None:
        header += [f"Champion (version {evaluation.champion_version})", "Difference", "Worse ← → better"]
    rows = []
    for name, own in evaluation.metrics.items():
        better = "Lower is better." if name in LOWER_IS_BETTER else "Higher is better."
        row: list[Cell | Strip | str] = [
            Cell(metric_title(name), note=f"{METRIC_MEANINGS.get(name, '')} {better}".strip()),
            measured(own),
        ]
        if theirs is not None:
            row += [measured(theirs.get(name)), *_against(name, evaluation.differences.get(name))]
        rows.append(row)
    parts: list[Part] = [Table(header, rows)]
    if evaluation.mcnemar is not None:
        test = evaluation.mcnemar
        parts.append(
            Text(
                f"This model alone is right on {plural(test.only_challenger, 'image')}, the champion alone on"
                f" {plural(test.only_champion, 'image')} (exact McNemar test: p = {number(test.p_better)} for"
                f" better, {number(test.p_worse)} for worse)."
            )
        )
    lead = (
        f"Measured on {plural(evaluation.samples, 'test image')} that no part of the model was fitted on."
        f" The small numbers are {coverage(evaluation.alpha)} intervals: what the metric may be on other"
        " images of the same kind."
    )
    if theirs is not None:
        lead += " A difference is clear where its whole line lies on one side of the middle."
    return Section("metrics", "How good it is", lead, parts)


def mistakes(evaluation: Evaluation, errors: worst.Errors | None) -> Section:
    """The confusion matrix, or of numbers the answers beside the truth; and the worst errors."""
    parts: list[Part] = []
    confusion = pictures.png(evaluation.path / "confusion.png")
    if confusion is not None:
        what = "Confusion matrix: actual classes in rows, predicted classes in columns."
        parts.append(
            Picture(confusion, what, "Rows: the true class. Columns: the answer. On the diagonal: right.")
        )
    answers = pictures.png(evaluation.path / "predicted.png")
    if answers is not None:
        what = "Predicted values beside actual values."
        parts.append(Picture(answers, what, "Each dot is an image. On the dashed line: exactly right."))
    if errors is not None and errors.worst is not None:
        parts.append(errors.worst)
    if errors is None:
        lead = "The answers for single images were not kept."
    elif evaluation.target == "number":
        lead = "The images whose value it misses by most. Some may carry a wrong label."
    elif errors.count == 0:
        lead = f"It has none of the {plural(evaluation.samples, 'test image')} wrong."
    else:
        lead = f"It has {errors.count:,} of {plural(evaluation.samples, 'test image')} wrong."
        lead += " Not every one is its fault: some may carry a wrong label."
    return Section("mistakes", "Where it is wrong", lead, parts)


def calibration(evaluation: Evaluation, head: Head) -> Section | None:
    """Whether its probabilities can be believed, and what follows from them; of numbers nothing."""
    if evaluation.target == "number":
        return None
    parts: list[Part] = []
    diagram = pictures.png(evaluation.path / "reliability.png")
    if diagram is not None:
        what = "Reliability diagram: accuracy by stated confidence."
        caption = "Bars on the dashed line: a stated 80 % comes true in 80 % of the cases."
        parts.append(Picture(diagram, what, caption))
    ece, chance = evaluation.metrics.get("ece"), evaluation.chance_ece
    facts = []
    if ece is not None:
        beyond = "" if chance is None else f"{number(chance)} of it chance alone would give"
        facts.append(("Calibration error", Cell(number(ece.value), note=beyond)))
    of_it = {"none": "none", "temperature": f"temperature {number(head.temperature)}", "vector": "by class"}
    facts.append(("Calibrated by", Cell(of_it[head.calibration])))
    chosen, confidence, conformal = evaluation.selective, head.confidence, head.conformal
    if confidence is not None:
        wanted = f"wanted: {percent(confidence.precision)} right"
        facts.append(("Sure from a confidence of", Cell(number(confidence.threshold), note=wanted)))
        if chosen is not None:
            answered = f"{percent(chosen.answered)} of the test images"
            right = f"{percent(chosen.precision)} of them right"
            facts.append(("Sure of", Cell(answered, note=right)))
    elif evaluation.target == "class":
        facts.append(("Sure from a confidence of", Cell("–", note="none gives the wanted precision")))
    if conformal is not None and chosen is not None:
        wanted = f"wanted: {percent(conformal.coverage)}; {number(chosen.set_size, 2)} classes in the mean"
        facts.append(("Sets that hold the true class", Cell(percent(chosen.coverage), note=wanted)))
    parts.append(Table((), [(name, cell) for name, cell in facts], numeric=9))
    lead = (
        "A probability is worth something if what it calls 80 % certain is right in 80 % of the cases. Then a"
        " threshold can send the uncertain images to a person."
    )
    return Section("calibration", "Whether its probabilities can be believed", lead, parts)


def classes(evaluation: Evaluation) -> Section | None:
    """Each class by itself; of numbers nothing."""
    if not evaluation.per_class:
        return None
    what = "label" if evaluation.target == "labels" else "class"
    columns = list(dict.fromkeys(name for values in evaluation.per_class.values() for name in values))
    meanings = {
        "precision": "of its answers, right",
        "recall": "of the true ones, found",
        "f1": "both together",
    }
    header = [what.capitalize(), *(f"{_title(name)}" for name in columns)]
    by = "f1" if "f1" in columns else columns[0] if columns else ""
    shown, more = _worst(evaluation.per_class, by)
    rows = [(Cell(name), *(measured(values.get(column)) for column in columns)) for name, values in shown]
    notes = "; ".join(f"{_title(name)}: {meanings[name]}" for name in columns if name in meanings)
    plurals = {"class": "classes", "label": "labels"}[what]
    lead = f"The {plurals} with the lowest {_title(by)} first. {notes}."
    parts: list[Part] = [Table(header, rows)]
    if more:
        parts.append(Text(f"And {more:,} more {plurals}, which do better."))
    return Section("classes", f"How good it is for each {what}", lead, parts)


def slices(evaluation: Evaluation, metric: str | None, out: Path) -> Section | None:
    """Parts of the data by themselves, as a forest plot and a table; None where there are none."""
    if not evaluation.per_slice:
        return None
    name = metric or next(iter(evaluation.metrics), "")
    shown, more = _worst(evaluation.per_slice, name)
    rows = []
    for at, values in shown:
        own = values.get(name)
        difference = evaluation.slice_differences.get(at, {}).get(name)
        if own is not None:
            samples = evaluation.slice_samples.get(at)
            rows.append(figures.ForestRow(at, samples, own, difference=difference))
    parts: list[Part] = []
    compare = bool(evaluation.slice_differences)
    if rows:
        span = f"Lines: {coverage(evaluation.alpha).replace(chr(160), ' ')} intervals"
        figures.forest(out / "slices.png", rows[: figures.ROWS], name, evaluation.metrics.get(name), span)
        drawn = pictures.png(out / "slices.png")
        if drawn is not None:
            parts.append(
                Picture(drawn, f"{metric_title(name)} of each slice.", FOREST if compare else "", wide=True)
            )
    columns = list(evaluation.metrics)
    table = [
        (
            Cell(at),
            Cell(f"{evaluation.slice_samples.get(at, 0):,}"),
            *([_told(name, evaluation, at)] if compare else []),
            *(measured(values.get(column)) for column in columns),
        )
        for at, values in shown
    ]
    header = ["Slice", "Test images", *(["Against the champion"] if compare else [])]
    header += [metric_title(column) for column in columns]
    parts.append(Table(header, table, folded="All numbers"))
    if more:
        parts.append(Text(f"And {more:,} more slices, which do better."))
    lead = (
        "A model that is good on the whole may fail for one site or camera. Here is its"
        f" {in_a_sentence(name)} for each part of the test images, the worst first; the dashed line is all"
        " of them together."
    )
    if compare:
        lead += " On the right: the difference from the champion on the same images."
    return Section("slices", "How good it is for parts of the data", lead, parts)


def measured(interval: Interval | None) -> Cell:
    """A value with its interval below."""
    if interval is None:
        return Cell(number(None))
    return Cell(number(interval.value), note=bounds(interval).replace(" ", "\u00a0"))  # in one line


def _against(name: str, difference: Difference | None) -> tuple[Cell, Strip | Cell]:
    if difference is None:
        return Cell(number(None)), Cell("")
    word = compared(name, difference)
    tone = TONES.get(word, "plain")
    told = Cell(f"{signed(difference.value)}", note=word, tone=tone)
    low, high = oriented(name, difference)
    value = -difference.value if name in LOWER_IS_BETTER else difference.value
    greatest = max(abs(low), abs(high), abs(value))
    if not math.isfinite(greatest) or greatest == 0:
        return told, Cell("")
    at = [50 + 46 * end / greatest for end in (low, value, high)]
    return told, Strip(at[0], at[1], at[2], tone)


def _told(name: str, evaluation: Evaluation, at: str) -> Cell:
    """How a slice differs from the champion."""
    return _against(name, evaluation.slice_differences.get(at, {}).get(name))[0]


def _worst(
    table: Mapping[str, Mapping[str, Interval]], by: str
) -> tuple[list[tuple[str, Mapping[str, Interval]]], int]:
    """The rows from the worst on (what is not a number first), and how many are not among them."""
    sign = -1.0 if by in LOWER_IS_BETTER else 1.0

    def value(name: str) -> tuple[float, str]:
        found = table[name].get(by)
        known = found is not None and math.isfinite(found.value)
        return (sign * found.value if found is not None and known else -math.inf), name

    order = sorted(table, key=value)
    return [(name, table[name]) for name in order[:ROWS]], max(0, len(order) - ROWS)


def _title(name: str) -> str:
    return "F1" if name == "f1" else metric_title(name)
