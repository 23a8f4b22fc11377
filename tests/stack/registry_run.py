"""Records adapt runs in processes that die: `python registry_run.py RUN.json WHEN:CALL ...`.

Each WHEN:CALL is one process that is killed (-9) before or after its first use of that call of
MLflow's client. `both` is two processes that record at once and live. Another RUN.json may follow.
"""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from pydantic import TypeAdapter

from tasks.registry.adapt_run import AdaptRun
from tasks.registry.register import record
from tasks.settings import Settings


def die_at(when: str, call: str) -> None:
    original: Callable[..., Any] = getattr(MlflowClient, call)

    def deadly(self: MlflowClient, *args: Any, **kwargs: Any) -> None:
        if when == "after":
            original(self, *args, **kwargs)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(MlflowClient, call, deadly)


def start(run: AdaptRun, point: str) -> int:
    child = os.fork()
    if child == 0:
        if point != "both":
            die_at(*point.split(":"))
        record(run, {"run": run.run_key}, Settings())
        os._exit(0)
    return child


def main(*arguments: str) -> None:
    for argument in arguments:
        if argument.endswith(".json"):
            run = TypeAdapter(AdaptRun).validate_json(Path(argument).read_bytes())
            continue
        expected = 0 if argument == "both" else -signal.SIGKILL
        for child in [start(run, argument) for _ in range(2 if argument == "both" else 1)]:
            ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            if ended != expected:
                sys.exit(f"{argument}: ended with {ended}, not {expected}")


if __name__ == "__main__":
    main(*sys.argv[1:])
