"""Challenger against champion: a paired bootstrap on the same samples and the same resamples."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from tasks.evaluation.metrics import Bootstrap, Floats, interval
from tasks.params import METRICS
from tasks.records import Difference


def on_classes(probabilities: ArrayLike, classes: Sequence[str], wanted: Sequence[str]) -> Floats:
    """The probabilities [N, C] of `classes` as columns [N, W] of `wanted`, which holds them all.

    A class that the model does not know gets probability 0, so a model pays in full for the
    samples of classes that it can't predict.

    Raises:
        ValueError: the columns are not one a class, or `wanted` lacks one of them.
    """
    p = np.asarray(probabilities, dtype=np.float64)
    if p.ndim != 2 or p.shape[1] != len(classes) or len(set(classes)) < len(classes):
        raise ValueError(f"probabilities {list(p.shape)} do not have a column for each of {list(classes)}")
    if lacking := sorted(set(classes) - set(wanted)):
        raise ValueError(f"the classes {lacking} have no column in {list(wanted)}")
    column = {label: i for i, label in enumerate(wanted)}
    placed = np.zeros((len(p), len(wanted)))  # [N, W]
    placed[:, [column[label] for label in classes]] = p
    return placed


def differences(challenger: Bootstrap, champion: Bootstrap) -> dict[str, Difference]:
    """Challenger minus champion in every metric, with the percentile 95 % interval of the
    differences within each resample. Noise that both models share cancels, so the interval is
    narrower than two separate ones suggest (Koehn 2004, https://aclanthology.org/W04-3250).

    Raises:
        ValueError: the two were not bootstrapped on the same samples with the same resamples.
    """
    same = (
        challenger.seed == champion.seed
        and np.array_equal(challenger.labels, champion.labels)
        and all(challenger.draws[name].shape == champion.draws[name].shape for name in METRICS)
    )
    if not same:
        raise ValueError("challenger and champion differ in samples, seed or number of resamples")
    pairs = {
        name: interval(
            challenger.points[name] - champion.points[name], challenger.draws[name] - champion.draws[name]
        )
        for name in METRICS
    }
    return {
        name: Difference(metric=name, value=pair.value, low=pair.low, high=pair.high)
        for name, pair in pairs.items()
    }
