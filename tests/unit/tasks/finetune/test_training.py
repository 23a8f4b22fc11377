import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tasks.embedding.source import file_digest
from tasks.errors import DataError
from tasks.finetune import training, unlabelled
from tasks.finetune.batches import Batch
from tasks.finetune.prefix import CachedPrefix
from tasks.finetune.progress import follow
from tasks.finetune.spec import Distillation, Spec
from tasks.finetune.stop import Stop
from tasks.finetune.train import Preempted, Setting, train
from tasks.head.fitted import Calibration, FittedHead
from tasks.head.linear import Linear
from tasks.params import DataParams, DistillParams
from tasks.records import Backbone, Embeddings, Manifest, Target, Teacher, Tuned
from tests.unit.tasks.finetune import given, taught
from tests.unit.tasks.finetune.toy import Stopping, difference


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("given")


@pytest.fixture(scope="module")
def backbone(place: Path) -> Backbone:
    return given.backbone(place / "store")


@pytest.fixture(scope="module")
def manifest(place: Path) -> Manifest:
    return given.manifest(place)


def trained(spec: Spec) -> Tuned:
    training.run(spec, Stop())
    return Tuned.load(spec.out)


@pytest.mark.parametrize(("target", "least"), [("class", 0.9), ("labels", 0.9), ("number", 0.5)])
def test_run__each_target_is_learned(
    tmp_path: Path, backbone: Backbone, target: Target, least: float
) -> None:
    of = given.manifest(tmp_path, target)
    made = trained(given.spec(tmp_path, of, backbone, method="full", epochs=6, learning_rate=1e-2))
    first, last = made.history[0], made.history[-1]
    assert last.loss < first.loss / 2
    assert last.validation_loss < first.validation_loss / 2
    assert made.validation == last.validation > least


def test_run__record_says_what_was_done(tmp_path: Path, manifest: Manifest, backbone: Backbone) -> None:
    spec = given.spec(tmp_path, manifest, backbone, accumulate=2, epochs=2)
    made = trained(spec)
    file = spec.out / "weights.safetensors"
    assert made.backbone.weights_digest == file_digest(file)
    assert (made.backbone.weights, made.backbone.tuned) == (str(file), manifest.digest)
    assert made.backbone.weights_digest != backbone.weights_digest
    assert made.backbone.blocks[0].digest != backbone.blocks[0].digest
    assert [path.name for path in spec.out.glob("*.safetensors")] == [file.name]
    before, after = load_file(backbone.weights), load_file(file)
    assert before.keys() == after.keys()
    assert difference(before, after) > 1e-3
    count = sum(tensor.numel() for name, tensor in after.items() if "running" not in name and tensor.ndim)
    features = backbone.blocks[0].dim
    head = 3 * (features + 1)
    assert made.trained == made.parameters <= count + head
    assert (made.method, made.chosen, made.precision) == ("lp_ft", "last", "float32")
    assert (made.steps, made.batch, made.accumulate) == (6, 4, 2)
    assert made.seconds >= sum(epoch.seconds for epoch in made.history) > 0
    assert made.cached_s == 0
    assert json.loads((spec.out / "history.json").read_text()) == [
        epoch.model_dump(mode="json") for epoch in made.history
    ]
    lines, _ = follow(spec.progress, 0)
    assert [line.record for line in lines if line.kind == "epoch"] == list(made.history)
    assert not list((spec.state / "finetune").glob("*"))


def test_run__lora_is_merged(tmp_path: Path, manifest: Manifest, backbone: Backbone) -> None:
    spec = given.spec(tmp_path, manifest, backbone, method="lora", rank=2)
    made = trained(spec)
    before, after = load_file(backbone.weights), given.weights(spec.out)
    assert made.trained < made.parameters / 2
    assert difference(before, after) > 1e-3
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {"conv_head.weight", "conv_stem.weight"} <= changed
    assert not any(name.startswith("bn") and name.endswith(("weight", "bias")) for name in changed)


def fitted(folder: Path, features: int, outputs: int = 3) -> tuple[Path, FittedHead]:
    chance = np.random.default_rng(0)
    target: Target = "class" if outputs > 1 else "number"
    head = FittedHead(
        target=target,
        kind="logistic" if outputs > 1 else "ridge",
        classes=given.CLASSES if outputs > 1 else (),
        model=Linear(
            mean=chance.normal(size=features),
            scale=chance.uniform(1, 2, size=features),
            weight=chance.normal(size=(outputs, features)),
            bias=chance.normal(size=outputs) + (100 if outputs == 1 else 0),
        ),
        calibration=Calibration.none(outputs),
    )
    folder.mkdir()
    head.save(folder)
    return folder, head


class Seen:
    """The batches that the loop's objective was given, with their logits and features."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.batches: list[Batch] = []
        self.logits: list[Tensor] = []
        self.features: list[Tensor] = []
        self.losses: list[float] = []
        of = train

        def noting(model: Any, trainable: Any, source: Any, objective: Any, *further: Any) -> Any:
            def noted(logits: Tensor, features: Tensor, batch: Batch) -> Tensor:
                losses: Tensor = objective(logits, features, batch)
                self.batches.append(batch)
                self.logits.append(logits.detach())
                self.features.append(features.detach())
                self.losses.append(float(losses.detach().mean()))
                return losses

            class Noted(nn.Module):
                def __init__(self) -> None:
                    super().__init__()
                    if isinstance(objective, nn.Module):
                        self.of = objective

                def forward(self, *given: Any) -> Tensor:
                    return noted(*given)

            return of(model, trainable, source, Noted(), *further)

        monkeypatch.setattr(training, "train", noting)


@pytest.mark.parametrize("outputs", [3, 1])
def test_run__starts_from_the_head_on_the_embeddings(
    tmp_path: Path, backbone: Backbone, monkeypatch: pytest.MonkeyPatch, outputs: int
) -> None:
    folder, head = fitted(tmp_path / "head", backbone.blocks[0].dim, outputs)
    of = given.manifest(tmp_path, "class" if outputs > 1 else "number")
    seen = Seen(monkeypatch)
    training.run(given.spec(tmp_path, of, backbone, head=folder, epochs=1), Stop())
    expected = head.logits(seen.features[0].double().numpy())
    if outputs == 1:  # 24 numbers, of 100, 120 and 140: deviation √(2/3) · 20
        expected = (expected - 120) / (20 * math.sqrt(2 / 3))
    torch.testing.assert_close(
        seen.logits[0].double(), torch.from_numpy(expected), rtol=1e-3, atol=1e-3
    )  # fmt: skip
    # `full` is with a new head.
    again = given.spec(tmp_path / "full", of, backbone, head=folder, epochs=1, method="full")
    seen = Seen(monkeypatch)
    training.run(again, Stop())
    assert seen.logits[0].abs().max() == 0


def test_run__scratch_forgets_the_weights(tmp_path: Path, manifest: Manifest, backbone: Backbone) -> None:
    spec = given.spec(tmp_path, manifest, backbone, method="scratch", epochs=1, learning_rate=1e-9)
    made = trained(spec)
    assert difference(load_file(backbone.weights), given.weights(spec.out)) > 0.1
    assert made.method == "scratch"


def test_run__without_validation_samples_there_is_no_judge(tmp_path: Path, backbone: Backbone) -> None:
    spec = given.spec(tmp_path, given.manifest(tmp_path, validation=0), backbone)
    with pytest.raises(DataError, match=r"judged on validation samples; raise data\.validation_fraction"):
        training.run(spec, Stop())


def test_run__rare_classes_weigh_as_much(
    tmp_path: Path, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    of = given.manifest(tmp_path, train=26)  # 9 blue, 9 green, 8 red
    for balance, weights in (("loss", {26 / 27, 26 / 24}), ("none", {1.0})):
        seen = Seen(monkeypatch)
        spec = given.spec(tmp_path / balance, of, backbone, balance=balance, epochs=1)
        training.run(spec, Stop())
        found = torch.cat([batch.weight for batch in seen.batches])
        assert {round(float(weight), 5) for weight in found} == {round(weight, 5) for weight in weights}


CACHED: dict[str, Any] = {
    "method": "last_blocks", "blocks": 2, "cached_views": 2, "augment": ("crop", "hflip"), "epochs": 5,
    "optimiser": "sgd", "learning_rate": 0.05,  # Adam's steps may have any size where a gradient is rounding
}  # fmt: skip


def test_run__cached_views_are_the_same_training(
    tmp_path: Path, manifest: Manifest, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_cache = given.spec(tmp_path / "with", manifest, backbone, **CACHED)
    seen = Seen(monkeypatch)
    made = trained(with_cache)
    assert {batch.x.shape[1] for batch in seen.batches} != {3}  # activations
    assert (with_cache.state / "prefixes").is_dir()
    assert 0 < made.cached_s < made.seconds
    # Uncut, the batches are of the same views: that of the epoch modulo 2.
    without = given.spec(tmp_path / "without", manifest, backbone, **CACHED)
    monkeypatch.undo()
    monkeypatch.setattr(training, "split", lambda model, unit: None)
    whole = Seen(monkeypatch)
    other = trained(without)
    assert {batch.x.shape[1] for batch in whole.batches} == {3}
    assert other.cached_s == 0
    views = [set(batch.views.tolist()) for batch in seen.batches]
    assert views == [set(batch.views.tolist()) for batch in whole.batches]
    assert views == [{epoch % 2} for epoch in range(5) for _ in range(3)]
    found, expected = given.weights(with_cache.out), given.weights(without.out)
    assert difference(load_file(backbone.weights), expected) > 1e-2
    assert difference(found, expected) < 1e-4
    assert [epoch.loss for epoch in made.history] == pytest.approx(
        [epoch.loss for epoch in other.history], abs=1e-4
    )


def test_run__asked_to_end_while_views_are_cached_it_ends_then(
    tmp_path: Path, manifest: Manifest, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    quiet = given.spec(tmp_path / "quiet", manifest, backbone, **CACHED)
    training.run(quiet, Stop())
    spec, stop = given.spec(tmp_path, manifest, backbone, **CACHED), Stop()
    of, done = CachedPrefix._crops, []

    def crops(*arguments: Any) -> Iterator[Tensor]:
        for some in of(*arguments):
            done.append(len(some))
            stop.wanted = True
            yield some

    monkeypatch.setattr(CachedPrefix, "_crops", crops)
    monkeypatch.setattr(CachedPrefix.__init__, "__kwdefaults__", {"batch": 10})
    with pytest.raises(Preempted):
        training.run(spec, stop)
    assert done == [10]
    noted = json.loads((spec.state / "finetune" / "key-0.json").read_text())["seconds"]["views"]
    stop = Stop()
    monkeypatch.undo()
    made = trained(spec)
    assert made.cached_s > noted > 0  # both attempts
    assert difference(given.weights(spec.out), given.weights(quiet.out)) < 1e-5


@pytest.fixture(scope="module")
def teacher(place: Path) -> Teacher:
    package = taught.packaged(place / "teacher", classes=given.CLASSES)
    blocks = package.embedder.blocks
    return Teacher(
        digest=package.digest,
        folder=str(package.folder),
        embedder=package.embedder,
        embeddings=Embeddings(digest="e", root="", blocks=blocks, computed=0, cached=0),
    )


def distillation(teacher: Teacher, **values: Any) -> Distillation:
    known = {"student": "timm:test_efficientnet", "features": 0.5, "views": 2, **values}
    return Distillation(
        params=DistillParams.model_validate(known), data=DataParams(max_pixels=10_000), teachers=(teacher,)
    )


DISTILLED: dict[str, Any] = {"method": "full", "epochs": 5, "augment": ("hflip", "crop")}


def test_run__student_learns_what_its_teacher_says(
    tmp_path: Path,
    manifest: Manifest,
    backbone: Backbone,
    teacher: Teacher,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for number in range(6):
        given.write(tmp_path / "more" / f"{number}.png", number % 3, 100 + number)
    given.write(tmp_path / "more" / "known.png", 0, 0)  # of the dataset
    how = distillation(teacher, unlabelled=str(tmp_path / "more"))
    known = unlabelled.find(tmp_path / "more", manifest, how.data, tmp_path).digest
    spec = given.spec(tmp_path, manifest, backbone, how.model_copy(update={"unlabelled": known}), **DISTILLED)
    seen = Seen(monkeypatch)
    made = trained(spec)
    assert made.steps == 5 * math.ceil((24 + 6) / 8)
    rows = torch.cat([batch.rows for batch in seen.batches])
    weight = torch.cat([batch.weight for batch in seen.batches])
    assert set(rows.tolist()) == set(range(30))
    assert torch.equal(weight, (rows < 24).float())  # those behind have no label
    views = [sorted(set(batch.views.tolist())) for batch in seen.batches]
    assert views == [[epoch % 2] for epoch in range(5) for _ in range(4)]
    assert made.history[-1].loss < 0.75 * made.history[0].loss
    assert made.cached_s == 0


def test_run__further_images_that_changed_are_refused(
    tmp_path: Path, manifest: Manifest, backbone: Backbone, teacher: Teacher
) -> None:
    given.write(tmp_path / "more" / "one.png", 0, 100)
    how = distillation(teacher, unlabelled=str(tmp_path / "more"))
    known = unlabelled.find(tmp_path / "more", manifest, how.data, tmp_path).digest
    given.write(tmp_path / "more" / "two.png", 1, 101)
    spec = given.spec(tmp_path, manifest, backbone, how.model_copy(update={"unlabelled": known}))
    with pytest.raises(DataError, match=r"more: was changed since it was listed; run again"):
        trained(spec)


def test_run__time_of_the_answers_counts(
    tmp_path: Path,
    manifest: Manifest,
    backbone: Backbone,
    teacher: Teacher,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spec = given.spec(tmp_path, manifest, backbone, distillation(teacher), **{**DISTILLED, "epochs": 2})
    found: list[Setting] = []
    of = train

    def noting(*arguments: Any) -> Any:
        found.append(next(one for one in arguments if isinstance(one, Setting)))
        result = of(*arguments)
        result.course.seconds = 1.0
        return result

    monkeypatch.setattr(training, "train", noting)
    made = trained(spec)
    (machine,) = found[0].prepared.values()
    assert machine["answers"] > 0
    assert made.seconds == 1 + machine["answers"]


def test_run__stopped_student_is_the_quiet_one(
    tmp_path: Path, manifest: Manifest, backbone: Backbone, teacher: Teacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    quiet, stopped = (
        given.spec(tmp_path / name, manifest, backbone, distillation(teacher), **{**DISTILLED, "epochs": 2})
        for name in ("quiet", "stopped")
    )
    of, stop = training._Training._source, Stop()

    def source(*arguments: Any) -> Any:
        made, forward = of(*arguments)
        return Stopping(made, stop, 4), forward

    with monkeypatch.context() as patched:
        patched.setattr(training._Training, "_source", source)
        with pytest.raises(Preempted):
            training.run(stopped, stop)
    assert not list(stopped.out.glob("*.safetensors"))
    assert trained(stopped).backbone.weights_digest == trained(quiet).backbone.weights_digest
