import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from tasks.evaluation import baselines, charts
from tasks.evaluation.metrics import measure
from tasks.head.fitted import Calibration, FittedHead
from tasks.head.linear import Linear
from tasks.params import EvaluationParams, HeadParams
from tasks.records import Baselines, Embeddings, Head, Kind, Manifest, Target
from tests.unit.tasks.evaluation.embedded import embeddings, manifest

PARAMS = EvaluationParams(bootstrap=100, learning_repeats=2)
HEAD = HeadParams(strengths=(0.01, 0.1), folds=2)
COUNT = 120
SPLITS = ["test" if number % 3 == 0 else "train" for number in range(COUNT)]
TEST = np.array([split == "test" for split in SPLITS])
CHANCE = np.random.default_rng(0)
MakeHead = Callable[..., Head]
CLASSES = CHANCE.integers(0, 3, COUNT)  # about as many of each
NUMBERS = CHANCE.normal(size=COUNT)
NOISE = CHANCE.normal(size=(COUNT, 8))


def vectors(told: float) -> NDArray[np.float64]:
    """Noise, with as much of the class in it."""
    found: NDArray[np.float64] = NOISE + told * np.eye(8)[CLASSES]
    return found


@pytest.fixture
def head(tmp_path: Path) -> MakeHead:
    """A head's record, and files of which only the calibration counts. Prototypes are the quickest to
    fit."""

    def made(
        kind: Kind = "prototype",
        strength: float | None = None,
        target: Target = "class",
        outputs: int = 3,
        scale: float = 1.0,
    ) -> Head:
        model = Linear(np.zeros(1), np.ones(1), np.zeros((outputs, 1)), np.zeros(outputs))
        calibration = Calibration(np.full(outputs, scale), np.zeros(outputs))
        names = () if target == "number" else tuple(str(number) for number in range(outputs))
        folder = tmp_path / "head"
        folder.mkdir(exist_ok=True)
        FittedHead(target, "logistic", names, model, calibration).save(folder)
        return record(kind, strength, target, folder)

    return made


def record(kind: Kind, strength: float | None, target: Target, folder: Path) -> Head:
    return Head(
        digest="h", folder=str(folder), target=target, kind=kind, classes=(), blocks=(), strength=strength,
        strengths={}, kinds={}, inputs={}, calibration="none", temperature=1, confidence=None, conformal=None,
    )  # fmt: skip


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """For so few numbers, threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def whole(tmp_path: Path) -> Manifest:
    return manifest(tmp_path / "whole", [f"c{c}" for c in CLASSES], SPLITS, ("c0", "c1", "c2"))


@pytest.fixture
def ours(tmp_path: Path) -> Embeddings:
    return embeddings(tmp_path / "ours", {"identity": vectors(4)})


@pytest.fixture
def others(tmp_path: Path) -> Embeddings:
    """With random weights, of a view that the head does not stand on, and raw pixels."""
    made = embeddings(
        tmp_path / "others",
        {"identity": vectors(1), "hflip": vectors(9), "pixels": vectors(0)[:, :5]},
    )
    *networks, pixels = made.blocks
    return made.model_copy(update={"blocks": (*networks, pixels.model_copy(update={"view": "identity"}))})


@pytest.fixture
def out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(charts, "save", lambda _figure, file: file.touch())  # test_charts draws
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


def test_baselines__rows_are_in_the_order_of_what_they_know(
    out: Path, whole: Manifest, ours: Embeddings, others: Embeddings, head: MakeHead
) -> None:
    logistic = head("logistic", 0.1)
    made = baselines.run(out, whole, ours, whole, others, logistic, HEAD, PARAMS, "accuracy")
    assert list(made.rows) == ["backbone", "random_weights", "raw_pixels", "majority"]
    values = [row.value for row in made.rows.values()]
    # Random weights: of the head's view alone, which tells little.
    assert values[0] > 0.9 > values[1] > max(values[2:])
    assert all(row.low <= row.value <= row.high for row in made.rows.values())
    assert (made.train_samples, made.test_samples) == (80, 40)
    most = np.bincount(CLASSES[~TEST]).argmax()
    assert made.rows["majority"].value == pytest.approx((CLASSES[TEST] == most).mean())


def test_baselines__transfer_is_the_paired_difference(
    out: Path, whole: Manifest, ours: Embeddings, others: Embeddings, head: MakeHead
) -> None:
    made = baselines.run(out, whole, ours, whole, others, head(), HEAD, PARAMS, "log_loss")
    assert made.transfer is not None
    gained = made.rows["backbone"].value - made.rows["random_weights"].value
    assert made.transfer.value == pytest.approx(gained)
    assert made.transfer.low <= gained <= made.transfer.high < 0  # a lower loss
    assert made.transfer.p_better < 0.05


def test_baselines__are_compared_on_the_sample_and_the_curve_is_of_all(
    out: Path, tmp_path: Path, whole: Manifest, ours: Embeddings, others: Embeddings, head: MakeHead
) -> None:
    labels = [f"c{c}" for c in CLASSES[:60]]
    sample = manifest(tmp_path / "sample", labels, SPLITS[:60], whole.classes)
    made = baselines.run(out, whole, ours, sample, others, head(), HEAD, PARAMS, "accuracy")
    assert (made.train_samples, made.test_samples) == (40, 20)
    assert made.curve[-1].samples == 80
    assert [point.fraction for point in made.curve] == [0.1, 0.25, 0.5, 1]
    assert made.doubled is not None
    assert json.loads((out / "baselines.json").read_text())["curve"][-1]["samples"] == 80
    assert {file.name for file in out.iterdir()} == {"baselines.json", "baselines.png", "learning_curve.png"}


def test_baselines__without_a_sample_there_is_what_costs_nothing(
    out: Path, whole: Manifest, ours: Embeddings, head: MakeHead
) -> None:
    params = PARAMS.model_copy(update={"learning_repeats": 0})
    made = baselines.run(out, whole, ours, None, None, head(), HEAD, params, "accuracy")
    assert list(made.rows) == ["backbone", "majority"]
    assert (made.transfer, made.curve, made.doubled) == (None, (), None)
    assert not (out / "learning_curve.png").exists()


def test_baselines__same_inputs_give_the_same_digest(
    out: Path, whole: Manifest, ours: Embeddings, others: Embeddings, head: MakeHead
) -> None:
    def made(seed: int) -> Baselines:
        params = PARAMS.model_copy(update={"seed": seed})
        return baselines.run(out, whole, ours, whole, others, head(), HEAD, params, "accuracy")

    assert made(0).digest == made(0).digest != made(1).digest


def test_baselines__class_with_too_few_samples_for_the_folds_is_no_reason_to_fail(
    out: Path, tmp_path: Path, whole: Manifest, ours: Embeddings, others: Embeddings, head: MakeHead
) -> None:
    few = ["train", "train", "test", "test", "test"]  # fewer than folds
    sample = manifest(tmp_path / "few", [f"c{c}" for c in CLASSES[:5]], few, whole.classes)
    params = HEAD.model_copy(update={"folds": 3})
    made = baselines.run(out, whole, ours, sample, others, head(), params, PARAMS, "accuracy")
    assert list(made.rows) == ["backbone", "random_weights", "raw_pixels", "majority"]


def test_baselines__of_numbers_the_majority_is_the_mean(
    out: Path, tmp_path: Path, others: Embeddings, head: MakeHead
) -> None:
    numbers = manifest(tmp_path / "numbers", [str(n) for n in NUMBERS], SPLITS, (), "number")
    told = embeddings(tmp_path / "told", {"identity": NOISE + 3 * NUMBERS[:, None]})
    ridge = head("ridge", 1.0, "number", outputs=1)
    params = HEAD.model_copy(update={"kind": "ridge"})
    made = baselines.run(out, numbers, told, numbers, others, ridge, params, PARAMS, "rmse")
    expected = np.sqrt(((NUMBERS[TEST] - NUMBERS[~TEST].mean()) ** 2).mean())
    assert made.rows["majority"].value == pytest.approx(expected)
    assert made.rows["backbone"].value < 0.5 * expected
    assert made.curve[-1].value < 0.5 * expected


def test_baselines__of_labels_the_majority_is_the_share_of_each(
    out: Path, tmp_path: Path, others: Embeddings, head: MakeHead
) -> None:
    truth = np.stack([CLASSES == 0, CLASSES != 1], axis=1)
    labels = ["|".join(name for name, has in zip("ab", row, strict=True) if has) for row in truth]
    several = manifest(tmp_path / "labels", labels, SPLITS, ("a", "b"), "labels")
    told = embeddings(tmp_path / "told", {"identity": vectors(4)})
    both = head("multilabel", 0.1, "labels", outputs=2)
    params = HEAD.model_copy(update={"kind": "multilabel"})
    made = baselines.run(out, several, told, several, others, both, params, PARAMS, "log_loss")
    shares = np.tile(truth[~TEST].mean(axis=0), (TEST.sum(), 1))
    expected = measure(shares, truth[TEST], target="labels")["log_loss"]
    assert made.rows["majority"].value == pytest.approx(expected)
    assert made.rows["backbone"].value < 0.5 * expected


def test_baselines__curve_has_the_models_calibration(
    out: Path, whole: Manifest, ours: Embeddings, head: MakeHead
) -> None:
    def curve(scale: float) -> list[float]:
        made = baselines.run(
            out, whole, ours, None, None, head(scale=scale), HEAD, PARAMS, "log_loss", memory_bytes=100
        )
        assert made.curve[-1].value == pytest.approx(made.rows["backbone"].value)
        return [point.value for point in made.curve]

    # Logits that are all but 0 say ln 3 of every class.
    assert all(value == pytest.approx(np.log(3), abs=1e-3) for value in curve(1e-6))
    assert curve(1.0)[-1] < 0.5


def test_majority__of_classes_is_their_share() -> None:
    said = baselines.majority(np.array([0, 0, 0, 2]), 3, 2, "class")
    np.testing.assert_array_equal(said, [[0.75, 0, 0.25]] * 2)


def test_charts__open(
    tmp_path: Path, whole: Manifest, ours: Embeddings, others: Embeddings, head: MakeHead
) -> None:
    baselines.run(tmp_path, whole, ours, whole, others, head(), HEAD, PARAMS, "log_loss")
    for name in ("baselines.png", "learning_curve.png"):
        with Image.open(tmp_path / name) as image:
            assert min(image.size) > 400
