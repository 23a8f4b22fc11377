"""`python -m tasks.finetune.on_ray SPEC.json`: one training by several processes of a Ray cluster, on as many
machines as they need (Ray Train), which all see the state folder."""

import os
import sys
from pathlib import Path
from typing import Any

from tasks.cluster import ray_slot, set_up_ray
from tasks.errors import RegraftError, StackError
from tasks.finetune.process import ERROR, failed, leave_with_the_parent, run_to_end
from tasks.finetune.spec import Spec
from tasks.finetune.stop import Stop
from tasks.settings import Settings


def main(file: Path) -> int:
    """Starts the processes and waits for them; returns the exit status."""
    leave_with_the_parent()
    settings, spec = Settings(), Spec.load(file)
    set_up_ray(settings.runner_address)
    try:
        _fit(spec, ray_slot(settings.runner_address), settings.trainers)
    except RegraftError as error:
        return failed(spec, error, 1)
    return int((spec.out / ERROR).exists())


def _fit(spec: Spec, slot: dict[str, Any], trainers: int) -> None:
    import ray
    from ray.exceptions import RayError
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    gpus = bool(slot.get("num_gpus"))
    resources = {"CPU": float(slot["num_cpus"]), **({"GPU": 1.0} if gpus else {})}
    trainer = TorchTrainer(
        _work,
        train_loop_config={"spec": spec.model_dump_json(), "environment": _environment()},
        scaling_config=ScalingConfig(num_workers=trainers, use_gpu=gpus, resources_per_worker=resources),
        run_config=RunConfig(name=spec.key, storage_path=str(spec.state / "ray")),
    )
    try:
        trainer.fit()
    except (RayError, RuntimeError) as error:
        if (spec.out / ERROR).exists():
            return
        reason = " ".join(str(error).split())[:300]
        raise StackError(f"Ray Train: the training ended early ({reason}); run again to carry on") from None
    finally:
        ray.shutdown()


def _environment() -> dict[str, str]:
    """What the workers take over from here: places and credentials."""
    return {name: value for name, value in os.environ.items() if name.startswith(("REGRAFT_", "AWS_"))}


def _work(config: dict[str, Any]) -> None:
    """In each process; the process group is Ray's. Nobody asks it to stop: a checkpoint is never old."""
    os.environ.update(config["environment"])
    if run_to_end(Spec.model_validate_json(config["spec"]), Stop()):
        raise RuntimeError("the reason is in the folder of the spec")


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
