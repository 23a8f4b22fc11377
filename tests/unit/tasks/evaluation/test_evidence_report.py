import math

from tasks.evaluation.evidence_report import baselines_report, robustness_report
from tasks.records import Baselines, CurvePoint, Interval
from tests.unit.tasks.evaluation.judged import ROBUSTNESS, difference

ONE = Interval(value=0.8, low=0.7, high=0.9)
BASELINES = Baselines(
    digest="b", folder="f", metric="balanced_accuracy", train_samples=600, test_samples=400,
    rows={"backbone": ONE, "majority": ONE}, transfer=difference(0.2, 0.1, 0.3),
    curve=(CurvePoint(fraction=0.1, samples=60, value=0.6, low=0.55, high=0.65),), doubled=ONE,
)  # fmt: skip


def test_baselines_report__says_whether_transfer_helps() -> None:
    got = baselines_report(BASELINES)
    assert "| The backbone | 0.800 [0.700, 0.900] |" in got
    assert "| Always the most frequent class | 0.800 [0.700, 0.900] |" in got
    assert "Backbone minus random weights: +0.200 [+0.100, +0.300]. Transfer helps." in got
    assert "| 10% | 60 | 0.600 (0.550 to 0.650) |" in got
    assert "Twice the samples may give 0.800 [0.700, 0.900]." in got


def test_baselines_report__does_not_say_more_than_the_interval() -> None:
    for found in (difference(0.2, -0.1, 0.3), difference(0.2, math.nan, math.nan)):
        got = baselines_report(BASELINES.model_copy(update={"transfer": found}))
        assert "can't be told" in got
    lower = difference(-0.2, -0.3, -0.1, "log_loss")
    assert "Transfer helps." in baselines_report(BASELINES.model_copy(update={"transfer": lower}))


def test_baselines_report__without_any_is_a_title() -> None:
    nothing: dict[str, object] = {"rows": {}, "transfer": None, "curve": (), "doubled": None}
    assert baselines_report(BASELINES.model_copy(update=nothing)) == "# Baselines\n"


def test_robustness_report__puts_the_champion_beside_the_challenger() -> None:
    lines = robustness_report(ROBUSTNESS).splitlines()
    assert (
        "Disturbed images cost 0.100 of balanced_accuracy in the mean, the champion 0.090. "
        "Undisturbed: 0.800, the champion 0.800. 48 test samples."
    ) in lines
    assert "| noise | 0.800 | 0.700 | 0.600 | 0.800 | 0.700 | 0.600 |" in lines


def test_robustness_report__without_a_champion() -> None:
    alone = ROBUSTNESS.model_copy(
        update={"champion_clean": None, "champion_loss": None, "champion_disturbed": None}
    )
    assert "| noise | 0.800 | 0.700 | 0.600 |" in robustness_report(alone).splitlines()
