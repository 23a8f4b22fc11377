"""Processes in the background that can be found again: by a mark in their environment, which their
children inherit. An id alone may be another process by now, and a child may outlive its parent."""

import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil
from pydantic import BaseModel, ConfigDict

from tasks.settings import ROOT

MARK = "REGRAFT_BACKGROUND"
STOP_TIMEOUT_S = 30
# A program that begins when it is told to, and never if the one who was to tell it dies before.
_WHEN_TOLD = 'read -r _ && exec "$@" </dev/null'


class Process(BaseModel):
    """A process that was started here."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    pid: int
    mark: str

    def running(self) -> bool:
        with suppress(psutil.Error):
            process = psutil.Process(self.pid)
            for _ in range(20):
                if not _alive(process):
                    return False
                if environ := process.environ():
                    return environ.get(MARK) == self.mark
                time.sleep(0.05)  # it reads as empty while one program takes the place of another
        return False


def start(
    process: tuple[str, str],
    command: Sequence[str],
    env: Mapping[str, str],
    log: Path,
    record: Callable[[Process], None],
) -> None:
    """Starts a command; calls `record` before it begins, so that none can run unrecorded.

    Args:
        process: its name and mark.
        command: program and arguments.
        env: all its environment but the mark.
        log: receives what it prints, at the end.
        record: keeps the process where `down` finds it.
    """
    name, mark = process
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as out:
        handle = subprocess.Popen(
            ["/bin/sh", "-c", _WHEN_TOLD, name, *command],
            env={**env, MARK: mark},
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=out,
            stderr=out,
            start_new_session=True,  # Ctrl-C in this terminal is not meant for it
        )
    record(Process(name=name, pid=handle.pid, mark=mark))
    assert handle.stdin is not None
    with handle.stdin as go:
        go.write(b"\n")


def end(mark: str) -> bool:
    """Ends all processes with this mark and their children; returns whether there were any."""
    found = False
    # One SIGTERM may not stop a worker; what is left after a while is killed.
    for ask in (psutil.Process.terminate, psutil.Process.kill):
        asked: set[psutil.Process] = set()
        deadline = time.monotonic() + STOP_TIMEOUT_S
        unseen = 0
        while unseen < 2 and time.monotonic() < deadline:  # one look may fall into a change of programs
            family = _family(mark)
            found = found or bool(family)
            unseen = 0 if family else unseen + 1
            for member in family - asked:
                with suppress(psutil.NoSuchProcess):
                    ask(member)
            asked |= family
            time.sleep(0.1)  # between two looks
    return found


def _family(mark: str) -> set[psutil.Process]:
    family: set[psutil.Process] = set()
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get(MARK) == mark:
                family |= {process, *process.children(recursive=True)}
    return {member for member in family if member.pid != os.getpid() and _alive(member)}


def _alive(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    return False
