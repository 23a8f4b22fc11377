import math

from tasks.evaluation import report
from tasks.evaluation.report import gate_report
from tasks.params import METRICS, GateParams
from tasks.records import Evaluation, Interval, Selective
from tests.unit.tasks.evaluation.judged import HOSTILE, cells, difference, judge

ONE = Interval(value=0.8, low=0.7, high=0.9)
NAN = Interval(value=math.nan, low=math.nan, high=math.nan)


def evaluation(**changes: object) -> Evaluation:
    values = {
        "digest": "e", "folder": "f", "samples": 1378, "units": 1378,
        "metrics": dict.fromkeys(METRICS["class"], ONE),
        "per_class": {"cat": {"precision": ONE, "recall": ONE, "f1": ONE}}, "per_slice": {},
        "slice_samples": {}, "champion_version": None, "champion_metrics": None, "differences": {},
        "alpha": 0.05, "standard_errors": {}, "chance_ece": 0.75, "selective": None, "mcnemar": None,
        "slice_differences": {},
    }  # fmt: skip
    return Evaluation.model_validate({**values, **changes})


def test_gate_report__hostile_names_break_no_table() -> None:
    slices = {f"site={HOSTILE}": dict.fromkeys(METRICS["class"], ONE)}
    scores = evaluation(
        per_class={HOSTILE: {"f1": ONE}}, per_slice=slices, slice_samples={f"site={HOSTILE}": 5}
    )
    got = gate_report(judge(scores, GateParams(), champion=HOSTILE, problem=HOSTILE), scores)
    assert "<" not in got
    assert "://" not in got
    width = 0
    for line in got.splitlines():
        if line.startswith("|"):
            width = width or len(cells(line))
            assert len(cells(line)) == width, line
        else:
            width = 0
            assert line.startswith("#") == line.startswith(("# Gate", "## ")), line


def test_gate_report__verdict_comes_first() -> None:
    passed = judge(evaluation(), GateParams(floors=GateParams().floors[:1]))
    assert gate_report(passed, evaluation()).startswith(
        "# Gate passed\n\nThe model may be registered: all 13 checks passed; there is no champion yet; "
        "mode non_inferior."
    )
    failed = judge(evaluation(), GateParams(), champion="3")
    assert gate_report(failed, evaluation()).startswith(
        "# Gate failed\n\nThe model may not be registered: 2 of 14 checks failed "
        "(floor.ece, champion); the champion is version 3; mode non_inferior."
    )


def test_gate_report__puts_the_champion_beside_the_challenger() -> None:
    compared = evaluation(
        champion_version="3",
        champion_metrics=dict.fromkeys(METRICS["class"], Interval(value=0.79, low=0.69, high=0.89)),
        differences={"accuracy": difference(0.01, -0.005, 0.025, "accuracy")},
    )
    got = gate_report(judge(compared, GateParams(), champion="3"), compared)
    assert "| Metric | Challenger | Champion (version 3) | Difference |" in got
    assert "| accuracy ↑ | 0.800 [0.700, 0.900] | 0.790 [0.690, 0.890] | +0.010 [−0.005, +0.025] |" in got
    assert "| ece ↓ | 0.800 [0.700, 0.900] | 0.790 [0.690, 0.890] | missing |" in got


def test_gate_report__nan_is_said_in_words() -> None:
    broken = evaluation(metrics=dict.fromkeys(METRICS["class"], NAN))
    got = gate_report(judge(broken, GateParams()), broken)
    assert "| brier ↓ | not a number |" in got


def test_gate_report__many_slices_show_the_worst() -> None:
    values = {
        f"id={i:03d}": {"balanced_accuracy": Interval(value=i / 200, low=0, high=1)} for i in range(150)
    }
    values["id=nan"] = {"balanced_accuracy": NAN}
    scores = evaluation(per_slice=values, slice_samples=dict.fromkeys(values, 2))
    got = gate_report(judge(scores, GateParams()), scores)
    assert "| id=nan | 2 |" in got
    assert "| id=098 | 2 |" in got
    assert "id=099" not in got
    assert "The 100 slices with the lowest balanced_accuracy, and 51 more." in got


def test_gate_report__intervals_cover_what_alpha_says() -> None:
    scores = evaluation(alpha=0.001)
    assert "In brackets: 99.9 % intervals (bootstrap)." in gate_report(judge(scores, GateParams()), scores)


def test_gate_report__says_what_became_of_the_thresholds() -> None:
    found = Selective(answered=0.5, precision=0.99, coverage=0.9, set_size=1.25)
    scores = evaluation(selective=found)
    got = gate_report(judge(scores, GateParams()), scores)
    assert "It is sure of 50.0% of the samples, and is right in 99.0% of them." in got
    assert "Conformal sets hold the class of 90.0%, with 1.25 classes in the mean." in got


def test_gate_report__slices_that_are_worse_come_first() -> None:
    compared = {
        f"site={name}": {"balanced_accuracy": difference(-0.1, -0.2, 0.0, p_worse=p)}
        for name, p in (("a", 0.5), ("b", 0.01))
    }
    scores = evaluation(slice_differences=compared, slice_samples={"site=a": 40, "site=b": 40})
    got = gate_report(judge(scores, GateParams()), scores)
    assert got.index("| site=b | 40 | −0.100 [−0.200, 0.000] | 0.010 |") < got.index("| site=a | 40 |")


def test_gate_report__of_numbers_has_their_metrics() -> None:
    scores = evaluation(target="number", metrics={"r2": ONE, "mae": ONE, "rmse": ONE}, per_class={})
    params = GateParams.model_validate({"floors": [{"metric": "r2", "limit": 0.5}], "metric": "mae"})
    got = gate_report(judge(scores, params), scores)
    assert "| mae ↓ | 0.800 [0.700, 0.900] |" in got
    assert "## Classes" not in got


def test_report__offers_all_reports() -> None:
    assert all(hasattr(report, name) for name in report.__all__)
