"""What all plots share: colours, plain axes, and files that are equal where the numbers are."""

from pathlib import Path
from typing import Literal

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

INK = "#1f2933"
MUTED = "#7b8794"
BLUE = "#2f6f9f"
OVER, OVER_LIGHT = "#c8553d", "#f6ded7"
UNDER_LIGHT = "#c6dcec"
GRID = "#e4e7eb"


def plain(axes: Axes, grid: Literal["x", "y"] = "y") -> None:
    """No frame but the lower edge; a grid across the axis of the values."""
    axes.grid(axis=grid, color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, colors=INK, labelsize=9)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(MUTED)


def save(figure: Figure, file: Path) -> None:
    """Writes a PNG file."""
    FigureCanvasAgg(figure)
    # Without the library's name and version equal numbers give equal files.
    figure.savefig(file, dpi=150, facecolor="white", metadata={"Software": None})
