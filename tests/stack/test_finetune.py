"""A fine-tuning on a worker that shares nothing with the command but the servers and DVC's remote; its
worker's process is killed in the middle."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from mlflow import MlflowClient
from PIL import Image

from flows import background
from tasks.records import Tuned
from tasks.settings import ROOT
from tests.stack.local import Local, alive, regraft
from tests.stack.mlflow_server import BIN

SIZE = 32  # px
PARAMS = {
    "data": {"min_per_class": 1, "validation_fraction": 0.25},
    "embedding": {"backbone": "timm:test_efficientnet", "weights": "random", "image_size": SIZE},
    "head": {"strengths": [0.01, 0.1], "folds": 2},
    # So many epochs that it can be killed in the middle; a checkpoint in each second.
    "finetune": {"epochs": 80, "batch": 8, "checkpoint_s": 1, "learning_rate": 1e-4},
}
NAME = "colours"
LIMIT = "regraft-gpu"


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Images of three colours, and the parameters' file."""
    folder = tmp_path_factory.mktemp("given")
    noise = np.random.default_rng(0)
    for colour, label in enumerate(("red", "green", "blue")):
        (folder / NAME / label).mkdir(parents=True)
        for number in range(40):
            pixels = noise.integers(0, 120, (SIZE, SIZE, 3), dtype=np.uint8)
            pixels[:, :, colour] += 20
            Image.fromarray(pixels).save(folder / NAME / label / f"{number}.png")
    (folder / "params.json").write_text(json.dumps(PARAMS))
    return folder / NAME, folder / "params.json"


def environment(local: Local, state: Path) -> dict[str, str]:
    """That of another machine: its own state, the same servers and remote."""
    foreign = ("REGRAFT_", "PREFECT_", "MLFLOW_", "http_proxy", "HTTP_PROXY")
    kept = {name: value for name, value in local.env.items() if not name.startswith(foreign)}
    return kept | {
        "REGRAFT_STATE": str(state),
        "REGRAFT_FORWARD": "torch",
        "REGRAFT_DVC_REMOTE": str(local.state / "dvc" / "remote"),
        "PREFECT_HOME": str(state / "prefect"),
        "PREFECT_API_URL": f"{local.prefect}/api",
        "PREFECT_WORKER_QUERY_SECONDS": "2",
        "MLFLOW_TRACKING_URI": local.mlflow,
        "HF_ENDPOINT": "http://127.0.0.1:9",  # weights come from nowhere but the run
        "OMP_NUM_THREADS": "1",
        "DO_NOT_TRACK": "1",
    }


@pytest.fixture(scope="module")
def worker(local: Local, tmp_path_factory: pytest.TempPathFactory) -> Iterator[psutil.Process]:
    """Of the pool adapt-gpu, in another place."""
    state = tmp_path_factory.mktemp("worker") / "state"
    state.mkdir()
    command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", "adapt-gpu", "--type", "process"]
    with (state / "log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "--limit", "1", "--name", "elsewhere"],
            env=environment(local, state),
            cwd=state,
            stdout=log,
            stderr=log,
        )
    found = psutil.Process(process.pid)
    try:
        local.wait(lambda: _online(local))
        yield found
    finally:
        family = [found, *found.children(recursive=True)] if alive([found]) else []
        for member in alive(family):
            member.kill()
        process.wait()


def _online(local: Local) -> bool:
    workers = local.api("work_pools/adapt-gpu/workers/filter", {})
    return any(worker["status"] == "ONLINE" for worker in workers)


def start(env: dict[str, str], given: tuple[Path, Path]) -> "subprocess.Popen[str]":
    """A fine-tuning of the images, as a command of its own."""
    return subprocess.Popen(
        [
            str(BIN / "python"),
            str(ROOT / "tests" / "stack" / "tuning_run.py"),
            str(given[0]),
            NAME,
            str(given[1]),
        ],
        env={**env, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def told(process: "subprocess.Popen[str]") -> Tuned:
    out, err = process.communicate(timeout=400)
    assert process.returncode == 0, err[-5000:]
    return Tuned.model_validate_json(out.splitlines()[-1])


@pytest.fixture(scope="module")
def alone(
    local: Local, given: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator["subprocess.Popen[str]"]:
    """The same in one process, in a place of its own: no worker could reach its MLflow, which is a file."""
    kept = {name: value for name, value in local.env.items() if not name.startswith("REGRAFT_")}
    places = {"REGRAFT_STATE": str(tmp_path_factory.mktemp("alone") / "state"), "REGRAFT_FORWARD": "torch"}
    process = start(kept | places | {"PREFECT_API_URL": f"{local.prefect}/api"}, given)
    yield process
    process.kill()
    process.wait()


@pytest.fixture(scope="module")
def run(local: Local, worker: psutil.Process, given: tuple[Path, Path]) -> Tuned:
    """The result of a fine-tuning whose first process was killed when it had a checkpoint."""
    # Else the second attempt waits a minute for the slot of the dead one.
    _limit(local, 2)
    state = Path(worker.cwd())
    process = start(local.env, given)
    try:
        local.wait(lambda: _is_under_way(state) or process.poll() is not None, timeout_s=300)
        assert process.poll() is None, process.communicate()[1][-5000:]
        family = worker.children(recursive=True)
        assert any("tasks.finetune.process" in member.cmdline() for member in family)
        for member in family:
            member.send_signal(signal.SIGKILL)
        return told(process)
    finally:
        process.kill()
        process.wait()


def _is_under_way(state: Path) -> bool:
    """Whether a training has told of an epoch, and has a checkpoint."""
    told_of = [
        line for file in (state / "finetune").glob("*.jsonl") for line in file.read_text().splitlines()
    ]
    checkpoints = list((state / "checkpoints").rglob("*.safetensors"))
    return bool(checkpoints) and any(json.loads(line)["kind"] == "epoch" for line in told_of)


def _limit(local: Local, count: int) -> None:
    """Of trainings at once; 0: there is no limit at all."""
    change = ["update", LIMIT, "--limit", str(count)] if count else ["delete", LIMIT]
    done = subprocess.run(
        [sys.executable, "-m", "prefect", "--no-prompt", "gcl", *change],
        env={**os.environ, "PREFECT_API_URL": f"{local.prefect}/api"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def _flow_runs(local: Local) -> list[dict[str, Any]]:
    found = local.api(
        "flow_runs/filter", {"deployments": {"name": {"any_": ["gpu"]}}, "sort": "START_TIME_ASC"}
    )
    return list(found)


def test_finetune__second_attempt_carries_on_and_gives_the_same_weights(
    local: Local, worker: psutil.Process, alone: "subprocess.Popen[str]", run: Tuned
) -> None:
    states = [one["state"]["type"] for one in _flow_runs(local)]
    assert states == ["CRASHED", "COMPLETED"]
    (lines,) = (Path(worker.cwd()) / "finetune").glob("*.jsonl")
    told_of = [json.loads(line) for line in lines.read_text().splitlines()]
    epochs = [line["epoch"] for line in told_of if line["kind"] == "epoch"]
    assert epochs.count(1) == 1  # the second attempt did not begin anew
    assert epochs[-1] == len(run.history) == 80
    undisturbed = told(alone)
    assert undisturbed.backbone.weights_digest == run.backbone.weights_digest
    assert undisturbed.history[-1].validation == run.history[-1].validation
    assert Path(run.backbone.weights).is_relative_to(local.state)


def test_finetune__data_and_weights_travelled(local: Local, run: Tuned, worker: psutil.Process) -> None:
    state = Path(worker.cwd())
    assert run.history
    assert len(list((state / "checkouts").glob("*/data/*/*.png"))) == 120
    assert not (state / "versions").exists()
    (weights,) = (state / "weights").glob("*.safetensors")
    (here,) = (file for file in (local.state / "weights").glob("*.safetensors") if file.name == weights.name)
    assert weights.read_bytes() == here.read_bytes()


def test_finetune__one_mlflow_run_has_every_number_once(local: Local, run: Tuned) -> None:
    client = MlflowClient(local.mlflow, local.mlflow)
    experiment = client.get_experiment_by_name(NAME)
    assert experiment is not None
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.status == "FINISHED"
    assert found.data.tags["regraft.weights_sha256"] == run.backbone.weights_digest
    for key in found.data.metrics:
        steps = [point.step for point in client.get_metric_history(found.info.run_id, key)]
        assert len(steps) == len(set(steps)), key
    points = client.get_metric_history(found.info.run_id, "validation_loss")
    assert sorted(point.step for point in points) == [epoch.step for epoch in run.history]
    names = {file.path for file in client.list_artifacts(found.info.run_id, "tuned")}
    assert names == {
        f"tuned/{name}" for name in ("weights.safetensors", "history.json", "curves.png", "record.json")
    }


def test_finetune__shows_epochs_and_curves(local: Local, run: Tuned) -> None:
    shown = local.artifacts(_flow_runs(local)[-1]["id"])
    assert f"{len(run.history)} of {len(run.history)} epochs" in shown["fine-tune-epochs"]
    assert shown["fine-tune-curves"].startswith("data:image/png;base64,iVBOR")
    assert float(shown["fine-tune"]) == 100


def test_finetune__heartbeats_are_told(local: Local, run: Tuned) -> None:
    assert run.history
    wanted = f"prefect.flow-run.{_flow_runs(local)[-1]['id']}"
    query = {"filter": {"event": {"name": ["prefect.flow-run.heartbeat"]}, "resource": {"id": [wanted]}}}
    assert local.api("events/filter", query)["events"]


def test_finetune__again_trains_nothing(local: Local, run: Tuned, given: tuple[Path, Path]) -> None:
    before = len(_flow_runs(local))
    again = told(start(local.env, given))
    assert again == run
    assert len(_flow_runs(local)) == before


def test_finetune__other_manifest_fails_in_one_line_and_is_not_tried_again(
    local: Local, run: Tuned, worker: psutil.Process
) -> None:
    assert run.history
    assert alive([worker])
    request = _flow_runs(local)[-1]["parameters"]["request"]
    wanted = request | {"manifest": "0" * 64, "key": "0" * 32, "run_id": ""}
    failed = local.start("finetune/gpu", {"request": wanted})
    state = local.ended(failed)
    assert state["name"] == "Failed"
    assert f"DataError: manifest: this machine makes {request['manifest']} of" in state["message"]
    assert f"{'0' * 64} was asked for" in state["message"]


def test_finetune__missing_limit_says_how_to_make_it(local: Local, run: Tuned) -> None:
    request = _flow_runs(local)[-2]["parameters"]["request"] | {"key": "1" * 32}
    assert run.history
    _limit(local, 0)
    try:
        state = local.ended(local.start("finetune/gpu", {"request": request}))
        assert f"prefect gcl create {LIMIT} --limit 1" in state["message"]
    finally:
        local.up()  # makes it again
    assert local.api(f"v2/concurrency_limits/{LIMIT}")["limit"] == 1


def test_distill__student_learns_elsewhere_from_a_model_in_its_run(
    local: Local, run: Tuned, worker: psutil.Process, given: tuple[Path, Path]
) -> None:
    assert run.history
    before = len(_flow_runs(local))
    student = {"student": "timm:test_resnet:0.5", "weights": "random", "image_size": SIZE, "epochs": 3}
    wished = PARAMS | {
        "data": {"min_per_class": 1, "validation_fraction": 0.5},  # 50 samples at least
        "finetune": {"when": "never"},
        "distill": student | {"margin": 1, "min_speedup": 0.01, "max_size": 100},
        "evaluation": {"baseline_samples": 0, "robustness_samples": 0},
    }
    file = given[1].with_name("distilled.json")
    file.write_text(json.dumps(wished))
    command = ["adapt", "--json", "--data", str(given[0]), "--name", "small", "--params", str(file)]
    done = regraft(command, local.env | {"PREFECT_API_URL": f"{local.prefect}/api"})
    assert done.returncode == 0, done.stderr
    ladder = json.loads(done.stdout.splitlines()[-1])["ladder"]
    assert [rung["name"] for rung in ladder] == ["frozen", "student"]

    (distilled,) = _flow_runs(local)[before:]
    assert distilled["state"]["type"] == "COMPLETED", distilled["state"]
    assert "student: 3 of 3 epochs" in local.artifacts(distilled["id"])["fine-tune-epochs"]
    (teacher,) = distilled["parameters"]["request"]["distillation"]["teachers"]
    client = MlflowClient(local.mlflow, local.mlflow)
    experiment = client.get_experiment_by_name("small")
    assert experiment is not None
    (found,) = client.search_runs([experiment.experiment_id], "tags.`regraft.kind` = 'distill'")
    assert found.info.status == "FINISHED"
    assert found.data.tags["regraft.teachers"] == teacher["digest"]
    # Here the worker sees the folder that the package was made in; elsewhere it takes it from the run.
    kept = client.list_artifacts(found.info.run_id, f"teachers/{teacher['digest']}")
    assert "model.json" in {Path(file.path).name for file in kept}
    assert len(list((Path(worker.cwd()) / "teachers").iterdir())) == 1  # its answers


def test_up__gpu_worker_is_started_once_where_one_is_asked_for(local: Local) -> None:
    asked = {"REGRAFT_GPU_WORKERS": "1"}
    first, again = (regraft(["up", "--json"], local.env | asked) for _ in range(2))
    assert first.returncode == again.returncode == 0, first.stderr + again.stderr
    assert json.loads(first.stdout)["processes"] == json.loads(again.stdout)["processes"]
    assert [one["name"] for one in json.loads(first.stdout)["processes"]][-1] == "gpu-worker-0"
    workers = local.api("work_pools/adapt-gpu/workers/filter", {})
    assert any(w["name"].startswith("gpu-worker-0-") and w["status"] == "ONLINE" for w in workers)

    # With another number of them each has other GPUs.
    two = json.loads(regraft(["up", "--json"], local.env | {"REGRAFT_GPU_WORKERS": "2"}).stdout)["processes"]
    assert [one["name"] for one in two][-2:] == ["gpu-worker-0", "gpu-worker-1"]
    assert two[-2] != json.loads(first.stdout)["processes"][-1]
    assert local.api(f"v2/concurrency_limits/{LIMIT}")["limit"] == 2
    for name in ("gpu-worker-0", "gpu-worker-1"):
        assert background.end(f"{local.state}:{name}")
    assert not any(name.startswith("gpu-worker") for name in local.up())
