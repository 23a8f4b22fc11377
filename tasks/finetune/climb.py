"""Whether to climb from the frozen backbone to a trained one: only where that is needed, or pays."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tasks.errors import FinetuneError
from tasks.head.folds import LEAST_VALIDATION
from tasks.params import PIXELS, FinetuneParams
from tasks.progress import duration
from tasks.records import Check, Climb, Decision, Interval, TrialPoint, Tuned, digest_of

POINT = 0.01  # of the metric
HOUR = 3600.0


@dataclass(frozen=True)
class Expected:
    """What fine-tuning on all training samples is expected to bring and to take."""

    gain: Interval  # of the gate's metric; above 0 is better, whatever the metric
    seconds: float


def plan_climb(
    params: FinetuneParams,
    decision: Decision,
    metric: str,
    *,
    backbone: str,
    validation_units: int,
    frozen: float | None = None,
    expected: Expected | None = None,
    trial: Sequence[TrialPoint] = (),
    untried: str = "",
) -> Climb:
    """Whether the ladder is climbed. Of `when`,

    - never: it is not;
    - always: it is;
    - auto: it is where a floor of the gate failed with the frozen backbone, and where the expected gain is
      worth its price: the lower end of the gain's interval is above 0, and the points gained (0.01 of the
      metric each) times `worth_per_point` are more than the expected hours times `price_per_hour`.

    A backbone without weights to train, or data with too few validation samples to choose by, is not
    climbed from.

    Args:
        decision: of the gate on the frozen rung.
        metric: of the gate.
        backbone: its name.
        validation_units: groups, and samples without one, of the validation split.
        frozen: the metric of the frozen rung on validation.
        expected: of the trial; None: there was none (see `trial_needed`).
        trial: the candidates of the trial.
        untried: why a trial that was needed could not be made.

    Raises:
        FinetuneError: `always`, and it can't be.
    """
    failed = tuple(check.check for check in _floors(decision) if not check.passed)
    price = worth = None
    if expected is not None:
        price = expected.seconds / HOUR * params.price_per_hour
        if math.isfinite(expected.gain.value):
            worth = expected.gain.value / POINT * params.worth_per_point
    hindered = _hindrance(backbone, validation_units)
    if params.when == "never":
        climb, reason = False, "finetune.when is never, so the backbone stays frozen."
    elif hindered and params.when == "always":
        raise FinetuneError(f"{hindered.says}, and finetune.when is always; {hindered.remedy}")
    elif hindered:
        without = f", although {', '.join(failed)} failed" if failed else ""
        climb, reason = False, f"{hindered.says}, so the backbone stays frozen{without}."
    elif params.when == "always":
        known = frozen is not None and math.isfinite(frozen)
        reached = f", whatever it reaches frozen ({_words(metric)} {frozen:.3f})" if known else ""
        climb, reason = True, f"finetune.when is always, so the backbone is trained{reached}."
    elif failed:
        climb, reason = True, _failed(decision)
    elif params.worth_per_point == 0:
        held = f"{_held(len(_floors(decision)))}, and finetune.worth_per_point is 0"
        climb, reason = False, f"{held}, so no trial was needed and the backbone stays frozen."
    else:
        climb, reason = _pays(expected, price, worth, params, metric)
        if untried:
            reason = f"A trial of fine-tuning could not be made ({untried}), so the backbone stays frozen."
    made = Climb(
        digest="",
        climb=climb,
        when=params.when,
        reason=reason,
        metric=metric,
        failed_floors=failed,
        frozen=frozen,
        expected_gain=None if expected is None else expected.gain,
        expected_seconds=None if expected is None else expected.seconds,
        price=price,
        worth=worth,
        trial=tuple(trial),
    )
    told = made.model_dump(mode="json", exclude={"digest"})
    return made.model_copy(update={"digest": digest_of("climb", told)})


def trial_needed(params: FinetuneParams, decision: Decision, *, backbone: str, validation_units: int) -> bool:
    """Whether `plan_climb` hangs on what a trial expects: `auto`, every floor holds, a point is worth
    something, and nothing hinders."""
    return (
        params.when == "auto"
        and params.worth_per_point > 0
        and _hindrance(backbone, validation_units) is None
        and all(check.passed for check in _floors(decision))
    )


def expected_seconds(trial: Tuned, trial_samples: int, samples: int, epochs: int) -> float:
    """How long training takes on all samples, at the trial's pace: N x epochs / (samples per second), the
    median over the trial's epochs, since the first one warms up; and N / n times what its cached views
    took. Judging the validation samples is not counted.

    Args:
        trial: a training on `trial_samples` (n) samples.
        samples: N, of the training split.
        epochs: of the training that is planned.

    Raises:
        FinetuneError: the trial has no pace.
    """
    paces = [epoch.samples_per_s for epoch in trial.history if epoch.samples_per_s > 0]
    if not paces or trial_samples < 1:
        raise FinetuneError(
            f"the trial of {trial.method} on {trial_samples:,} samples measured no samples per second;"
            " set finetune.when to always or never"
        )
    return samples * epochs / float(np.median(paces)) + trial.cached_s * samples / trial_samples


@dataclass(frozen=True)
class _Hindrance:
    says: str
    remedy: str


def _hindrance(backbone: str, validation_units: int) -> _Hindrance | None:
    if backbone == PIXELS:
        return _Hindrance(
            f"{backbone} has no weights to train",
            "name a network of timm or torchvision in embedding.backbone, or set finetune.when to never",
        )
    if validation_units < LEAST_VALIDATION:
        return _Hindrance(
            f"{validation_units:,} independent validation samples are fewer than the {LEAST_VALIDATION} by"
            " which weights and head are chosen",
            "raise data.validation_fraction, or set finetune.when to never",
        )
    return None


def _floors(decision: Decision) -> list[Check]:
    return [check for check in decision.reasons if check.check.startswith("floor.")]


def _failed(decision: Decision) -> str:
    details = [check.detail for check in _floors(decision) if not check.passed]
    what = "A floor" if len(details) == 1 else f"{len(details)} floors"
    return f"{what} of the gate failed with the frozen backbone: {'; '.join(details)}."


def _pays(
    expected: Expected | None,
    price: float | None,
    worth: float | None,
    params: FinetuneParams,
    metric: str,
) -> tuple[bool, str]:
    """Fails closed: what is not a number does not pay."""
    if expected is None or price is None:
        return False, "There is no trial that says what fine-tuning would gain, so the backbone stays frozen."
    gain = expected.gain
    if worth is None or not (math.isfinite(gain.low) and math.isfinite(gain.high)):
        return False, (
            f"What fine-tuning would gain in {_words(metric)} can't be told from the validation samples, so"
            " the backbone stays frozen."
        )
    told = f"{_signed(gain.value)} {_words(metric)} ({_signed(gain.low)} to {_signed(gain.high)})"
    if gain.low <= 0:
        return False, (
            f"Fine-tuning is expected to gain {told}, which may be nothing, so the backbone stays frozen."
        )
    against = (
        f"{_money(worth)} at {params.worth_per_point:g} a point, and to cost {_money(price)}"
        f" ({duration(expected.seconds)} at {params.price_per_hour:g} an hour)"
    )
    if worth > price:
        return True, f"Fine-tuning is expected to gain {told}, worth {against}, so it pays."
    return False, f"Fine-tuning is expected to gain {told}, worth {against}, so it does not pay."


def _held(floors: int) -> str:
    if floors == 0:
        return "The gate has no floors"
    return "The gate's floor holds" if floors == 1 else f"All {floors} floors of the gate hold"


def _words(metric: str) -> str:
    return metric.replace("_", " ")


def _signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "−")


def _money(value: float) -> str:
    """Three digits at least: 0.0214, 2.14, 1,235."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
