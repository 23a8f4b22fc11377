from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tasks.evaluation import plots
from tasks.evaluation.calibration import Reliability, reliability

BINS = Reliability(
    confidence=np.array([np.nan, 0.4, 0.9]), accuracy=np.array([np.nan, 0.5, 0.75]), count=np.array([0, 2, 4])
)


def test_confusion__csv_has_a_row_per_sample(tmp_path: Path) -> None:
    plots.confusion(tmp_path, ["a", 'b,"c'], ["a", "a"], ["a", 'b,"c'])
    assert (tmp_path / "confusion.csv").read_text() == 'actual,predicted\na,a\n"b,""c",a\n'


def test_reliability__csv_leaves_empty_bins_out(tmp_path: Path) -> None:
    plots.reliability(tmp_path, BINS, 0.1)
    assert (tmp_path / "reliability.csv").read_text() == (
        "bin,confidence,accuracy,count\n2,0.4,0.5,2\n3,0.9,0.75,4\n"
    )


@pytest.mark.parametrize("c", [2, 12, 75])
def test_confusion__png_opens(c: int, tmp_path: Path) -> None:
    labels = [f"$class_{i} \\frac" for i in range(c)]  # would be TeX, and broken
    plots.confusion(tmp_path, labels, labels, labels)
    with Image.open(tmp_path / "confusion.png") as image:
        assert min(image.size) > 500


def test_plots__no_samples_is_an_empty_plot(tmp_path: Path) -> None:
    plots.confusion(tmp_path, [], [], ["a", "b"])
    plots.reliability(tmp_path, reliability(np.empty((0, 2)), np.empty(0, int)), float("nan"))
    assert (tmp_path / "confusion.csv").read_text() == "actual,predicted\n"
    assert (tmp_path / "reliability.png").stat().st_size > 0


def test_plots__equal_numbers_give_equal_files(tmp_path: Path) -> None:
    plots.reliability(tmp_path, BINS, 0.1)
    first = (tmp_path / "reliability.png").read_bytes()
    plots.reliability(tmp_path, BINS, 0.1)
    assert (tmp_path / "reliability.png").read_bytes() == first


def test_predicted__csv_has_a_row_per_sample(tmp_path: Path) -> None:
    plots.predicted(tmp_path, [1.0, 2.5], [1.5, 2.0], 0.7)
    assert (tmp_path / "predicted.csv").read_text() == "actual,predicted\n1.0,1.5\n2.5,2.0\n"
    with Image.open(tmp_path / "predicted.png") as image:
        assert min(image.size) > 500


def test_predicted__no_samples_is_an_empty_plot(tmp_path: Path) -> None:
    plots.predicted(tmp_path, [], [], float("nan"))
    assert (tmp_path / "predicted.png").stat().st_size > 0


def test_reliability__of_labels_opens(tmp_path: Path) -> None:
    plots.reliability(tmp_path, BINS, 0.1, target="labels")
    assert (tmp_path / "reliability.png").stat().st_size > 0
