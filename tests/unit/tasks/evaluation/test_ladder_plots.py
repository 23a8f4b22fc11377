import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Annotation, Text
from PIL import Image

from tasks.evaluation import ladder_plots
from tasks.evaluation.style import save
from tasks.records import Interval, Rung, Tuned
from tests.unit.tasks.evaluation.climbed import RUNGS, ladder, rung, tuned

NAN = Interval(value=math.nan, low=math.nan, high=math.nan)
CROWD = tuple(rung(f"method_{at}", 0.85 + 0.004 * at, 100 + 4 * at, chosen=at == 2) for at in range(5))


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Figure]]:
    """The figures as they were saved."""
    found: list[Figure] = []

    def kept(figure: Figure, file: Path) -> None:
        save(figure, file)
        found.append(figure)

    monkeypatch.setattr("tasks.evaluation.ladder_plots.save", kept)
    yield found
    assert found


def opens(file: Path) -> None:
    with Image.open(file) as image:
        image.load()
        assert min(image.size) > 300


def labels(figure: Figure) -> dict[str, Annotation]:
    found = [child for child in figure.axes[0].get_children() if isinstance(child, Annotation)]
    return {label.get_text(): label for label in found}


@pytest.mark.parametrize(
    "rungs",
    [
        (rung("frozen", 0.8, 0.0, chosen=True),),
        (rung("frozen", 0.8, 0.0), rung("full", 0.9, 1e6, chosen=True)),
        (RUNGS[0].model_copy(update={"test": NAN}), RUNGS[1]),
        (RUNGS[0].model_copy(update={"test": NAN}),),
    ],
)
def test_ladder__png_opens(tmp_path: Path, rungs: Sequence[Rung]) -> None:
    ladder_plots.ladder(tmp_path / "a.png", ladder(*rungs), 0.65)
    opens(tmp_path / "a.png")


def test_ladder__each_point_is_named_with_its_value(tmp_path: Path, figures: list[Figure]) -> None:
    ladder_plots.ladder(tmp_path / "a.png", ladder(), 0.65)
    found = labels(figures[0])
    assert set(found) == {"frozen  0.784", "lp_ft  0.951", "student  0.940"}
    assert [text for text, label in found.items() if label.get_fontweight() == "bold"] == ["lp_ft  0.951"]
    assert [0.65, 0.65] in [np.asarray(line.get_ydata()).tolist() for line in figures[0].axes[0].get_lines()]


def test_ladder__names_do_not_cover_each_other(tmp_path: Path, figures: list[Figure]) -> None:
    ladder_plots.ladder(tmp_path / "a.png", ladder(*CROWD), 0.65)
    boxes = [Text.get_window_extent(label) for label in labels(figures[0]).values()]
    assert len(boxes) == 5
    for at, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[:at])


def test_ladder__a_wide_range_of_costs_is_logarithmic(tmp_path: Path, figures: list[Figure]) -> None:
    ladder_plots.ladder(tmp_path / "a.png", ladder(*RUNGS), None)  # 42 s to 900 s
    ladder_plots.ladder(tmp_path / "b.png", ladder(*CROWD), None)  # 100 s to 116 s
    assert [figure.axes[0].get_xscale() for figure in figures] == ["log", "linear"]
    ticks = [label.get_text() for label in figures[0].axes[0].get_xticklabels()]
    assert ticks == ["30 s", "1 min", "3 min", "10 min", "30 min"]


def test_ladder__says_which_rungs_have_no_number(tmp_path: Path, figures: list[Figure]) -> None:
    lost = (RUNGS[0].model_copy(update={"test": NAN}), *RUNGS[1:])
    ladder_plots.ladder(tmp_path / "a.png", ladder(*lost), None)
    assert figures[0].axes[0].get_title().endswith("1 of 3 rungs could not be judged")


def test_ladder__equal_numbers_give_equal_files(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        ladder_plots.ladder(tmp_path / name, ladder(), 0.65)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


@pytest.mark.parametrize("made", [tuned(1), tuned(4), tuned(60), tuned(4, validation=math.nan)])
def test_curves__png_opens(tmp_path: Path, made: Tuned) -> None:
    ladder_plots.curves(tmp_path / "a.png", made)
    opens(tmp_path / "a.png")


def test_curves__have_loss_validation_and_learning_rate(tmp_path: Path, figures: list[Figure]) -> None:
    made = tuned(4)
    ladder_plots.curves(tmp_path / "a.png", made, "balanced accuracy")
    losses, scores, rates = figures[0].axes
    assert [axes.get_ylabel() for axes in (losses, scores, rates)] == [
        "Loss", "Balanced accuracy", "Learning rate",
    ]  # fmt: skip
    drawn: list[Any] = [np.asarray(line.get_ydata()).tolist() for line in losses.get_lines()]
    assert drawn == [[e.loss for e in made.history], [e.validation_loss for e in made.history]]
    told = [text.get_text() for text in scores.get_legend().get_texts()]  # type: ignore[union-attr]
    assert told == ["taken: best, 0.950"]


def test_curves__a_number_that_is_none_leaves_a_gap(tmp_path: Path) -> None:
    made = tuned(4)
    broken = made.history[1].model_copy(update={"loss": math.nan, "validation_loss": math.inf})
    ladder_plots.curves(
        tmp_path / "a.png", made.model_copy(update={"history": (made.history[0], broken, *made.history[2:])})
    )
    opens(tmp_path / "a.png")


def test_curves__of_no_epoch_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no epoch"):
        ladder_plots.curves(tmp_path / "a.png", tuned(0))
