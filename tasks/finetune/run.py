"""The finetune stage: trains a backbone in a process of its own, which survives what happens to the
servers, and from its last checkpoint carries on where it was killed."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import tasks.errors
from tasks.embedding.source import file_digest, named
from tasks.errors import FinetuneError, RegraftError
from tasks.finetune.checkpoint import checkpoints_place
from tasks.finetune.progress import Progress, follow
from tasks.finetune.spec import Distillation, Spec
from tasks.params import FinetuneParams
from tasks.records import Backbone, Head, Manifest, Tuned
from tasks.settings import ROOT, Settings

LEAVE_S = 30.0  # for a last checkpoint
_LOOK_S = 0.5
_TOLD = 2000  # characters of what a process that died said last


def run(
    out: Path,
    manifest: Manifest,
    data: Path,
    backbone: Backbone,
    head: Head | None,
    params: FinetuneParams,
    settings: Settings,
    *,
    key: str,
    max_pixels: int,
    distillation: Distillation | None = None,
    watch: Callable[[Sequence[Progress]], None] = lambda lines: None,
) -> Tuned:
    """Trains `backbone` on the training split and writes weights.safetensors and history.json.

    Args:
        data: folder that the manifest's paths are relative to.
        backbone: with the layer `network` alone.
        head: fitted on its embeddings, to start from; none: a new one.
        key: names the training; checkpoints of the same key are carried on from.
        watch: called with each new piece of progress.

    Raises:
        FinetuneError: training can't start or go on.
        DataError: a file vanished or changed since the manifest was made.
    """
    spec = Spec(
        key=key,
        manifest=manifest,
        data=data,
        backbone=backbone,
        head=None if head is None else head.path,
        params=params,
        distillation=distillation,
        max_pixels=max_pixels,
        memory_bytes=settings.memory_bytes,
        state=settings.root,
        checkpoints=checkpoints_place(settings, key),
        out=out,
    )
    file = spec.save()
    _watched(_on_ray(file) if settings.trainers > 1 else _command(file), spec, watch)
    made = Tuned.load(out)
    weights = out / "weights.safetensors"
    if file_digest(weights) != made.backbone.weights_digest:
        raise FinetuneError(f"{weights}: is not the file that training wrote; run again")
    return made.model_copy(
        update={"backbone": named(made.backbone.model_copy(update={"weights": str(weights)}))}
    )


def _on_ray(spec: Path) -> list[str]:
    return [sys.executable, "-m", "tasks.finetune.on_ray", str(spec)]


def _command(spec: Path) -> list[str]:
    """Alone, or as many processes as there are GPUs."""
    import torch

    module = ["-m", "tasks.finetune.process", str(spec)]
    gpus = torch.cuda.device_count()
    if gpus < 2:
        return [sys.executable, *module]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(gpus)]
    return [sys.executable, *launcher, *module]


def _watched(command: Sequence[str], spec: Spec, watch: Callable[[Sequence[Progress]], None]) -> None:
    log = spec.out / "process.log"
    (spec.out / "error.json").unlink(missing_ok=True)  # of an earlier attempt
    with log.open("wb") as output:
        # It ends with this process: when the pipe closes, it saves a checkpoint and leaves.
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        offset = 0
        try:
            while True:
                ended = process.poll() is not None  # before the last look
                lines, offset = follow(spec.progress, offset)
                if lines:
                    watch(lines)
                if ended:
                    break
                time.sleep(_LOOK_S)  # between two looks
        finally:
            _end(process)
    if process.returncode:
        raise _reason(process.returncode, spec, log)


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Asks for a checkpoint; insists after a while."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(LEAVE_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    if process.stdin is not None:
        process.stdin.close()


def _reason(status: int, spec: Spec, log: Path) -> RegraftError:
    try:
        told = json.loads((spec.out / "error.json").read_text())
        kind: type[RegraftError] = getattr(tasks.errors, told["kind"])
        return kind(told["message"])
    except (OSError, ValueError, KeyError, AttributeError):
        pass
    said = log.read_text(errors="replace")
    last = said[-_TOLD:].strip().splitlines()[-1:]
    how = f"by signal {-status}" if status < 0 else f"with status {status}"
    kept = ""
    with suppress(OSError):  # the folder of this attempt goes
        file = spec.state / "finetune" / f"{spec.key}.log"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(said)
        kept = f"; all that it said is in {file}"
    return FinetuneError(
        f"the training process ended {how} ({' '.join(last) or 'it said nothing'}){kept}; run again to carry"
        " on from its last checkpoint"
    )
