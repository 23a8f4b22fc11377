from pathlib import Path

import pytest

from tasks.finetune.spent import Spent


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def seconds(of: Spent) -> dict[str, float]:
    (found,) = of.prepared.values()
    return found


def test_spent__counts_by_what_it_was_spent_on(tmp_path: Path) -> None:
    clock = Clock()
    spent = Spent(tmp_path / "x" / "key.json", clock)
    assert spent.prepared == {}
    for what, took in (("views", 3), ("answers", 4), ("views", 5)):
        with spent.on(what):
            clock.now += took
        clock.now += 100
    assert seconds(spent) == {"views": 8, "answers": 4}


def test_spent__killed_attempt_leaves_what_it_noted_last(tmp_path: Path) -> None:
    clock, file = Clock(), tmp_path / "key.json"
    dying = Spent(file, clock).on("views")
    note = dying.__enter__()
    clock.now = 7
    note()
    clock.now = 9  # and is killed
    later = Spent(file, clock)
    (name,) = later.prepared
    assert seconds(later) == {"views": 7}
    with later.on("views"):
        clock.now += 2
    assert later.prepared == Spent(file).prepared == {name: {"views": 9}}  # by the same name: added once


def test_spent__also_where_it_fails(tmp_path: Path) -> None:
    clock = Clock()
    spent = Spent(tmp_path / "key.json", clock)

    def fail() -> None:
        with spent.on("views"):
            clock.now = 2
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert seconds(spent) == {"views": 2}


@pytest.mark.parametrize("content", ["{", "[]", '{"machine": "a"}', '{"machine": "a", "seconds": {"x": []}}'])
def test_spent__damaged_file_is_passed_over(tmp_path: Path, content: str) -> None:
    (tmp_path / "key.json").write_text(content)
    assert Spent(tmp_path / "key.json").prepared == {}


def test_spent__unwritable_file_costs_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    spent = Spent(tmp_path / "file" / "key.json")
    with spent.on("views"):
        pass
    assert list(seconds(spent)) == ["views"]


def test_spent__of_another_machine_has_another_name(tmp_path: Path) -> None:
    names = set()
    for machine in ("a", "b"):
        spent = Spent(tmp_path / machine)
        with spent.on("views"):
            pass
        names |= set(spent.prepared)
    assert len(names) == 2


def test_spent__cleared(tmp_path: Path) -> None:
    spent = Spent(tmp_path / "key.json")
    with spent.on("views"):
        pass
    spent.clear()
    spent.clear()
    assert list(tmp_path.iterdir()) == []
