"""What test_distributed.py starts by torchrun: `two_processes.py OUT`; rank 0 writes what all found."""

import json
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from tasks.finetune.distributed import Processes, joined

SAMPLES, PARTS = 12, 3


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 2))


def gradients(processes: Processes) -> list[Tensor]:
    """Of the weighted mean of the losses of all samples, each process with every so manieth, in parts."""
    x = torch.randn(SAMPLES, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    weight = torch.arange(SAMPLES, dtype=torch.float32)  # unlike from process to process
    mine = slice(processes.rank, None, processes.world)
    model = network()
    wrapped = processes.wrap(model)
    total = processes.total(weight[mine].sum())
    parts = list(zip(x[mine].chunk(PARTS), weight[mine].chunk(PARTS), strict=True))
    for number, (images, weights) in enumerate(parts, start=1):
        with processes.synchronised(wrapped, number == len(parts)):
            losses = wrapped(images).square().sum(1)
            ((losses * weights).sum() / total * processes.world).backward()
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


def main(out: Path) -> None:
    with joined() as processes:
        own = torch.tensor([1.0, 10.0]) * (processes.rank + 1)
        found = {
            "world": processes.world,
            "device": str(processes.device),
            "total": processes.total(own).tolist(),
            "own": own.tolist(),
            "any of one": processes.any(processes.rank == 1),
            "any of none": processes.any(False),
            "gradients": [gradient.flatten().tolist() for gradient in gradients(processes)],
        }
        processes.barrier()
        if processes.rank == 0:
            out.write_text(json.dumps(found))
    assert not torch.distributed.is_initialized()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
