import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tasks.errors import RegistryError
from tasks.head.fitted import FILES, Calibration, FittedHead, Model, load
from tasks.head.linear import Linear, UnitLinear
from tasks.head.neighbours import Neighbours
from tasks.head.perceptron import Perceptron
from tasks.records import Confidence, Conformal, Kind, Target

CLASSES = ("crack", "ok", "Kratzer ä")


def linear(outputs: int = 3) -> Linear:
    chance = np.random.default_rng(0)
    return Linear(
        mean=chance.normal(size=4),
        scale=np.array([0.5, 0.5, 2.0, 1e-9]),
        weight=chance.normal(size=(outputs, 4)),
        bias=chance.normal(size=outputs),
    )


def of_each_kind() -> dict[Kind, tuple[Target, Model]]:
    chance = np.random.default_rng(1)
    some = linear()
    vectors = chance.normal(size=(5, 4)).astype(np.float32)
    weights = [chance.normal(size=shape).astype(np.float32) for shape in ((2, 4), (2,), (3, 2), (3,))]
    return {
        "logistic": ("class", some),
        "prototype": ("class", UnitLinear(some.mean, some.scale, some.weight, some.bias)),
        "knn": (
            "class",
            Neighbours(
                some.mean, some.scale, vectors, np.array([0, 1, 2, 0, 1]), np.full(3, 1 / 3), np.array([2])
            ),
        ),
        "mlp": ("class", Perceptron(some.mean, some.scale, *weights)),
        "multilabel": ("labels", some),
        "ridge": ("number", linear(1)),
    }


def head(kind: Kind = "logistic") -> FittedHead:
    target, model = of_each_kind()[kind]
    outputs = 1 if target == "number" else 3
    return FittedHead(
        target=target,
        kind=kind,
        classes=() if target == "number" else CLASSES,
        model=model,
        calibration=Calibration(np.full(outputs, 1 / 3), np.arange(float(outputs))),
        confidence=Confidence(precision=0.99, threshold=1 / 7, answered=0.9),
        conformal=Conformal(coverage=0.9, threshold=0.1),
    )


def test_linear__is_the_affine_map_of_the_standardised() -> None:
    of = Linear(
        mean=np.array([1.0, 2.0]),
        scale=np.array([2.0, 4.0]),
        weight=np.array([[1.0, 0.0], [0.5, -1.0]]),
        bias=np.array([0.25, 0.0]),
    )
    # (3 - 1)/2 = 1 and (10 - 2)/4 = 2: logits 1·1 + 0.25 and 0.5·1 - 1·2
    np.testing.assert_allclose(of.logits(np.array([[3, 10]], dtype=np.float32)), [[1.25, -1.5]])


def test_unit_linear__sees_the_direction_alone() -> None:
    of = UnitLinear(np.zeros(2), np.ones(2), weight=np.eye(2), bias=np.zeros(2))
    found = of.logits(np.array([[3, 4], [30, 40], [0, 0]], dtype=np.float32))
    np.testing.assert_allclose(found, [[0.6, 0.8], [0.6, 0.8], [0.0, 0.0]])


def test_perceptron__cuts_off_what_is_negative() -> None:
    of = Perceptron(
        mean=np.zeros(1),
        scale=np.ones(1),
        hidden_weight=np.array([[1.0], [-1.0]], dtype=np.float32),
        hidden_bias=np.array([0.5, 0.0], dtype=np.float32),
        weight=np.array([[2.0, 10.0]], dtype=np.float32),
        bias=np.array([1.0], dtype=np.float32),
    )
    # x = 1: hidden (1.5, 0), 2·1.5 + 1 = 4; x = -1: hidden (0, 1), 10 + 1 = 11
    np.testing.assert_allclose(of.logits(np.array([[1], [-1]], dtype=np.float32)), [[4], [11]])


def test_outputs__of_classes_are_calibrated_and_sum_to_one() -> None:
    model = Linear(np.zeros(1), np.ones(1), np.array([[0.0], [1.0]]), np.zeros(2))
    of = FittedHead(
        "class", "logistic", ("a", "b"), model, Calibration(np.full(2, 0.5), np.array([0, -np.log(3)]))
    )
    (p,) = of.outputs(np.array([[2 * np.log(9)]], dtype=np.float32))
    np.testing.assert_allclose(p, [0.25, 0.75], atol=1e-7)  # odds exp(2 ln 9 / 2 - ln 3) = 3


def test_outputs__of_labels_are_each_its_own_and_of_a_number_the_value() -> None:
    model = Linear(np.zeros(1), np.ones(1), np.array([[0.0], [1.0]]), np.zeros(2))
    labels = FittedHead("labels", "multilabel", ("a", "b"), model, Calibration.none(2))
    x = np.array([[np.log(4)]], dtype=np.float32)
    np.testing.assert_allclose(labels.outputs(x), [[0.5, 0.8]], atol=1e-7)
    number = FittedHead(
        "number",
        "ridge",
        (),
        Linear(np.ones(1), np.ones(1), np.array([[3.0]]), np.ones(1)),
        Calibration.none(1),
    )
    np.testing.assert_allclose(number.outputs(np.array([[2]], dtype=np.float32)), [[4.0]])


def test_outputs__of_huge_logits_are_finite_and_sum_to_one() -> None:
    p = head().outputs(np.full((2, 4), 1e4, dtype=np.float32))
    assert np.isfinite(p).all()
    np.testing.assert_allclose(p.sum(axis=1), 1)


@pytest.mark.parametrize("kind", list(of_each_kind()))
def test_head__saved_and_loaded_is_the_same_bit_for_bit(tmp_path: Path, kind: Kind) -> None:
    before = head(kind)
    before.save(tmp_path)
    after = load(tmp_path)
    assert (after.kind, after.target, after.classes) == (before.kind, before.target, before.classes)
    assert (after.confidence, after.conformal) == (before.confidence, before.conformal)
    x = np.random.default_rng(2).normal(size=(7, 4)).astype(np.float32)
    assert after.outputs(x).tobytes() == before.outputs(x).tobytes()
    for name, array in vars(before.model).items():
        loaded = getattr(after.model, name)
        assert loaded.dtype == array.dtype
        assert loaded.tobytes() == array.tobytes()


def test_head__saved_twice_is_the_same_bytes(tmp_path: Path) -> None:
    for folder in (tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
        head().save(folder)
    for name in FILES:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["missing", "emptied", "truncated"])
def test_load__damaged_file_is_an_error(tmp_path: Path, name: str, damage: str) -> None:
    head().save(tmp_path)
    file = tmp_path / name
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(b"" if damage == "emptied" else file.read_bytes()[:-20])
    with pytest.raises(RegistryError, match="holds no readable head"):
        load(tmp_path)


@pytest.mark.parametrize("version", [1, 3, None])
def test_load__other_format_is_an_error(tmp_path: Path, version: int | None) -> None:
    head().save(tmp_path)
    file = tmp_path / "head.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "format": version}))
    with pytest.raises(RegistryError, match=f"format {version} is not known, only 2"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("kind", "forest", "kind 'forest' of target 'class' is not known"),
        ("kind", "mlp", "missing 2 required"),
        ("classes", ["a", "b"], "not of 2 outputs"),
        ("confidence", {"precision": 1}, "validation error"),
    ],
)
def test_load__what_does_not_fit_is_an_error(tmp_path: Path, key: str, value: object, reason: str) -> None:
    head().save(tmp_path)
    file = tmp_path / "head.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), key: value}))
    with pytest.raises(RegistryError, match=f"holds no whole head .*{reason}"):
        load(tmp_path)


def test_load__array_that_is_missing_is_an_error(tmp_path: Path) -> None:
    head().save(tmp_path)
    arrays = load_file(tmp_path / "head.safetensors")
    del arrays["calibration.bias"]
    save_file(arrays, tmp_path / "head.safetensors")
    with pytest.raises(RegistryError, match=r"holds no whole head .*calibration\.bias"):
        load(tmp_path)
