"""What fine-tuning on other machines goes through: the work pool of the machines with a GPU, its
deployment, and the limit on trainings at once. None of it needs Prefect to be imported."""

import sys

POOL = "adapt-gpu"
DEPLOYMENT = "finetune/gpu"
LIMIT = "regraft-gpu"
WORKER = "gpu-worker"  # a local one; a number follows


def worker(number: int, workers: int, name: str) -> tuple[list[str], dict[str, str]]:
    """Command and environment of a local worker, which trains one at a time: alone it has all GPUs,
    else one of its own."""
    pool = ["--pool", POOL, "--type", "process", "--limit", "1", "--name", name]
    own = {"CUDA_VISIBLE_DEVICES": str(number)} if workers > 1 else {}
    return [sys.executable, "-m", "prefect", "worker", "start", *pool], own
