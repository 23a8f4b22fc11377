"""What the shards of an embedding run on: a thread of this process, or the workers of a Ray or Dask
cluster."""

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import TaskRunFilter
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from prefect.states import Crashed
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from tasks.cluster import set_up_ray
from tasks.errors import ParamsError, StackError
from tasks.settings import Settings

_LIBRARIES = {"ray": ("ray", "prefect_ray"), "dask": ("distributed", "prefect_dask")}


def task_runner(settings: Settings) -> TaskRunner[Any]:
    """The task runner that the settings name. A cluster is reached, or started, when the first shard
    is handed to it.

    Raises:
        StackError: its extra is not installed.
        ParamsError: a cluster is set, but nothing to spread over it.
    """
    if settings.runner == "threads":
        return ThreadPoolTaskRunner(max_workers=1)  # a shard uses all cores by itself
    if any(importlib.util.find_spec(library) is None for library in _LIBRARIES[settings.runner]):
        raise StackError(
            f"REGRAFT_RUNNER={settings.runner}: is not installed; install the extra `{settings.runner}`"
        )
    if settings.shards == 1:
        raise ParamsError(
            f"REGRAFT_RUNNER={settings.runner}: has no effect on one shard; set REGRAFT_SHARDS to a few for"
            " each worker"
        )
    if settings.runner == "ray":
        set_up_ray(settings.runner_address)
        from flows.on_ray import RayRunner

        return RayRunner(settings.runner_address)
    from flows.on_dask import DaskRunner

    return DaskRunner(settings.runner_address)


@contextmanager
def explained() -> Iterator[None]:
    """Turns what a cluster raises when it gives a shard up into one line. Where one shard fails, the
    task runs of the others end too: nobody waits for them, and to Prefect they would run for ever.

    Raises:
        StackError: instead of the errors of Ray and Dask.
    """
    try:
        yield
    except Exception as error:
        _end_task_runs()
        kind = type(error)
        if kind.__module__.partition(".")[0] not in ("ray", "distributed"):
            raise
        raise StackError(
            f"the cluster gave a shard up: its worker died again and again, or can't run it"
            f" ({kind.__name__}); look at the memory and the logs of the workers. What was embedded is kept:"
            " run again"
        ) from None


def _end_task_runs() -> None:
    unfinished = TaskRunFilter.model_validate(
        {"flow_run_id": {"any_": [flow_run.id]}, "state": {"type": {"any_": ["PENDING", "RUNNING"]}}}
    )
    with get_client(sync_client=True) as client:
        for run in client.read_task_runs(task_run_filter=unfinished):
            lost: State[Any] = Crashed(message="Its worker died, or another shard failed.")
            client.set_task_run_state(run.id, lost, force=True)
