import math

from tasks.evaluation.evidence_report import baselines_report, hardly_helps, robustness_report
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


def transferred(value: float, low: float, high: float, metric: str = "balanced_accuracy") -> Baselines:
    moved = difference(value, low, high, metric)
    return BASELINES.model_copy(update={"transfer": moved, "metric": metric})


def pixels(value: float, metric: str = "balanced_accuracy") -> Baselines:
    found = transferred(0.2, 0.1, 0.3, "balanced_accuracy").model_copy(update={"metric": metric})
    rows = {"backbone": ONE, "raw_pixels": ONE.model_copy(update={"value": value})}
    return found.model_copy(update={"rows": rows})


def test_hardly_helps__where_the_interval_includes_nothing() -> None:
    got = hardly_helps(transferred(0.02, -0.01, 0.05))
    assert got == (
        "Transfer hardly helps: the backbone can't be told from the same network untrained. A backbone"
        " trained on images more like these, or fine-tuning, may do better."
    )
    assert got in baselines_report(transferred(0.02, -0.01, 0.05))
    assert hardly_helps(transferred(0.02, 0.01, 0.05)) == ""
    assert hardly_helps(transferred(-0.02, -0.05, -0.01, "log_loss")) == ""


def test_hardly_helps__where_it_hurts() -> None:
    told = "the backbone is worse than the same network untrained"
    assert told in hardly_helps(transferred(-0.02, -0.05, -0.01))
    assert told in hardly_helps(transferred(0.02, 0.01, 0.05, "log_loss"))


def test_hardly_helps__where_pixels_beat_the_backbone() -> None:
    got = hardly_helps(pixels(0.9))
    told = "raw pixels do better than the backbone (balanced accuracy 0.900 against 0.800)"
    assert got.startswith(f"Transfer hardly helps: {told}. ")
    assert hardly_helps(pixels(0.8)) == hardly_helps(pixels(0.7)) == hardly_helps(pixels(math.nan)) == ""
    assert hardly_helps(pixels(0.7, "log_loss")) != ""
    assert hardly_helps(pixels(0.9, "log_loss")) == ""
    assert "Transfer helps." not in baselines_report(pixels(0.9))


def test_hardly_helps__says_nothing_of_what_was_not_compared() -> None:
    assert hardly_helps(BASELINES.model_copy(update={"transfer": None})) == ""
    assert hardly_helps(transferred(0.02, math.nan, math.nan)) == ""


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
