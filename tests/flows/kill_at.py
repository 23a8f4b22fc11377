"""Runs the command line again and again, each time killed without warning in the middle of a stage.

python kill_at.py API_URL STATE TRAPS ARGUMENT...

TRAPS is JSON, [[function as module:name, which call of it, counted from 1], …]. For each a line is
printed: the status that the process ended with, and the names of the embedding cache's files then.
What a command imports is imported once, and each run is forked from there.
"""

import json
import os
import signal
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from flows.environment import enter
from tasks.settings import Settings


def set_trap(target: str, call: int) -> None:
    """The process dies when `target` is called for the `call`th time."""
    module, _, path = target.partition(":")
    holder: Any = import_module(module)
    *outer, name = path.split(".")
    for part in outer:
        holder = getattr(holder, part)
    original, calls = getattr(holder, name), 0

    def trap(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)

    setattr(holder, name, trap)


def run(arguments: list[str], target: str, call: int) -> int:
    """Runs a command in a process of its own; the status that it ended with, negative for a signal."""
    from flows.cli import main
    from tasks.embedding import extract

    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        try:
            extract.SEGMENT_ROWS = 32  # so that a part is written before the end
            set_trap(target, call)
            sys.argv[1:] = arguments
            main()
        finally:
            os._exit(99)  # not killed
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    api_url, state, traps, *arguments = sys.argv[1:]
    os.environ["REGRAFT_STATE"] = state
    if api_url:
        enter(Settings(), api_url=api_url)  # before Prefect is imported
        for heavy in ("flows.adapt", "tasks.embedding.backbone", "tasks.head.fit", "tasks.registry.register"):
            import_module(heavy)
    for target, call in json.loads(traps):
        status = run([*arguments, "--state", state], target, call)
        segments = sorted(file.name for file in Path(state, "embeddings").rglob("*.arrow"))
        print(json.dumps([status, segments]), flush=True)
