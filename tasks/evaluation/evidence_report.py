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
    gained = f"Backbone minus random weights: {difference(baselines.transfer)}." if baselines.transfer else ""
    little = hardly_helps(baselines)
    if baselines.transfer and _helps(baselines) and not little:
        gained += " Transfer helps."
    elif baselines.transfer and not little:
        gained += " Whether transfer helps can't be told from these samples."
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
        little,
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


def hardly_helps(baselines: Baselines) -> str:
    """That transfer hardly helps, in a sentence, where the numbers say so: the backbone is not better than
    the same one with random weights beyond chance, or raw pixels do better than it; else empty."""
    found = []
    moved = baselines.transfer
    if moved is not None and math.isfinite(moved.low) and math.isfinite(moved.high):
        if (moved.low > 0) if moved.metric in LOWER_IS_BETTER else (moved.high < 0):
            found.append("the backbone is worse than the same network untrained")
        elif not _helps(baselines):
            found.append("the backbone can't be told from the same network untrained")
    own, pixels = baselines.rows.get("backbone"), baselines.rows.get("raw_pixels")
    if own is not None and pixels is not None:
        ahead = pixels.value - own.value
        if (ahead < 0) if baselines.metric in LOWER_IS_BETTER else (ahead > 0):
            name = baselines.metric.replace("_", " ")
            beside = f"{name} {number(pixels.value)} against {number(own.value)}"
            found.append(f"raw pixels do better than the backbone ({beside})")
    if not found:
        return ""
    return (
        f"Transfer hardly helps: {', and '.join(found)}. A backbone trained on images more like these, or"
        " fine-tuning, may do better."
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
    """Beyond chance; without an interval that is not known."""
    found = baselines.transfer
    if found is None or not (math.isfinite(found.low) and math.isfinite(found.high)):
        return False
    return found.high < 0 if found.metric in LOWER_IS_BETTER else found.low > 0
