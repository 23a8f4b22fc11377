import json
from pathlib import Path

import numpy as np
import pytest

from tasks.errors import RegistryError
from tasks.head.linear import LinearHead


def head(temperature: float = 1.3) -> LinearHead:
    chance = np.random.default_rng(0)
    return LinearHead(
        classes=("crack", "ok", "Kratzer ä"),
        mean=chance.normal(size=4),
        scale=np.array([0.5, 0.5, 2.0, 1e-9]),
        weight=chance.normal(size=(3, 4)),
        bias=chance.normal(size=3),
        temperature=temperature,
    )


def test_logits__are_the_affine_map_of_the_standardised() -> None:
    of = LinearHead(
        classes=("a", "b"),
        mean=np.array([1.0, 2.0]),
        scale=np.array([2.0, 4.0]),
        weight=np.array([[1.0, 0.0], [0.5, -1.0]]),
        bias=np.array([0.25, 0.0]),
        temperature=1.0,
    )
    # (3 - 1)/2 = 1 and (10 - 2)/4 = 2: logits 1·1 + 0.25 and 0.5·1 - 1·2
    np.testing.assert_allclose(of.logits(np.array([[3, 10]], dtype=np.float32)), [[1.25, -1.5]])


def test_predict_proba__divides_by_the_temperature() -> None:
    of = LinearHead(
        classes=("a", "b"),
        mean=np.zeros(1),
        scale=np.ones(1),
        weight=np.array([[0.0], [1.0]]),
        bias=np.zeros(2),
        temperature=2.0,
    )
    (p,) = of.predict_proba(np.array([[np.log(9) * 2]], dtype=np.float32))
    np.testing.assert_allclose(p, [0.1, 0.9], atol=1e-7)  # odds exp(2 ln 9 / 2) = 9


def test_predict_proba__of_huge_logits_is_finite_and_sums_to_one() -> None:
    p = head(0.05).predict_proba(np.full((2, 4), 1e4, dtype=np.float32))
    assert np.isfinite(p).all()
    np.testing.assert_allclose(p.sum(axis=1), 1)


def test_head__saved_and_loaded_is_the_same_bit_for_bit(tmp_path: Path) -> None:
    before = head(temperature=1 / 3)
    before.save(tmp_path)
    after = LinearHead.load(tmp_path)
    assert after.classes == before.classes
    assert after.temperature == before.temperature
    for name in ("mean", "scale", "weight", "bias"):
        assert getattr(after, name).dtype == np.float64
        assert getattr(after, name).tobytes() == getattr(before, name).tobytes()


def test_head__saved_twice_is_the_same_bytes(tmp_path: Path) -> None:
    for folder in (tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
        head().save(folder)
    for name in ("head.safetensors", "head.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@pytest.mark.parametrize("name", ["head.safetensors", "head.json"])
@pytest.mark.parametrize("damage", ["missing", "emptied", "truncated"])
def test_head__damaged_file_is_an_error(tmp_path: Path, name: str, damage: str) -> None:
    head().save(tmp_path)
    file = tmp_path / name
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(b"" if damage == "emptied" else file.read_bytes()[:-20])
    with pytest.raises(RegistryError, match="holds no readable head"):
        LinearHead.load(tmp_path)


def test_head__other_format_is_an_error(tmp_path: Path) -> None:
    head().save(tmp_path)
    file = tmp_path / "head.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "format": 2}))
    with pytest.raises(RegistryError, match="format 2 is not known, only 1"):
        LinearHead.load(tmp_path)
