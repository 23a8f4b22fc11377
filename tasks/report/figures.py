"""The report's own figures, in the style of the evaluation's: the slices as a forest plot, the map
of the embeddings, and the ranking of backbones."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.legend import Legend
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import blended_transform_factory
from numpy.typing import NDArray

from tasks.evaluation.style import BLUE, GRID, INK, MUTED, OVER, plain, save
from tasks.params import LOWER_IS_BETTER
from tasks.records import Difference, Interval, Score
from tasks.report.words import compared, metric_title, visible

ROWS = 40  # of a forest plot
TICKS = 5  # along an axis at most: their numbers stand side by side
NAME_LENGTH = 40  # characters of a name beside a plot; of longer ones the two ends, which differ
# Told apart also by who sees no red or no green; in this order (Okabe and Ito, darker where pale).
COLOURS = (BLUE, OVER, "#3d9970", "#8e6bb0", "#d9a514", "#56b4d9", "#7d5a3c", "#d884b0", "#4a5568")
REST = "#c3cad2"

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class ForestRow:
    """A slice or class: its metric, the champion's and their difference, where they are known."""

    name: str
    samples: int | None
    own: Interval
    champion: Interval | None = None
    difference: Difference | None = None


def forest(file: Path, rows: Sequence[ForestRow], metric: str, overall: Interval | None, note: str) -> None:
    """Writes a forest plot: a line per row with its interval, the overall value as an upright line;
    on the right the differences from the champion, where there are any.

    Args:
        note: below the title, such as what the intervals cover.
    """
    differences = any(row.difference is not None for row in rows)
    height = 1.5 + 0.34 * len(rows)
    figure = Figure(
        figsize=(9.2 if differences else 6.6, height), layout=ConstrainedLayoutEngine(h_pad=0.1, w_pad=0.1)
    )
    if differences:
        left, right = figure.subplots(1, 2, sharey=True, width_ratios=(1.35, 1))
    else:
        left, right = figure.subplots(), None
    places = np.arange(len(rows))[::-1]
    if overall is not None and math.isfinite(overall.value):
        left.axvline(overall.value, color=MUTED, linestyle="--", linewidth=1.1)
        at = blended_transform_factory(left.transData, left.transAxes)
        left.text(overall.value, 1.005, "all", color=MUTED, fontsize=8, ha="center", transform=at)
    for place, row in zip(places, rows, strict=True):
        if row.champion is not None:
            _whisker(left, row.champion, place - 0.17, MUTED, "D", 3.8)
        _whisker(left, row.own, place + (0.1 if row.champion is not None else 0), BLUE, "o", 5.5)
        if right is not None and row.difference is not None:
            word = compared(metric, row.difference)
            colour = {"worse": OVER, "better": BLUE}.get(word, MUTED)
            _whisker(right, row.difference, place, colour, "o", 5.5)
    names = [_short(row.name) + (f"  (n = {row.samples:,})" if row.samples else "") for row in rows]
    left.set_yticks(places, names, parse_math=False)
    left.set_ylim(-0.7, len(rows) - 0.3)
    title = metric_title(metric)
    left.set_xlabel(title, color=INK)
    left.set_title(note, color=INK, fontsize=9.5, loc="left", pad=16)
    if any(row.champion is not None for row in rows):
        handles = [
            Line2D([], [], color=BLUE, marker="o", markersize=5.5, label="this model"),
            Line2D([], [], color=MUTED, marker="D", markersize=3.8, label="champion"),
        ]
        _plain_legend(figure.legend(handles=handles, loc="outside lower left", ncols=2, frameon=False))
    if right is not None:
        right.axvline(0, color=INK, linewidth=1)
        better = "left" if metric in LOWER_IS_BETTER else "right"
        right.set_xlabel(f"Difference from the champion\n({better} is better)", color=INK)
        right.tick_params(left=False)
    for axes in (left, right):
        if axes is not None:
            axes.xaxis.set_major_locator(MaxNLocator(TICKS))
            plain(axes, "x")
    save(figure, file)


def ranking(file: Path, rows: Sequence[tuple[str, Score, float]]) -> None:
    """Writes candidates (name, loss, LogME), the best on top, with one standard error to each side."""
    figure = Figure(
        figsize=(9.2, 1.5 + 0.36 * len(rows)), layout=ConstrainedLayoutEngine(h_pad=0.1, w_pad=0.1)
    )
    left, right = figure.subplots(1, 2, sharey=True)
    best = rows[0][1].value + rows[0][1].standard_error
    for place, (_, loss, evidence) in zip(range(len(rows))[::-1], rows, strict=True):
        colour = BLUE if loss.value <= best else MUTED
        if math.isfinite(loss.value):
            ends = (loss.value - loss.standard_error, loss.value + loss.standard_error)
            left.plot(ends, (place, place), color=colour, linewidth=1.6)
            left.plot(loss.value, place, color=colour, marker="o", markersize=6)
        if math.isfinite(evidence):
            right.plot(evidence, place, color=colour, marker="o", markersize=6)
    names = [_short(name) for name, _, _ in rows]
    left.set_yticks(range(len(rows))[::-1], names, parse_math=False)
    left.set_ylim(-0.7, len(rows) - 0.3)
    left.set_xlabel("Loss of the cross-validated head\n(left is better)", color=INK)
    right.set_xlabel("LogME\n(right is better)", color=INK)
    title = "Lines: one standard error. Blue: the folds can't tell it from the best."
    left.set_title(title, color=INK, fontsize=9.5, loc="left")
    for axes in (left, right):
        axes.xaxis.set_major_locator(MaxNLocator(TICKS))
        plain(axes, "x")
    save(figure, file)


def embedding_map(
    file: Path,
    places: Floats,
    groups: Mapping[str, NDArray[np.bool_]],
    wrong: NDArray[np.bool_],
    title: str,
    values: Floats | None = None,
) -> None:
    """Writes the map of the embeddings.

    Args:
        places: [N, 2].
        groups: name -> which of the N it holds: as many as there are COLOURS, and one more, which is grey.
        wrong: [N] test samples that the model has wrong, which are ringed.
        values: [N] numbers that give the colours instead of the groups.
    """
    figure = Figure(figsize=(8.6, 5.8), layout=ConstrainedLayoutEngine(h_pad=0.1, w_pad=0.1))
    axes = figure.subplots()
    size = float(np.clip(9000 / max(len(places), 1), 5, 26))
    handles = []
    if values is not None:
        dots = axes.scatter(
            places[:, 0], places[:, 1], c=values, s=size, cmap="viridis", alpha=0.8, linewidths=0
        )
        bar = figure.colorbar(dots, ax=axes, shrink=0.7)
        bar.set_label("Actual value", color=INK)
        bar.outline.set_visible(False)
        bar.ax.tick_params(length=0, labelsize=8, colors=INK)
    for (name, members), colour in zip(groups.items(), (*COLOURS, REST), strict=False):
        behind = 1 if colour == REST else 2
        axes.scatter(
            places[members, 0],
            places[members, 1],
            s=size,
            color=colour,
            alpha=0.7,
            linewidths=0,
            zorder=behind,
        )
        handles.append(_dot(colour, f"{_short(name)} ({int(members.sum()):,})"))
    if wrong.any():
        axes.scatter(
            places[wrong, 0],
            places[wrong, 1],
            s=size + 22,
            facecolors="none",
            edgecolors=INK,
            linewidths=0.9,
            zorder=3,
        )
        ring = Line2D([], [], marker="o", linestyle="", markerfacecolor="none", color=INK, markersize=7)
        ring.set_label(f"wrong in the test split ({int(wrong.sum()):,})")
        handles.append(ring)
    if handles:
        _plain_legend(figure.legend(handles=handles, loc="outside right upper", frameon=False, fontsize=9))
    axes.set_title(title, color=INK, fontsize=11, loc="left", parse_math=False)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_color(GRID)
    save(figure, file)


def _dot(colour: str, label: str) -> Line2D:
    return Line2D([], [], marker="o", linestyle="", color=colour, markersize=6, label=label)


def _whisker(
    axes: Axes, interval: Interval | Difference, place: float, colour: str, marker: str, size: float
) -> None:
    if all(map(math.isfinite, (interval.value, interval.low, interval.high))):
        axes.plot([interval.low, interval.high], [place, place], color=colour, linewidth=1.6)
        axes.plot([interval.value], [place], color=colour, marker=marker, markersize=size)


def _short(name: str) -> str:
    shown = visible(name)
    half = NAME_LENGTH // 2
    return shown if len(shown) <= NAME_LENGTH else f"{shown[: half - 1]}…{shown[-half:]}"


def _plain_legend(legend: Legend) -> None:
    for text in legend.get_texts():
        text.set_parse_math(False)  # a label such as `$5` is text, not TeX
        text.set_color(INK)
