from pathlib import Path

import pytest

from flows import distilling
from flows.distilling import behind
from tasks.params import Params


def params(**distill: object) -> Params:
    return Params.model_validate({"distill": {"student": "timm:x", **distill}})


def test_behind__further_images_that_changed_are_something_new(tmp_path: Path) -> None:
    folder = tmp_path / "more"
    wished = params(unlabelled=str(folder))
    missing = behind("wear", wished)
    folder.mkdir()
    (folder / "a.png").write_bytes(b"one")
    one = behind("wear", wished)
    assert one == behind("wear", wished) != missing
    (folder / "b.png").write_bytes(b"two")
    assert behind("wear", wished) != one


def test_behind__weights_are_known_by_their_content(tmp_path: Path) -> None:
    file = tmp_path / "student.safetensors"
    file.write_bytes(b"one")
    one = behind("wear", params(weights=str(file)))
    file.write_bytes(b"two")
    assert behind("wear", params(weights=str(file))) != one


def test_behind__champion_counts_where_it_teaches(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = iter(["1", "2"])
    monkeypatch.setattr(distilling, "current_champion", lambda name: next(versions))
    taught = params(teachers=["champion"])
    assert behind("wear", taught) != behind("wear", taught)


def test_behind__without_a_student_there_is_nothing() -> None:
    assert behind("wear", Params()) == ()
