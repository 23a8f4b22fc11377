import csv
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tasks.embedding.views import DISTURBANCES, all_disturbances
from tasks.errors import RegistryError
from tasks.evaluation import charts, robustness
from tasks.head import fitted
from tasks.records import Embeddings, Interval, Manifest
from tests.unit.tasks.evaluation.embedded import embeddings, manifest

# Four test samples, of which the vectors say directly how probable each class is.
LABELS = ["cat", "dog", "dog", "cat", "cat"]
SPLITS = ["test", "test", "test", "test", "train"]
RIGHT = np.array([[0.9, 0.1], [0.2, 0.8], [0.3, 0.7], [0.6, 0.4], [0.5, 0.5]])
WRONG = RIGHT[:, ::-1]


class Told:
    """A head that says what its input says."""

    def __init__(self, classes: tuple[str, ...]) -> None:
        self.classes = classes

    def outputs(self, x: NDArray[np.float32]) -> NDArray[np.float64]:
        return x.astype(np.float64)


HEADS = {"ours": Told(("cat", "dog")), "older": Told(("ant", "cat", "dog"))}


@pytest.fixture(autouse=True)
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(charts, "save", lambda _figure, file: file.touch())  # test_charts draws
    monkeypatch.setattr(fitted, "load", lambda folder: HEADS[folder.name])


@pytest.fixture
def sample(tmp_path: Path) -> Manifest:
    return manifest(tmp_path / "sample", LABELS, SPLITS, ("cat", "dog"))


def disturbed(root: Path, worse: Mapping[str, NDArray[np.float64]]) -> Embeddings:
    """Right but for these."""
    views = {"identity": RIGHT, **dict.fromkeys(all_disturbances(), RIGHT)}
    return embeddings(root, {**views, **worse})


def test_robustness__loss_is_the_mean_drop(tmp_path: Path, sample: Manifest) -> None:
    # Two of 15 are all wrong, one half wrong.
    half = np.concatenate([RIGHT[:2], WRONG[2:]])
    given = disturbed(tmp_path / "e", {"noise-3": WRONG, "blur-3": WRONG, "jpeg-2": half})
    made = robustness.run(tmp_path, sample, given, Path("ours"), None, None, "accuracy")
    assert (made.samples, made.clean) == (4, 1)
    assert list(made.disturbed) == list(DISTURBANCES)
    assert made.disturbed["noise"] == (1, 1, 0)
    assert made.disturbed["jpeg"] == (1, 0.5, 1)
    assert made.loss == pytest.approx(2.5 / 15)
    assert (made.champion_clean, made.champion_disturbed, made.champion_loss) == (None, None, None)


def test_robustness__loss_is_turned_round_where_lower_is_better(tmp_path: Path, sample: Manifest) -> None:
    given = disturbed(tmp_path / "e", {"noise-3": WRONG})
    made = robustness.run(tmp_path, sample, given, Path("ours"), None, None, "log_loss")
    right, wrong = (-np.log(p).mean() for p in ([0.9, 0.8, 0.7, 0.6], [0.1, 0.2, 0.3, 0.4]))
    assert made.clean == pytest.approx(right)
    assert made.loss == pytest.approx((wrong - right) / 15)


def test_robustness__champion_is_beside_it_with_classes_of_its_own(tmp_path: Path, sample: Manifest) -> None:
    ours = disturbed(tmp_path / "ours", {})
    # It knows a class more, and takes noise for it.
    wider = np.concatenate([np.zeros((5, 1)), RIGHT], axis=1)
    views = dict.fromkeys(("identity", *all_disturbances()), wider) | {"noise-1": wider[:, [2, 0, 1]]}
    theirs = embeddings(tmp_path / "older", views)
    made = robustness.run(tmp_path, sample, ours, Path("ours"), theirs, Path("older"), "accuracy")
    assert (made.loss, made.champion_clean) == (0, 1)
    assert made.champion_disturbed is not None
    # Taken for an ant: both dogs (0.8, 0.7); the cats are taken for dogs.
    assert made.champion_disturbed["noise"] == (0, 1, 1)
    assert made.champion_loss == pytest.approx(1 / 15)
    rows = list(csv.DictReader((tmp_path / "robustness.csv").open()))
    assert len(rows) == 2 * 16
    assert rows[16] == {"model": "champion", "disturbance": "none", "strength": "0", "value": "1.0"}
    assert rows[17]["value"] == "0.0"


def test_robustness__of_labels_the_champions_own_are_left_out(tmp_path: Path) -> None:
    several = manifest(tmp_path / "m", ["cat", "dog", "cat|dog", ""], ["test"] * 4, ("cat", "dog"), "labels")
    exact = np.array([[0.9, 0.1], [0.1, 0.9], [0.9, 0.9], [0.1, 0.1]])
    views = ("identity", *all_disturbances())
    ours = embeddings(tmp_path / "ours", dict.fromkeys(views, exact))
    ant = np.array([[0.9], [0.1], [0.1], [0.1]])  # wrong once
    theirs = embeddings(tmp_path / "older", dict.fromkeys(views, np.concatenate([ant, exact], axis=1)))
    made = robustness.run(tmp_path, several, ours, Path("ours"), theirs, Path("older"), "subset_accuracy")
    assert (made.clean, made.champion_clean) == (1, 1)


def test_robustness__losses_are_compared_on_the_same_samples(tmp_path: Path, sample: Manifest) -> None:
    # Noise turns all answers wrong, for both: however the four samples are drawn, nobody loses more.
    ours = disturbed(tmp_path / "ours", {"noise-3": WRONG})
    made = robustness.run(tmp_path, sample, ours, Path("ours"), ours, Path("ours"), "accuracy")
    assert made.difference == Interval(value=0, low=0, high=0)
    # A champion that loses nothing: all resamples lose 1 of 15.
    theirs = disturbed(tmp_path / "theirs", {})
    made = robustness.run(tmp_path, sample, ours, Path("ours"), theirs, Path("ours"), "accuracy")
    assert made.difference is not None
    assert (made.difference.low, made.difference.high) == pytest.approx((1 / 15, 1 / 15))
    # One of four is wrong: a resample has it not at all, or four times.
    one = np.concatenate([WRONG[:1], RIGHT[1:]])
    ours = disturbed(tmp_path / "one", {"noise-3": one})
    made = robustness.run(tmp_path, sample, ours, Path("ours"), theirs, Path("ours"), "accuracy")
    assert made.difference is not None
    assert made.difference.value == pytest.approx(1 / 60)
    assert made.difference.low == 0
    assert 2 / 60 < made.difference.high <= 4 / 60 + 1e-12


def test_robustness__single_sample_has_no_interval(tmp_path: Path) -> None:
    alone = manifest(tmp_path / "alone", LABELS[:1], SPLITS[:1], ("cat", "dog"))
    ours, theirs = disturbed(tmp_path / "ours", {"noise-3": WRONG}), disturbed(tmp_path / "theirs", {})
    made = robustness.run(tmp_path, alone, ours, Path("ours"), theirs, Path("ours"), "accuracy")
    assert made.difference is not None
    assert np.isnan([made.difference.low, made.difference.high]).all()


def test_robustness__what_is_undefined_stays_undefined(tmp_path: Path, sample: Manifest) -> None:
    given = disturbed(tmp_path / "e", {"blur-1": 2 * RIGHT})  # no probabilities
    made = robustness.run(tmp_path, sample, given, Path("ours"), None, None, "accuracy")
    assert np.isnan(made.loss)
    assert made.model_validate_json(made.model_dump_json()).disturbed["blur"][1] == 1


def test_robustness__head_that_is_gone_is_named(
    tmp_path: Path, sample: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    with pytest.raises(RegistryError, match="nowhere"):
        robustness.run(
            tmp_path, sample, disturbed(tmp_path / "e", {}), tmp_path / "nowhere", None, None, "accuracy"
        )
