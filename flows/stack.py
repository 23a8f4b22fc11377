"""The local stack: a Prefect server, an MLflow server and a process worker on loopback, in the
background. What is up is on record in `<state>/stack.json`."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import MappingProxyType
from urllib.parse import urlsplit
from uuid import uuid4

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from flows import background, gpu_pool
from flows.background import Process
from flows.environment import enter, environment
from flows.servers import answers, ask
from tasks.errors import StackError
from tasks.lock import locked
from tasks.params import Params
from tasks.records import digest_of
from tasks.settings import ROOT, Settings
from tasks.stage import code_digest

POOL = "adapt"
READY_TIMEOUT_S = 180
NAMES = ("prefect", "mlflow", "worker")  # in the order in which they start


class Stack(BaseModel):
    """What is up."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prefect: str
    mlflow: str
    processes: tuple[Process, ...] = ()
    deployed: str = ""  # digest of the deployments that this Prefect server has

    def runs(self, *names: str) -> bool:
        return set(names) <= {process.name for process in self.processes}

    def settings(self, settings: Settings) -> Settings:
        """The settings with the addresses of this stack, whatever the environment says now."""
        prefect, mlflow = urlsplit(self.prefect), urlsplit(self.mlflow)
        ports = {"prefect_port": prefect.port, "mlflow_port": mlflow.port}
        return settings.model_copy(update={"host": prefect.hostname, **ports})


def up(settings: Settings, params: Params) -> Stack:
    """Starts what is not running yet, registers the deployments, returns when all answer. Where it
    fails, what it started is stopped again; where it is killed, the next call carries on.

    Raises:
        StackError: a port is taken, or a server did not come up; its log says why.
    """
    with locked(settings.root / "stack.lock"):
        before = _read(settings)
        try:
            return _up(before.settings(settings), params, before)
        except StackError:
            _end(settings, [name for name in _names(settings) if not before.runs(name)])
            _write(settings, before)
            raise


def down(settings: Settings) -> list[str]:
    """Stops what `up` started, flow runs that the worker started included; returns the names."""
    with locked(settings.root / "stack.lock"):
        # The worker first, so that it takes no new run while the servers leave.
        stopped = _end(settings, reversed(_names(settings)))
        (settings.root / "stack.json").unlink(missing_ok=True)
    return stopped


def is_up(settings: Settings) -> bool:
    """Whether both servers that `up` started are running."""
    return _read(settings).runs("prefect", "mlflow")


class Api:
    """The Prefect API that a command uses."""

    def __init__(
        self, ready: Callable[[], None] = lambda: None, own: "subprocess.Popen[bytes] | None" = None
    ) -> None:
        self._ready = ready
        self._own = own  # kept, because the API ends when its standard input is closed

    def wait(self) -> None:
        """Returns when it answers.

        Raises:
            StackError: it does not come up.
        """
        self._ready()


def api(settings: Settings) -> Api:
    """Sets this process's environment for an API: the stack's if that is up, else the user's own
    (`PREFECT_API_URL`), else one that is started now and ends with this process.

    It takes seconds to come up, in which the caller can import what it needs before it calls
    `wait`.
    """
    stack = _read(settings)
    if stack.runs("prefect", "mlflow"):
        # Then MLflow is used through its server too.
        os.environ.setdefault("MLFLOW_TRACKING_URI", stack.mlflow)
        enter(stack.settings(settings), api_url=f"{stack.prefect}/api")
        return Api(lambda: _wait_for_servers(stack, settings))  # `up` may be on its way
    if "PREFECT_API_URL" in os.environ:
        os.environ.setdefault("PREFECT_UI_URL", os.environ["PREFECT_API_URL"].removesuffix("/api"))
        enter(settings, api_url=os.environ["PREFECT_API_URL"])
        return Api()
    port = _free_port()
    url = f"http://127.0.0.1:{port}/api"
    enter(settings, api_url=url)
    log = _log(settings, "api")
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as out:
        own = subprocess.Popen(
            [sys.executable, "-m", "flows.api_server", str(port)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=out,
            stderr=out,
            start_new_session=True,  # Ctrl-C is for this process, which still reports to the API
        )
    return Api(
        lambda: _wait("api", lambda: own.poll() is None, lambda: answers(f"{url}/health"), settings), own
    )


def _up(settings: Settings, params: Params, before: Stack) -> Stack:
    env = {**os.environ, **environment(settings, api_url=f"{settings.prefect_url}/api")}
    stack = before
    ports = {"prefect": settings.prefect_port, "mlflow": settings.mlflow_port}
    _require_free(settings.host, {name: port for name, port in ports.items() if not stack.runs(name)})

    def keep(update: Mapping[str, object]) -> None:
        nonlocal stack
        stack = stack.model_copy(update=update)
        _write(settings, stack)

    def ensure(name: str, command: list[str], extra: Mapping[str, str] = MappingProxyType({})) -> None:
        if not stack.runs(name):
            background.start(
                (name, _mark(settings, name)),
                command,
                {**env, **extra},
                _log(settings, name),
                lambda process: keep({"processes": (*stack.processes, process)}),
            )

    if not stack.runs("prefect"):
        keep({"deployed": ""})
    ensure("prefect", _prefect_server(settings))
    ensure("mlflow", *_mlflow_server(settings))
    _wait_for_servers(stack, settings, "prefect")
    # Deployments that are there stay as they are: a schedule that was paused in the UI stays paused.
    plan, digest = _plan(params)
    if stack.deployed != digest:
        _deploy(settings, plan, env, stack.prefect)
        keep({"deployed": digest})
    _wait_for_servers(stack, settings)
    if not stack.runs("worker"):
        _end(settings, ["worker"])  # runs that outlived theirs
        _crash_lost_runs(stack.prefect)
        worker = f"local-{uuid4().hex[:8]}"
        ensure("worker", _worker(worker), {"MLFLOW_TRACKING_URI": settings.mlflow_url})
        _wait_for(stack, "worker", lambda: _is_online(stack.prefect, POOL, worker), settings)
    _limit_trainings(stack.prefect, settings.gpu_workers)
    there = [one.name for one in stack.processes if one.name.startswith(gpu_pool.WORKER)]
    if settings.gpu_workers and there and len(there) != settings.gpu_workers:  # whose GPUs follow from it
        _end(settings, there)
        keep({"processes": tuple(one for one in stack.processes if one.name not in there)})
    for number in range(settings.gpu_workers):
        name = f"{gpu_pool.WORKER}-{number}"
        if not stack.runs(name):
            _end(settings, [name])  # a training that outlived it; another attempt carries on
            worker = f"{name}-{uuid4().hex[:8]}"
            command, own = gpu_pool.worker(number, settings.gpu_workers, worker)
            ensure(name, command, {"MLFLOW_TRACKING_URI": settings.mlflow_url, **own})
            _wait_for(stack, name, partial(_is_online, stack.prefect, gpu_pool.POOL, worker), settings)
    # What answers may be another stack's, which took the port at the same moment.
    _wait_for_servers(stack, settings)
    return stack


def _prefect_server(settings: Settings) -> list[str]:
    place = ["--host", settings.host, "--port", str(settings.prefect_port)]
    return [sys.executable, "-m", "prefect", "server", "start", *place]


def _mlflow_server(settings: Settings) -> tuple[list[str], dict[str, str]]:
    from tasks.registry.tracking import SERVER_ENVIRONMENT, server_options

    place = ["--host", settings.host, "--port", str(settings.mlflow_port), "--workers", "1"]
    return [sys.executable, "-m", "mlflow", "server", *place, *server_options(settings)], SERVER_ENVIRONMENT


def _worker(name: str) -> list[str]:
    pool = ["--pool", POOL, "--type", "process", "--limit", "1", "--name", name]
    return [sys.executable, "-m", "prefect", "worker", "start", *pool]


def _plan(params: Params) -> tuple[str, str]:
    """infra/prefect/prefect.yaml with the defaults of `params`, and a digest of all that a
    deployment is made of."""
    plan = yaml.safe_load((ROOT / "infra" / "prefect" / "prefect.yaml").read_text())
    flows = [_source(deployment["entrypoint"]) for deployment in plan["deployments"]]
    for deployment in plan["deployments"]:
        if deployment["entrypoint"].endswith(":adapt"):
            own = deployment.get("parameters", {})
            deployment["parameters"] = {"params": params.model_dump(mode="json"), **own}
    text = yaml.safe_dump(plan, sort_keys=False)
    return text, digest_of(text, flows, code_digest())


def _source(entrypoint: str) -> str:
    """Of a flow that is named by its file, or by its module."""
    file, named, _ = entrypoint.partition(":")
    return (ROOT / (file if named else f"{entrypoint.rpartition('.')[0].replace('.', '/')}.py")).read_text()


def _deploy(settings: Settings, plan: str, env: Mapping[str, str], api: str) -> None:
    """Registers the deployments of `plan`."""
    file = settings.root / "prefect.yaml"
    file.write_text(plan)
    prefect = [sys.executable, "-m", "prefect", "--no-prompt"]
    pool = ["work-pool", "create", POOL, "--type", "process", "--overwrite"]
    # One that is there may be of another type: of Kubernetes, say.
    gpu = ["work-pool", "create", gpu_pool.POOL, "--type", "process"]
    known = ask("GET", f"{api}/api/work_pools/{gpu_pool.POOL}", missing=True) is not None
    pools = [pool] if known else [pool, gpu]
    for arguments in (*pools, ["deploy", "--all", "--prefect-file", str(file)]):
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


def _wait_for_servers(stack: Stack, settings: Settings, *names: str) -> None:
    health = {"prefect": f"{stack.prefect}/api/health", "mlflow": f"{stack.mlflow}/health"}
    for name in names or health:
        _wait_for(stack, name, partial(answers, health[name]), settings)


def _wait_for(stack: Stack, name: str, ready: Callable[[], bool], settings: Settings) -> None:
    process = next(process for process in stack.processes if process.name == name)
    _wait(name, process.running, ready, settings)


def _wait(name: str, running: Callable[[], bool], ready: Callable[[], bool], settings: Settings) -> None:
    deadline = time.monotonic() + READY_TIMEOUT_S
    while True:
        if not running():
            raise StackError(f"{name} stopped while starting; see {_log(settings, name)}")
        if ready():
            return
        if time.monotonic() > deadline:
            raise StackError(f"{name} was not ready within {READY_TIMEOUT_S} s; see {_log(settings, name)}")
        time.sleep(0.2)  # between two looks


def _limit_trainings(prefect: str, workers: int) -> None:
    """As many at once as there are local workers, and at least one; a limit that is there is only raised,
    since others may have workers too."""
    limits = f"{prefect}/api/v2/concurrency_limits/"
    known = ask("GET", f"{limits}{gpu_pool.LIMIT}", missing=True)
    if known is None:
        ask("POST", limits, {"name": gpu_pool.LIMIT, "limit": max(1, workers)})
    elif workers > known["limit"]:
        ask("PATCH", f"{limits}{gpu_pool.LIMIT}", {"limit": workers})


def _is_online(prefect: str, pool: str, worker: str) -> bool:
    try:
        workers = ask("POST", f"{prefect}/api/work_pools/{pool}/workers/filter", {})
    except StackError:
        return False
    return any(found["name"] == worker and found["status"] == "ONLINE" for found in workers)


def _crash_lost_runs(prefect: str) -> None:
    """Ends the runs that a worker left behind when it was stopped or died: to Prefect they run for
    ever, and hold their deployment's concurrency slot as long. Call it while there is no worker."""
    unfinished = {"type": {"any_": ["PENDING", "RUNNING", "CANCELLING"]}}
    lost = {"work_pools": {"name": {"any_": [POOL]}}, "flow_runs": {"state": unfinished}}
    crashed = {"type": "CRASHED", "message": "The worker that ran it was stopped or died; start it again."}
    for run in ask("POST", f"{prefect}/api/flow_runs/filter", lost):
        ask("POST", f"{prefect}/api/flow_runs/{run['id']}/set_state", {"state": crashed, "force": True})


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _require_free(host: str, ports: Mapping[str, int]) -> None:
    with ExitStack() as held:  # all at once, so that one port for two servers is found out too
        for name, port in ports.items():
            probe = held.enter_context(socket.socket())
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
                probe.listen()
            except OSError as error:
                raise StackError(
                    f"{name}: {host}:{port} can't be used ({error.strerror});"
                    f" set REGRAFT_{name.upper()}_PORT to another port"
                ) from None


def _end(settings: Settings, names: Iterable[str]) -> list[str]:
    return [name for name in names if background.end(_mark(settings, name))]


def _names(settings: Settings) -> list[str]:
    """Of all that `up` may have started, in the order in which it did."""
    recorded = _recorded(settings)
    processes = recorded.processes if recorded else ()
    return [*NAMES, *(one.name for one in processes if one.name.startswith(gpu_pool.WORKER))]


def _mark(settings: Settings, name: str) -> str:
    return f"{settings.root}:{name}"


def _log(settings: Settings, name: str) -> Path:
    return settings.root / "logs" / f"{name}.log"


def _read(settings: Settings) -> Stack:
    """What is on record and runs; at the addresses of `settings` if nothing does."""
    stack = _recorded(settings)
    running = tuple(process for process in stack.processes if process.running()) if stack else ()
    if stack is None or not running:
        return Stack(prefect=settings.prefect_url, mlflow=settings.mlflow_url)
    return stack.model_copy(update={"processes": running})


def _recorded(settings: Settings) -> Stack | None:
    try:
        return Stack.model_validate_json((settings.root / "stack.json").read_bytes())
    except (OSError, ValidationError):
        return None


def _write(settings: Settings, stack: Stack) -> None:
    fresh = settings.root / "stack.json.new"
    fresh.write_text(stack.model_dump_json(indent=2) + "\n")
    fresh.replace(settings.root / "stack.json")
