"""The gate's checks beside the champion: of the whole test split, slice by slice, on disturbed images."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tasks.evaluation.checks import (
    ROUNDING,
    VALUE,
    apart,
    counted,
    failed,
    granted,
    limited,
    plain_limit,
    signed,
)
from tasks.evaluation.compare import holm
from tasks.params import LOWER_IS_BETTER, GateParams
from tasks.records import Check, Difference, Evaluation, Robustness

LISTED = 5  # slices named in a reason
BY_MCNEMAR = ("accuracy", "subset_accuracy")
# Greatest share of test samples whose classes the champion may lack. New classes count against it; where
# it lacks those of most samples they were renamed rather, and a comparison says nothing.
UNKNOWN = 0.5


@dataclass(frozen=True)
class Against:
    """The version that serves today, as the registry has it, and why it could not be evaluated."""

    version: str | None
    problem: str | None

    @property
    def named(self) -> str:
        return "the champion" if self.version is None else f"the champion, version {self.version},"


def worst_allowed(params: GateParams) -> float | None:
    """By how much the challenger may be worse than the champion, at the worse end of the interval."""
    return {"non_inferior": params.margin, "superior": 0.0, "absolute": None}[params.mode]


def champion(evaluation: Evaluation, params: GateParams, against: Against) -> Check:
    """The paired difference of `params.metric`, turned so that better is higher.

    - non_inferior: the challenger is worse by the margin at most, at the worse end of its 1 - alpha
      interval (Piaggio et al. 2012, https://doi.org/10.1001/jama.2012.87802) and by the score bound
      `compare.worst`, which also counts the losses that so few samples don't show. Equal outputs differ by
      exactly nothing, and pass;
    - superior: the worse end is above 0, and the paired randomisation agrees (one-sided alpha / 2: the
      same level), which is exact where few samples differ; of accuracy also McNemar's test;
    - absolute: listed, not judged.

    Where the champion does not know the classes of more than UNKNOWN of the test samples, both fail.
    """
    limit, metric, version = worst_allowed(params), params.metric, against.version
    why_not = _not_compared(evaluation, metric, against)
    if params.mode == "absolute":
        if why_not is not None or version is None:
            return granted("champion", f"not judged in mode absolute ({why_not or 'no champion yet'})")
    elif why_not is not None:
        return failed("champion", why_not, threshold=limit)
    elif version is None:
        return granted("champion", "no champion yet: the other checks decide alone", threshold=limit)
    difference = evaluation.differences[metric]
    numbers = _numbers(difference, evaluation, params)
    shown = (
        f"{metric} {signed(difference.value)} [{signed(difference.low)}, {signed(difference.high)}] "
        f"against version {version}"
    )
    if evaluation.unknown_samples:
        shown += f", which does not know {_unknown(evaluation)}"
    if params.mode != "absolute" and not numbers["unknown"] <= UNKNOWN:
        detail = f"{shown}: were classes renamed? if so, use gate.mode absolute once"
        return failed("champion", detail, threshold=limit, numbers=numbers)
    if params.mode == "absolute":
        return granted("champion", f"{shown}; not judged in mode absolute", numbers=numbers)
    if params.mode == "superior":
        return _superior(shown, numbers, metric)
    passed, detail = inferiority(shown, difference, params.margin)
    made = granted if passed else failed
    return made("champion", detail, threshold=limit, numbers=numbers)


def inferiority(shown: str, difference: Difference, margin: float) -> tuple[bool, str]:
    """Whether a model is worse by the margin at most (see `champion`), and the reason, which begins with
    `shown`."""
    allowed, worse_by = plain_limit(margin), difference.at_worst
    if not math.isfinite(worse_by):
        return False, f"{shown}: by how much it may be worse is not known"
    if worse_by <= margin + ROUNDING:
        return True, f"{shown}, may be at most {allowed} worse"
    detail = f"{shown}: may be {apart(worse_by, margin)} worse, more than the {allowed} allowed"
    if difference.unseen > margin:
        detail += (
            f"; with so few test samples (of the rarest class) also models that differ on none of them may "
            f"be {apart(difference.unseen, margin)} apart"
        )
    return False, detail


def is_superior(numbers: Mapping[str, float]) -> bool:
    """Whether all tests of a `champion` check say so: `value` is by how much the challenger may be worse."""
    level = numbers.get("alpha", math.nan) / 2
    p_values = [numbers.get("p_better", math.nan)]
    if "p_mcnemar" in numbers:
        p_values.append(numbers["p_mcnemar"])
    return numbers[VALUE] < -ROUNDING and all(p <= level for p in p_values)


def slices(evaluation: Evaluation, params: GateParams, against: Against) -> Check:
    """No slice is worse than under the champion beyond chance: one-sided p-values of the paired
    difference, by Holm's method at the level alpha for all slices together. A slice that must be there
    and is not, or is too small to judge, fails; a group counts as one sample."""
    alpha, least = evaluation.alpha, params.min_slice_samples
    counts = {name: evaluation.slice_units.get(name, 0) for name in evaluation.slice_samples}
    lacking = _lacking(evaluation, counts, params.slices, least)
    judged = sorted(name for name, count in counts.items() if count >= least)
    small = len(counts) - len(judged)
    shown = counted(len(judged), "slice") + (
        f", {small:,} more have fewer than {least} samples" if small else ""
    )
    numbers: dict[str, float] = {"judged": len(judged)}
    if lacking:
        return failed("slices", "; ".join(lacking), threshold=alpha, numbers=numbers)
    if not judged:
        why = f"no slice has {least} samples" if counts else "the data has no slices"
        return granted("slices", f"nothing to judge: {why}", threshold=alpha, numbers=numbers)
    if params.mode == "absolute":
        return granted("slices", f"{shown}; not compared in mode absolute", threshold=alpha, numbers=numbers)
    if (why_not := _unevaluated(evaluation, against)) is not None:
        return failed("slices", f"{shown}: {why_not}", threshold=alpha, numbers=numbers)
    if against.version is None:
        return granted("slices", f"{shown}; no champion yet", threshold=alpha, numbers=numbers)
    return _compared(evaluation, params.metric, judged, shown)


def robustness(measured: Robustness | None, params: GateParams, against: Against) -> Check:
    """What disturbed images cost the challenger, beyond what they cost the champion on the same samples.

    As of a slice, a limit on harm that is shown beyond chance: it fails if the whole 1 - alpha interval of
    the paired difference of the two losses is above the limit. Some dozens of disturbed samples can't prove
    that there is none; such proof is asked of the whole test split alone.
    """
    limit = params.max_robustness_loss
    if measured is None:
        return granted("robustness", "switched off (evaluation.robustness_samples is 0)", threshold=limit)
    loss, theirs, metric = measured.loss, measured.champion_loss, measured.metric
    said = f"disturbed images cost {_share(loss)} of {metric}"
    numbers = {"loss": loss}
    if not math.isfinite(loss):
        return failed(
            "robustness", f"the loss of {metric} is not a number: {loss}", threshold=limit, numbers=numbers
        )
    if against.version is None and against.problem is None:
        return granted("robustness", f"{said}; no champion yet", threshold=limit, numbers=numbers)
    if theirs is None:
        if params.mode == "absolute" or limit is None:
            return granted("robustness", f"{said}; not compared", threshold=limit, numbers=numbers)
        why = against.problem or "it was not measured on disturbed images"
        detail = f"{said}; no comparison with {against.named.rstrip(',')}: {why}"
        return failed("robustness", detail, threshold=limit, numbers=numbers)
    numbers["champion_loss"] = theirs
    if params.mode == "absolute":
        detail = f"{said}, the champion {_share(theirs)}; not judged in mode absolute"
        return granted("robustness", detail, threshold=limit, numbers=numbers)
    more = measured.difference
    if more is None or not all(map(math.isfinite, (theirs, more.value, more.low, more.high))):
        detail = f"{said}, the champion {_share(theirs)}: the interval of the difference is not known"
        return (
            granted("robustness", f"{detail}; no limit set", numbers=numbers)
            if limit is None
            else failed("robustness", detail, threshold=limit, numbers=numbers)
        )
    numbers |= {"difference": more.value, "low": more.low, "high": more.high}
    return limited(
        "robustness",
        f"{said}, the champion {_share(theirs)}: {signed(more.value)} [{signed(more.low)}, "
        f"{signed(more.high)}], at least",
        more.low,
        limit,
        numbers=numbers,
        said=counted(measured.samples, "sample"),
    )


def _share(loss: float) -> str:
    return f"{loss:.3f}" if math.isfinite(loss) else "no number"


def _unknown(evaluation: Evaluation) -> str:
    classes = evaluation.unknown_classes
    return (
        f"{_some(classes)} ({evaluation.unknown_samples:,} of {counted(evaluation.samples, 'test sample')})"
    )


def _numbers(difference: Difference, evaluation: Evaluation, params: GateParams) -> dict[str, float]:
    """All that the verdict stands on; `value` is by how much the challenger may be worse."""
    metric = params.metric
    end = difference.high if metric in LOWER_IS_BETTER else -difference.low
    numbers = {
        VALUE: difference.at_worst if params.mode == "non_inferior" else end,
        "difference": difference.value,
        "low": difference.low,
        "high": difference.high,
        "p_better": difference.p_better,
        "p_worse": difference.p_worse,
        "alpha": evaluation.alpha,
        "unknown": evaluation.unknown_samples / evaluation.samples if evaluation.samples else math.nan,
    }
    if metric in BY_MCNEMAR:
        numbers["p_mcnemar"] = evaluation.mcnemar.p_better if evaluation.mcnemar else math.nan
    return numbers


def _superior(shown: str, numbers: dict[str, float], metric: str) -> Check:
    level = numbers["alpha"] / 2
    if is_superior(numbers):
        detail = f"{shown}: better beyond chance (p = {numbers['p_better']:.2g})"
        return granted("champion", detail, threshold=0.0, numbers=numbers)
    tests = {"paired randomisation": "p_better", "McNemar's test": "p_mcnemar"}
    if numbers[VALUE] >= -ROUNDING:
        why = (
            "the interval holds 0 or less"
            if metric not in LOWER_IS_BETTER
            else "the interval holds 0 or more"
        )
    else:
        test, p = next((t, numbers[k]) for t, k in tests.items() if k in numbers and not numbers[k] <= level)
        why = f"by {test} p = {p:.2g}, more than {level:g}" if math.isfinite(p) else f"{test} is missing"
    return failed("champion", f"{shown}: not shown to be better ({why})", threshold=0.0, numbers=numbers)


def _unevaluated(evaluation: Evaluation, against: Against) -> str | None:
    """Why the champion was not evaluated on these samples, where it should have been."""
    if against.problem is not None:
        return f"no comparison with {against.named.rstrip(',')}: {against.problem}"
    compared = evaluation.champion_version
    if against.version is None:
        return None if compared is None else f"compared with version {compared}, which is not the champion"
    if compared is None:
        return f"{against.named} was not evaluated on these test samples"
    if compared != against.version:
        return f"compared with version {compared}, but the champion is version {against.version}"
    return None


def _not_compared(evaluation: Evaluation, metric: str, against: Against) -> str | None:
    """Why there is no comparison to judge by, where there should be one."""
    why = _unevaluated(evaluation, against)
    if why is not None or against.version is None:
        return why
    found = evaluation.differences.get(metric)
    if found is None:
        return f"the difference in {metric} from {against.named} is missing from the evaluation"
    if not all(map(math.isfinite, (found.value, found.low, found.high))):
        plain = f"{found.value:.3f} [{found.low:.3f}, {found.high:.3f}]"
        return f"the difference in {metric} from {against.named} is not a number: {plain}"
    return None


def _lacking(
    evaluation: Evaluation, counts: Mapping[str, int], wanted: Sequence[str], least: int
) -> list[str]:
    """What is wrong with the slices that must be there: `column=value`, or all values of a column."""

    def size(name: str) -> str:
        samples = f"{evaluation.slice_samples[name]:,} test samples"
        grouped = counts[name] != evaluation.slice_samples[name]
        return f"{samples} in {counted(counts[name], 'group')}" if grouped else samples

    problems = []
    for name in wanted:
        exact = name in counts or "=" in name
        members = [name] if exact else [found for found in counts if found.startswith(f"{name}=")]
        if not members or (exact and name not in counts):
            problems.append(f"slice {name} has no test samples")
        small = [member for member in members if member in counts and counts[member] < least]
        problems += [f"slice {one} has {size(one)}, fewer than {least}" for one in small[:LISTED]]
        if len(small) > LISTED:
            problems.append(f"so have {len(small) - LISTED:,} more of {name}")
    return problems


def _compared(evaluation: Evaluation, metric: str, judged: Sequence[str], shown: str) -> Check:
    alpha = evaluation.alpha
    found = [evaluation.slice_differences.get(name, {}).get(metric) for name in judged]
    differences = {name: one for name, one in zip(judged, found, strict=True) if one is not None}
    broken = [name for name in judged if name not in differences or not _usable(differences[name])]
    numbers: dict[str, float] = {"judged": len(judged)}
    if broken:
        detail = f"{shown}: the difference in {metric} is missing or not a number in {_some(broken)}"
        return failed("slices", detail, threshold=alpha, numbers=numbers)
    adjusted = dict(zip(judged, holm([differences[name].p_worse for name in judged]), strict=True))
    worst = min(adjusted, key=lambda name: (adjusted[name], name))
    numbers = {VALUE: adjusted[worst], **numbers, **{f"p {name}": p for name, p in adjusted.items()}}
    worse = [name for name in judged if adjusted[name] <= alpha]
    if not worse:
        least = f"least p = {adjusted[worst]:.2g}, {worst}"
        detail = f"{shown}: none worse in {metric} beyond chance ({least})"
        return granted("slices", detail, threshold=alpha, numbers=numbers)
    named = _some([f"{name} ({signed(differences[name].value)}, p = {adjusted[name]:.2g})" for name in worse])
    detail = f"{shown}: worse in {metric} beyond chance: {named}"
    return failed("slices", detail, threshold=alpha, numbers=numbers)


def _usable(difference: Difference) -> bool:
    return math.isfinite(difference.value) and math.isfinite(difference.p_worse)


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - LISTED:,} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more
