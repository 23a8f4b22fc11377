"""Records that the gate passes, to be broken in one place, and text that tries to break a report."""

from tasks.evaluation.gate import decide
from tasks.evaluation.student import Student
from tasks.params import LOWER_IS_BETTER, Floor, GateParams
from tasks.records import (
    Check,
    Decision,
    Difference,
    Evaluation,
    Findings,
    Interval,
    McNemar,
    Robustness,
    Trial,
)

HOSTILE = "a|b\n# <script>alert(1)</script> [x](http://evil) ![i](u) `c` **d** _e_ \\"

PARAMS = GateParams(
    floors=(Floor(metric="balanced_accuracy", limit=0.7), Floor(metric="ece", limit=0.15)),
    metric="balanced_accuracy",
    margin=0.02,
    min_test_samples=50,
)
SUPERIOR = PARAMS.model_copy(update={"mode": "superior"})
ABSOLUTE = PARAMS.model_copy(update={"mode": "absolute"})
GOOD = {
    "balanced_accuracy": Interval(value=0.784, low=0.741, high=0.823),
    "ece": Interval(value=0.05, low=0.03, high=0.08),
}
FINDINGS = Findings(
    digest="f", folder="unused", near_duplicates=3, leaked=1, leakage=0.002, unchecked=0, truncated=False,
    group_leaks=(), label_errors=9, label_error_rate=0.03, outliers=2, confusable=(),
    imbalance=2.0, shifts=(), notes=(),
)  # fmt: skip
ROBUSTNESS = Robustness(
    digest="r", folder="unused", samples=48, metric="balanced_accuracy", clean=0.8,
    disturbed={"noise": (0.8, 0.7, 0.6)}, loss=0.1, champion_clean=0.8,
    champion_disturbed={"noise": (0.8, 0.7, 0.6)}, champion_loss=0.09,
    difference=Interval(value=0.01, low=-0.02, high=0.04),
)  # fmt: skip
TRIAL = Trial(
    package="p",
    digest="t", folder="unused", samples=30, p50_ms=20, p95_ms=31, size_mb=14.2, largest_difference=1e-7,
    champion_p50_ms=None, champion_p95_ms=None, champion_size_mb=None,
)  # fmt: skip


def difference(
    value: float,
    low: float,
    high: float,
    metric: str = "balanced_accuracy",
    p_better: float = 0.3,
    p_worse: float = 0.7,
    at_worst: float | None = None,
    unseen: float = 0.0,
) -> Difference:
    """`at_worst` is that of the interval unless given."""
    end = high if metric in LOWER_IS_BETTER else -low
    return Difference(
        metric=metric,
        value=value,
        low=low,
        high=high,
        standard_error=0.01,
        p_better=p_better,
        p_worse=p_worse,
        at_worst=end if at_worst is None else at_worst,
        unseen=unseen,
    )


def evaluation(
    metrics: dict[str, Interval] = GOOD,
    *,
    samples: int = 378,
    version: str | None = None,
    differences: tuple[Difference, ...] = (),
    mcnemar: McNemar | None = None,
    slice_samples: dict[str, int] | None = None,
    units: int | None = None,
    slice_units: dict[str, int] | None = None,
    unknown: tuple[str, ...] = (),
    slice_differences: dict[str, Difference] | None = None,
) -> Evaluation:
    counts = slice_samples or {}
    return Evaluation(
        digest="e",
        folder="unused",
        samples=samples,
        units=samples if units is None else units,
        alpha=0.05,
        metrics=metrics,
        standard_errors={"balanced_accuracy": 0.02},
        chance_ece=0.03,
        per_class={},
        per_slice=dict.fromkeys(counts, metrics),
        slice_samples=counts,
        slice_units=counts if slice_units is None else slice_units,
        selective=None,
        unknown_classes=unknown,
        champion_version=version,
        champion_metrics=None if version is None else metrics,
        differences={d.metric: d for d in differences},
        mcnemar=mcnemar,
        slice_differences={name: {d.metric: d} for name, d in (slice_differences or {}).items()},
    )


def judge(
    found: Evaluation,
    params: GateParams = PARAMS,
    *,
    champion: str | None = None,
    problem: str | None = None,
    findings: Findings | None = FINDINGS,
    robustness: Robustness | None = ROBUSTNESS,
    trial: Trial | None = TRIAL,
    quarantined: float = 0.01,
    distilled: Student | None = None,
) -> Decision:
    return decide(
        found,
        params,
        champion_version=champion,
        champion_problem=problem,
        findings=findings,
        robustness=robustness,
        trial=trial,
        quarantined_fraction=quarantined,
        target=found.target,
        distilled=distilled,
    )


def reason(decision: Decision, check: str) -> Check:
    [found] = [reason for reason in decision.reasons if reason.check == check]
    return found


def cells(line: str) -> list[str]:
    """Of a row of a Markdown table."""
    return [cell.strip() for cell in line.strip().strip("|").split("|")]
