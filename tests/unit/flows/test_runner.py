import importlib.util
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prefect import task
from prefect.task_runners import ThreadPoolTaskRunner

from flows.runner import task_runner
from tasks.errors import ParamsError, StackError
from tasks.settings import Settings


@pytest.fixture
def settings(tmp_path: Path) -> Callable[..., Settings]:
    return lambda **values: Settings(state=tmp_path, **values)


def test_task_runner__threads_run_one_shard_at_a_time(settings: Callable[..., Settings]) -> None:
    assert task_runner(settings(shards=8)) == ThreadPoolTaskRunner(max_workers=1)


@pytest.mark.parametrize("runner", ["ray", "dask"])
def test_task_runner__names_the_extra_that_is_missing(
    runner: str, settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(StackError, match=f"REGRAFT_RUNNER={runner}: is not installed.*extra `{runner}`"):
        task_runner(settings(runner=runner, shards=2))


def test_task_runner__a_cluster_for_one_shard_is_refused(settings: Callable[..., Settings]) -> None:
    pytest.importorskip("prefect_dask")
    with pytest.raises(ParamsError, match="no effect on one shard; set REGRAFT_SHARDS"):
        task_runner(settings(runner="dask"))


@pytest.mark.parametrize("runner", ["ray", "dask"])
def test_task_runner__keeps_its_address_and_copies_itself_for_each_run(
    runner: str, settings: Callable[..., Settings]
) -> None:
    pytest.importorskip(f"prefect_{runner}")
    made: Any = task_runner(settings(runner=runner, runner_address="head:1234", shards=2))
    assert made.duplicate() == made
    assert made.duplicate().address == "head:1234"


@pytest.mark.parametrize("runner", ["ray", "dask"])
def test_submit__cluster_that_can_not_be_reached_is_one_line(
    runner: str, settings: Callable[..., Settings]
) -> None:
    pytest.importorskip(f"prefect_{runner}")
    with socket.socket() as probe:  # bound, and nobody listens
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
        with (
            task_runner(settings(runner=runner, runner_address=address, shards=2)) as started,
            pytest.raises(StackError) as raised,
        ):
            started.submit(task(lambda: 1), {})
    assert str(raised.value) == f"REGRAFT_RUNNER_ADDRESS: {address}: can't be reached (Connection refused)"
