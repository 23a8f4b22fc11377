"""Markdown of the ladder: which rungs there are, what each came to, and why one was taken."""

from tasks.evaluation.markdown import escape, interval, joined, number, table
from tasks.params import LOWER_IS_BETTER
from tasks.progress import duration
from tasks.records import Climb, Ladder, Rung

REASON_LENGTH = 2000  # characters


def climb_report(climb: Climb) -> str:
    """Whether the ladder is climbed, why, and the trial that told."""
    return joined(
        f"# {'Climbed' if climb.climb else 'Not climbed'}",
        escape(climb.reason, REASON_LENGTH),
        _expected(climb),
        _trial(climb),
    )


def ladder_report(ladder: Ladder) -> str:
    """Whether it was climbed and why, its rungs, and the trial that told."""
    arrow = "↓" if ladder.metric in LOWER_IS_BETTER else "↑"
    header = (
        "Rung", "Backbone", f"{ladder.metric} {arrow} on validation", "on test", "Gate", "Takes", "Price",
        "MB", "p50, ms",
    )  # fmt: skip
    return joined(
        "# Ladder",
        escape(ladder.climb.reason, REASON_LENGTH),
        escape(ladder.reason, REASON_LENGTH),
        table(header, (_row(rung) for rung in ladder.rungs), right=5),
        "## Trial" if ladder.climb.trial else "",
        _expected(ladder.climb),
        _trial(ladder.climb),
    )


def _row(rung: Rung) -> tuple[str, ...]:
    name = escape(rung.name)
    failed = ", ".join(map(escape, rung.failed))
    return (
        f"**{name}** (chosen)" if rung.chosen else name,
        escape(rung.backbone),
        interval(rung.validation),
        interval(rung.test),
        "passed" if rung.passed else f"**failed**: {failed}" if failed else "**failed**",
        duration(rung.seconds),
        number(rung.price, 2),
        number(rung.size_mb, 1),
        number(rung.latency_ms, 1),
    )


def _expected(climb: Climb) -> str:
    if climb.expected_gain is None:
        return ""
    told = f"Expected gain in {escape(climb.metric)}: {interval(climb.expected_gain)}"
    if climb.expected_seconds is not None and climb.price is not None:
        told += f", for {duration(climb.expected_seconds)} at a price of {number(climb.price, 2)}"
    return f"{told}."


def _trial(climb: Climb) -> str:
    if not climb.trial:
        return ""
    rows = (
        (
            escape(point.method),
            f"{point.learning_rate:.2g}",
            f"{point.epochs:,}",
            number(point.validation),
            number(point.validation_loss),
        )
        for point in climb.trial
    )
    return table(("Method", "Learning rate", "Epochs", "Validation ↑", "Validation loss ↓"), rows, right=1)
