from collections.abc import Callable
from pathlib import Path
from uuid import UUID

import pytest

from tasks import progress
from tasks.embedding import task as tasks
from tasks.embedding.task import ProgressArtifact, remembered
from tasks.params import EmbeddingParams
from tests.unit.tasks.embedding.conftest import SMALL


@pytest.fixture
def file(weights_of: Callable[..., Path], tmp_path: Path) -> Path:
    file = tmp_path / "mine.safetensors"
    file.write_bytes(weights_of(SMALL).read_bytes())
    return file


@pytest.fixture
def params(file: Path) -> EmbeddingParams:
    return EmbeddingParams(backbone=SMALL, weights=str(file), image_size=64)


def test_remembered__resolves_once(
    params: EmbeddingParams, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = remembered(params, tmp_path / "store")
    monkeypatch.setattr("tasks.embedding.backbone.resolve", lambda *_: pytest.fail("resolved again"))
    assert remembered(params, tmp_path / "store") == first


def test_remembered__weights_that_changed_under_the_same_name_are_another_backbone(
    params: EmbeddingParams, file: Path, tmp_path: Path, weights_of: Callable[..., Path]
) -> None:
    first = remembered(params, tmp_path / "store")
    file.write_bytes(weights_of(SMALL, 1).read_bytes())
    second = remembered(params, tmp_path / "store")
    assert not {block.digest for block in first.blocks} & {block.digest for block in second.blocks}


def test_remembered__weights_that_have_gone_are_kept_again(params: EmbeddingParams, tmp_path: Path) -> None:
    first = remembered(params, tmp_path / "store")
    kept = Path(first.backbones[0].weights)
    kept.unlink()
    assert remembered(params, tmp_path / "store") == first
    assert kept.exists()


def test_progress__that_cannot_be_shown_stops_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no API")

    heard: list[tuple[str, int, int]] = []
    monkeypatch.setattr(progress, "_listeners", [lambda *told: heard.append(told)])
    monkeypatch.setattr(tasks, "create_progress_artifact", fail)
    ProgressArtifact("embed")(3, 10)
    assert heard == [("embed", 3, 10)]
    assert "progress can't be shown (RuntimeError)" in caplog.text


def test_progress__artifact_is_made_once_and_written_seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, written = [0.0], []

    def create(percent: float, **_: object) -> UUID:
        written.append(("create", percent))
        return UUID(int=1)

    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    monkeypatch.setattr(tasks, "create_progress_artifact", create)
    monkeypatch.setattr(
        tasks, "update_progress_artifact", lambda _, percent, **__: written.append(("update", percent))
    )
    artifact = ProgressArtifact("embed")
    for seconds, done in [(0, 1), (1, 2), (2, 3), (3.5, 4), (3.6, 5), (3.7, 10)]:
        clock[0] = seconds
        artifact(done, 10)
    assert written == [("create", 10), ("update", 40), ("update", 100)]
