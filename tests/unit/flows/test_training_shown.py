from collections.abc import Sequence
from typing import Any
from uuid import uuid4

import pytest

from flows import training_shown
from flows.training_shown import TrainingShown, table, told
from tests.unit.tasks.registry.training import end_of, epoch, step


def test_told__says_what_is_known() -> None:
    assert told(step(4)) == "epoch 2 of 2, step 4 of 6, loss 2.5, 96.0 samples/s"
    known = step(4).model_copy(update={"memory_mb": 4200.0, "seconds_left": 90.0})
    assert told(known).endswith("96.0 samples/s, 4,200 MB on the GPU, 1 min 30 s left")


def test_table__has_a_row_for_each_epoch() -> None:
    lines = table("wear", [epoch(1), epoch(2)], 5).splitlines()
    assert lines[0] == "# Fine-tuning wear: 2 of 5 epochs"
    assert lines[-1] == "| 2 | 0.5000 | 1.0000 | 0.7000 | 0.001 | 1.0 | 96.0 |"


class Api:
    """What is created and updated, by key."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[tuple[str, Any]] = []
        for what in ("markdown", "image"):
            monkeypatch.setattr(training_shown, f"create_{what}_artifact", self._create)
        monkeypatch.setattr(training_shown, "create_progress_artifact", self._create)
        monkeypatch.setattr(training_shown, "update_progress_artifact", self._update)
        monkeypatch.setattr(training_shown, "_update", self._update)
        self._keys: dict[Any, str] = {}

    def _create(self, value: Any, key: str, description: str) -> Any:
        assert description
        made = uuid4()
        self._keys[made] = key
        self.calls.append((f"+{key}", value))
        return made

    def _update(self, artifact: Any, value: Any, **_: str) -> None:
        self.calls.append((self._keys[artifact], value))

    def names(self) -> Sequence[str]:
        return [name for name, _ in self.calls]


def test_shown__table_and_curves_grow_with_the_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    api = Api(monkeypatch)
    shown = TrainingShown("wear")
    shown([step(1)])
    shown([step(2)])  # too soon after the last
    shown([step(3), end_of(1)])
    shown([end_of(2)])
    every_epoch = ["fine-tune", "fine-tune-epochs", "fine-tune-curves"]
    first = ["fine-tune", "+fine-tune-epochs", "+fine-tune-curves"]
    assert api.names() == ["+fine-tune", *first, *every_epoch]
    values = [value for name, value in api.calls if name.endswith("curves")]
    assert all(value.startswith("data:image/png;base64,iVBOR") for value in values)
    assert values[0] != values[1]
    assert [value for name, value in api.calls if name == "fine-tune"] == [50, 100]


def test_shown__what_cannot_be_written_costs_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("refused")

    monkeypatch.setattr(training_shown, "create_progress_artifact", refuse)
    TrainingShown("wear")([step(1)])
    assert "progress can't be shown (OSError)" in caplog.text
