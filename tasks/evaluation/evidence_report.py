"""Markdown of what the model is judged by beside its metrics: baselines, learning curve, robustness."""

import math

from tasks.evaluation.markdown import difference, interval, joined, number, table
from tasks.params import LOWER_IS_BETTER
from tasks.records import Baselines, Robustness

ROWS = {
    "backbone": "The backbone",
    "random_weights": "The same backbone with random weights",
    "raw_pixels": "Raw pixels",
    "majority": "Always the most frequent class",
}


def baselines_report(baselines: Baselines) -> str:
    """The model beside what it has to beat, and its learning curve."""
    metric = f"{baselines.metric} {'↓' if baselines.metric in LOWER_IS_BETTER else '↑'}"
    gained = (
        f"Backbone minus random weights: {difference(baselines.transfer)}. "
        + (
            "Transfer helps."
            if _helps(baselines)
            else "Whether transfer helps can't be told from these samples."
        )
        if baselines.transfer
        else ""
    )
    return joined(
        "# Baselines",
        f"Heads on {baselines.train_samples:,} training samples, judged on {baselines.test_samples:,} test "
        "samples."
        if baselines.rows
        else "",
        table(
            ("Head on", metric),
            ((ROWS.get(name, name), interval(value)) for name, value in baselines.rows.items()),
            right=1,
        )
        if baselines.rows
        else "",
        gained,
        "## Learning curve" if baselines.curve else "",
        table(
            ("Share of train", "Samples", metric),
            (
                (
                    f"{point.fraction:.0%}",
                    f"{point.samples:,}",
                    f"{number(point.value)} ({number(point.low)} to {number(point.high)})",
                )
                for point in baselines.curve
            ),
            right=1,
        )
        if baselines.curve
        else "",
        f"Twice the samples may give {interval(baselines.doubled)}." if baselines.doubled else "",
    )


def robustness_report(robustness: Robustness) -> str:
    """What disturbed images cost."""
    theirs = robustness.champion_disturbed
    strengths = max(map(len, robustness.disturbed.values()), default=0)
    header = ["Disturbance", *(f"Strength {strength + 1}" for strength in range(strengths))]
    if theirs is not None:
        header += [f"Champion {strength + 1}" for strength in range(strengths)]

    def cells(values: tuple[float, ...]) -> list[str]:
        return [number(value) for value in values] + ["missing"] * (strengths - len(values))

    rows = [
        [name, *cells(values), *(cells(theirs.get(name, ())) if theirs is not None else ())]
        for name, values in robustness.disturbed.items()
    ]
    loss = f"Disturbed images cost {number(robustness.loss)} of {robustness.metric} in the mean"
    champion = (
        f", the champion {number(robustness.champion_loss)}" if robustness.champion_loss is not None else ""
    )
    clean = f"Undisturbed: {number(robustness.clean)}"
    if robustness.champion_clean is not None:
        clean += f", the champion {number(robustness.champion_clean)}"
    return joined(
        "# Robustness",
        f"{loss}{champion}. {clean}. {robustness.samples:,} test samples.",
        table(header, rows, right=1),
    )


def _helps(baselines: Baselines) -> bool:
    found = baselines.transfer
    if found is None or not (math.isfinite(found.low) and math.isfinite(found.high)):
        return False
    return found.high < 0 if found.metric in LOWER_IS_BETTER else found.low > 0
