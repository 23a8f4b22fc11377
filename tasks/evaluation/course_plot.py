"""How a training that is not over has gone so far, as a PNG."""

from collections.abc import Sequence
from io import BytesIO
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator

from tasks.evaluation.style import BLUE, INK, MUTED, plain
from tasks.records import Epoch

_DPI = 80  # it travels as text


def course(history: Sequence[Epoch], epochs: int) -> bytes:
    """The losses and the score on validation by epoch, of so many that are to come."""
    figure = Figure(figsize=(6.4, 4.4), layout=ConstrainedLayoutEngine(h_pad=0.1, w_pad=0.1))
    panels = losses, scores = figure.subplots(2, 1, sharex=True)
    draw(losses, scores, history, epochs)
    scores.set_xlabel("Epoch", color=INK)
    scores.set_xlim(1 - 0.04 * epochs, epochs + 0.04 * epochs)
    scores.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    for axes in panels:
        plain(axes)
    figure.align_ylabels(panels)
    FigureCanvasAgg(figure)
    out = BytesIO()
    figure.savefig(out, format="png", dpi=_DPI, facecolor="white", metadata={"Software": None})
    return out.getvalue()


def draw(losses: Axes, scores: Axes, history: Sequence[Epoch], epochs: int) -> dict[str, Any]:
    """Both losses, and the score on validation; returns the style of the lines."""
    at = [epoch.epoch for epoch in history]
    marked: dict[str, Any] = {"marker": "o", "markersize": 4.5 if epochs <= 40 else 0, "linewidth": 1.6}
    losses.plot(at, [epoch.loss for epoch in history], color=MUTED, label="training, augmented", **marked)
    losses.plot(at, [epoch.validation_loss for epoch in history], color=BLUE, label="validation", **marked)
    losses.set_ylabel("Loss", color=INK)
    losses.legend(frameon=False, fontsize=9, labelcolor=INK)
    scores.plot(at, [epoch.validation for epoch in history], color=BLUE, **marked)
    scores.set_ylabel("Validation score", color=INK)
    return marked
