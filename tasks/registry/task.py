"""The registry as Prefect tasks. MLflow takes seconds to import, so it is imported when needed."""

from typing import Any

from prefect import task

from tasks.records import Champion, Promotion, Registration
from tasks.registry.adapt_run import AdaptRun
from tasks.settings import Settings
from tasks.task import options


@task(name="look for a finished run", **options())
def find_finished(name: str, run_key: str) -> dict[str, Any] | None:
    """The stored result of a run with the same data, parameters and code that still holds."""
    from tasks.registry.versions import finished

    return finished(run_key, name, Settings())


@task(name="load champion", **options())
def load_champion(name: str) -> Champion | None:
    """The version that serves today."""
    from tasks.registry.versions import champion

    return champion(name, Settings())


@task(name="register", **options())
def register(run: AdaptRun, result: dict[str, Any]) -> Registration:
    """Records the run; registers a version if the gate passed. Idempotent by the run's key."""
    from tasks.registry.register import record

    return record(run, result, Settings())


@task(name="promote", **options())
def promote_version(name: str, version: str, by: str, reason: str) -> Promotion:
    from tasks.registry.promote import promote

    return promote(name, version, by, reason, Settings())
