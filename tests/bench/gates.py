"""How often the gate errs: simulated pairs of models, judged by the gate itself.

Of a pair only the samples matter that one model alone has right; balanced accuracy (the gate's default)
is computed from these. The bootstrap of all pairs is one matrix product a class, and is compared with
`tasks.evaluation.compare` on some of the pairs. Rates are given by their upper 95 % confidence bounds
(Clopper and Pearson 1934), so that luck in the simulation does not count.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv

from tasks.evaluation.checks import counted
from tasks.evaluation.compare import differences, worst
from tasks.evaluation.gate import decide
from tasks.evaluation.metrics import Bootstrap, bootstrap, interval, resample_counts, standard_error
from tasks.evaluation.randomisation import one_sided
from tasks.params import Floor, GateParams
from tasks.records import Decision, Difference, Evaluation, Findings, Interval, Trial
from tests.bench.harness import Row, below

PAIRS = 2000
SAMPLES = 2000
CLASSES = 4
RESAMPLES = 1000
APART = 0.08  # share of samples that one of two equally good models alone has right
METRIC = "balanced_accuracy"
ALPHA = 0.05
NOT_INFERIOR = 3.0  # %: the test is of alpha / 2 = 2.5 %, and the bound of its rate is half a point above
FEW = ((50, 0.1), (50, 0.02), (100, 0.05), (200, 0.02), (200, 0.05))  # samples, margin
COMPARED = 5  # pairs that are also computed by the code under test from end to end

Signs = NDArray[np.int8]  # [pairs, N]: 1 the challenger alone is right, -1 the champion alone, 0 else


@dataclass(frozen=True)
class Design:
    """A test split: the class, the slice and the unit of each sample [N]."""

    label: NDArray[np.int64]
    part: NDArray[np.int64]  # slice
    unit: NDArray[np.int64]


def run() -> Iterator[Row]:
    superior = GateParams(mode="superior", metric=METRIC, floors=(Floor(metric=METRIC, limit=0.5),))
    lenient = superior.model_copy(update={"mode": "non_inferior", "margin": 0.01})
    for slices in (1, 5, 20):
        some = design(SAMPLES, slices, seed=slices)
        judged = judge(some, signs(PAIRS, SAMPLES, seed=slices), superior)
        passed = sum(one.passed for one in judged)
        yield rate(
            f"equally good models that pass `superior`, {counted(slices, 'slice')}", passed, len(judged)
        )
        if slices == 20:
            stopped = sum(not check(one, "slices") for one in judged)
            yield rate(f"equally good models stopped by one of {slices} slices", stopped, len(judged))
    few = judge(design(100, 1, seed=2), signs(PAIRS, 100, seed=4), superior)
    yield rate("equally good models that pass `superior`, 100 samples", sum(d.passed for d in few), PAIRS)
    grouped = design(SAMPLES, 1, seed=3, together=10)
    alike = np.repeat(signs(PAIRS, SAMPLES // 10, seed=5), 10, axis=1)  # a group errs as one
    lucky = judge(grouped, alike, superior)
    yield rate(
        "equally good models that pass `superior`, groups of 10 alike", sum(d.passed for d in lucky), PAIRS
    )
    worse = judge(design(SAMPLES, 1, seed=1), signs(PAIRS, SAMPLES, seed=6, loss=0.02), lenient)
    yield rate("2 points worse, let through by a margin of 1", sum(d.passed for d in worse), PAIRS)
    margin = lenient.model_copy(update={"margin": 0.02})
    worse = judge(design(SAMPLES, 1, seed=1), signs(PAIRS, SAMPLES, seed=10, loss=0.02), margin)
    passed = sum(d.passed for d in worse)
    yield rate(f"2 points worse, {SAMPLES:,} samples, by that margin", passed, PAIRS, NOT_INFERIOR)
    yield from let_through(lenient)
    yield from against_itself(superior, lenient)


def let_through(lenient: GateParams) -> Iterator[Row]:
    """Challengers that are worse by the margin itself: with mistakes of both, where the champion alone is
    right now and then, and where all of the loss is in the rarest class."""
    for samples, margin in FEW:
        params = lenient.model_copy(update={"margin": margin})
        some = design(samples, 1, seed=samples)
        rare = some.label == np.bincount(some.label, minlength=CLASSES).argmin()
        kinds = {
            "": signs(PAIRS, samples, seed=7, loss=margin),
            ", which is never right alone": signs(PAIRS, samples, seed=8, loss=margin, apart=0.0),
            ", in the rarest class": signs(
                PAIRS, samples, seed=9, loss=np.where(rare, CLASSES * margin, 0), apart=0.0
            ),
        }
        for kind, sign in kinds.items():
            passed = sum(one.passed for one in judge(some, sign, params))
            name = f"{100 * margin:g} points worse{kind}, {samples} samples, by that margin"
            yield rate(name, passed, PAIRS, NOT_INFERIOR)


def design(samples: int, slices: int, seed: int, together: int = 1) -> Design:
    """Classes of unequal size (4 : 3 : 2 : 1), slices of equal size, groups of `together` samples."""
    generator = np.random.default_rng(seed)
    shares = np.arange(CLASSES, 0, -1) / (CLASSES * (CLASSES + 1) / 2)
    label = generator.choice(CLASSES, size=samples // together, p=shares).repeat(together)
    return Design(label, generator.permutation(samples) % slices, np.arange(samples) // together)


def signs(
    pairs: int,
    samples: int,
    seed: int,
    loss: float | NDArray[np.float64] = 0.0,
    apart: float = APART,
) -> Signs:
    """Which model alone is right: equally often, or the champion more often by `loss` (of each sample)."""
    drawn = np.random.default_rng(seed).random((pairs, samples))
    ours, theirs = apart / 2, apart / 2 + loss
    return np.where(drawn < ours, 1, np.where(drawn < ours + theirs, -1, 0)).astype(np.int8)


def judge(some: Design, sign: Signs, params: GateParams) -> list[Decision]:
    """What the gate says of each pair."""
    found = compared(some, sign)
    check_some(some, sign, found)
    by_slice = [sliced(some, sign, part) for part in range(int(some.part.max()) + 1)]
    return [
        verdict(
            params,
            len(some.label),
            found[pair],
            {f"part={part}": of[pair] for part, of in enumerate(by_slice)},
            {f"part={part}": int((some.part == part).sum()) for part in range(len(by_slice))},
        )
        for pair in range(len(sign))
    ]


def compared(some: Design, sign: Signs) -> list[Difference]:
    """What `compare.differences` says of balanced accuracy, for all pairs at once."""
    units = int(some.unit.max()) + 1
    support = np.zeros((units, CLASSES))
    np.add.at(support, (some.unit, some.label), 1)  # [U, C]
    apart = np.zeros((CLASSES, units, len(sign)), dtype=np.float32)  # [C, U, P]
    np.add.at(apart, (some.label, some.unit), sign.T)
    total = support.sum(axis=0)  # [C]
    present = int((total > 0).sum())
    added = np.einsum("cup,c->pu", apart, 1 / np.maximum(total, 1)) / present  # [P, U]
    draws = np.empty((RESAMPLES, len(sign)))  # [B, P]
    at = 0
    for counts in resample_counts(units, RESAMPLES, seed=0):
        drawn = counts @ support  # [b, C]
        with np.errstate(invalid="ignore", divide="ignore"):
            recalls = [counts.astype(np.float32) @ apart[c] / drawn[:, [c]] for c in range(CLASSES)]
        shown = (drawn > 0).sum(axis=1, keepdims=True)
        draws[at : at + len(counts)] = np.nansum(recalls, axis=0) / shown
        at += len(counts)
    share = 1 / np.where(total > 0, total, np.inf) / present
    stake = float((support @ share).max())
    return [difference(added[pair], draws[:, pair], units, stake) for pair in range(len(sign))]


def difference(
    added: NDArray[np.float64], draws: NDArray[np.float64], units: int, stake: float
) -> Difference:
    point = float(added.sum())
    bound, unseen = worst(added, stake, ALPHA)
    ends = interval(point, draws, units=units, alpha=ALPHA)
    p_better, p_worse = one_sided(added)
    return Difference(
        metric=METRIC,
        value=point,
        low=ends.low,
        high=ends.high,
        standard_error=standard_error(point, draws, units=units),
        p_better=p_better,
        p_worse=p_worse,
        at_worst=max(bound, -ends.low),
        unseen=unseen,
    )


def sliced(some: Design, sign: Signs, part: int) -> list[Difference]:
    """The differences in a slice. The gate judges slices by p-values alone, so no interval is made."""
    rows = some.part == part
    label = some.label[rows]
    total = np.bincount(label, minlength=CLASSES)
    share = 1 / np.maximum(total, 1) / (total > 0).sum()
    made = []
    for added in sign[:, rows] * share[label]:
        p_better, p_worse = one_sided(added)
        value = float(added.sum())
        made.append(
            Difference(
                metric=METRIC,
                value=value,
                low=value,
                high=value,
                standard_error=0,
                p_better=p_better,
                p_worse=p_worse,
            )
        )
    return made


def check_some(some: Design, sign: Signs, found: list[Difference]) -> None:
    """The same by the code under test, from probabilities.

    Raises:
        AssertionError: the simulation computes something else.
    """
    for pair in range(min(COMPARED, len(sign))):
        models: list[Bootstrap] = []
        for wrong in (-1, 1):  # challenger, champion
            top = np.where(sign[pair] == wrong, (some.label + 1) % CLASSES, some.label)
            p = np.eye(CLASSES)[top]
            if wrong == 1:  # equal answers, but not equal outputs
                p = p + 0.01 * (1 / CLASSES - p)
            models.append(bootstrap(p, some.label, resamples=RESAMPLES, seed=0, groups=some.unit.tolist()))
        expected = differences(models[0], models[1], ALPHA)[METRIC]
        for name in ("value", "low", "high", "standard_error", "p_better", "p_worse", "at_worst", "unseen"):
            ours, theirs = getattr(found[pair], name), getattr(expected, name)
            assert np.isclose(ours, theirs, rtol=1e-4, atol=1e-6), (name, ours, theirs)


def verdict(
    params: GateParams,
    samples: int,
    found: Difference,
    by_slice: dict[str, Difference],
    counts: dict[str, int],
) -> Decision:
    """The gate's, on an evaluation with this difference; all else is as it should be."""
    fine = Interval(value=0.9, low=0.88, high=0.92)
    evaluation = Evaluation(
        digest="e",
        folder="unused",
        samples=samples,
        units=samples,
        alpha=ALPHA,
        metrics={METRIC: fine, "ece": Interval(value=0.01, low=0.01, high=0.02)},
        standard_errors={METRIC: 0.01},
        chance_ece=0.01,
        per_class={},
        per_slice={name: {METRIC: fine} for name in by_slice},
        slice_samples=counts,
        slice_units=counts,
        selective=None,
        champion_version="1",
        champion_metrics={METRIC: fine},
        differences={METRIC: found},
        mcnemar=None,
        slice_differences={name: {METRIC: one} for name, one in by_slice.items()},
    )
    return decide(
        evaluation,
        params,
        champion_version="1",
        findings=FINDINGS,
        robustness=None,
        trial=TRIAL,
        quarantined_fraction=0.0,
        target="class",
    )


FINDINGS = Findings(
    digest="f",
    folder="unused",
    near_duplicates=0,
    leaked=0,
    leakage=0.0,
    unchecked=0,
    truncated=False,
    group_leaks=(),
    label_errors=0,
    label_error_rate=0.0,
    outliers=0,
    confusable=(),
    imbalance=4.0,
    shifts=(),
    notes=(),
)
TRIAL = Trial(
    package="p",
    digest="t",
    folder="unused",
    samples=30,
    p50_ms=1,
    p95_ms=2,
    size_mb=10,
    largest_difference=0.0,
    champion_p50_ms=None,
    champion_p95_ms=None,
    champion_size_mb=None,
)


def check(decision: Decision, name: str) -> bool:
    return next(reason.passed for reason in decision.reasons if reason.check == name)


def rate(name: str, errors: int, trials: int, limit: float = 5.0) -> Row:
    """A row of an error rate, which must be at most `limit` %."""
    upper = 100 * float(betaincinv(errors + 1, trials - errors, 0.95))
    note = f"{errors:,} of {trials:,} pairs; ours is the upper 95 % confidence bound of the rate"
    return below(name, [upper], limit, "%", note=note)


def against_itself(superior: GateParams, lenient: GateParams) -> Iterator[Row]:
    """The champion beside itself, from probabilities, by the code under test."""
    passes = {"non_inferior": 0, "superior": 0}
    trials = 100
    for seed in range(trials):
        generator = np.random.default_rng(seed)
        n = int(generator.integers(50, 500))
        y = generator.integers(0, CLASSES, n)
        logits = generator.normal(size=(n, CLASSES)) + 2.5 * np.eye(CLASSES)[y]
        p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        model = bootstrap(p, y, resamples=RESAMPLES, seed=seed)
        same = differences(model, model, ALPHA)[METRIC]
        for params in (superior, lenient):
            passes[params.mode] += verdict(params, n, same, {"part=0": same}, {"part=0": n}).passed
    let_in = 100 * passes["non_inferior"] / trials
    kept_out = 100 - 100 * passes["superior"] / trials
    note = f"{trials} test sets of 50 to 500 samples"
    yield Row("champion against itself passes `non_inferior`", let_in, 100, let_in / 100, "%", 1.0, note=note)
    yield Row("champion against itself fails `superior`", kept_out, 100, kept_out / 100, "%", 1.0, note=note)
