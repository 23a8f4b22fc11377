"""The float32 forward pass of the route that a run chooses, against torch's eager one at its best
batch size."""

from collections.abc import Iterator

import torch

from tests.bench import engine, harness, usual
from tests.bench.harness import Row

BATCHES = (1, 2, 4, 8, 16, 32, 64)
# Backbone, images in a round, goal.
FIGURES = (
    ("torchvision:resnet18", 128, 1.25),
    ("torchvision:resnet50", 64, 1.25),
    ("torchvision:mobilenet_v3_large", 256, 2.0),
    ("timm:tf_efficientnet_lite0", 192, 2.0),
)
LIMITS = (
    "eager's large convolutions are near the machine's rate of matrix products already; what is left to"
    " save is memory traffic between layers"
)


def run() -> Iterator[Row]:
    for figure in FIGURES:
        yield _figure(*figure)


def _figure(name: str, count: int, goal: float) -> Row:
    backbone = engine.backbone(name)
    size = backbone.preprocess.size
    ours = engine.route(backbone)
    eager = usual.network(backbone)
    inputs = {batch: torch.randn(batch, 3, size, size) for batch in BATCHES}
    best = _best_batch(eager, inputs)
    seconds = harness.interleaved(
        {
            "ours": engine.forward_loop(ours, size, count),
            "eager": engine.eager_loop(eager, inputs[best], count),
        }
    )
    return harness.row(
        f"forward, {name.partition(':')[2]}",
        seconds["ours"],
        seconds["eager"],
        unit="images/s",
        work=count,
        goal=goal,
        note=f"fp32, {size} px, {type(ours).__name__} in batches of {ours.batch}, from uint8 crops; against"
        f" torch eager NCHW at batch {best}, the best of {BATCHES[0]} to {BATCHES[-1]}, from float tensors",
        limits=LIMITS,
    )


def _best_batch(eager: torch.nn.Module, inputs: dict[int, torch.Tensor]) -> int:
    """The batch size with the least time for each image."""
    sides = {str(batch): engine.eager_loop(eager, x, 16) for batch, x in inputs.items()}
    seconds = harness.interleaved(sides, rounds=2)
    return min(inputs, key=lambda batch: min(seconds[str(batch)]) / max(16, batch))
