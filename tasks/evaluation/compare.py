"""Challenger against champion on the same samples: paired bootstrap, paired randomisation, McNemar."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import bdtrc, stdtrit

from tasks.evaluation.metrics import ALPHA, Bootstrap, interval, standard_error
from tasks.evaluation.randomisation import one_sided
from tasks.evaluation.sums import Floats
from tasks.params import LOWER_IS_BETTER
from tasks.records import Difference, McNemar


def on_classes(outputs: ArrayLike, classes: Sequence[str], wanted: Sequence[str]) -> Floats:
    """The probabilities [N, C] of `classes` as columns [N, W] of `wanted`, which holds them all.

    A class that the model does not know gets probability 0, so a model pays in full for the
    samples of classes that it can't predict.

    Raises:
        ValueError: the columns are not one a class, or `wanted` lacks one of them.
    """
    p = np.asarray(outputs, dtype=np.float64)
    if p.ndim != 2 or p.shape[1] != len(classes) or len(set(classes)) < len(classes):
        raise ValueError(f"probabilities {list(p.shape)} do not have a column for each of {list(classes)}")
    if lacking := sorted(set(classes) - set(wanted)):
        raise ValueError(f"the classes {lacking} have no column in {list(wanted)}")
    column = {label: i for i, label in enumerate(wanted)}
    placed = np.zeros((len(p), len(wanted)))  # [N, W]
    placed[:, [column[label] for label in classes]] = p
    return placed


def on_labels(outputs: ArrayLike, labels: Sequence[str], wanted: Sequence[str]) -> Floats:
    """Like `on_classes`, of labels that are judged each by itself: those that are not wanted are left out."""
    p = np.asarray(outputs, dtype=np.float64)
    kept = [at for at, label in enumerate(labels) if label in set(wanted)]
    return on_classes(p[:, kept], [labels[at] for at in kept], wanted)


def differences(challenger: Bootstrap, champion: Bootstrap, alpha: float = ALPHA) -> dict[str, Difference]:
    """Challenger minus champion in every metric, with the percentile 1 - alpha interval of the
    differences within each resample. Noise that both models share cancels, so the interval is
    narrower than two separate ones suggest (Koehn 2004, https://aclanthology.org/W04-3250).

    The p-values are not counted in the resamples, of which a thousand can't show less than .001 (Holm's
    correction for 100 slices asks for .0005); they are those of `randomisation.one_sided`.

    With a single unit there is no interval: its ends are NaN unless the two are equal.

    `at_worst` is what non-inferiority is judged by: the farther of the interval's worse end and `worst`;
    exactly 0 for equal outputs.

    Raises:
        ValueError: the two were not bootstrapped on the same samples with the same resamples.
    """
    same = (
        (challenger.target, challenger.seed) == (champion.target, champion.seed)
        and np.array_equal(challenger.truth, champion.truth)
        and np.array_equal(challenger.units, champion.units)
        and all(draws.shape == champion.draws[name].shape for name, draws in challenger.draws.items())
    )
    if not same:
        raise ValueError("challenger and champion differ in samples, seed or number of resamples")
    added = contributions(challenger, champion)
    stake = challenger.sums.at_stake() if challenger.sums is not None else {}
    return {
        name: _difference(name, challenger, champion, added.get(name), stake.get(name, 0.0), alpha)
        for name in challenger.points
    }


def contributions(challenger: Bootstrap, champion: Bootstrap) -> dict[str, Floats]:
    """Metric -> what each unit [U] adds to the difference; their sum is the difference itself. Nothing
    where one of the models can't be judged."""
    ours, theirs = challenger.sums, champion.sums
    if ours is None or theirs is None:
        return {}
    apart = ours.statistics - theirs.statistics  # [K, U]
    weights = ours.weights(ours.total(), theirs.total())
    return {name: np.asarray(weight @ apart) for name, weight in weights.items()}


def worst(added: Floats, stake: float, alpha: float = ALPHA) -> tuple[float, float]:
    """By how much the challenger may be worse, also where next to nothing was seen to differ: a score bound.

    Resamples of samples on which nobody differs show no difference, however few they are. So a challenger
    that is worse by L is taken to have lost M = L + Σ added more than was seen, in losses as large as one
    unit can be; by the variance that it then has (U / (U - 1) Σ (added - mean)² + stake · M),

        M² = t² (variance seen + stake · M),   t = t(1 - alpha / 2; U - 1).

    With losses alone this is Wilson's score bound (1927, https://doi.org/10.1080/01621459.1927.10502953)
    for a rare loss; with a stake of 0 it is the t interval. Of two models that differ on no sample it is
    t² · stake: 3.9 / U in the accuracy of many units.

    Args:
        added: [U], what each unit adds to the difference, turned so that better is higher.
        stake: what the metric can lose by one unit (see `Sums.at_stake`); 0 where that has no bound.

    Returns:
        L, and t² · stake. NaN of fewer than two units.
    """
    units = len(added)
    if units < 2:
        return float("nan"), float("nan")
    t2 = float(stdtrit(units - 1, alpha / 2)) ** 2
    seen = float(((added - added.mean()) ** 2).sum()) * units / (units - 1)
    unseen = t2 * stake
    return float(unseen / 2 + np.sqrt(unseen**2 / 4 + t2 * seen) - added.sum()), unseen


def mcnemar(challenger: NDArray[np.bool_], champion: NDArray[np.bool_]) -> McNemar:
    """The exact test of two accuracies on the same samples: of those that one model alone has right, how
    many are the challenger's is binomial(n, 1/2) if both are equally good (McNemar 1947,
    https://doi.org/10.1007/BF02295996).

    Args:
        challenger: [N], which samples it has right.
        champion: [N].
    """
    ours, theirs = int((challenger & ~champion).sum()), int((champion & ~challenger).sum())
    return McNemar(
        only_challenger=ours,
        only_champion=theirs,
        p_better=_heads(ours, ours + theirs),
        p_worse=_heads(theirs, ours + theirs),
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values adjusted for their number (Holm 1979): reject those at most alpha, and the chance of
    any false rejection is at most alpha, however the tests depend on each other. NaN stays NaN and counts."""
    order = sorted(range(len(p_values)), key=lambda at: (np.isnan(p_values[at]), p_values[at]))
    adjusted, greatest = [float("nan")] * len(p_values), 0.0
    for rank, at in enumerate(order):
        if not np.isnan(p_values[at]):
            greatest = max(greatest, min(1.0, (len(p_values) - rank) * p_values[at]))
            adjusted[at] = greatest
    return adjusted


def _difference(
    name: str, challenger: Bootstrap, champion: Bootstrap, added: Floats | None, stake: float, alpha: float
) -> Difference:
    point = challenger.points[name] - champion.points[name]
    draws = challenger.draws[name] - champion.draws[name]
    units = challenger.size
    found = interval(point, draws, units=units, alpha=alpha)
    unknown = units < 2 and point != 0
    p_better = p_worse = error = at_worst = unseen = np.nan
    if added is not None and np.isfinite(point):
        better = -added if name in LOWER_IS_BETTER else added
        p_better, p_worse = one_sided(better)
        error = 0.0 if not added.any() else standard_error(point, draws, units=units)
        bound, unseen = worst(better, stake, alpha)
        at_worst = float(np.maximum(bound, found.high if name in LOWER_IS_BETTER else -found.low))
        if np.array_equal(challenger.outputs, champion.outputs):
            at_worst = unseen = 0.0
    return Difference(
        metric=name,
        value=found.value,
        low=np.nan if unknown else found.low,
        high=np.nan if unknown else found.high,
        standard_error=error,
        p_better=p_better,
        p_worse=p_worse,
        at_worst=at_worst,
        unseen=unseen,
    )


def _heads(heads: int, coins: int) -> float:
    """The probability of at least so many heads of fair coins."""
    return 1.0 if heads == 0 else float(bdtrc(heads - 1, coins, 0.5))
