from pathlib import Path

import pytest
from PIL import Image

from tasks.evaluation import charts
from tasks.records import Baselines, CurvePoint, Interval, Robustness

NAN = float("nan")


def interval(value: float) -> Interval:
    return Interval(value=value, low=value - 0.05, high=value + 0.05)


def compared(metric: str = "accuracy", majority: float = 0.4, doubled: Interval | None = None) -> Baselines:
    return Baselines(
        digest="", folder="", metric=metric, train_samples=60, test_samples=40,
        rows={"backbone": interval(0.8), "raw_pixels": interval(0.5), "majority": interval(majority)},
        transfer=None,
        curve=tuple(
            CurvePoint(fraction=n / 100, samples=n, value=n / 200, low=n / 210, high=n / 190)
            for n in (10, 50, 100)
        ),
        doubled=doubled,
    )  # fmt: skip


def disturbed(champion: float | None = None, loss: float = 0.2) -> Robustness:
    return Robustness(
        digest="", folder="", samples=48, metric="accuracy", clean=0.9,
        disturbed={"noise": (0.8, 0.7, 0.6), "jpeg": (0.8, NAN, 0.6)}, loss=loss, champion_clean=champion,
        champion_disturbed=None if champion is None else {"noise": (0.7, 0.6, 0.5), "jpeg": (0.7, 0.6, 0.5)},
        champion_loss=None if champion is None else 0.3,
    )  # fmt: skip


def opens(file: Path) -> None:
    with Image.open(file) as image:
        image.load()
        assert min(image.size) > 300


@pytest.mark.parametrize("made", [compared(), compared("mae", NAN)])
def test_baselines__png_opens(tmp_path: Path, made: Baselines) -> None:
    charts.baselines(tmp_path / "a.png", made, 0.05)
    opens(tmp_path / "a.png")


@pytest.mark.parametrize("doubled", [None, interval(0.55)])
def test_learning_curve__png_opens(tmp_path: Path, doubled: Interval | None) -> None:
    charts.learning_curve(tmp_path / "a.png", compared(doubled=doubled), 40, 0.05)
    opens(tmp_path / "a.png")


@pytest.mark.parametrize("made", [disturbed(), disturbed(0.8), disturbed(loss=NAN)])
def test_robustness__png_opens(tmp_path: Path, made: Robustness) -> None:
    charts.robustness(tmp_path / "a.png", made)
    opens(tmp_path / "a.png")


def test_charts__equal_numbers_give_equal_files(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        charts.baselines(tmp_path / name, compared(), 0.05)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
