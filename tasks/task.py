"""How a stage becomes a Prefect task: content-addressed folder, persisted JSON result, retries,
and how long it took."""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

from prefect.cache_policies import NO_CACHE
from pydantic import BaseModel

from tasks.data.image import BadImage
from tasks.errors import RegraftError
from tasks.records import digest_of
from tasks.settings import Settings
from tasks.stage import stage_key

# Seconds of the tasks of the flow runs of this process, by flow run and task name.
_SECONDS: dict[str, dict[str, float]] = {}


def options(stage: str | None = None) -> dict[str, Any]:
    """Arguments for `@task`.

    Args:
        stage: name of a stage whose result depends on nothing but the task's arguments: its
            result is found again by `stage_key`. None: the task looks at the world, so it always
            runs and is idempotent by itself.
    """
    return {
        "retries": 2,
        "retry_delay_seconds": [2, 10],
        "retry_condition_fn": _may_pass,
        "persist_result": True,
        "result_serializer": "json",
        "on_completion": [_note_seconds],
        **({"cache_key_fn": _cache_key(stage)} if stage else {"cache_policy": NO_CACHE}),
    }


def stage_folder(stage: str, *inputs: BaseModel | str | int | None) -> Path:
    """Where the result of a stage lies."""
    return Settings().root / "stages" / stage / stage_key(stage, *inputs)


def seconds_of(flow_run_id: str) -> dict[str, float]:
    """Seconds of each finished task of a flow run of this process, in their order."""
    return _SECONDS.pop(flow_run_id, {})


def _cache_key(stage: str) -> Callable[[object, dict[str, Any]], str]:
    def key(_context: object, arguments: dict[str, Any]) -> str:
        found = stage_folder(stage, *arguments.values())
        # Prefect remembers the record; without the folder that it names, it is worth nothing.
        whole = (found / "record.json").exists()
        name = f"{stage}-{digest_of(str(found))[:32]}"
        return name if whole else f"{name}-{uuid4().hex}"

    return key


def _may_pass(_task: object, _run: object, state: Any) -> bool:
    """A network or a disk may recover; an error that names its cause stays as it is."""
    try:
        state.result()
    except (RegraftError, BadImage):
        return False
    except Exception:
        return True
    return False


def _note_seconds(task: Any, run: Any, state: Any) -> None:
    started = run.start_time or state.timestamp
    passed = (datetime.now(UTC) - started).total_seconds()
    of_run = _SECONDS.setdefault(str(run.flow_run_id), {})
    of_run[task.name] = round(of_run.get(task.name, 0.0) + passed, 3)
