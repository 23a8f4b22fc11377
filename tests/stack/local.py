"""The stack of `regraft up`, as its users see it: the command line and two HTTP APIs."""

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.error import HTTPError
from urllib.request import ProxyHandler, Request, build_opener

import psutil
import pytest

from flows.background import MARK
from tests.stack.mlflow_server import BIN

T = TypeVar("T")

SECRET = "a-secret-of-the-environment"
END = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}
_open = build_opener(ProxyHandler({})).open


def environment(state: Path, ports: Sequence[int]) -> dict[str, str]:
    """That of a shell: a secret, a proxy that does not know this machine, nothing of ours but the
    places."""
    ours = ("REGRAFT_", "PREFECT_", "MLFLOW_")
    foreign = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return foreign | {
        "REGRAFT_STATE": str(state),
        "REGRAFT_FORWARD": "torch",  # tests/flows/test_builtin.py has it measured
        "REGRAFT_PREFECT_PORT": str(ports[0]),
        "REGRAFT_MLFLOW_PORT": str(ports[1]),
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "http_proxy": "http://127.0.0.1:9",
        "HTTP_PROXY": "http://127.0.0.1:9",
        "no_proxy": "example.org",
    }


def regraft(arguments: Sequence[str], env: dict[str, str]) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [str(BIN / "regraft"), *arguments], env=env, capture_output=True, text=True, timeout=300, check=False
    )


def ask(url: str, body: object = None) -> tuple[int, Any]:
    """Status and JSON of a GET, or of a POST if there is a body."""
    content = None if body is None else json.dumps(body).encode()
    try:
        with _open(Request(url, content, {"Content-Type": "application/json"}), timeout=30) as response:
            return response.status, json.loads(response.read() or b"null")
    except HTTPError as error:
        return error.code, json.load(error)


def alive(processes: Iterable[psutil.Process]) -> list[psutil.Process]:
    """Those that still run; a zombie has ended."""
    found = []
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


@dataclass(frozen=True)
class Local:
    """The running stack."""

    state: Path
    env: dict[str, str]
    prefect: str
    mlflow: str

    def up(self) -> dict[str, int]:
        """Process ids by name, after another `regraft up`."""
        done = regraft(["up", "--json"], self.env)
        assert done.returncode == 0, done.stderr + self.logs()
        return {process["name"]: process["pid"] for process in json.loads(done.stdout)["processes"]}

    def processes(self) -> list[psutil.Process]:
        """All that `up` started, and their children."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get(MARK, "").startswith(f"{self.state}:"):
                    found.append(process)
        return found

    def api(self, path: str, body: object = None) -> Any:
        """Of Prefect."""
        deadline = time.monotonic() + 60
        # With SQLite it may be busy for a moment; its own clients ask again too.
        while (reply := ask(f"{self.prefect}/api/{path}", body))[0] == 503:
            assert time.monotonic() < deadline, reply
            time.sleep(0.2)
        status, answer = reply
        assert status < 300, answer
        return answer

    def registry(self, path: str) -> Any:
        """Of MLflow."""
        status, answer = ask(f"{self.mlflow}/api/2.0/mlflow/{path}")
        assert status < 300, answer
        return answer

    def start(self, deployment: str, parameters: dict[str, Any], **options: Any) -> str:
        """Id of a run of the deployment."""
        place = f"deployments/{self.api(f'deployments/name/{deployment}')['id']}/create_flow_run"
        return str(self.api(place, {"parameters": parameters, **options})["id"])

    def ended(self, run: str) -> dict[str, Any]:
        """The last state of a run."""
        return self.wait(lambda: self.state_in(run, END))

    def state_in(self, run: str, types: set[str]) -> dict[str, Any] | None:
        state: dict[str, Any] = self.api(f"flow_runs/{run}")["state"]
        return state if state["type"] in types else None

    def artifacts(self, run: str) -> dict[str, Any]:
        """What the run shows, by key."""
        found = self.api("artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [run]}}})
        return {artifact["key"]: artifact["data"] for artifact in found if artifact["key"]}

    def wait(self, look: Callable[[], T | None], timeout_s: float = 150) -> T:
        """Looks until there is something to see."""
        deadline = time.monotonic() + timeout_s
        while not (found := look()):
            if time.monotonic() > deadline:
                pytest.fail(f"not within {timeout_s} s\n{self.logs()}")
            time.sleep(0.2)
        return found

    def logs(self) -> str:
        """The ends of all logs."""
        files = sorted((self.state / "logs").glob("*.log"))
        return "\n".join(f"{file}:\n{file.read_text(errors='replace')[-3000:]}" for file in files)


def start_twice_at_once(state: Path, ports: Sequence[int]) -> Local:
    """Two `regraft up` at the same moment make one stack."""
    env = environment(state, ports)
    local = Local(state, env, f"http://127.0.0.1:{ports[0]}", f"http://127.0.0.1:{ports[1]}")
    command = [str(BIN / "regraft"), "up", "--json"]
    both = [subprocess.Popen(command, env=env, stdout=-1, stderr=-1, text=True) for _ in range(2)]
    answers = [process.communicate(timeout=300) for process in both]
    if any(process.returncode for process in both) or answers[0][0] != answers[1][0]:
        regraft(["down"], env)
        pytest.fail(f"regraft up: {answers}\n{local.logs()}")
    return local
