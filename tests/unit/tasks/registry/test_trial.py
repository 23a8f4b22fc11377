"""A package is tried by stand-ins that answer what the test says; test_package runs a real one."""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from PIL import Image

from tasks.data.split import position
from tasks.errors import DataError
from tasks.records import Manifest
from tasks.registry import trial

COUNT = 12


class Grey:
    """Answers how bright an image is, and remembers what it was asked."""

    def __init__(self, folder: Path, together: float = 0) -> None:
        self.folder = folder
        self.digest = "of a package"
        self.asked: list[int] = []  # images in each request
        self.warm = False
        self._together = together  # what it is off by where there are several

    def warm_up(self) -> None:
        self.warm = True

    def outputs(self, images: Sequence[bytes]) -> NDArray[np.float64]:
        assert self.warm
        self.asked.append(len(images))
        light = np.array([np.asarray(Image.open(BytesIO(content))).mean() / 255 for content in images])
        return np.stack([light, 1 - light], axis=1) + (self._together if len(images) > 1 else 0)


def stored(folder: Path, paths: list[str]) -> Manifest:
    """Every path is a test sample; and one is for training."""
    folder.mkdir(exist_ok=True)
    rows = [*paths, "train.png"]
    columns = {
        "digest": [f"{n:064x}" for n in range(len(rows))],
        "path": rows,
        "split": [*["test"] * len(paths), "train"],
    }
    pq.write_table(pa.table(columns), folder / "manifest.parquet")
    return Manifest(
        digest="m", folder=str(folder), samples=len(rows), classes=("light", "dark"), slices=(), counts={},
        conflicts=(), left_out=(), quarantined=0,
    )  # fmt: skip


def judged() -> NDArray[np.float64]:
    """The n-th image is of brightness 20 n."""
    light = 20 * np.arange(COUNT) / 255
    return np.stack([light, 1 - light], axis=1)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    for n in range(COUNT):
        Image.new("RGB", (8, 8), (20 * n,) * 3).save(folder / f"{n}.png")
    return folder


@pytest.fixture
def files(tmp_path: Path) -> Manifest:
    return stored(tmp_path / "files", [f"{n}.png" for n in range(COUNT)])


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Grey]:
    found = {}
    for name, size in (("ours", 3_000_000), ("theirs", 1_500_000)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights").write_bytes(b"\0" * size)
        found[name] = Grey(tmp_path / name)
    monkeypatch.setattr(trial, "read", lambda folder: found[folder.name])
    return found


def test_trial__requests_are_of_one_image_and_then_of_all(
    tmp_path: Path, data: Path, files: Manifest, packages: dict[str, Grey]
) -> None:
    made = trial.run(tmp_path, tmp_path / "ours", files, data, judged(), None, 5, 0)
    assert packages["ours"].asked == [1] * 3 + [1] * 5 + [5]  # three are not timed
    assert (made.samples, made.size_mb) == (5, 3)
    assert 0 < made.p50_ms <= made.p95_ms
    assert made.largest_difference == pytest.approx(0, abs=1e-12)
    assert (made.champion_p50_ms, made.champion_p95_ms, made.champion_size_mb) == (None, None, None)


def test_trial__champion_answers_the_same_requests(
    tmp_path: Path, data: Path, files: Manifest, packages: dict[str, Grey]
) -> None:
    made = trial.run(tmp_path, tmp_path / "ours", files, data, judged(), tmp_path / "theirs", 5, 0)
    assert packages["theirs"].asked == [1] * 8
    assert made.champion_size_mb == 1.5
    assert made.champion_p50_ms is not None
    assert made.champion_p95_ms is not None
    assert 0 < made.champion_p50_ms <= made.champion_p95_ms


def test_trial__largest_difference_is_from_what_was_judged(
    tmp_path: Path, data: Path, files: Manifest, packages: dict[str, Grey]
) -> None:
    other = judged()
    row = min(range(COUNT), key=lambda n: position(f"{n:064x}", 0))  # the first that is taken
    other[row, 1] += 0.25
    made = trial.run(tmp_path, tmp_path / "ours", files, data, other, None, 5, 0)
    assert made.largest_difference == pytest.approx(0.25)


def test_trial__answers_that_depend_on_their_company_are_found(
    tmp_path: Path, data: Path, files: Manifest, packages: dict[str, Grey]
) -> None:
    packages["ours"] = Grey(tmp_path / "ours", together=0.125)
    made = trial.run(tmp_path, tmp_path / "ours", files, data, judged(), None, 5, 0)
    assert made.largest_difference == pytest.approx(0.125)


def test_trial__answers_of_other_classes_are_infinitely_far(
    tmp_path: Path, data: Path, files: Manifest, packages: dict[str, Grey]
) -> None:
    made = trial.run(tmp_path, tmp_path / "ours", files, data, np.zeros((COUNT, 3)), None, 5, 0)
    assert made.largest_difference == float("inf")
    assert made.model_validate_json(made.model_dump_json()) == made


@pytest.mark.parametrize("shape", [(16, 8, 8), (16, 8, 8, 3)])
def test_trial__image_of_a_stack_is_sent_as_a_file_with_its_pixels(
    tmp_path: Path, packages: dict[str, Grey], shape: tuple[int, ...]
) -> None:
    images = np.zeros(shape, dtype=np.uint8)
    images[:COUNT] += (20 * np.arange(COUNT, dtype=np.uint8)).reshape(-1, *[1] * (len(shape) - 1))
    np.lib.format.write_array((tmp_path / "x.npy").open("wb"), images, allow_pickle=False)
    manifest = stored(tmp_path / "stack", [f"x.npy#{n}" for n in range(COUNT)])
    made = trial.run(tmp_path, tmp_path / "ours", manifest, tmp_path, judged(), None, 99, 0)
    assert made.samples == COUNT
    assert made.largest_difference == pytest.approx(0, abs=1e-12)


def test_trial__image_that_is_gone_is_named(
    tmp_path: Path, data: Path, files: Manifest, packages: dict[str, Grey]
) -> None:
    (data / "3.png").unlink()
    with pytest.raises(DataError, match=r"3\.png: vanished during the run"):
        trial.run(tmp_path, tmp_path / "ours", files, data, judged(), None, 99, 0)


def test_trial__outputs_of_another_manifest_are_refused(
    tmp_path: Path, data: Path, files: Manifest, packages: dict[str, Grey]
) -> None:
    with pytest.raises(DataError, match="12 test samples, but 11"):
        trial.run(tmp_path, tmp_path / "ours", files, data, judged()[1:], None, 5, 0)
    nothing = stored(tmp_path / "nothing", [])
    with pytest.raises(DataError, match="0 test samples"):
        trial.run(tmp_path, tmp_path / "ours", nothing, data, np.empty((0, 2)), None, 5, 0)


class Timed(Grey):
    """Takes as many seconds for each image as it is told, by a clock of its own."""

    def __init__(self, folder: Path, digest: str, clock: list[float], seconds: list[float]) -> None:
        super().__init__(folder)
        self.digest = digest
        self._clock, self._seconds = clock, seconds  # seconds: of each call, the last one for all that follow

    def outputs(self, images: Sequence[bytes]) -> NDArray[np.float64]:
        seconds = self._seconds[min(len(self.asked), len(self._seconds) - 1)]
        self._clock[0] += seconds * len(images)
        return super().outputs(images)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr("tasks.registry.trial.time.perf_counter", lambda: now[0])
    return now


def timed(
    tmp_path: Path, packages: dict[str, Grey], clock: list[float], ours: list[float], theirs: list[float]
) -> None:
    for name, seconds in (("ours", ours), ("theirs", theirs)):
        packages[name] = Timed(tmp_path / name, f"digest of {name}", clock, seconds)


def test_throughput__is_of_images_in_one_request(
    tmp_path: Path, data: Path, files: Manifest, packages: dict[str, Grey], clock: list[float]
) -> None:
    timed(tmp_path, packages, clock, [9.0, 0.25], [9.0, 1.0])  # the first call is not timed
    made = trial.throughput(tmp_path, tmp_path / "ours", [tmp_path / "theirs"], files, data, 4, 0)
    assert packages["ours"].asked == packages["theirs"].asked == [4] * (1 + made.rounds)
    assert (made.images_per_s, made.teacher_images_per_s, made.speedup) == (4.0, 1.0, 4.0)
    assert (made.package, made.teachers, made.samples) == ("digest of ours", ("digest of theirs",), 4)
    assert (made.size_mb, made.teacher_size_mb) == (3, 1.5)
    assert made.model_validate_json(made.model_dump_json()) == made


def test_throughput__one_busy_round_changes_nothing(
    tmp_path: Path, data: Path, files: Manifest, packages: dict[str, Grey], clock: list[float]
) -> None:
    timed(tmp_path, packages, clock, [1.0, 1.0, 64.0, 1.0], [2.0])
    made = trial.throughput(tmp_path, tmp_path / "ours", [tmp_path / "theirs"], files, data, 4, 0)
    assert (made.images_per_s, made.speedup) == (1.0, 2.0)


def test_throughput__teachers_take_and_weigh_what_all_of_them_do(
    tmp_path: Path, data: Path, files: Manifest, packages: dict[str, Grey], clock: list[float]
) -> None:
    timed(tmp_path, packages, clock, [1.0], [2.0])
    both = [tmp_path / "theirs", tmp_path / "ours"]
    made = trial.throughput(tmp_path, tmp_path / "ours", both, files, data, 4, 0)
    assert made.speedup == 3.0
    assert made.teacher_size_mb == 4.5
    assert made.teachers == ("digest of theirs", "digest of ours")


def test_throughput__without_images_or_teachers_is_refused(
    tmp_path: Path, data: Path, files: Manifest, packages: dict[str, Grey]
) -> None:
    with pytest.raises(DataError, match="0 teachers"):
        trial.throughput(tmp_path, tmp_path / "ours", [], files, data, 4, 0)
    nothing = stored(tmp_path / "nothing", [])
    with pytest.raises(DataError, match="0 test samples"):
        trial.throughput(tmp_path, tmp_path / "ours", [tmp_path / "theirs"], nothing, data, 4, 0)
