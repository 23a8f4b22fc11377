from pathlib import Path

import pytest

from tasks.embedding.source import file_digest
from tasks.errors import RegistryError
from tasks.finetune import bring
from tasks.finetune.progress import append
from tasks.finetune.spec import Distillation
from tasks.params import DataParams, DistillParams
from tasks.records import Backbone, TeacherPackage, Tuned
from tasks.registry import training_run
from tasks.registry.package import read
from tasks.registry.tracking import connect
from tasks.registry.training_metrics import Metrics
from tasks.registry.training_run import (
    fetch,
    fetch_backbone,
    fetch_teacher,
    finish,
    give_up,
    is_finished,
    keep_backbone,
    keep_teacher,
    start,
)
from tasks.settings import Settings
from tests.unit.tasks.finetune import taught
from tests.unit.tasks.registry.training import backbone_in, end_of, request_of, step, tuned_in


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """A store without a server."""
    return Settings(state=tmp_path_factory.mktemp("state"))


@pytest.fixture(autouse=True)
def _no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return backbone_in(tmp_path_factory.mktemp("weights"))


@pytest.fixture
def tuned(tmp_path: Path, backbone: Backbone) -> Tuned:
    return tuned_in(tmp_path / "result", backbone)


def test_start__same_key_is_the_same_run_and_another_key_another(
    settings: Settings, backbone: Backbone
) -> None:
    first, again, other = (
        start("wear", key, request_of(backbone, key), settings) for key in ("one", "one", "other")
    )
    assert (first == again, first == other) == (True, False)
    run = connect(settings).get_run(first)
    assert run.data.tags["regraft.kind"] == "finetune"
    assert run.data.tags["regraft.finetune_key"] == "one"
    assert (run.data.params["finetune.epochs"], run.data.params["backbone"]) == (
        "2",
        "timm:test_efficientnet",
    )
    assert run.info.status == "RUNNING"


def test_start__goes_on_with_a_run_that_failed(settings: Settings, backbone: Backbone) -> None:
    run = start("wear", "failed", request_of(backbone, "failed"), settings)
    give_up(run, settings)
    assert connect(settings).get_run(run).info.status == "FAILED"
    assert start("wear", "failed", request_of(backbone, "failed"), settings) == run
    assert connect(settings).get_run(run).info.status == "RUNNING"


def test_finish__brings_the_result_to_another_machine(
    settings: Settings, backbone: Backbone, tuned: Tuned, tmp_path: Path
) -> None:
    run = start("wear", "whole", request_of(backbone, "whole"), settings)
    progress = tmp_path / "progress.jsonl"
    for line in (step(1), step(2), end_of(1)):  # of the second epoch the lines were lost
        append(progress, line)
    assert not is_finished(run, settings)
    for _ in range(2):  # again changes nothing
        finish(run, tuned, progress, settings)
    assert is_finished(run, settings)

    there = fetch(run, tmp_path / "there", settings)

    here = {file.name: file.read_bytes() for file in tuned.path.iterdir()}
    assert {file.name: file.read_bytes() for file in there.iterdir()} == here
    brought = bring.placed(Tuned.load(there))
    assert brought.backbone.weights == str(there / "weights.safetensors")
    assert file_digest(Path(brought.backbone.weights)) == brought.backbone.weights_digest
    client = connect(settings)
    points = {
        key: [(point.step, point.value) for point in client.get_metric_history(run, key)]
        for key in ("loss", "epoch_loss", "validation")
    }
    assert points == {
        "loss": [(1, 10.0), (2, 5.0)],
        "epoch_loss": [(3, 1.0), (6, 0.5)],
        "validation": [(3, 0.6), (6, 0.7)],
    }


def test_fetch__changed_weights_are_refused(
    settings: Settings, backbone: Backbone, tuned: Tuned, tmp_path: Path
) -> None:
    run = start("wear", "changed", request_of(backbone, "changed"), settings)
    with pytest.raises(RegistryError, match="holds no trained weights"):
        fetch(run, tmp_path / "there", settings)
    finish(run, tuned, tmp_path / "none.jsonl", settings)
    (stored,) = (settings.root / "mlflow").rglob(f"{run}/artifacts/tuned/weights.safetensors")
    stored.write_bytes(stored.read_bytes()[:-1] + b"?")
    with pytest.raises(RegistryError, match=r"weights.safetensors has SHA-256 .*, not"):
        fetch(run, tmp_path / "there", settings)
    assert not (tmp_path / "there").exists()


def test_backbone__travels_by_the_run(settings: Settings, backbone: Backbone, tmp_path: Path) -> None:
    run = start("wear", "before", request_of(backbone, "before"), settings)
    with pytest.raises(RegistryError, match="can't be downloaded"):
        fetch_backbone(run, backbone, tmp_path, settings)
    for _ in range(2):
        keep_backbone(run, backbone, settings)
    file = fetch_backbone(run, backbone, tmp_path, settings)
    assert file == tmp_path / f"{backbone.weights_digest}.safetensors"
    assert file_digest(file) == backbone.weights_digest


def test_teacher__travels_by_the_run(settings: Settings, backbone: Backbone, tmp_path: Path) -> None:
    package = taught.packaged(tmp_path / "here")
    teacher = TeacherPackage(digest=package.digest, folder=str(package.folder), embedder=package.embedder)
    run = start("wear", "taught", request_of(backbone, "taught"), settings)
    assert fetch_teacher(run, teacher, settings) == teacher  # here it needs no run
    away = teacher.model_copy(update={"folder": "/elsewhere"})
    with pytest.raises(RegistryError, match="can't be downloaded"):
        fetch_teacher(run, away, settings)

    (package.folder / "model.json").rename(tmp_path / "model.json")  # it is killed before the last file
    keep_teacher(run, teacher, settings)
    with pytest.raises(RegistryError, match=r"model.json"):
        fetch_teacher(run, away, settings)
    (tmp_path / "model.json").rename(package.folder / "model.json")
    for _ in range(2):
        keep_teacher(run, teacher, settings)
    brought = fetch_teacher(run, away, settings)

    assert Path(brought.folder) == settings.root / "packages" / teacher.digest
    assert read(Path(brought.folder)).digest == teacher.digest
    assert all(Path(one.weights).is_relative_to(brought.folder) for one in brought.embedder.backbones)
    assert fetch_teacher("no run", away, settings) == brought  # it is there


def test_teacher__changed_package_is_refused(settings: Settings, backbone: Backbone, tmp_path: Path) -> None:
    package = taught.packaged(tmp_path / "here", seed=1)
    teacher = TeacherPackage(digest=package.digest, folder=str(package.folder), embedder=package.embedder)
    run = start("wear", "changed teacher", request_of(backbone, "changed teacher"), settings)
    keep_teacher(run, teacher, settings)
    (stored,) = (settings.root / "mlflow").rglob(f"{run}/artifacts/teachers/*/backbone-0.safetensors")
    stored.write_bytes(stored.read_bytes()[:-1] + b"?")
    with pytest.raises(RegistryError, match="was changed since"):
        fetch_teacher(run, teacher.model_copy(update={"folder": "/elsewhere"}), settings)
    assert not (settings.root / "packages" / teacher.digest).exists()


def test_start__run_of_a_student_says_what_it_learns_from(
    settings: Settings, backbone: Backbone, tmp_path: Path
) -> None:
    package = taught.packaged(tmp_path / "here")
    teacher = TeacherPackage(digest=package.digest, folder=str(package.folder), embedder=package.embedder)
    how = Distillation(params=DistillParams(temperature=3.0), data=DataParams(), teachers=(teacher,))
    request = request_of(backbone, "student").model_copy(update={"distillation": how})
    run = connect(settings).get_run(start("wear", "student", request, settings))
    assert (run.data.tags["regraft.kind"], run.data.tags["regraft.teachers"]) == ("distill", package.digest)
    assert run.data.params["distill.temperature"] == "3.0"


def test_start__run_of_a_trial_is_told_apart(settings: Settings, backbone: Backbone) -> None:
    request = request_of(backbone, "trial").model_copy(update={"take": {"train": 20}})
    run = connect(settings).get_run(start("wear", "trial", request, settings))
    assert run.data.tags["regraft.kind"] == "trial"
    assert run.info.run_name == "trial-trial"


def test_finish__without_mlflow_says_that_the_training_is_kept(
    backbone: Backbone, tuned: Tuned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setattr(training_run, "_PAUSE_S", 0.0)
    with pytest.raises(RegistryError) as told:
        finish("0" * 32, tuned, tmp_path / "none.jsonl", Settings(state=tmp_path), wait_s=0.01)
    assert str(told.value).startswith("MLflow at http://127.0.0.1:9 took no result for 0 s (MLflow at")
    assert str(told.value).endswith(f"the training is kept in {tuned.path}: run again to send it")


def test_finish__run_that_is_gone_is_not_waited_for(
    settings: Settings, backbone: Backbone, tuned: Tuned, tmp_path: Path
) -> None:
    with pytest.raises(RegistryError, match=r"MLflow refuses the training in .*; it is kept"):
        finish("0" * 32, tuned, tmp_path / "none.jsonl", settings, wait_s=1e9)


def test_metrics__number_of_a_step_that_was_taken_twice_is_sent_once(
    settings: Settings, backbone: Backbone, tmp_path: Path
) -> None:
    run = start("wear", "twice", request_of(backbone, "twice"), settings)
    progress = tmp_path / "progress.jsonl"
    for line in (step(1), step(2), step(3)):
        append(progress, line)
    Metrics(run, progress, settings).send()
    # The process was killed, and training went on from a checkpoint after the first step.
    for line in (step(2, second=20), step(3, second=21), step(4, second=22)):
        append(progress, line)
    Metrics(run, progress, settings).send()
    # Another machine has lines of its own, and no note of what was sent.
    elsewhere = tmp_path / "elsewhere.jsonl"
    for line in (step(4, second=30), step(5, second=31), step(6, loss=float("nan"))):
        append(elsewhere, line)
    Metrics(run, elsewhere, settings).send()
    points = connect(settings).get_metric_history(run, "loss")
    assert [(point.step, point.value) for point in points] == [
        (number, 10 / number) for number in (1, 2, 3, 4, 5)
    ]
    assert points[1].timestamp == 1795341602000  # 2026-11-22T10:00:02Z, ms


def test_metrics__more_than_mlflow_takes_at_once(
    settings: Settings, backbone: Backbone, tmp_path: Path
) -> None:
    run = start("wear", "many", request_of(backbone, "many"), settings)
    progress = tmp_path / "progress.jsonl"
    for number in range(1, 401):  # of three numbers each
        append(progress, step(number, second=1))
    Metrics(run, progress, settings).send()
    assert len(connect(settings).get_metric_history(run, "samples_per_s")) == 400
