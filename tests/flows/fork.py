"""Runs the command line several times; what it imports is imported once, and each run is forked from
there.

python fork.py API_URL STATE < COMMANDS

COMMANDS is JSON, a list of lists of arguments. For each a line of JSON is printed: the status that the
process ended with, its standard output, and its standard error.
"""

import json
import os
import sys
import tempfile
from importlib import import_module
from pathlib import Path

from flows.environment import enter
from tasks.settings import Settings

HEAVY = (
    "flows.adapt",
    "mlflow.store.tracking.sqlalchemy_store",
    "tasks.audit.audit",
    "tasks.embedding.backbone",
    "tasks.evaluation.evaluate",
    "tasks.head.fit",
    "tasks.registry.register",
    "timm.models",
)


def run(arguments: list[str]) -> tuple[int, str, str]:
    """The command in a process of its own."""
    from flows.cli import main

    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            for stream, file in ((sys.stdout, out), (sys.stderr, err)):
                os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), stream.fileno())
            code: object = 99
            try:
                sys.argv[1:] = arguments
                main()
            except SystemExit as end:
                code = end.code
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code if isinstance(code, int) else 0)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        return status, out.read_text(), err.read_text()


if __name__ == "__main__":
    api_url, state = sys.argv[1:]
    os.environ["REGRAFT_STATE"] = state
    enter(Settings(), api_url=api_url)  # before Prefect is imported
    for heavy in HEAVY:
        import_module(heavy)
    for command in json.load(sys.stdin):
        print(json.dumps(run([*command, "--state", state])), flush=True)
