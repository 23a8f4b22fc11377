import csv
import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tasks.audit import audit
from tasks.audit.review import Entry, write_csv
from tasks.embedding.cache import EmbeddingCache
from tasks.errors import DataError
from tasks.head.fitted import Calibration, FittedHead
from tasks.head.linear import Linear
from tasks.params import AuditParams
from tasks.records import SPLITS, Block, Embeddings, Findings, Head, Manifest, Target

CLASSES = ("cat", "dog")
DIM = 6
BLOCK = Block(digest="b" * 64, layer="network", pooling=(), view="identity", parts=(DIM,))


@dataclass(frozen=True)
class Sample:
    path: str
    label: str
    split: str
    vector: tuple[float, ...]
    group: str = ""


@dataclass
class Place:
    """A dataset in which cats lie at (5, 0, ...) and dogs at (-5, 0, ...); the first number decides."""

    root: Path

    def __post_init__(self) -> None:
        rng = np.random.default_rng(0)
        (self.root / "data").mkdir()
        self.samples: list[Sample] = []
        self.known: dict[str, str] = {}  # path -> digest
        for number in range(120):
            label, split = CLASSES[number % 2], ("train", "train", "test", "validation")[number // 2 % 4]
            self.add(f"{number}.png", rng, label, split)

    def add(self, path: str, rng: np.random.Generator, label: str, split: str, group: str = "") -> None:
        vector = rng.standard_normal(DIM)
        vector[0] = 5 if label == "cat" else -5
        Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)).save(self.root / "data" / path)
        self.samples.append(Sample(path, label, split, tuple(vector), group))

    def change(self, path: str, **values: object) -> None:
        at = next(number for number, sample in enumerate(self.samples) if sample.path == path)
        self.samples[at] = Sample(**{**vars(self.samples[at]), **values})

    def digest(self, path: str) -> str:
        if path not in self.known:
            content = (self.root / "data" / path).read_bytes()
            self.known[path] = hashlib.sha256(content).hexdigest()
        return self.known[path]

    def run(
        self,
        champion: Path | None = None,
        target: Target = "class",
        name: str = "out",
        held_out: int = 0,
        judged_on: Literal["folds", "validation"] = "folds",
    ) -> Findings:
        ordered = sorted(self.samples, key=lambda sample: (self.digest(sample.path), sample.path))
        digests = [self.digest(sample.path) for sample in ordered]
        out = self.root / name
        for folder in (out, self.root / "m", self.root / "h"):
            folder.mkdir(exist_ok=True)
        names = ("path", "label", "split", "group")
        columns = {"digest": digests} | {
            column: [getattr(sample, column) for sample in ordered] for column in names
        }
        pq.write_table(pa.table(columns), self.root / "m/manifest.parquet")
        classes = () if target == "number" else CLASSES
        counts = {
            split: {
                label: sum(s.split == split and label in s.label.split("|") for s in ordered)
                for label in classes
            }
            for split in SPLITS
        }
        manifest = Manifest(
            digest="m", folder=str(self.root / "m"), target=target, samples=len(ordered), classes=classes,
            slices=(), counts=counts, conflicts=(), left_out=(), quarantined=0,
        )  # fmt: skip
        vectors = np.array([sample.vector for sample in ordered], dtype=np.float32)
        cache = EmbeddingCache(self.root / "state/embeddings", BLOCK.digest, DIM)
        new = np.flatnonzero(np.isin(digests, cache.missing(digests)))
        cache.append([digests[at] for at in new], vectors[new])
        embeddings = Embeddings(
            digest="e", root=str(self.root / "state/embeddings"), blocks=(BLOCK,), computed=0, cached=0
        )
        weight = np.zeros((len(classes) or 1, DIM))
        weight[0, 0], weight[-1, 0] = 1, -1 if classes else 1
        zero, k = np.zeros(len(weight)), len(weight)
        linear = Linear(mean=np.zeros(DIM), scale=np.ones(DIM), weight=weight, bias=zero)
        kind = {"class": "logistic", "labels": "multilabel", "number": "ridge"}[target]
        model = FittedHead(target, kind, classes, linear, Calibration.none(k))  # type: ignore[arg-type]
        model.save(self.root / "h")
        split = "train" if judged_on == "folds" else "validation"
        told_of = np.array([sample.split == split for sample in ordered])
        told = {
            "digest": np.array(digests)[told_of].tolist()[held_out:],
            "outputs": model.outputs(vectors[told_of]).astype(np.float32).tolist()[held_out:],
        }
        pq.write_table(pa.table(told), self.root / "h/held_out.parquet")
        head = Head(
            digest="h", folder=str(self.root / "h"), target=target, kind=kind, classes=classes,
            blocks=(BLOCK.digest,), strength=None, strengths={}, kinds={}, inputs={}, calibration="none",
            temperature=1, confidence=None, conformal=None, judged_on=judged_on,
        )  # fmt: skip
        return audit.run(out, manifest, self.root / "data", embeddings, head, champion, AuditParams())


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def review(found: Findings) -> list[dict[str, str]]:
    with (found.path / "review.csv").open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def test_audit__of_clean_data_finds_nothing(place: Place) -> None:
    found = place.run()
    assert (found.near_duplicates, found.leaked, found.leakage) == (0, 0, 0)
    assert (found.unchecked, found.truncated) == (0, False)
    assert (found.label_errors, found.label_error_rate, found.outliers) == (0, 0, 0)
    assert (found.group_leaks, found.confusable, found.imbalance) == ((), (), 1)
    assert [shift.between for shift in found.shifts] == ["train and validation", "train and test"]
    assert [shift.samples for shift in found.shifts] == [(60, 30), (60, 30)]
    assert review(found) == []
    assert sorted(file.name for file in found.path.iterdir()) == ["audit.json", "review.csv"]


def test_audit__finds_what_was_planted(place: Place) -> None:
    with Image.open(place.root / "data/0.png") as image:  # a cat of train
        image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(place.root / "data/copy.png")
    place.samples.append(Sample("copy.png", "cat", "test", place.samples[0].vector, "g"))
    place.change("8.png", label="dog", group="g")  # looks like a cat, and is in train
    place.change("11.png", vector=(-5.0, 0.0, 0.0, 90.0, 0.0, 0.0))
    found = place.run()
    assert (found.near_duplicates, found.leaked, found.label_errors, found.outliers) == (1, 1, 1, 2)
    assert found.leakage == pytest.approx(1 / 31)
    assert found.group_leaks == ("g",)
    assert found.label_error_rate == pytest.approx(1 / 121)
    # Of 60 samples of train one dog is mistaken for a cat.
    assert found.confusable == (("cat", "dog", 1 / 60),)
    assert found.imbalance == pytest.approx(31 / 29)
    listed = {(row["kind"], row["path"]): row for row in review(found)}
    assert listed.keys() == {
        ("near_duplicate", "0.png"), ("label_error", "8.png"), ("outlier", "8.png"), ("outlier", "11.png"),
    }  # fmt: skip
    duplicate = listed["near_duplicate", "0.png"]
    assert duplicate["digest"] == place.digest("0.png")
    assert (duplicate["suggested"], duplicate["action"]) == ("exclude", "")
    assert duplicate["reason"] == "mirror image of copy.png in test"
    assert listed["label_error", "8.png"]["suggested"] == "cat"
    assert listed["label_error", "8.png"]["reason"] == "labelled dog (0.00), looks like cat (1.00)"
    for name in ("near-duplicates.png", "label-errors.png", "outliers.png"):
        with Image.open(found.path / name) as sheet:
            assert sheet.format == "PNG"
    told = json.loads((found.path / "audit.json").read_text())
    assert (told["leaked"], told["worst"]["near_duplicate"][0]["path"]) == (1, "0.png")


def test_audit__is_the_same_each_time_and_needs_no_image_twice(place: Place) -> None:
    first = place.run()
    shutil.rmtree(place.root / "data")
    second = place.run(name="again")
    assert second.digest == first.digest
    same = [(folder / "audit.json").read_bytes() for folder in (first.path, second.path)]
    assert same[0] == same[1]


def test_audit__a_file_that_vanished_is_an_error(place: Place) -> None:
    place.digest("7.png")
    (place.root / "data/7.png").unlink()
    with pytest.raises(DataError, match=r"7\.png: can't be read any more \(No such file or directory\)"):
        place.run()


def test_audit__head_of_other_samples_is_an_error(place: Place) -> None:
    with pytest.raises(DataError, match=r"held_out.parquet: is not of this manifest's training samples"):
        place.run(held_out=1)


def test_audit__shift_against_the_champions_data(place: Place) -> None:
    rng = np.random.default_rng(9)
    place.run()
    shutil.copytree(place.root / "m", place.root / "champion")
    old = pq.read_table(place.root / "champion/manifest.parquet", columns=["digest", "split"])
    gone = pa.table({"digest": ["f" * 64], "split": ["train"]})
    pq.write_table(pa.concat_tables([old, gone]), place.root / "champion/manifest.parquet")
    for number in range(60):
        place.add(f"new{number}.png", rng, CLASSES[number % 2], "train")
        vector = place.samples[-1].vector
        place.change(f"new{number}.png", vector=(*vector[:5], vector[5] + 12))
    found = place.run(place.root / "champion")
    shift = found.shifts[-1]
    assert shift.between == "the champion's train and what came since"
    assert (shift.samples, shift.accuracy) == ((60, 60), 1.0)
    assert shift.p_value < 1e-9
    assert any(note.startswith("1 of 61 samples that the champion was trained on") for note in found.notes)
    unread = place.run(place.root / "champion/none.parquet", name="unread")
    # Not the folder: the same findings read the same wherever they were made.
    assert unread.notes[-1].endswith("its manifest can't be read (FileNotFoundError)")


def test_audit__too_few_samples_for_a_shift_are_noted(place: Place) -> None:
    place.samples = [sample for sample in place.samples if sample.split != "validation"]
    found = place.run()
    assert [shift.between for shift in found.shifts] == ["train and test"]
    assert found.notes == (
        "no shift between train and validation: 60 and 0 independent samples, 20 of each are needed",
    )


def test_audit__of_numbers(place: Place) -> None:
    rng = np.random.default_rng(3)
    for sample in list(place.samples):
        place.change(sample.path, label=repr(float(sample.vector[0] + rng.normal() / 10)))
    place.change("5.png", label="40.0")
    found = place.run(target="number")
    assert (found.label_errors, found.label_error_rate, found.imbalance) == (1, None, None)
    assert (review(found)[0]["path"], review(found)[0]["suggested"]) == ("5.png", "-5")


def test_audit__of_sets_of_labels(place: Place) -> None:
    place.change("4.png", label="dog")
    place.change("6.png", label="cat|dog")
    found = place.run(target="labels")
    rows = {row["path"]: row["suggested"] for row in review(found) if row["kind"] == "label_error"}
    assert rows == {"4.png": "cat", "6.png": "cat"}
    assert found.label_error_rate == pytest.approx(2 / 120)


def texture(seed: int) -> Image.Image:
    """Noise of one pixel, which averages out in a thumbnail of 16 px."""
    noise = np.random.default_rng(seed).normal(128, 25, (256, 256))
    return Image.fromarray(np.clip(noise, 0, 255).astype(np.uint8)).convert("RGB")


def test_audit__finds_copies_of_fine_textures_whatever_their_embeddings(place: Place) -> None:
    data = place.root / "data"
    for seed in range(4):
        texture(seed).save(data / f"t{seed}.png")
    image = texture(0)
    image.save(data / "t0-encoded.jpg", quality=40)
    image.resize((154, 154), Image.Resampling.BICUBIC).save(data / "t0-resized.jpg", quality=90)
    image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(data / "t0-mirrored.jpg", quality=90)
    chance = np.random.default_rng(5)
    for file in sorted(data.glob("t*")):
        split = "test" if "-" in file.name else "train"
        vector = (5.0, *chance.normal(size=5).tolist())
        place.samples.append(Sample(file.name, "cat", split, vector))
    found = place.run()
    assert (found.near_duplicates, found.leaked, found.unchecked) == (6, 3, 0)
    assert {row["path"] for row in review(found) if row["reason"].startswith("mirror")} >= {"t0.png"}


def test_audit__images_without_detail_are_unchecked(place: Place) -> None:
    for number, split in enumerate(("train", "test", "test", "validation")):
        Image.new("RGB", (64, 64), (number, 90, 90)).save(place.root / "data" / f"plain{number}.png")
        place.samples.append(Sample(f"plain{number}.png", "cat", split, (5.0, 0.1, 0.0, 0.0, 0.0, 0.0)))
    found = place.run()
    assert (found.unchecked, found.near_duplicates) == (2, 0)
    assert found.notes[0].startswith("4 images are almost of one colour, 2 of them in test;")


def test_audit__what_looks_wrong_in_test_is_to_be_relabelled_and_never_excluded(place: Place) -> None:
    place.change("4.png", label="dog")  # of test, looks like a cat
    place.change("8.png", label="dog")  # of train
    reasons = {row["path"]: row["reason"] for row in review(place.run()) if row["kind"] == "label_error"}
    assert reasons == {
        "4.png": "labelled dog (0.00), looks like cat (1.00); it is of test, which judges: relabel it if it"
        " is wrong, never exclude it",
        "8.png": "labelled dog (0.00), looks like cat (1.00)",
    }


def test_write_csv__formulas_are_text_and_numbers_stay(tmp_path: Path) -> None:
    cells = ["=1+1", "+cmd|x", "-2+3", "@sum", "\tx", "\rx", "-5", "+1.5", "-inf", "a=b"]
    entries = [Entry("f" * 64, cell, "train", cell, "outlier", cell, -1.5, "why") for cell in cells]
    write_csv(tmp_path / "review.csv", entries)
    with (tmp_path / "review.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    expected = ["'=1+1", "'+cmd|x", "'-2+3", "'@sum", "'\tx", "'\rx", "-5", "+1.5", "'-inf", "a=b"]
    assert [row["path"] for row in rows] == [row["suggested"] for row in rows] == expected
    assert rows[0]["score"] == "-1.5"


@pytest.mark.parametrize("target", ["class", "labels", "number"])
def test_audit__labels_that_a_tuned_backbone_was_trained_on_are_not_checked(
    place: Place, target: Target
) -> None:
    if target == "number":
        for sample in list(place.samples):
            place.change(sample.path, label=f"{sample.vector[0] + 0.1 * sample.vector[1]:.3f}")
    wrong = "-50" if target == "number" else "dog"
    for path in ("8.png", "6.png", "4.png"):  # of train, validation, test; they look like cats
        place.change(path, label=wrong)
    found = place.run(target=target, judged_on="validation")
    flagged = {row["path"]: row["split"] for row in review(found) if row["kind"] == "label_error"}
    assert flagged == {"6.png": "validation", "4.png": "test"}
    assert found.label_errors == 2
    if target != "number":
        assert found.label_error_rate == pytest.approx(2 / 60)
        assert found.confusable == (("cat", "dog", 1 / 30),)  # of the 30 of validation
    assert "the labels of the 60 training images were not checked" in found.notes[0]


def test_audit__tuned_head_of_other_samples_is_an_error(place: Place) -> None:
    with pytest.raises(DataError, match=r"held_out.parquet: is not of this manifest's validation samples"):
        place.run(held_out=1, judged_on="validation")
