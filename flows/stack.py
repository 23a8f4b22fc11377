"""The local stack: a Prefect server, an MLflow server and a process worker on loopback, started in
the background; stopped by process id and start time, so that nothing else is ever hit."""

import fcntl
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.request import urlopen

import psutil
import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from flows.environment import enter, environment
from tasks.errors import StackError
from tasks.params import Params
from tasks.settings import ROOT, Settings

POOL = "adapt"
READY_TIMEOUT_S = 180
STOP_TIMEOUT_S = 30


class Process(BaseModel):
    """A process that `up` started. The system uses ids again, but not with the same start time."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    pid: int
    started: float  # seconds since the epoch, as the system has it

    def running(self) -> psutil.Process | None:
        try:
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.started) < 1
            return process if same and process.status() != psutil.STATUS_ZOMBIE else None
        except psutil.NoSuchProcess:
            return None


class Stack(BaseModel):
    """What is up; kept in `<state>/stack.json`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prefect: str
    mlflow: str
    processes: tuple[Process, ...]


def up(settings: Settings, params: Params) -> Stack:
    """Starts what is not running yet, registers the deployments, returns when all answer.

    Raises:
        StackError: a port is taken, or a server did not come up; its log says why.
    """
    env = {**os.environ, **environment(settings, api_url=f"{settings.prefect_url}/api")}
    with _lock(settings):
        running = {process.name: process for process in _read(settings) if process.running()}

        def ensure(name: str, port: int | None, command: list[str], extra: Mapping[str, str]) -> None:
            if name in running:
                return
            if port is not None:
                _require_free(settings.host, port, name)
            running[name] = _start(name, command, {**env, **extra}, settings).process
            _write(settings, running.values())

        ensure("prefect", settings.prefect_port, _prefect_server(settings), {})
        ensure("mlflow", settings.mlflow_port, *_mlflow_server(settings))
        _wait(running["prefect"], f"{settings.prefect_url}/api/health", settings)
        _deploy(settings, params, env)
        _wait(running["mlflow"], f"{settings.mlflow_url}/health", settings)
        ensure("worker", None, _worker(), {"MLFLOW_TRACKING_URI": settings.mlflow_url})
    return Stack(prefect=settings.prefect_url, mlflow=settings.mlflow_url, processes=tuple(running.values()))


def down(settings: Settings) -> list[str]:
    """Stops what `up` started, flow runs that the worker started included; returns the names."""
    with _lock(settings):
        # The worker first, so that it takes no new run while the servers leave.
        stopped = [process.name for process in reversed(_read(settings)) if _stop(process)]
        (settings.root / "stack.json").unlink(missing_ok=True)
    return stopped


def is_up(settings: Settings) -> bool:
    """Whether both servers that `up` started are running."""
    return {"prefect", "mlflow"} <= {process.name for process in _read(settings) if process.running()}


class Api:
    """The Prefect API that a command uses."""

    def __init__(self, url: str, own: "_Started | None", settings: Settings) -> None:
        self.url = url
        self._own = own  # kept, because the API ends when its standard input is closed
        self._settings = settings

    def wait(self) -> None:
        """Returns when it answers."""
        if self._own is not None:
            _wait(self._own.process, f"{self.url}/health", self._settings)


def api(settings: Settings) -> Api:
    """Sets this process's environment for an API: the stack's if that is up, else the user's own
    (`PREFECT_API_URL`), else one that is started now and ends with this process.

    It takes seconds to come up, in which the caller can import what it needs before it calls
    `wait`.
    """
    if is_up(settings):
        # Then MLflow is used through its server too.
        os.environ.setdefault("MLFLOW_TRACKING_URI", settings.mlflow_url)
        url = f"{settings.prefect_url}/api"
    elif "PREFECT_API_URL" in os.environ:
        url = os.environ["PREFECT_API_URL"]
    else:
        port = _free_port()
        url = f"http://127.0.0.1:{port}/api"
        enter(settings, api_url=url)
        command = [sys.executable, "-m", "flows.api_server", str(port)]
        return Api(url, _start("api", command, os.environ, settings, stdin=subprocess.PIPE), settings)
    enter(settings, api_url=url)
    return Api(url, None, settings)


def _prefect_server(settings: Settings) -> list[str]:
    place = ["--host", settings.host, "--port", str(settings.prefect_port)]
    return [sys.executable, "-m", "prefect", "server", "start", *place]


def _mlflow_server(settings: Settings) -> tuple[list[str], dict[str, str]]:
    from tasks.registry.tracking import SERVER_ENVIRONMENT, server_options

    place = ["--host", settings.host, "--port", str(settings.mlflow_port), "--workers", "1"]
    return [sys.executable, "-m", "mlflow", "server", *place, *server_options(settings)], SERVER_ENVIRONMENT


def _worker() -> list[str]:
    pool = ["--pool", POOL, "--type", "process", "--limit", "1"]
    return [sys.executable, "-m", "prefect", "worker", "start", *pool]


def _deploy(settings: Settings, params: Params, env: Mapping[str, str]) -> None:
    """Registers the deployments of infra/prefect/prefect.yaml with the defaults of `params`."""
    plan = yaml.safe_load((ROOT / "infra" / "prefect" / "prefect.yaml").read_text())
    for deployment in plan["deployments"]:
        if deployment["entrypoint"].endswith(":adapt"):
            deployment["parameters"] = {"params": params.model_dump(mode="json")}
    file = settings.root / "prefect.yaml"
    file.write_text(yaml.safe_dump(plan, sort_keys=False))
    prefect = [sys.executable, "-m", "prefect", "--no-prompt"]
    pool = ["work-pool", "create", POOL, "--type", "process", "--overwrite"]
    deploy = ["deploy", "--all", "--prefect-file", str(file)]
    for arguments in (pool, deploy):
        done = subprocess.run(
            [*prefect, *arguments],
            env={**env, "REGRAFT_ROOT": str(ROOT)},
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
            raise StackError(f"prefect {arguments[0]} failed: {' '.join(last)}")


@dataclass(frozen=True)
class _Started:
    process: Process
    handle: subprocess.Popen[bytes]


def _start(
    name: str,
    command: list[str],
    env: Mapping[str, str],
    settings: Settings,
    stdin: int = subprocess.DEVNULL,
) -> _Started:
    log = _log(settings, name)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as out:
        handle = subprocess.Popen(
            command,
            env=env,
            cwd=ROOT,
            stdin=stdin,
            stdout=out,
            stderr=out,
            start_new_session=True,  # Ctrl-C in this terminal is not meant for it
        )
    created = psutil.Process(handle.pid).create_time()
    return _Started(Process(name=name, pid=handle.pid, started=created), handle)


def _stop(process: Process) -> bool:
    found = process.running()
    if found is None:
        return False
    family = [found, *found.children(recursive=True)]
    # One SIGTERM may not stop a worker; what is left after a while is killed.
    for ask in (psutil.Process.terminate, psutil.Process.kill):
        family = _ask(family, ask)
    return True


def _ask(family: list[psutil.Process], ask: Callable[[psutil.Process], None]) -> list[psutil.Process]:
    for member in family:
        try:
            ask(member)
        except psutil.NoSuchProcess:
            continue
    _, alive = psutil.wait_procs(family, timeout=STOP_TIMEOUT_S)
    return alive


def _wait(process: Process, address: str, settings: Settings) -> None:
    deadline = time.monotonic() + READY_TIMEOUT_S
    while time.monotonic() < deadline:
        if process.running() is None:
            raise StackError(f"{process.name} stopped while starting; see {_log(settings, process.name)}")
        try:
            urlopen(address, timeout=5).close()  # noqa: S310 - an http address of this machine
            return
        except OSError:
            time.sleep(0.2)  # between two looks
    raise StackError(
        f"{process.name} did not answer at {address} within {READY_TIMEOUT_S} s;"
        f" see {_log(settings, process.name)}"
    )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _require_free(host: str, port: int, name: str) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise StackError(
                f"{name}: {host}:{port} can't be used ({error.strerror});"
                f" set REGRAFT_{name.upper()}_PORT to another port"
            ) from None


def _log(settings: Settings, name: str) -> Path:
    return settings.root / "logs" / f"{name}.log"


@contextmanager
def _lock(settings: Settings) -> Iterator[None]:
    settings.root.mkdir(parents=True, exist_ok=True)
    with (settings.root / "stack.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _read(settings: Settings) -> tuple[Process, ...]:
    try:
        return Stack.model_validate_json((settings.root / "stack.json").read_bytes()).processes
    except (OSError, ValidationError):
        return ()


def _write(settings: Settings, processes: Iterable[Process]) -> None:
    stack = Stack(prefect=settings.prefect_url, mlflow=settings.mlflow_url, processes=tuple(processes))
    fresh = settings.root / "stack.json.new"
    fresh.write_text(stack.model_dump_json(indent=2) + "\n")
    fresh.replace(settings.root / "stack.json")
