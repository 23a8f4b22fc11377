"""A ladder and a training as the evaluation gets them: made by hand."""

import math

from tasks.records import (
    Backbone,
    Climb,
    Epoch,
    Interval,
    Ladder,
    Preprocess,
    Rung,
    TrialPoint,
    Tuned,
)

LITE = "timm:tf_efficientnet_lite0"


def interval(value: float, half: float = 0.02) -> Interval:
    return Interval(value=value, low=value - half, high=value + half)


def climb(reason: str = "A floor failed.", *, tried: bool = False) -> Climb:
    point = TrialPoint(method="full", learning_rate=1e-3, epochs=2, validation=0.91, validation_loss=0.3)
    return Climb(
        digest="c", climb=True, when="auto", reason=reason, metric="balanced_accuracy", failed_floors=(),
        frozen=0.784, expected_gain=interval(0.1) if tried else None,
        expected_seconds=500.0 if tried else None, price=0.14 if tried else None, worth=10 if tried else None,
        trial=(point,) if tried else (),
    )  # fmt: skip


def rung(
    name: str,
    value: float,
    seconds: float,
    *,
    passed: bool = True,
    chosen: bool = False,
    backbone: str = LITE,
    metric: str = "balanced_accuracy",
) -> Rung:
    return Rung(
        name=name, backbone=backbone, metric=metric, validation=interval(value + 0.01), test=interval(value),
        passed=passed, failed=() if passed else ("floor.balanced_accuracy",), seconds=seconds,
        price=seconds / 3600, size_mb=14.25, latency_ms=24.5, chosen=chosen,
    )  # fmt: skip


RUNGS = (
    rung("frozen", 0.784, 42, passed=False),
    rung("lp_ft", 0.951, 520, chosen=True),
    rung("student", 0.94, 900, backbone="timm:mobilenetv3_small_100"),
)


def ladder(
    *rungs: Rung, reason: str = "lp_ft is taken.", metric: str = "balanced_accuracy", tried: bool = False
) -> Ladder:
    return Ladder(
        digest="l", folder="", metric=metric, climb=climb(tried=tried), rungs=rungs or RUNGS, reason=reason
    )


def tuned(epochs: int = 4, **changes: object) -> Tuned:
    history = tuple(
        Epoch(
            epoch=at, step=44 * at, loss=math.exp(-at), validation_loss=0.2 + math.exp(-at),
            validation=0.95 - 0.3 * math.exp(-at), learning_rate=1e-3 * (1 - at / epochs), seconds=49,
            samples_per_s=28,
        )
        for at in range(1, epochs + 1)
    )  # fmt: skip
    preprocess = Preprocess(
        resize=32, size=32, interpolation="bilinear", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)
    )
    backbone = Backbone(
        digest="b", name=LITE, weights="w", weights_digest="w", library="timm 1", preprocess=preprocess,
        precision="float32", blocks=(),
    )  # fmt: skip
    made = Tuned(
        digest="t", folder="", backbone=backbone, method="lp_ft", history=history, chosen="best",
        validation=0.95, trained=3_374_272, parameters=3_374_272, steps=44 * epochs, batch=32, accumulate=1,
        precision="float32", hardware="AMD EPYC", seconds=503, cached_s=0,
    )  # fmt: skip
    return made.model_copy(update=changes)
