"""What fine-tuning on other machines goes through: the work pool of the machines with a GPU, its
deployment, and the limit on trainings at once. None of it needs Prefect to be imported."""

import os
import sys

from tasks.errors import StackError

POOL = "adapt-gpu"
DEPLOYMENT = "finetune/gpu"
LIMIT = "regraft-gpu"
WORKER = "gpu-worker"  # a local one; a number follows


def worker(number: int, workers: int, name: str) -> tuple[list[str], dict[str, str]]:
    """Command and environment of a local worker, which trains one at a time: alone it has all GPUs,
    else one of its own."""
    pool = ["--pool", POOL, "--type", "process", "--limit", "1", "--name", name]
    if workers == 1:
        return [sys.executable, "-m", "prefect", "worker", "start", *pool], {}
    # Of those that this process may use, where not all are its own.
    known = [one for one in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if one.strip()]
    if known and number >= len(known):
        raise StackError(
            f"REGRAFT_GPU_WORKERS={workers}: CUDA_VISIBLE_DEVICES names {len(known)} GPUs; start fewer"
        )
    own = {"CUDA_VISIBLE_DEVICES": known[number] if known else str(number)}
    return [sys.executable, "-m", "prefect", "worker", "start", *pool], own
