"""The numbers of a training and a real MLflow server that is away in the middle of it."""

import time
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tasks.finetune.progress import append
from tasks.registry import training_metrics
from tasks.registry.tracking import SERVER_ENVIRONMENT, server_options
from tasks.registry.training_metrics import Metrics
from tasks.registry.training_run import fetch, finish, start
from tasks.settings import Settings
from tests.stack.mlflow_server import BIN, free_port, running
from tests.unit.tasks.registry.training import backbone_in, request_of, step, tuned_in

SOON_S = 0.2


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    settings = Settings(state=tmp_path / "state", mlflow_port=free_port())
    (settings.root / "mlflow").mkdir(parents=True)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", settings.mlflow_url)
    return settings


def server(settings: Settings) -> AbstractContextManager[None]:
    command = [str(BIN / "mlflow"), "server", *server_options(settings), "--workers", "1"]
    command += ["--host", "127.0.0.1", "--port", str(settings.mlflow_port)]
    return running(command, f"{settings.mlflow_url}/health", SERVER_ENVIRONMENT, settings.root / "server.log")


def steps(settings: Settings, run: str) -> list[int]:
    client = MlflowClient(settings.mlflow_url, settings.mlflow_url)
    return [point.step for point in client.get_metric_history(run, "loss")]


def wait_for_steps(settings: Settings, run: str, wanted: list[int]) -> None:
    deadline = time.monotonic() + 60
    while (found := steps(settings, run)) != wanted:
        assert time.monotonic() < deadline, found
        time.sleep(0.1)  # between two looks


def test_metrics__outage_in_the_middle_costs_no_number_and_none_comes_twice(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_metrics, "_LEAVE_S", 60.0)
    backbone = backbone_in(tmp_path / "weights")
    tuned = tuned_in(tmp_path / "result", backbone)
    progress = tmp_path / "progress.jsonl"
    with server(settings):
        run = start("wear", "a" * 32, request_of(backbone), settings)
        append(progress, step(1))
        with Metrics(run, progress, settings, SOON_S):
            append(progress, step(2))
            wait_for_steps(settings, run, [1, 2])
    with Metrics(run, progress, settings, SOON_S):  # ends without a word
        append(progress, step(3))
    with Metrics(run, progress, settings, SOON_S):
        append(progress, step(4))
        with server(settings):  # it is there again
            wait_for_steps(settings, run, [1, 2, 3, 4])
            # The process dies before it notes what it sent, and takes a step again.
            progress.with_suffix(".sent").unlink()
            append(progress, step(4, second=30))
            append(progress, step(5))
            finish(run, tuned, progress, settings)
            assert steps(settings, run) == [1, 2, 3, 4, 5]
            there = fetch(run, tmp_path / "there", settings)
    weights = "weights.safetensors"
    assert (there / weights).read_bytes() == (tuned.path / weights).read_bytes()
