"""The section on the ladder: what fine-tuning brought, and for what."""

from pathlib import Path

from tasks.evaluation import ladder_plots
from tasks.params import LOWER_IS_BETTER
from tasks.progress import duration
from tasks.records import Climb, Ladder, Rung, Target, Tuned
from tasks.report import pictures
from tasks.report.blocks import Cell, Part, Picture, Section, Table, Text
from tasks.report.judged import measured
from tasks.report.words import bounds, in_a_sentence, metric_title, number, signed

FROZEN = "frozen"
CURVES = "curves.png"
RUNGS = {
    FROZEN: "a head on the backbone as it came",
    "lp_ft": "all layers, from the head that was fitted on the frozen backbone",
    "last_blocks": "the last blocks",
    "gradual": "from the last block down, epoch by epoch",
    "full": "all layers, with a new head",
    "lora": "low-rank adapters",
    "norm_only": "the normalisations alone",
    "scratch": "all layers, from random weights",
    "student": "a small network that learnt from the best one",
}
SCORES: dict[Target, str] = {
    "class": "balanced accuracy",
    "labels": "macro average precision",
    "number": "explained variance (R²)",
}


def ladder(found: Ladder | None, tuned: Tuned | None, target: Target, out: Path) -> Section | None:
    """The rungs beside each other, the reasons, and how the training went; None without a ladder.

    Args:
        tuned: the training whose curves are drawn, as curves.png in `out`; None: there was none.
        target: of the data, which says what the training was judged by.
    """
    if found is None:
        return None
    parts: list[Part] = [Text(found.climb.reason)]
    if found.reason != found.climb.reason:
        parts.append(Text(found.reason))
    parts.append(_reached(found))
    drawn = pictures.png(found.path / "ladder.png")
    if drawn is not None:
        what = f"{metric_title(found.metric)} of each rung on the test images, by what the rung takes."
        parts.append(Picture(drawn, what, "Lines: intervals. The dashed line: the gate's floor.", wide=True))
    parts.append(_taken(found))
    if found.climb.trial:
        parts.append(_trial(found.climb))
    if tuned is not None and tuned.history:
        ladder_plots.curves(out / CURVES, tuned, SCORES[target])
        learnt = pictures.png(out / CURVES)
        if learnt is not None:
            what = "Learning curves: loss, validation and learning rate by epoch."
            caption = "Validation rises or stays while the training goes on; if it falls, it learns by heart."
            parts.append(Picture(learnt, what, caption, title="How the training went"))
    lead = (
        "From the cheapest way to a model to the dearest: each rung is judged like the model itself. Which"
        f" one is taken was decided on the validation images, by {in_a_sentence(found.metric)}; the test"
        " images only show what it is worth."
    )
    return Section("ladder", "What fine-tuning brought", lead, parts)


def trained(found: Ladder | None) -> Rung | None:
    """The chosen rung if its backbone was trained; None: the backbone is as it came."""
    chosen = next((rung for rung in found.rungs if rung.chosen), None) if found is not None else None
    return None if chosen is None or chosen.name == FROZEN else chosen


def brought(found: Ladder) -> str:
    """What the chosen rung brought over the frozen one on the test images, in a sentence."""
    chosen, frozen = trained(found), next((rung for rung in found.rungs if rung.name == FROZEN), None)
    if chosen is None:
        return found.climb.reason
    name, value = in_a_sentence(found.metric), number(chosen.test.value)
    took = f"in {duration(chosen.seconds)}, at a price of {number(chosen.price, 2)}"
    if frozen is None:
        return f"Its backbone was trained ({chosen.name}) {took}: {name} {value}."
    gained = chosen.test.value - frozen.test.value
    better = "lower" if found.metric in LOWER_IS_BETTER else "higher"
    return (
        f"Its backbone was trained ({chosen.name}) {took}: {name} {number(frozen.test.value)} frozen,"
        f" {value} trained ({signed(gained)}; {better} is better)."
    )


def _reached(found: Ladder) -> Table:
    rows = [
        (
            Cell(_named(rung), note=RUNGS.get(rung.name, "")),
            measured(rung.validation),
            measured(rung.test),
            Cell("passed", tone="good")
            if rung.passed
            else Cell("failed", note=", ".join(rung.failed), tone="bad"),
        )
        for rung in found.rungs
    ]
    header = ("Rung", "On validation", "On test", "Its gate")
    return Table(header, rows, title=f"What each reaches: {in_a_sentence(found.metric)}")


def _taken(found: Ladder) -> Table:
    rows = [
        (
            Cell(_named(rung), note=rung.backbone),
            Cell(duration(rung.seconds), note=f"price {number(rung.price, 2)}"),
            Cell(f"{number(rung.latency_ms, 1)}\u00a0ms", note=f"package {number(rung.size_mb, 1)}\u00a0MB"),
        )
        for rung in found.rungs
    ]
    header = ("Rung", "To make", "An answer")
    return Table(header, rows, title="What each takes")


def _named(rung: Rung) -> str:
    return f"{rung.name} (chosen)" if rung.chosen else rung.name


def _trial(climb: Climb) -> Table:
    rows = [
        (
            Cell(point.method),
            Cell(f"{point.learning_rate:.2g}"),
            Cell(f"{point.epochs:,}"),
            Cell(number(point.validation)),
            Cell(number(point.validation_loss)),
        )
        for point in climb.trial
    ]
    gain = ""
    if climb.expected_gain is not None:
        gain = (
            f": expected gain {signed(climb.expected_gain.value)} ({bounds(climb.expected_gain, plus=True)})"
        )
    header = ("Method", "Learning rate", "Epochs", "Validation", "Validation loss")
    return Table(header, rows, folded=f"The trial on part of the training images{gain}")
