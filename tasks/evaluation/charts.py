"""What the model has to beat, its learning curve, and what disturbed images cost, as PNG files."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import NullLocator

from tasks.embedding.views import STRENGTHS
from tasks.evaluation.style import BLUE, INK, MUTED, OVER, plain, save
from tasks.params import LOWER_IS_BETTER
from tasks.records import Baselines, Robustness

_ROWS = {
    "backbone": "frozen backbone",
    "random_weights": "its weights at random",
    "raw_pixels": "raw pixels",
    "majority": "majority class",
}
_MAJORITY_OF_NUMBERS = "mean of train"


def baselines(file: Path, made: Baselines, alpha: float) -> None:
    """A row for each model: its metric with the interval."""
    figure = _figure(6.4, 1.3 + 0.5 * len(made.rows))
    axes = figure.add_subplot()
    names = list(made.rows)
    for place, name in enumerate(names):
        row, colour = made.rows[name], BLUE if place == 0 else MUTED
        if not math.isfinite(row.value):
            axes.text(0, place, "  undefined", color=INK, va="center", fontsize=9)
            continue
        axes.plot([row.low, row.high], [place, place], color=colour, linewidth=2.5, solid_capstyle="round")
        axes.plot(row.value, place, "o", color=colour, markersize=8)
        axes.annotate(
            f"{row.value:.3f}",
            (row.value, place),
            xytext=(0, 7),
            textcoords="offset points",
            ha="center",
            color=INK,
            fontsize=9,
        )
    axes.set_yticks(range(len(names)), [_row_name(name, made.metric) for name in names])
    axes.set_ylim(len(names) - 0.5, -0.6)
    axes.set_xlabel(_metric_name(made.metric), color=INK)
    title = (
        f"What the model has to beat\n{made.train_samples:,} training and {made.test_samples:,} test samples"
    )
    axes.set_title(f"{title}, {_percent(alpha)} intervals", color=INK, fontsize=11)
    plain(axes, "x")
    save(figure, file)


def learning_curve(file: Path, made: Baselines, test_samples: int, alpha: float) -> None:
    """The metric by training samples: mean and range of the repeats, and what twice as many may give."""
    figure = _figure(6.4, 4.2)
    axes = figure.add_subplot()
    samples = np.array([point.samples for point in made.curve])
    values = [point.value for point in made.curve]
    axes.fill_between(
        samples,
        [point.low for point in made.curve],
        [point.high for point in made.curve],
        color=BLUE,
        alpha=0.15,
        linewidth=0,
        label="range of the repeats",
    )
    axes.plot(samples, values, "o-", color=BLUE, markersize=6, label="measured")
    ticks = samples.tolist()
    if made.doubled is not None:
        ticks.append(2 * ticks[-1])
        ahead = made.doubled
        axes.plot(ticks[-2:], [values[-1], ahead.value], "--", color=OVER, linewidth=1.5)
        axes.errorbar(
            ticks[-1],
            ahead.value,
            yerr=[[ahead.value - ahead.low], [ahead.high - ahead.value]],
            fmt="o",
            color=OVER,
            markerfacecolor="white",
            markersize=6,
            capsize=3,
            label=f"expected with twice the labels, {_percent(alpha)} interval",
        )
    axes.set_xscale("log")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.set_xlabel("Training samples", color=INK)
    axes.set_ylabel(_metric_name(made.metric), color=INK)
    axes.set_title(f"Learning curve\njudged on {test_samples:,} test samples", color=INK, fontsize=11)
    axes.legend(frameon=False, fontsize=9, labelcolor=INK)
    plain(axes)
    save(figure, file)


def robustness(file: Path, made: Robustness) -> None:
    """A panel for each disturbance: the metric by its strength, challenger and champion."""
    figure = _figure(2.1 * len(made.disturbed) + 0.6, 3.4)
    panels: Sequence[Axes] = figure.subplots(1, len(made.disturbed), sharey=True, squeeze=False)[0]
    strengths = (0, *STRENGTHS)
    for axes, (name, values) in zip(panels, made.disturbed.items(), strict=True):
        if made.champion_clean is not None and made.champion_disturbed is not None:
            theirs = (made.champion_clean, *made.champion_disturbed[name])
            axes.plot(strengths, theirs, "s--", color=MUTED, markersize=5, label="champion")
        axes.plot(strengths, (made.clean, *values), "o-", color=BLUE, markersize=5, label="challenger")
        axes.set_title("JPEG" if name == "jpeg" else name, color=INK, fontsize=10)
        axes.set_xticks(strengths, ["none", *(str(strength) for strength in STRENGTHS)])
        plain(axes)
    panels[0].set_ylabel(_metric_name(made.metric), color=INK)
    if made.champion_clean is not None:
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(
            handles, labels, loc="outside lower right", ncols=2, frameon=False, fontsize=9, labelcolor=INK
        )
    beside = "" if made.champion_loss is None else f", the champion's by {made.champion_loss:.3f}"
    what = f"{made.metric.replace('_', ' ')} worse by {made.loss:.3f} in the mean{beside}"
    figure.suptitle(f"Disturbed images ({made.samples:,} test samples): {what}", color=INK, fontsize=11)
    figure.supxlabel("Strength of the disturbance", color=INK, fontsize=10)
    save(figure, file)


def _row_name(name: str, metric: str) -> str:
    if name == "majority" and metric in ("r2", "mae", "rmse"):
        return _MAJORITY_OF_NUMBERS
    return _ROWS[name]


def _metric_name(metric: str) -> str:
    name = metric.replace("_", " ")
    return f"{name} (lower is better)" if metric in LOWER_IS_BETTER else name


def _percent(alpha: float) -> str:
    return f"{100 * (1 - alpha):g} %"


def _figure(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(h_pad=0.1, w_pad=0.1))
