"""Tests of what is kept of trainings' by-products."""

import os
from pathlib import Path

from tasks.finetune.tidy import PREFIXES, TEACHERS, tidy


def made(path: Path, age: int) -> Path:
    os.utime(path, (1_000_000 - age, 1_000_000 - age))
    return path


def test_tidy__keeps_the_newest_activations_with_their_descriptions(tmp_path: Path) -> None:
    folder = tmp_path / "prefixes"
    folder.mkdir()
    for age in range(PREFIXES + 2):
        for suffix in (".activations", ".json", ".lock"):
            (folder / f"{age}{suffix}").touch()
        made(folder / f"{age}.activations", age)
    tidy(tmp_path)
    assert {file.stem for file in folder.iterdir()} == {str(age) for age in range(PREFIXES)}


def test_tidy__keeps_the_newest_answers_of_teachers(tmp_path: Path) -> None:
    folder = tmp_path / "teachers"
    for age in range(TEACHERS + 1):
        (folder / str(age)).mkdir(parents=True)
        (folder / str(age) / "outputs.f32").write_bytes(b"x")
        made(folder / str(age), age)
    tidy(tmp_path)
    assert {path.name for path in folder.iterdir()} == {str(age) for age in range(TEACHERS)}


def test_tidy__what_was_on_its_way_is_removed_after_a_day(tmp_path: Path) -> None:
    for name in (".checkpoint-old", ".checkpoint-new", "packages/.fetch-old", "packages/whole"):
        (tmp_path / name).mkdir(parents=True)
    for name in (".checkpoint-old", "packages/.fetch-old"):
        made(tmp_path / name, 0)
    tidy(tmp_path)
    left = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")}
    assert left == {".checkpoint-new", "packages", "packages/whole"}


def test_tidy__nothing_there_is_nothing_to_do(tmp_path: Path) -> None:
    tidy(tmp_path)
    assert list(tmp_path.iterdir()) == []
