from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import expit, log_softmax
from sklearn.linear_model import LogisticRegression

from tasks.head import logistic, mlp, training
from tasks.head.calibrate import calibrate, cross_calibrated, losses
from tasks.head.choose import one_standard_error
from tasks.head.fitted import outputs_of
from tasks.head.folds import assign_folds
from tasks.head.judging import Judging
from tasks.head.solver import Solutions, solve
from tasks.head.training import Samples, Trained, cross_validate, train, train_at
from tasks.params import HeadParams

CLASSES = ("a", "b", "c")


def params(**values: Any) -> HeadParams:
    return HeadParams(
        **{"strengths": (0.01, 0.1, 1.0), "neighbours": (1, 15), "folds": 3, "hidden": 8, **values}
    )


def clusters(n: int, seed: int = 0, shares: tuple[float, ...] = (1 / 3, 1 / 3, 1 / 3)) -> Samples:
    """Classes around the corners of a simplex; they overlap."""
    chance = np.random.default_rng(seed)
    y = np.repeat(np.arange(3), np.round(np.multiply(shares, n)).astype(int))
    x = (1.5 * np.eye(6)[y] + chance.normal(size=(len(y), 6))).astype(np.float32)
    return Samples(x, y, (6,))


def fitted(samples: Samples, **values: Any) -> Trained:
    return train(samples, target="class", classes=CLASSES, params=params(**values))


def log_loss(p: NDArray[np.float64], y: NDArray[Any]) -> float:
    return float(-np.log(p[np.arange(len(y)), y]).mean())


def test_train__logistic_is_that_of_scikit_learn() -> None:
    samples = clusters(150)
    found = fitted(samples, strengths=(0.1,))
    x = np.asarray(samples.x, dtype=np.float64)
    standard = (x - x.mean(axis=0)) / np.sqrt(x.var(axis=0).mean())
    reference = LogisticRegression(C=0.1, max_iter=1000, tol=1e-8).fit(standard, samples.y)
    logits = found.fitted.calibration(reference.decision_function(standard))
    np.testing.assert_allclose(found.fitted.outputs(samples.x), outputs_of(logits, "class"), atol=1e-3)


@pytest.mark.parametrize("kind", ["logistic", "prototype", "knn"])
def test_train__every_kind_learns_what_can_be_learned(kind: str) -> None:
    found = fitted(clusters(240), kind=kind)
    other = clusters(300, seed=1)
    assert log_loss(found.fitted.outputs(other.x), other.y) < 0.8  # chance is ln 3 = 1.1
    assert found.kind == kind
    assert found.kinds == {}
    assert len(found.strengths) == {"logistic": 3, "prototype": 0, "knn": 2}[kind]
    assert (found.strength is None) == (kind == "prototype")


def test_train__held_out_outputs_are_of_fits_that_did_not_see_the_sample() -> None:
    # The labels are noise: a head that had seen a sample would know it.
    chance = np.random.default_rng(0)
    samples = Samples(chance.normal(size=(60, 40)).astype(np.float32), np.arange(60) % 3, (40,))
    for kind in ("logistic", "knn"):
        found = fitted(samples, kind=kind, neighbours=(1,), strengths=(1.0,))
        assert found.held_out.shape == (60, 3)
        assert log_loss(found.held_out, samples.y) > 1.05  # ln 3 = 1.099
        assert found.score.value > 1.05


def test_train__copies_in_one_fold_tell_nothing() -> None:
    # Each sample three times, labels of noise: on copies of what it was fitted on it would be sure.
    chance = np.random.default_rng(0)
    x = np.repeat(chance.normal(size=(40, 60)), 3, axis=0).astype(np.float32)
    y = np.repeat(chance.integers(0, 3, size=40), 3)
    apart = Samples(x, y, (60,), [str(row // 3) for row in range(120)])
    (mixed, right) = (fitted(some, strengths=(10.0,)).score.value for some in (Samples(x, y, (60,)), apart))
    assert mixed < 0.6 < 1.05 < right


def test_train__auto_takes_the_cheapest_within_one_standard_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mlp, "EPOCHS", (2, 8))
    found = fitted(clusters(150), kind="auto")
    assert set(found.kinds) == {"prototype", "logistic", "mlp", "knn"}
    best = min(found.kinds.values(), key=lambda of: of.value)
    bound = best.value + best.standard_error
    within = [kind for kind, of in found.kinds.items() if of.value <= bound]
    assert found.kind == within[0]  # in the order of their costs
    assert found.score == found.kinds[found.kind]


@pytest.mark.parametrize("imbalance", ["balanced", "logit_adjustment"])
@pytest.mark.parametrize("kind", ["logistic", "prototype", "knn"])
def test_train__rare_classes_gain_by_either_remedy(imbalance: str, kind: str) -> None:
    samples = clusters(300, shares=(0.8, 0.1, 0.1))
    other = clusters(600, seed=1)
    plain, remedied = (
        fitted(samples, kind=kind, imbalance=name).fitted.outputs(other.x).argmax(axis=1)
        for name in ("none", imbalance)
    )
    rare = np.asarray(other.y) != 0
    assert (remedied == other.y)[rare].mean() > (plain == other.y)[rare].mean() + 0.05
    assert (remedied == other.y).mean() > (plain == other.y).mean()  # all are alike frequent there


def test_train__labels_have_a_probability_each() -> None:
    chance = np.random.default_rng(0)
    x = chance.normal(size=(300, 3)).astype(np.float32)
    y = (chance.random((300, 2)) < expit(3 * x[:, :2])).astype(np.float32)
    found = train(Samples(x, y, (3,)), target="labels", classes=("a", "b"), params=params(kind="multilabel"))
    p = found.fitted.outputs(x)
    assert p.shape == found.held_out.shape == (300, 2)
    assert ((p > 0.5) == (y > 0.5)).mean() > 0.8
    assert np.corrcoef(p[:, 0], expit(3 * x[:, 0]))[0, 1] > 0.97


def test_train__numbers_are_ridge_judged_by_what_is_left_out() -> None:
    chance = np.random.default_rng(0)
    x = chance.normal(size=(100, 3)).astype(np.float32)
    y = x @ np.array([1.0, -2.0, 0.5]) + 7 + 0.3 * chance.normal(size=100)
    found = train(Samples(x, y, (3,)), target="number", classes=(), params=params(kind="ridge"))
    assert found.fitted.outputs(x).shape == found.held_out.shape == (100, 1)
    assert found.score.value == pytest.approx(((found.held_out[:, 0] - y) ** 2).mean())
    assert found.score.value < 0.15  # .3² = .09 is noise
    assert found.calibration.method == "none"


def test_train_at__is_the_refit_before_calibration() -> None:
    samples = clusters(150)
    for kind in ("logistic", "prototype", "knn"):
        found = fitted(samples, kind=kind)
        again = train_at(
            samples,
            target="class",
            classes=CLASSES,
            kind=found.kind,
            strength=found.strength,
            params=params(kind=kind),
        )
        np.testing.assert_allclose(again.logits(samples.x), found.fitted.logits(samples.x), atol=2e-3)


def test_cross_validate__is_what_train_says_without_the_refit() -> None:
    samples = clusters(120)
    found = cross_validate(samples, target="class", classes=CLASSES, params=params())
    assert found.shape == (3,)
    assert found.mean() == pytest.approx(fitted(samples).score.value)


def test_train__is_the_same_bit_for_bit() -> None:
    samples = clusters(90)
    once, again = (fitted(samples).fitted.outputs(samples.x) for _ in range(2))
    assert once.tobytes() == again.tobytes()
    assert (
        assign_folds(samples.y, None, 3, 0, "class") == assign_folds(samples.y, None, 3, 0, "class")
    ).all()


def test_train_at__takes_the_calibration_of_another_head() -> None:
    samples = clusters(150)
    for imbalance in ("none", "logit_adjustment"):
        found = fitted(samples, imbalance=imbalance)
        again = train_at(
            samples,
            target="class",
            classes=CLASSES,
            kind=found.kind,
            strength=found.strength,
            params=params(imbalance=imbalance),
            calibration=found.fitted.calibration,
        )
        # On all samples it is the head itself, whatever was done about rare classes.
        np.testing.assert_allclose(again.outputs(samples.x), found.fitted.outputs(samples.x), atol=1e-3)


def test_held_out__logits_are_those_that_were_judged() -> None:
    samples = clusters(90)
    folds = np.arange(90) % 3
    judged: list[NDArray[np.float64]] = []
    logits_at, found = logistic.held_out(
        samples.x,
        samples.y,
        folds,
        outputs=3,
        link="softmax",
        parts=(6,),
        weight=None,
        params=params(),
        memory_bytes=1 << 20,
        judge=judged.append,
    )
    assert len(judged) == found.weight.shape[1] == 3
    for at, logits in enumerate(judged):
        np.testing.assert_array_equal(logits_at(at), logits)


def apart(train: Samples, other: Samples) -> Samples:
    """The samples of both, the latter set apart for judging."""
    return Samples(
        np.concatenate([np.asarray(train.x), np.asarray(other.x)]),
        np.concatenate([train.y, other.y]),
        train.parts,
        validation=np.arange(len(train.y) + len(other.y)) >= len(train.y),
    )


def memorised(n: int, seen: bool, seed: int) -> Samples:
    """What a backbone says that has seen the labels of some: of those the label itself, of others
    mostly the class, and noise."""
    chance = np.random.default_rng(seed)
    y = np.arange(n) % 3
    said = y if seen else np.where(chance.random(n) < 0.7, y, chance.integers(0, 3, n))
    x = 4 * np.eye(6)[said] + 0.5 * chance.normal(size=(n, 6))
    return Samples(x.astype(np.float32), y, (6,))


def test_train__memorised_labels_deceive_the_folds_and_not_what_is_set_apart() -> None:
    train_split, validation, test = (memorised(150, seen, at) for at, seen in enumerate((True, False, False)))
    by_folds, by_others = fitted(train_split), fitted(apart(train_split, validation))
    deceived, honest = (log_loss(found.fitted.outputs(test.x), test.y) for found in (by_folds, by_others))
    assert by_folds.score.value < 0.05 < 0.5 < deceived
    assert honest < deceived - 0.2
    assert by_others.score.value == pytest.approx(honest, abs=0.1)


@pytest.mark.parametrize("imbalance", ["none", "balanced", "logit_adjustment"])
@pytest.mark.parametrize("kind", ["logistic", "prototype", "knn", "mlp"])
def test_train__nothing_is_fitted_on_what_is_set_apart(
    kind: str, imbalance: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mlp, "EPOCHS", (2, 8))
    own, other = clusters(120, shares=(0.6, 0.2, 0.2)), clusters(60, seed=1)
    given = params(kind=kind, imbalance=imbalance)
    found = train(apart(own, other), target="class", classes=CLASSES, params=given)
    alone = train_at(
        own, target="class", classes=CLASSES, kind=found.kind, strength=found.strength, params=given
    )
    own_says, said = (log_softmax(head.logits(other.x), axis=1) for head in (alone, found.fitted))
    np.testing.assert_allclose(said, own_says, atol=5e-3)


@pytest.mark.parametrize("kind", ["logistic", "prototype", "knn", "mlp"])
def test_train__judged_logits_are_those_of_the_head(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mlp, "EPOCHS", (2, 8))
    own, other = clusters(120), clusters(90, seed=1)
    both = apart(own, other)
    found = fitted(both, kind=kind)
    folds = Judging.of(both, "class", params()).folds
    logits = found.fitted.logits(other.x) + (np.log([1 / 3] * 3) if kind == "prototype" else 0)
    expected = losses(cross_calibrated(logits, other.y, folds), other.y)
    assert found.score.value == pytest.approx(expected.mean(), abs=1e-6)
    assert found.score.standard_error == pytest.approx(expected.std(ddof=1) / np.sqrt(90), abs=1e-6)


def test_train__outputs_of_what_is_set_apart_are_calibrated_by_its_other_folds() -> None:
    own, other = memorised(90, True, 0), memorised(60, False, 1)
    both = apart(own, other)
    found = fitted(both, strengths=(0.1,))
    folds = Judging.of(both, "class", params()).folds
    logits = found.fitted.logits(other.x)
    assert found.held_out.shape == (60, 3)
    for fold in range(3):
        rest = folds != fold
        by_others = calibrate(logits[rest], other.y[rest], folds[rest]).calibration
        np.testing.assert_allclose(
            found.held_out[~rest], outputs_of(by_others(logits[~rest]), "class"), atol=1e-6
        )
    assert np.abs(found.held_out - found.fitted.outputs(other.x)).max() > 1e-4


def test_train__each_fold_of_what_is_set_apart_is_chosen_by_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chosen_by: list[int] = []

    def spy(of_units: NDArray[np.float64]) -> int:
        chosen_by.append(of_units.shape[1])
        return one_standard_error(of_units)

    monkeypatch.setattr(training, "one_standard_error", spy)
    fitted(apart(clusters(90), clusters(60, seed=1)))
    # The kind by all 60; then of each of three folds strength and kind by the 40 others.
    assert chosen_by == [60, *[40] * 6]


def test_train__what_is_set_apart_takes_one_solve_of_one_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []

    def spy(*given: Any, **named: Any) -> Solutions:
        asked.append((len(named["strengths"]), len(named["rows"])))
        return solve(*given, **named)

    monkeypatch.setattr(logistic, "solve", spy)
    fitted(apart(clusters(90), clusters(60, seed=1)))
    assert asked == [(3, 1)]


def test_train__auto_is_judged_on_what_is_set_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mlp, "EPOCHS", (2, 8))
    found = fitted(apart(clusters(90), clusters(60, seed=1)), kind="auto")
    best = min(found.kinds.values(), key=lambda of: of.value)
    within = [kind for kind, of in found.kinds.items() if of.value <= best.value + best.standard_error]
    assert (found.kind, found.held_out.shape) == (within[0], (60, 3))


def test_train__labels_and_numbers_are_judged_on_what_is_set_apart() -> None:
    chance = np.random.default_rng(0)
    x = chance.normal(size=(200, 3)).astype(np.float32)
    validation = np.arange(200) >= 120
    y = (chance.random((200, 2)) < expit(3 * x[:, :2])).astype(np.float32)
    found = train(
        Samples(x, y, (3,), validation=validation),
        target="labels", classes=("a", "b"), params=params(kind="multilabel"),
    )  # fmt: skip
    assert found.held_out.shape == (80, 2)
    assert ((found.held_out > 0.5) == (y[validation] > 0.5)).mean() > 0.75

    numbers = x @ np.array([1.0, -2.0, 0.5]) + 7 + 0.3 * chance.normal(size=200)
    found = train(
        Samples(x, numbers, (3,), validation=validation), target="number", classes=(),
        params=params(kind="ridge"),
    )  # fmt: skip
    alone = train_at(
        Samples(x[:120], numbers[:120], (3,)), target="number", classes=(), kind="ridge",
        strength=found.strength, params=params(kind="ridge"),
    )  # fmt: skip
    expected = alone.outputs(x[120:])
    np.testing.assert_allclose(found.fitted.outputs(x[120:]), expected)
    assert found.score.value == pytest.approx(((expected[:, 0] - numbers[120:]) ** 2).mean())
    assert found.calibration.method == "none"
    assert found.held_out.shape == (80, 1)


def test_cross_validate__is_of_the_units_that_are_set_apart() -> None:
    both = apart(clusters(90), clusters(60, seed=1))
    found = cross_validate(both, target="class", classes=CLASSES, params=params())
    assert found.shape == (60,)
    assert found.mean() == pytest.approx(fitted(both).score.value)
