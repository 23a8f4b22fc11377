"""The rungs of the ladder beside each other on the validation split: what each reaches, which is taken,
and what fine-tuning may gain. The test split has no part in it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow.parquet as pq

from tasks.data import units
from tasks.evaluation.checks import signed
from tasks.evaluation.compare import differences, on_classes, on_labels
from tasks.evaluation.metrics import ALPHA, Bootstrap, bootstrap, interval
from tasks.evaluation.sums import Floats
from tasks.head import fitted
from tasks.head.fit import split_data
from tasks.params import LOWER_IS_BETTER, EvaluationParams
from tasks.records import Embeddings, Head, Interval, Manifest


@dataclass(frozen=True)
class Judged:
    """A rung as it does on the validation split."""

    name: str
    validation: Bootstrap


@dataclass(frozen=True)
class Choice:
    """Which rung is taken."""

    index: int
    reason: str  # in a sentence


def on_validation(
    manifest: Manifest, embeddings: Embeddings, head: Head, params: EvaluationParams
) -> Bootstrap:
    """A head's answers for the validation split, bootstrapped: of one that was chosen by that split, what
    was chosen without the sample. Of one manifest and equal parameters all are drawn alike, and so can be
    compared.

    Raises:
        CacheError: an embedding is missing.
        RegistryError: the head's files are missing or damaged.
    """
    x, truth = split_data(manifest, embeddings, "validation")
    if head.judged_on == "validation":
        told = pq.read_table(head.path / "held_out.parquet", columns=["outputs"])["outputs"]
        flat = told.combine_chunks().flatten().to_numpy(zero_copy_only=False)
        outputs: Floats = flat.astype(np.float64).reshape(len(truth), -1)
    else:
        outputs = np.asarray(fitted.load(head.path).outputs(x), dtype=np.float64)
    if manifest.target != "number":  # a head of a subset may lack a class
        placed = on_labels if manifest.target == "labels" else on_classes
        outputs = placed(outputs, head.classes, manifest.classes)
    return bootstrap(
        outputs,
        truth,
        resamples=params.bootstrap,
        seed=params.seed,
        bins=params.calibration_bins,
        target=manifest.target,
        groups=units.of_split(manifest, "validation"),
    )


def validation_interval(judged: Bootstrap, metric: str, alpha: float = ALPHA) -> Interval:
    """The metric of a rung on validation with its 1 - alpha interval."""
    return interval(judged.points[metric], judged.draws[metric], units=judged.size, alpha=alpha)


def choose(rungs: Sequence[Judged], metric: str) -> Choice:
    """The rung to take, by the validation split alone: from the cheapest on, a dearer rung takes the place
    of the one below it if its gain exceeds one standard error of the paired difference.

    That is the one-standard-error rule (Hastie et al., The Elements of Statistical Learning, 7.10) of
    differences: what both rungs share on the same samples (paired bootstrap over units) is no noise of
    their comparison. What can't be judged takes no place, and gives way to anything that can be.

    Args:
        rungs: the cheapest first.

    Raises:
        ValueError: there are none, or they were not judged on the same samples with the same resamples.
    """
    if not rungs:
        raise ValueError("there is no rung to take")
    words = metric.replace("_", " ")
    value = rungs[0].validation.points[metric]
    if len(rungs) == 1:
        return Choice(0, f"{rungs[0].name} is taken, the only rung ({words} {value:.3f} on validation).")
    taken, steps = 0, []
    for at in range(1, len(rungs)):
        gain, error = _gained(rungs[at], rungs[taken], metric)
        beside = f"{rungs[at].name} against {rungs[taken].name}"
        if not math.isfinite(gain):
            steps.append(f"{beside} can't be compared")
            better = math.isfinite(rungs[at].validation.points[metric])
            better = better and not math.isfinite(rungs[taken].validation.points[metric])
        elif math.isfinite(error):
            better = gain > error
            than = "more than" if better else "no more than"
            steps.append(f"{beside} {signed(gain)}, {than} one standard error ({error:.3f})")
        else:
            better = False
            steps.append(f"{beside} {signed(gain)}, of which too few samples tell the standard error")
        taken = at if better else taken
    by = f"{words} {'saved' if metric in LOWER_IS_BETTER else 'gained'} on validation"
    return Choice(taken, f"{rungs[taken].name} is taken, by the {by}: {'; '.join(steps)}.")


def expected_gain(
    frozen: Bootstrap, tuned: Bootstrap, frozen_of_all: Bootstrap, metric: str, alpha: float = ALPHA
) -> Interval:
    """What fine-tuning on all N training samples is expected to gain over the frozen backbone, from a trial
    on n of them; above 0 is better, whatever the metric.

    The trial gives the errors of the frozen and the tuned rung, e_f(n) and e_t(n); the learning curve of
    the frozen rung gives e_f(N). The tuned one is taken to keep its share of it:

        e_t(N) = e_f(N) e_t(n) / e_f(n),   gain = e_f(N) - e_t(N).

    That assumes that both errors fall by the same power of the number of samples (Hestness et al. 2017,
    https://arxiv.org/abs/1712.00409). More samples mostly help a tuned backbone more than a head alone,
    so the gain is rather too small; nothing in the trial shows that it is so here.

    The error is the metric where lower is better, else its distance from 1, of which less than half a
    sample's share can't be told. The interval (1 - alpha) is that of the whole expression on each resample
    of the validation samples, which all three share: the noise of these samples, not that of another
    trial, nor that the best of several candidates was chosen on them.

    Args:
        frozen: a head on the frozen backbone, trained on the n samples.
        tuned: the backbone tuned on the same n samples.
        frozen_of_all: a head on the frozen backbone, trained on all N.

    Returns:
        The gain; its ends are NaN of fewer than two units.

    Raises:
        ValueError: the three were not judged on the same samples with the same resamples.
    """
    for other in (tuned, frozen_of_all):
        differences(other, frozen, alpha)  # raises

    def gain(points: Sequence[Floats]) -> Floats:
        at_n, tuned_at_n, at_all = (_errors(one, metric, len(frozen.truth)) for one in points)
        found: Floats = at_all * (1 - tuned_at_n / at_n)
        return found

    three = (frozen, tuned, frozen_of_all)
    value = float(gain([np.array(one.points[metric]) for one in three]))
    found = interval(value, gain([one.draws[metric] for one in three]), units=frozen.size, alpha=alpha)
    if frozen.size < 2:
        return Interval(value=found.value, low=math.nan, high=math.nan)
    return found


def _errors(values: Floats, metric: str, samples: int) -> Floats:
    lower = metric in LOWER_IS_BETTER
    least = np.finfo(np.float64).tiny if lower else 0.5 / max(samples, 1)
    found: Floats = np.maximum(values if lower else 1 - values, least)
    return found


def _gained(one: Judged, other: Judged, metric: str) -> tuple[float, float]:
    """By how much `one` is better than `other`, and the standard error of that."""
    found = differences(one.validation, other.validation)[metric]
    return -found.value if metric in LOWER_IS_BETTER else found.value, found.standard_error
