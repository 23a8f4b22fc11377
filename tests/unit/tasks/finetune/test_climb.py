import math

import pytest

from tasks.errors import FinetuneError
from tasks.finetune.climb import Expected, expected_seconds, plan_climb, trial_needed
from tasks.params import FinetuneParams
from tasks.records import Backbone, Check, Climb, Decision, Epoch, Interval, Preprocess, TrialPoint, Tuned

LITE = "timm:tf_efficientnet_lite0"
AUTO = FinetuneParams(when="auto", worth_per_point=2.0, price_per_hour=3.0)
FLOOR = "balanced_accuracy 0.600 [0.550, 0.650] < 0.65, the least allowed"


def decision(*failed: str) -> Decision:
    checks = [
        Check(check="min_test_samples", passed="min_test_samples" not in failed, detail="378 ≥ 50"),
        Check(check="floor.balanced_accuracy", passed="floor.balanced_accuracy" not in failed, detail=FLOOR),
        Check(check="floor.ece", passed="floor.ece" not in failed, detail="ece 0.200 > 0.15"),
    ]
    return Decision(
        digest="d", passed=not failed, mode="absolute", champion_version=None, inputs={}, thresholds={},
        reasons=tuple(checks),
    )  # fmt: skip


def plan(
    params: FinetuneParams = AUTO,
    *failed: str,
    backbone: str = LITE,
    validation_units: int = 140,
    expected: Expected | None = None,
    frozen: float | None = 0.784,
) -> Climb:
    return plan_climb(
        params,
        decision(*failed),
        "balanced_accuracy",
        backbone=backbone,
        validation_units=validation_units,
        frozen=frozen,
        expected=expected,
    )


def expecting(value: float, low: float, high: float, seconds: float = 3600) -> Expected:
    return Expected(Interval(value=value, low=low, high=high), seconds)


def test_climb__never_is_never() -> None:
    found = plan(AUTO.model_copy(update={"when": "never"}), "floor.ece", expected=expecting(0.3, 0.2, 0.4))
    assert not found.climb
    assert found.reason == "finetune.when is never, so the backbone stays frozen."


def test_climb__always_is_always() -> None:
    found = plan(FinetuneParams(when="always"))
    assert found.climb
    assert found.reason == (
        "finetune.when is always, so the backbone is trained, whatever it reaches frozen (balanced accuracy"
        " 0.784)."
    )
    without = plan(FinetuneParams(when="always"), frozen=None)
    assert without.reason == "finetune.when is always, so the backbone is trained."


def test_climb__a_failed_floor_needs_no_trial() -> None:
    found = plan(FinetuneParams(when="auto"), "floor.balanced_accuracy")
    assert found.climb
    assert found.failed_floors == ("floor.balanced_accuracy",)
    assert found.reason == f"A floor of the gate failed with the frozen backbone: {FLOOR}."
    both = plan(FinetuneParams(when="auto"), "floor.balanced_accuracy", "floor.ece")
    assert both.reason.startswith("2 floors of the gate failed with the frozen backbone: ")
    assert both.reason.endswith(f"{FLOOR}; ece 0.200 > 0.15.")


def test_climb__another_failed_check_is_no_reason() -> None:
    found = plan(FinetuneParams(when="auto"), "min_test_samples")
    assert not found.climb
    assert found.failed_floors == ()


def test_climb__points_that_are_worth_nothing_need_no_trial() -> None:
    found = plan(FinetuneParams(when="auto", worth_per_point=0))
    assert not found.climb
    assert found.reason == (
        "All 2 floors of the gate hold, and finetune.worth_per_point is 0, so no trial was needed and the"
        " backbone stays frozen."
    )
    assert found.expected_gain is None


def test_climb__a_gain_that_is_worth_more_than_its_price_pays() -> None:
    # 5 points at 2 are 10; two hours at 3 are 6.
    found = plan(expected=expecting(0.05, 0.02, 0.08, seconds=7200))
    assert found.climb
    assert found.worth == pytest.approx(10)
    assert found.price == pytest.approx(6)
    assert found.reason == (
        "Fine-tuning is expected to gain +0.050 balanced accuracy (+0.020 to +0.080), worth 10 at 2 a point,"
        " and to cost 6 (2 h 0 min at 3 an hour), so it pays."
    )


def test_climb__a_gain_that_is_worth_its_price_and_no_more_does_not_pay() -> None:
    # 3 points at 2 are 6, as are two hours at 3.
    found = plan(AUTO, expected=expecting(0.03, 0.02, 0.04, seconds=7200))
    assert found.worth == pytest.approx(found.price)
    assert plan(expected=expecting(0.03, 0.02, 0.04, seconds=7300)).climb is False
    assert plan(expected=expecting(0.03, 0.02, 0.04, seconds=7100)).climb is True
    assert plan(expected=expecting(0.03, 0.02, 0.04, seconds=7300)).reason.endswith("so it does not pay.")


@pytest.mark.parametrize("low", [0.0, -0.01])
def test_climb__a_gain_that_may_be_nothing_does_not_pay(low: float) -> None:
    found = plan(expected=expecting(0.2, low, 0.4, seconds=1))
    assert not found.climb
    assert "which may be nothing" in found.reason


@pytest.mark.parametrize(
    "expected", [None, expecting(0.2, math.nan, math.nan), expecting(math.nan, math.nan, math.nan)]
)
def test_climb__what_is_not_known_does_not_pay(expected: Expected | None) -> None:
    found = plan(expected=expected)
    assert not found.climb
    assert found.reason.endswith("so the backbone stays frozen.")


def test_climb__pixels_have_nothing_to_train() -> None:
    found = plan(AUTO, "floor.ece", backbone="regraft:pixels")
    assert not found.climb
    assert found.reason == (
        "regraft:pixels has no weights to train, so the backbone stays frozen, although floor.ece failed."
    )
    with pytest.raises(FinetuneError, match=r"^regraft:pixels has no weights to train, and .* is always; "):
        plan(FinetuneParams(when="always"), backbone="regraft:pixels")


def test_climb__with_too_little_validation_nothing_can_be_chosen() -> None:
    found = plan(AUTO, "floor.ece", validation_units=49)
    assert not found.climb
    assert found.reason.startswith("49 independent validation samples are fewer than the 50 by which")
    with pytest.raises(FinetuneError, match=r"raise data\.validation_fraction"):
        plan(FinetuneParams(when="always"), validation_units=49)


def test_climb__one_that_is_never_climbed_may_stand_on_pixels() -> None:
    assert not plan(FinetuneParams(when="never"), backbone="regraft:pixels").climb


def test_climb__its_digest_is_of_its_numbers() -> None:
    one, other = plan(expected=expecting(0.05, 0.02, 0.08)), plan(expected=expecting(0.05, 0.02, 0.09))
    assert one.digest == plan(expected=expecting(0.05, 0.02, 0.08)).digest
    assert one.digest != other.digest
    # Also of numbers that are none.
    assert len(plan(expected=expecting(math.nan, math.nan, math.nan)).digest) == 64


def test_climb__keeps_the_trial() -> None:
    point = TrialPoint(method="full", learning_rate=1e-3, epochs=2, validation=0.9, validation_loss=0.3)
    found = plan_climb(
        AUTO, decision(), "accuracy", backbone=LITE, validation_units=90, trial=(point,),
        expected=expecting(0.1, 0.05, 0.2),
    )  # fmt: skip
    assert found.trial == (point,)


def test_trial_needed__only_where_the_plan_hangs_on_it() -> None:
    def needed(
        params: FinetuneParams = AUTO, *failed: str, backbone: str = LITE, validation_units: int = 90
    ) -> bool:
        return trial_needed(params, decision(*failed), backbone=backbone, validation_units=validation_units)

    assert needed()
    assert needed(AUTO, "min_test_samples")
    assert not needed(AUTO, "floor.ece")
    assert not needed(AUTO.model_copy(update={"worth_per_point": 0.0}))
    assert not needed(AUTO.model_copy(update={"when": "always"}))
    assert not needed(AUTO.model_copy(update={"when": "never"}))
    assert not needed(backbone="regraft:pixels")
    assert not needed(validation_units=49)


def test_expected_seconds__are_at_the_median_pace_and_with_the_cached_views() -> None:
    # 1,400 samples x 10 epochs at 28 a second: 500 s. Views took 6 s of 300 samples: 28 s of 1,400.
    assert expected_seconds(trained((5.0, 28.0, 30.0), cached_s=6.0), 300, 1400, 10) == pytest.approx(528)


def test_expected_seconds__without_a_pace_is_an_error() -> None:
    with pytest.raises(FinetuneError, match="measured no samples per second"):
        expected_seconds(trained(()), 300, 1400, 10)


def trained(paces: tuple[float, ...], cached_s: float = 0.0) -> Tuned:
    preprocess = Preprocess(
        resize=32, size=32, interpolation="bilinear", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)
    )
    backbone = Backbone(
        digest="b", name=LITE, weights="w", weights_digest="w", library="timm 1", preprocess=preprocess,
        precision="float32", blocks=(),
    )  # fmt: skip
    history = tuple(
        Epoch(
            epoch=at + 1, step=at, loss=1.0, validation_loss=1.0, validation=0.5, learning_rate=1e-3,
            seconds=1.0, samples_per_s=pace,
        )
        for at, pace in enumerate(paces)
    )  # fmt: skip
    return Tuned(
        digest="t", folder="", backbone=backbone, method="full", history=history, chosen="last",
        validation=0.5, trained=1, parameters=1, steps=1, batch=1, accumulate=1, precision="float32",
        hardware="cpu", seconds=1.0, cached_s=cached_s,
    )  # fmt: skip
