"""One training by two processes of a Ray cluster."""

from pathlib import Path

import pytest
import torch

from tasks.finetune.run import run
from tasks.params import FinetuneParams
from tasks.records import Backbone, Manifest, Tuned
from tasks.settings import Settings
from tests.unit.tasks.finetune import given


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return given.manifest(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return given.backbone(tmp_path_factory.mktemp("weights"))


def trained(folder: Path, manifest: Manifest, backbone: Backbone, trainers: int) -> Tuned:
    # Statistics of batches would be those of each process's own part.
    params: FinetuneParams = given.params(epochs=2, batch_norm="frozen", augment=["hflip"])
    settings = Settings(state=folder / "state", trainers=trainers)
    (folder / "out").mkdir(parents=True)
    return run(
        folder / "out",
        manifest,
        manifest.path.parent / "data",
        backbone,
        None,
        params,
        settings,
        key="0" * 32,
        max_pixels=10_000,
    )


def test_ray__two_processes_give_the_weights_of_one(
    tmp_path: Path, manifest: Manifest, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray")
    monkeypatch.setenv("REGRAFT_TRAINERS", "2")
    one = trained(tmp_path / "one", manifest, backbone, 1)
    two = trained(tmp_path / "two", manifest, backbone, 2)
    assert (two.steps, two.batch) == (one.steps, one.batch // 2)
    ours, theirs = given.weights(two.path), given.weights(one.path)
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-3, atol=1e-5)
