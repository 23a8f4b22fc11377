"""The confusion matrix, the reliability diagram, and of numbers the predicted beside the actual ones, as
PNG files with CSV twins for DVC."""

import csv
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from matplotlib.colors import Normalize, PowerNorm
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from tasks.evaluation.calibration import Reliability
from tasks.evaluation.style import BLUE, INK, MUTED, OVER, OVER_LIGHT, UNDER_LIGHT, plain, save
from tasks.evaluation.sums import Ints
from tasks.records import Target

NUMBERED = 30  # classes up to which the cells carry their counts
NAMED = 60  # class names along an axis; of more classes only some are named
NAME_LENGTH = 24  # characters
POINTS = 1000  # up to which each is drawn boldly


def confusion(out: Path, actual: Sequence[str], predicted: Sequence[str], classes: Sequence[str]) -> None:
    """Writes `confusion.csv` (columns actual, predicted; a row per sample, as DVC's confusion
    template wants it) and `confusion.png` (colour: share of the row; numbers: samples).

    Args:
        out: folder of the files.
        actual: [N] labels.
        predicted: [N] labels.
        classes: rows and columns of the matrix, which hold all labels.
    """
    _write_csv(out / "confusion.csv", ("actual", "predicted"), zip(actual, predicted, strict=True))
    column = {label: i for i, label in enumerate(classes)}
    counts = np.zeros((len(classes), len(classes)), dtype=np.int64)  # [actual, predicted]
    np.add.at(counts, ([column[label] for label in actual], [column[label] for label in predicted]), 1)
    _draw_confusion(out / "confusion.png", counts, classes)


def reliability(out: Path, bins: Reliability, ece: float, *, target: Target = "class") -> None:
    """Writes `reliability.csv` (bin from 1, confidence, accuracy, count; bins without samples are
    left out) and `reliability.png` (accuracy by confidence, the gap to the diagonal, and below
    how the confidences are spread). Of labels, `confidence` is the stated probability of each, and
    `accuracy` the share of them that is true."""
    rows = zip(
        range(1, len(bins.count) + 1),
        bins.confidence.tolist(),
        bins.accuracy.tolist(),
        bins.count.tolist(),
        strict=True,
    )
    _write_csv(
        out / "reliability.csv",
        ("bin", "confidence", "accuracy", "count"),
        (row for row in rows if row[3]),
    )
    _draw_reliability(out / "reliability.png", bins, ece, target)


def predicted(out: Path, actual: Sequence[float], values: Sequence[float], r2: float) -> None:
    """Writes `predicted.csv` (columns actual, predicted) and `predicted.png`.

    Args:
        actual: [N] numbers.
        values: [N] what the model says.
    """
    _write_csv(out / "predicted.csv", ("actual", "predicted"), zip(actual, values, strict=True))
    figure = Figure(figsize=(5.6, 5.6), layout=ConstrainedLayoutEngine(h_pad=0.1, w_pad=0.1))
    axes = figure.add_subplot()
    if actual:
        ends = (min(*actual, *values), max(*actual, *values))
        axes.plot(ends, ends, color=MUTED, linestyle="--", linewidth=1.2, label="Predicted as it is")
        axes.legend(loc="upper left", frameon=False, fontsize=9, labelcolor=INK)
    few = len(actual) <= POINTS
    axes.scatter(actual, values, s=14 if few else 4, alpha=0.6 if few else 0.2, color=BLUE, linewidths=0)
    score = f"R² {r2:.3f}" if math.isfinite(r2) else "R² undefined"
    axes.set_title(f"Predicted and actual, test split\n{score}, n = {len(actual):,}", color=INK, fontsize=11)
    axes.set_xlabel("Actual value", color=INK)
    axes.set_ylabel("Predicted value", color=INK)
    plain(axes)
    save(figure, out / "predicted.png")


def _write_csv(file: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    with file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)


def _short(label: str) -> str:
    return label if len(label) <= NAME_LENGTH else label[: NAME_LENGTH - 1] + "…"


def _draw_confusion(file: Path, counts: Ints, classes: Sequence[str]) -> None:
    c = len(classes)
    names = [_short(label) for label in classes]
    side = max(0.42 * c, 3.6) if c <= NUMBERED else 10.0  # of the matrix, inches
    longest = 0.08 * max(map(len, names))  # name, inches
    margin = longest + 0.9
    larger = 1 + side / 36  # type grows with the figure
    figure = Figure(
        figsize=(side + margin + 1.2, side + margin + 0.5),
        layout=ConstrainedLayoutEngine(h_pad=0.1, w_pad=0.1),
    )
    axes = figure.add_subplot()
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)  # [actual, predicted]
    # Without numbers the square root shows confusions that are rare.
    norm = Normalize(0, 1) if c <= NUMBERED else PowerNorm(0.5, 0, 1)
    image = axes.imshow(shares, cmap="Blues", norm=norm, interpolation="nearest")
    step = math.ceil(c / NAMED)
    size = 9 if c <= NUMBERED else 6.5
    ticks = range(0, c, step)
    turn = 0 if longest < 0.95 * side / c else 90
    # parse_math: a label such as `$5` is text, not TeX.
    axes.set_xticks(ticks, names[::step], rotation=turn, fontsize=size, parse_math=False)
    axes.set_yticks(ticks, names[::step], fontsize=size, parse_math=False)
    axes.tick_params(length=0, colors=INK)
    axes.set_xlabel("Predicted class", color=INK, fontsize=10 * larger)
    axes.set_ylabel("Actual class", color=INK, fontsize=10 * larger)
    n, right = int(counts.sum()), int(np.trace(counts))
    axes.set_title(
        f"Confusion matrix, test split\nn = {n:,}, {right:,} on the diagonal", color=INK, fontsize=11 * larger
    )
    for spine in axes.spines.values():
        spine.set_visible(False)
    if c <= NUMBERED:
        axes.set_xticks(np.arange(c + 1) - 0.5, minor=True)
        axes.set_yticks(np.arange(c + 1) - 0.5, minor=True)
        axes.grid(which="minor", color="white", linewidth=1.5)
        axes.tick_params(which="minor", length=0)
        for i, j in np.argwhere(counts):
            axes.text(
                j,
                i,
                _compact(int(counts[i, j])),
                ha="center",
                va="center",
                fontsize=9 if c <= 15 else 7.5,
                color="white" if shares[i, j] > 0.55 else INK,
            )
    bar = figure.colorbar(image, cax=axes.inset_axes((1.03, 0, 0.035, 1)))
    scale = "" if c <= NUMBERED else " (square-root scale)"
    bar.set_label(f"Share of the actual class{scale}", color=INK, fontsize=10 * larger)
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0, labelsize=8 * larger, colors=INK)
    save(figure, file)


def _compact(count: int) -> str:
    """At most four characters: 378, 12k, 3.4M."""
    if count < 10_000:
        return str(count)
    return f"{count / 1e3:.0f}k" if count < 999_500 else f"{count / 1e6:.1f}M"


def _draw_reliability(file: Path, bins: Reliability, ece: float, target: Target) -> None:
    share, stated, counted = (
        ("Share that is true", "Probability", "labels")
        if target == "labels"
        else ("Accuracy", "Confidence", "samples")
    )
    m, n = len(bins.count), int(bins.count.sum())
    left = np.arange(m) / m
    centre, width = left + 0.5 / m, 1 / m
    filled = bins.count > 0
    figure = Figure(figsize=(5.6, 6.8), layout=ConstrainedLayoutEngine(h_pad=0.1, w_pad=0.1))
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3.2, 1))
    accuracy, confidence = bins.accuracy[filled], bins.confidence[filled]
    above.bar(centre[filled], accuracy, width * 0.94, color=BLUE)
    for light, dark, shown in (
        (OVER_LIGHT, OVER, confidence > accuracy),
        (UNDER_LIGHT, BLUE, confidence < accuracy),
    ):
        above.bar(
            centre[filled][shown],
            (confidence - accuracy)[shown],
            width * 0.94,
            bottom=accuracy[shown],
            facecolor=light,
            edgecolor=dark,
            hatch="////",
            linewidth=0.8,
        )
    above.plot([0, 1], [0, 1], color=MUTED, linestyle="--", linewidth=1.2)
    above.legend(
        handles=[
            Patch(facecolor=BLUE, label=share),
            Patch(
                facecolor=OVER_LIGHT, edgecolor=OVER, hatch="////", label=f"{stated} above {share.lower()}"
            ),
            Patch(
                facecolor=UNDER_LIGHT, edgecolor=BLUE, hatch="////", label=f"{stated} below {share.lower()}"
            ),
            Line2D([], [], color=MUTED, linestyle="--", linewidth=1.2, label="Perfect calibration"),
        ],
        loc="upper left",
        frameon=False,
        fontsize=9,
        labelcolor=INK,
    )
    above.set_ylim(0, 1.02)
    above.set_ylabel(share, color=INK)
    title = f"ECE {ece:.3f}" if math.isfinite(ece) else "ECE undefined"
    above.set_title(f"Reliability, test split\n{title}, n = {n:,}, {m} bins", color=INK, fontsize=11)
    shares = bins.count / max(n, 1)
    below.bar(centre, shares, width * 0.94, color=MUTED)
    below.set_xlim(0, 1)
    below.set_ylim(0, max(1.08 * float(shares.max()), 0.05))
    below.set_xlabel("Confidence (top probability)" if target == "class" else stated, color=INK)
    below.set_ylabel(f"Share of {counted}", color=INK)
    for axes in (above, below):
        plain(axes)
    save(figure, file)
