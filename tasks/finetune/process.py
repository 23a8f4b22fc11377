"""`python -m tasks.finetune.process SPEC.json`: one training; under torchrun one of the processes that
share it. It knows of no server: what it has to say it writes into the folder of its spec."""

import json
import os
import signal
import stat
import sys
import threading
from contextlib import suppress
from pathlib import Path

from tasks.errors import FinetuneError, RegraftError
from tasks.finetune.spec import Spec
from tasks.finetune.stop import PREEMPTED, Stop

ERROR = "error.json"  # in the spec's folder


def main(file: Path) -> int:
    """Trains; returns the exit status."""
    leave_with_the_parent()
    with Stop() as stop:
        return run_to_end(Spec.load(file), stop)


def run_to_end(spec: Spec, stop: Stop) -> int:
    """Trains; what goes wrong is said in the spec's folder. Returns the exit status."""
    from tasks.finetune.memory import hardware, is_out_of_memory  # torch
    from tasks.finetune.training import Preempted, run

    try:
        run(spec, stop)
    except Preempted:
        asked = FinetuneError("training was asked to end; a checkpoint holds all that it did: run again")
        return failed(spec, asked, PREEMPTED)
    except RegraftError as error:
        return failed(spec, error, 1)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        short = (str(error) or type(error).__name__).splitlines()[0]
        asked = FinetuneError(
            f"{hardware()}: the memory does not hold the training beside its batches ({short}); take a"
            " smaller backbone or image_size, or a method that trains less"
        )
        return failed(spec, asked, 1)
    return 0


def failed(spec: Spec, error: RegraftError, status: int) -> int:
    """Says why in a file: torchrun and Ray give no more than that something failed."""
    told = {"kind": type(error).__name__, "message": str(error)}
    (spec.out / ERROR).write_text(json.dumps(told))
    return status


def leave_with_the_parent() -> None:
    """From now on this process asks itself to end when its parent has ended."""
    threading.Thread(target=_wait_for_the_end, daemon=True).start()


def _wait_for_the_end() -> None:
    with suppress(OSError):
        if not stat.S_ISFIFO(os.fstat(0).st_mode):
            return  # it was started by hand
        # Not sys.stdin, whose lock this thread would hold while the interpreter ends.
        os.read(0, 1)  # returns when the parent closes the pipe, or dies
        os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
