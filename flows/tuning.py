"""Where a fine-tuning runs: on a worker with a GPU where there is one, else in this process; and again
where its worker died."""

import logging
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import ArtifactFilter, FlowRunFilter
from prefect.client.schemas.objects import FlowRun, State, StateType, WorkerStatus
from prefect.client.schemas.sorting import FlowRunSort
from prefect.deployments import run_deployment
from prefect.events.filters import EventFilter
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelled, Crashed

from flows.finetune import finetune
from flows.gpu_pool import DEPLOYMENT, POOL
from tasks import errors
from tasks.errors import RegraftError, StackError
from tasks.finetune import bring
from tasks.finetune.request import FinetuneRequest
from tasks.finetune.task import tuned_here
from tasks.records import Tuned
from tasks.registry.task import fetch_tuned, is_trained, keep_backbone, keep_teachers, open_training_run
from tasks.settings import Settings

log = logging.getLogger(__name__)

ATTEMPTS = 3
POLL_S = 2.0
_RAISED = re.compile(r"^Flow run encountered an exception: (?P<kind>\w+): (?P<message>.*)", re.DOTALL)
_AGAIN = "run again"  # what an error says that another attempt may not meet


def start_finetune(request: FinetuneRequest) -> Tuned:
    """What the request asks for; it is trained once for the same data and parameters.

    Raises:
        RegraftError: training can't be done; see `flows.finetune`.
        StackError: three attempts ended without a result.
    """
    request = request.model_copy(update={"run_id": open_training_run(request)})
    settings = Settings()
    if is_trained(request.run_id):
        return tuned_here(settings, request.key) or fetch_tuned(request.run_id)
    # What was trained here, and could not be sent, goes through the flow here.
    if tuned_here(settings, request.key) is None and _is_manned(settings) and _can_travel(request):
        keep_backbone(request.run_id, request.backbone)
        if request.distillation is not None:
            keep_teachers(request.run_id, request.distillation)
        if _trained_elsewhere(request, settings.finetune_silent_s):
            return fetch_tuned(request.run_id)
    bring.keep(request.backbone, settings.root / "weights")
    return finetune(request)


def _can_travel(request: FinetuneRequest) -> bool:
    if request.distillation is None or not request.distillation.params.unlabelled:
        return True
    log.warning(
        "distill.unlabelled: %s: lies on this machine, so the student is trained here, not by workers of %s",
        request.distillation.params.unlabelled,
        POOL,
    )
    return False


def _is_manned(settings: Settings) -> bool:
    """Whether a worker waits for trainings, and can be told of them."""
    with get_client(sync_client=True) as client:
        try:
            client.read_deployment_by_name(DEPLOYMENT)
        except ObjectNotFound:
            return False
        if not _is_online(client):
            return False
    from tasks.registry.tracking import tracking_uri  # MLflow takes seconds to import

    if not tracking_uri(settings).startswith(("http:", "https:")):
        log.warning(
            "%s: has workers, but they can't reach MLflow in a file; set MLFLOW_TRACKING_URI to its server."
            " Training runs here",
            POOL,
        )
        return False
    return True


def _is_online(client: SyncPrefectClient) -> bool:
    try:
        workers = client.read_workers_for_work_pool(POOL)
    except httpx.HTTPStatusError as error:
        if error.response.status_code == httpx.codes.NOT_FOUND:
            return False
        raise
    return any(worker.status == WorkerStatus.ONLINE for worker in workers)


def _trained_elsewhere(request: FinetuneRequest, silent_s: float) -> bool:
    """Whether a worker has trained; False where none takes the run.

    Raises:
        RegraftError: training failed for a reason that another attempt would meet too.
    """
    tag = f"finetune-{request.key}"
    with get_client(sync_client=True) as client:
        number = _next_number(client, tag)
        for attempt in range(1, ATTEMPTS + 1):
            # The key makes two that ask at once, or one that was killed and asks again, wait for one run.
            run: Any = run_deployment(
                DEPLOYMENT,
                parameters={"request": request.model_dump(mode="json")},
                timeout=0,
                tags=[tag],
                flow_run_name=f"{request.name}-{number}",
                idempotency_key=f"{request.key}-{number}",
            )
            state = Watch(client, silent_s).ended(run)
            if state.is_completed():
                return True
            if state.type == StateType.CANCELLED and state.message == _NOBODY:
                return False
            _raise_final(state)
            log.warning("fine-tune: attempt %s of %s ended: %s", attempt, ATTEMPTS, state.message)
            number += 1
    raise StackError(
        f"{DEPLOYMENT}: {ATTEMPTS} attempts ended without a result, the last with: {_one_line(state)}; mend"
        " that and run again: training carries on from its last checkpoint"
    )


def _next_number(client: SyncPrefectClient, tag: str) -> int:
    """Of the attempt to wait for: one that is under way, else a new one."""
    tagged = FlowRunFilter.model_validate({"tags": {"all_": [tag]}})
    found = client.read_flow_runs(
        flow_run_filter=tagged, sort=FlowRunSort.EXPECTED_START_TIME_DESC, limit=200
    )
    under_way = any(run.state is not None and not run.state.is_final() for run in found)
    return max(1, len(found) + (0 if under_way else 1))


_NOBODY = "No worker took it."


@dataclass
class Watch:
    """Waits for a flow run on another machine, whose death nobody may report.

    Signs of life are its states, those of its tasks, what it shows, and the heartbeats of its process
    (of Prefect, every three minutes unless PREFECT_FLOWS_HEARTBEAT_FREQUENCY says otherwise). Only that
    they change counts, so that clocks may differ.
    """

    client: SyncPrefectClient
    silent_s: float
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    _sign: Any = field(default=None, init=False)
    _changed: float = field(default=0.0, init=False)

    def ended(self, run: FlowRun) -> State[Any]:
        """The final state of the run; that of one which is silent for too long is made.

        Raises:
            StackError: Prefect is away for as long.
        """
        self._changed, looked = self.clock(), -self.silent_s
        while True:
            try:
                run = self.client.read_flow_run(run.id)
                state = run.state
                assert state is not None
                if state.is_final():
                    return state
                if self.clock() - looked >= min(30.0, self.silent_s / 10):
                    looked = self.clock()
                    self._note(_signs(self.client, run))
                if self.clock() - self._changed > self.silent_s and (end := self._end(run, state)):
                    return end
            except httpx.HTTPError as error:
                if self.clock() - self._changed > self.silent_s:
                    raise StackError(
                        f"Prefect does not answer ({error}); training goes on elsewhere: run again to take"
                        " its result"
                    ) from None
            self.sleep(POLL_S)

    def _note(self, sign: Any) -> None:
        if sign != self._sign:
            self._sign, self._changed = sign, self.clock()

    def _end(self, run: FlowRun, state: State[Any]) -> State[Any] | None:
        """Gives up a run without a sign of life; one that waits for a busy worker waits on."""
        end: State[Any]
        if state.type == StateType.SCHEDULED:
            if _is_online(self.client):
                self._changed = self.clock()
                return None
            end = Cancelled(message=_NOBODY)
        else:
            end = Crashed(
                message=f"No sign of life for {self.silent_s:.0f} s: its worker is taken to be dead."
            )
        self.client.set_flow_run_state(run.id, end, force=True)
        return end


def _signs(client: SyncPrefectClient, run: FlowRun) -> tuple[datetime | None, ...]:
    """When each kind of sign was last given."""
    of_run = FlowRunFilter.model_validate({"id": {"any_": [run.id]}})
    shown = client.read_artifacts(
        artifact_filter=ArtifactFilter.model_validate({"flow_run_id": {"any_": [run.id]}})
    )
    tasks = client.read_task_runs(flow_run_filter=of_run)
    beats = client.read_events(
        EventFilter.model_validate(
            {
                "event": {"name": ["prefect.flow-run.heartbeat"]},
                "resource": {"id": [f"prefect.flow-run.{run.id}"]},
            }
        ),
        limit=1,
    ).events
    assert run.state is not None
    return (
        run.state.timestamp,
        max((one.updated for one in shown if one.updated), default=None),
        max((one.updated for one in tasks if one.updated), default=None),
        beats[0].occurred if beats else None,
    )


def _raise_final(state: State[Any]) -> None:
    """Raises what the flow raised, where another attempt would meet it too."""
    if state.type == StateType.CANCELLED:
        raise StackError(f"{DEPLOYMENT}: the training was cancelled ({_one_line(state)}); run again")
    found = _RAISED.match(state.message or "")
    kind = getattr(errors, found["kind"], None) if found else None
    if found and isinstance(kind, type) and issubclass(kind, RegraftError) and _AGAIN not in found["message"]:
        raise kind(found["message"].strip())


def _one_line(state: State[Any]) -> str:
    return " ".join((state.message or state.name or "").split())[:500]
