"""The learning rate over the steps of a training."""

import math


def factor(step: int, steps: int, warmup: int) -> float:
    """What the peak learning rate is multiplied by: it rises in equal parts, is 1 at the step `warmup`,
    then falls as a half cosine, which comes to 0 when all steps are taken (SGDR without restarts,
    https://arxiv.org/abs/1608.03983).

    Args:
        step: from 0; `steps` and beyond give 0.
        steps: of the whole training.
        warmup: steps before the peak.
    """
    if step >= steps:
        return 0.0
    if step < warmup:
        return (step + 1) / (warmup + 1)  # the first step is not lost
    return (1 + math.cos(math.pi * (step - warmup) / (steps - warmup))) / 2
