"""What each rung reaches for what it costs, and how a training went, as PNG files."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.text import Annotation, Text
from matplotlib.ticker import FuncFormatter, MaxNLocator, MultipleLocator, NullLocator
from matplotlib.transforms import Bbox

from tasks.evaluation import course_plot
from tasks.evaluation.style import BLUE, INK, MUTED, OVER, plain, save
from tasks.params import LOWER_IS_BETTER
from tasks.progress import duration
from tasks.records import Ladder, Rung, Tuned

WIDE = 10  # the dearest rung by the cheapest, from which on the axis is logarithmic
LEAST_S = 1.0  # on a logarithmic axis; what took less is drawn here
TICKS_S = (1, 3, 10, 30, 60, 180, 600, 1800, 3600, 10_800, 36_000, 86_400, 259_200, 864_000)
STEPS_S = (0.1, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 18_000, 43_200, 86_400)
NAME_LENGTH = 28  # characters
# Where a label may stand: right of its point, left of it, and ever further above and below, points.
HEIGHTS = (0, 13, -13, 26, -26, 39, -39, 52, -52, 65, -65)
NEAR = 15  # points; to a label that is farther from its point a line leads
HALO = [withStroke(linewidth=3.5, foreground="white")]  # so that no line strikes a label through


def ladder(file: Path, made: Ladder, floor: float | None) -> None:
    """A point for each rung: the metric on test with its interval, by the seconds that the rung adds.

    Args:
        floor: of the gate for this metric; None: it has none.
    """
    figure = _figure(7.2, 4.6)
    axes = figure.add_subplot()
    shown = [rung for rung in made.rungs if math.isfinite(rung.test.value)]
    seconds = _cost_axis(axes, [rung.seconds for rung in shown])
    for rung, at in zip(shown, seconds, strict=True):
        colour = BLUE if rung.chosen else MUTED
        axes.plot([at, at], [rung.test.low, rung.test.high], color=colour, linewidth=2.2, zorder=2)
        axes.plot(
            at,
            rung.test.value,
            "o",
            markersize=11 if rung.chosen else 8,
            markerfacecolor=colour if rung.passed else "white",
            markeredgecolor=colour,
            markeredgewidth=2,
            zorder=3,
        )
    if floor is not None:
        axes.axhline(floor, color=OVER, linestyle="--", linewidth=1.3, zorder=1)
    axes.margins(x=0.12, y=0.12)
    axes.set_ylabel(f"{_metric_name(made.metric)}, test split", color=INK)
    axes.set_xlabel("What the rung takes: its embedding and head, or its training", color=INK)
    title = "The rungs: what each reaches, and what it takes"
    lost = len(made.rungs) - len(shown)
    note = f"\n{lost} of {len(made.rungs)} rungs could not be judged" if lost else ""
    axes.set_title(f"{title}{note}", color=INK, fontsize=11)
    _legend(figure, shown, floor)
    plain(axes)
    # Labels are placed by what they would cover, and so need the final layout.
    FigureCanvasAgg(figure)
    figure.draw_without_rendering()
    _label(axes, shown, seconds)
    save(figure, file)


def curves(file: Path, made: Tuned, score: str = "validation score") -> None:
    """How a training went, by epoch: the loss, the score on validation, and the learning rate.

    Args:
        score: what `Epoch.validation` is, in words.

    Raises:
        ValueError: there is no epoch.
    """
    if not made.history:
        raise ValueError(f"the training of {made.method} has no epoch to draw")
    figure = _figure(6.4, 6.6)
    panels: Sequence[Axes] = figure.subplots(3, 1, sharex=True, height_ratios=(1.5, 1.5, 1))
    losses, scores, rates = panels
    marked = course_plot.draw(losses, scores, made.history, len(made.history))
    if math.isfinite(made.validation):
        scores.axhline(made.validation, color=OVER, linestyle="--", linewidth=1.3)
        scores.plot([], [], color=OVER, linestyle="--", label=f"taken: {made.chosen}, {made.validation:.3f}")
        scores.legend(frameon=False, fontsize=9, labelcolor=INK)
    scores.set_ylabel(score[:1].upper() + score[1:], color=INK)
    epochs = [epoch.epoch for epoch in made.history]
    rates.plot(epochs, [epoch.learning_rate for epoch in made.history], color=MUTED, **marked)
    rates.set_ylim(bottom=0)
    rates.set_ylabel("Learning rate", color=INK)
    rates.ticklabel_format(axis="y", style="sci", scilimits=(-3, 3))
    rates.set_xlabel("Epoch", color=INK)
    rates.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    name = f"Training: {made.method}, {made.trained:,} of {made.parameters:,} parameters"
    took = f"{made.steps:,} steps in {duration(made.seconds)} on {made.hardware}"
    figure.suptitle(f"{name}\n{took}", color=INK, fontsize=11)
    for axes in panels:
        plain(axes)
    figure.align_ylabels(list(panels))
    save(figure, file)


def _cost_axis(axes: Axes, seconds: Sequence[float]) -> list[float]:
    """Makes the axis of the costs; where on it each rung is."""
    least, most = min(seconds, default=0.0), max(seconds, default=0.0)
    if most <= WIDE * max(least, LEAST_S):
        step = next((step for step in STEPS_S if most / step <= 7), STEPS_S[-1])
        axes.xaxis.set_major_locator(MultipleLocator(step))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda at, _: _short(at)))
        axes.set_xlim(0, 1.15 * max(most, step))
        return list(seconds)
    placed = [max(one, LEAST_S) for one in seconds]
    axes.set_xscale("log")
    inside = [tick for tick in TICKS_S if min(placed) / 3 <= tick <= max(placed) * 3]
    axes.set_xticks(inside, [_short(tick) for tick in inside])
    axes.xaxis.set_minor_locator(NullLocator())
    return placed


def _short(seconds: float) -> str:
    """`30 s`, `3 min`, `1.5 h`."""
    for size, unit in ((3600, "h"), (60, "min")):
        if abs(seconds) >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"


def _legend(figure: Figure, shown: Sequence[Rung], floor: float | None) -> None:
    def point(colour: str, label: str, *, filled: bool = True) -> Line2D:
        face = colour if filled else "white"
        return Line2D(
            [], [], color=colour, marker="o", linewidth=2.2, markersize=8, markerfacecolor=face,
            markeredgewidth=2, label=label,
        )  # fmt: skip

    handles = [point(BLUE, "chosen")]
    if any(not rung.chosen for rung in shown):
        handles.append(point(MUTED, "not chosen"))
    if any(not rung.passed for rung in shown):
        handles.append(point(INK, "its gate failed", filled=False))
    if floor is not None:
        handles.append(Line2D([], [], color=OVER, linestyle="--", linewidth=1.3, label=f"floor {floor:g}"))
    figure.legend(
        handles=handles, loc="outside lower center", ncols=4, frameon=False, fontsize=9, labelcolor=INK
    )


def _label(axes: Axes, shown: Sequence[Rung], seconds: Sequence[float]) -> None:
    """A name and the value beside each point, where it covers least of points, intervals and labels."""
    taken = [_covered(axes, rung, at) for rung, at in zip(shown, seconds, strict=True)]
    frame = axes.get_window_extent()
    for rung, at in zip(shown, seconds, strict=True):
        tried = [_labelled(axes, rung, at, up, side) for up in HEIGHTS for side in (1, -1)]
        boxes = [_extent(label) for label in tried]
        best = int(np.argmin([_area(box, taken) + _outside(box, frame) for box in boxes]))
        taken.append(boxes[best])
        for label in [*tried[:best], *tried[best + 1 :]]:
            label.remove()


def _labelled(axes: Axes, rung: Rung, at: float, up: int, side: int) -> Annotation:
    """The label `up` points above its point, on its right (side 1) or left (-1)."""
    leads = {"arrowstyle": "-", "color": MUTED, "linewidth": 0.7, "shrinkA": 0, "shrinkB": 6}
    name = rung.name if len(rung.name) <= NAME_LENGTH else rung.name[: NAME_LENGTH - 1] + "…"
    label = axes.annotate(
        f"{name}  {rung.test.value:.3f}",
        (at, rung.test.value),
        xytext=(side * (11 if abs(up) < NEAR else 16), up),
        textcoords="offset points",
        ha="left" if side > 0 else "right",
        va="center",
        color=INK,
        fontsize=9.5,
        fontweight="bold" if rung.chosen else "normal",
        parse_math=False,
        arrowprops=leads if abs(up) >= NEAR else None,
        path_effects=HALO,
        zorder=4,
    )
    # Outside of the constrained layout, which would move the axes after the labels are placed.
    label.set_in_layout(False)
    return label


def _extent(label: Annotation) -> Bbox:
    """The pixels of a label's text, without the line that leads to it."""
    label.get_window_extent()  # puts the text where it belongs
    return Text.get_window_extent(label)


def _covered(axes: Axes, rung: Rung, at: float) -> Bbox:
    """The pixels of a point and its interval."""
    ends = [end if math.isfinite(end) else rung.test.value for end in (rung.test.low, rung.test.high)]
    (x, low), (_, high) = axes.transData.transform([(at, end) for end in ends])
    return Bbox.from_extents(x - 9, min(low, high) - 3, x + 9, max(low, high) + 3)


def _area(box: Bbox, others: Sequence[Bbox]) -> float:
    """How much of the box others cover, square pixels."""
    found = 0.0
    for other in others:
        shared = Bbox.intersection(box, other)
        found += shared.width * shared.height if shared is not None else 0.0
    return found


def _outside(box: Bbox, frame: Bbox) -> float:
    """How much of the box is outside of the frame, square pixels, at a high price."""
    inside = Bbox.intersection(box, frame)
    return 10 * (box.width * box.height - (inside.width * inside.height if inside is not None else 0.0))


def _metric_name(metric: str) -> str:
    name = metric.replace("_", " ")
    name = name[:1].upper() + name[1:]
    return f"{name} (lower is better)" if metric in LOWER_IS_BETTER else name


def _figure(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(h_pad=0.1, w_pad=0.1))
