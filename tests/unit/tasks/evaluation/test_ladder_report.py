from tasks.evaluation.report import ladder_report
from tests.unit.tasks.evaluation.climbed import RUNGS, climb, ladder, rung
from tests.unit.tasks.evaluation.judged import HOSTILE, cells


def test_ladder_report__has_a_row_for_each_rung() -> None:
    lines = ladder_report(ladder()).splitlines()
    assert lines[0] == "# Ladder"
    assert "A floor failed." in lines
    assert "lp_ft is taken." in lines
    rows = [cells(line) for line in lines if line.startswith("|")][2:]
    assert rows == [
        ["frozen", "timm:tf_efficientnet_lite0", "0.794 [0.774, 0.814]", "0.784 [0.764, 0.804]",
         "**failed**: floor.balanced_accuracy", "42 s", "0.01", "14.2", "24.5"],
        ["**lp_ft** (chosen)", "timm:tf_efficientnet_lite0", "0.961 [0.941, 0.981]", "0.951 [0.931, 0.971]",
         "passed", "8 min 40 s", "0.14", "14.2", "24.5"],
        ["student", "timm:mobilenetv3_small_100", "0.950 [0.930, 0.970]", "0.940 [0.920, 0.960]",
         "passed", "15 min 0 s", "0.25", "14.2", "24.5"],
    ]  # fmt: skip
    assert "## Trial" not in lines


def test_ladder_report__shows_the_trial() -> None:
    got = ladder_report(ladder(tried=True))
    expected = "Expected gain in balanced_accuracy: 0.100 [0.080, 0.120], for 8 min 20 s at a price of 0.14."
    assert expected in got.splitlines()
    assert "| full | 0.001 | 2 | 0.910 | 0.300 |" in got.splitlines()


def test_ladder_report__says_which_way_is_better() -> None:
    assert "balanced_accuracy ↑ on validation" in ladder_report(ladder())
    assert "log_loss ↓ on validation" in ladder_report(ladder(metric="log_loss"))


def test_ladder_report__a_long_reason_is_told_in_full() -> None:
    reason = "; ".join(f"method_{number} against frozen +0.010" for number in range(20)) + "."
    assert reason in ladder_report(ladder(reason=reason))


def test_ladder_report__hostile_names_break_no_table() -> None:
    worst = rung(HOSTILE, 0.9, 1, backbone=HOSTILE, passed=False).model_copy(update={"failed": (HOSTILE,)})
    made = ladder(*RUNGS, worst, reason=HOSTILE).model_copy(update={"climb": climb(HOSTILE, tried=True)})
    got = ladder_report(made)
    assert "<" not in got
    assert "://" not in got
    assert {len(cells(line)) for line in got.splitlines() if line.startswith("|")} == {9, 5}
