from datetime import datetime
from pathlib import Path

import pytest
from pydantic import ValidationError

from tasks.finetune.progress import Progress, Rate, append, follow
from tasks.records import Epoch

EPOCH = Epoch(
    epoch=1,
    step=5,
    loss=0.5,
    validation_loss=float("nan"),
    validation=0.75,
    learning_rate=1e-3,
    seconds=2.5,
    samples_per_s=64.0,
)


class Clock:
    """A clock that stands until it is moved."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def line(step: int) -> Progress:
    return Rate(20, 4).progress(0, step, 0.5, 1e-3)


def test_follow__gives_what_was_appended_once(tmp_path: Path) -> None:
    file = tmp_path / "progress.jsonl"
    assert follow(file, 0) == ([], 0)
    append(file, line(1))
    append(file, line(2))
    found, offset = follow(file, 0)
    assert [one.step for one in found] == [1, 2]
    assert (found[0], offset) == (line(1).model_copy(update={"at": found[0].at}), file.stat().st_size)
    assert follow(file, offset) == ([], offset)
    append(file, line(3))
    assert [one.step for one in follow(file, offset)[0]] == [3]


def test_follow__line_that_is_not_whole_waits(tmp_path: Path) -> None:
    file = tmp_path / "progress.jsonl"
    append(file, line(1))
    whole = file.stat().st_size
    append(file, line(2))
    content = file.read_bytes()
    for end in range(whole, len(content)):
        file.write_bytes(content[:end])
        found, offset = follow(file, 0)
        assert ([one.step for one in found], offset) == ([1], whole)
    file.write_bytes(content)
    assert [one.step for one in follow(file, whole)[0]] == [2]


def test_append__goes_on_after_a_process_that_was_killed_in_the_middle(tmp_path: Path) -> None:
    file = tmp_path / "progress.jsonl"
    append(file, line(1))
    with file.open("ab") as stream:
        stream.write(b'{"kind": "st')
    found, offset = follow(file, 0)
    append(file, line(2))
    assert [one.step for one in found + follow(file, offset)[0]] == [1, 2]


def test_progress__of_an_epoch_holds_its_record(tmp_path: Path) -> None:
    append(tmp_path / "lines", Rate(20, 4).progress(0, 5, 0.5, 1e-3, EPOCH))
    (found,), _ = follow(tmp_path / "lines", 0)
    assert found.record is not None
    assert found.kind == "epoch"
    assert repr(found.record) == repr(EPOCH)  # with its NaN


@pytest.mark.parametrize("kind", ["step", "epoch"])
def test_progress__record_is_of_an_epoch_alone(kind: str) -> None:
    record = EPOCH if kind == "step" else None
    with pytest.raises(ValidationError, match="a line of an epoch has its record"):
        Progress.model_validate({**line(1).model_dump(), "kind": kind, "record": record})


def test_rate__is_of_the_last_steps() -> None:
    clock = Clock()
    rate = Rate(steps=100, epochs=10, window=2, clock=clock)
    assert (rate.samples_per_s, rate.progress(0, 0, 1.0, 0.1).seconds_left) == (0.0, None)
    for seconds, samples in ((60.0, 8), (1.0, 8), (3.0, 16)):  # the first step is slow
        clock.now += seconds
        rate.add(samples)
    # The last two: 24 samples in 4 s; 2 s a step, and 90 steps to go.
    found = rate.progress(2, 10, 0.25, 0.1)
    assert (rate.samples_per_s, found.samples_per_s, found.seconds_left) == (6.0, 6.0, 180.0)
    assert (found.kind, found.epoch, found.epochs, found.step, found.steps) == ("step", 3, 10, 10, 100)
    assert (found.loss, found.learning_rate) == (0.25, 0.1)
    offset = datetime.fromisoformat(found.at).utcoffset()
    assert offset is not None
    assert not offset


def test_rate__clock_that_stands_is_no_error() -> None:
    rate = Rate(10, 1, clock=Clock())
    rate.add(8)
    assert (rate.samples_per_s, rate.progress(0, 1, 1.0, 0.1).seconds_left) == (0.0, None)
