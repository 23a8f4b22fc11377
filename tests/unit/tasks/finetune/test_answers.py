import errno
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from tasks.errors import FinetuneError
from tasks.finetune.answers import Answers, Floats, Layout, filled
from tasks.settings import ROOT

LAYOUT = Layout(samples=7, views=2, outputs=3, features=4, chunk=2)  # chunks of 2, 2, 2 and 1 samples
PLACES = range(7)


def said(row: int, view: int, output: int) -> float:
    return 100 * row + 10 * view + output


class Asked:
    """Answers what `said` gives, features alike but negative, and remembers what it was asked about."""

    def __init__(self, broken: int | None = None) -> None:
        self.rows: list[list[int]] = []
        self._broken = broken
        self._lock = threading.Lock()

    def __call__(self, rows: Sequence[int]) -> tuple[Floats, Floats]:
        if self._broken in rows:
            raise RuntimeError("no power")
        with self._lock:
            self.rows.append(list(rows))
        outputs = [[[said(row, v, k) for k in range(3)] for v in range(2)] for row in rows]
        features = [[[-said(row, v, d) for d in range(4)] for v in range(2)] for row in rows]
        return np.array(outputs, dtype=np.float32), np.array(features, dtype=np.float32)

    @property
    def asked(self) -> list[int]:
        return sorted(row for rows in self.rows for row in rows)


def fill(folder: Path, asked: Asked | None = None, places: Sequence[int] = PLACES) -> Answers:
    return filled(folder, LAYOUT, places, asked or Asked())


def outputs(answers: Answers, row: int, view: int) -> list[float]:
    found = answers.outputs(torch.tensor([row]), torch.tensor([view]))[0].tolist()
    assert isinstance(found, list)
    return found


def test_answers__are_by_sample_and_view(tmp_path: Path) -> None:
    answers = fill(tmp_path)
    found = answers.outputs(torch.tensor([6, 0, 6]), torch.tensor([1, 0, 0]))
    assert found.dtype == torch.float32
    assert found.tolist() == [[610, 611, 612], [0, 1, 2], [600, 601, 602]]


def test_answers__samples_may_come_in_any_order_and_twice(tmp_path: Path) -> None:
    answers = fill(tmp_path, places=[5, 2, 2])
    assert len(answers) == 3
    assert outputs(answers, 0, 1) == [510, 511, 512]
    assert outputs(answers, 1, 0) == outputs(answers, 2, 0) == [200, 201, 202]


def test_answers__are_computed_once(tmp_path: Path) -> None:
    first, second = Asked(), Asked()
    fill(tmp_path, first)
    fill(tmp_path, second)
    assert first.asked == list(range(7))
    assert second.asked == []


def unwritten(folder: Path) -> list[int]:
    """The samples whose chunk has no line in the journal."""
    lines = (folder / "chunks.jsonl").read_text().splitlines()
    done = {json.loads(line)["chunk"] for line in lines}
    return [row for row in range(7) if row // 2 not in done]


def test_answers__that_were_cut_short_are_carried_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.finetune.answers.threads", lambda: 1)  # two chunks are on their way
    with pytest.raises(RuntimeError, match="no power"):
        fill(tmp_path, Asked(broken=6))
    left = unwritten(tmp_path)
    assert 1 <= len(left) <= 3  # of 7
    again = Asked()
    assert outputs(fill(tmp_path, again), 6, 1) == [610, 611, 612]
    assert again.asked == left


def test_answers__survive_kill_9(tmp_path: Path) -> None:
    program = f"""
import os, signal
from pathlib import Path
from tasks.finetune.answers import filled
from tests.unit.tasks.finetune.test_answers import Asked, LAYOUT
def progress(done, total):
    if done >= 4:
        os.kill(os.getpid(), signal.SIGKILL)
filled(Path({str(tmp_path)!r}), LAYOUT, range(7), Asked(), progress)
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run([sys.executable, "-c", program], env=environment, check=False)
    assert ended.returncode == -signal.SIGKILL
    left = unwritten(tmp_path)
    assert 2 <= len(left) <= 3
    asked = Asked()
    answers = fill(tmp_path, asked)
    assert asked.asked == left
    assert [outputs(answers, row, 0)[0] for row in range(7)] == [100 * row for row in range(7)]


@pytest.mark.parametrize("file", ["outputs.f32", "features.f16"])
def test_answers__damaged_bytes_are_noticed_and_computed_anew(tmp_path: Path, file: str) -> None:
    fill(tmp_path)
    content = bytearray((tmp_path / file).read_bytes())
    content[len(content) // 2] ^= 0x40  # of sample 3, in the second chunk
    (tmp_path / file).write_bytes(content)
    asked = Asked()
    assert outputs(fill(tmp_path, asked), 3, 1) == [310, 311, 312]
    assert asked.asked == [2, 3]


@pytest.mark.parametrize("rest", ['{"chunk": 1, "sha', '{"chunk": 99, "sha256": ""}\n', "[]\n", "\0\0"])
def test_answers__torn_line_of_the_journal_is_passed_over(tmp_path: Path, rest: str) -> None:
    fill(tmp_path)
    journal = tmp_path / "chunks.jsonl"
    whole = journal.read_text()
    lines = {line for line in whole.splitlines() if '"chunk": 1,' not in line}
    journal.write_text("".join(f"{line}\n" for line in sorted(lines)) + rest)
    asked = Asked()
    fill(tmp_path, asked)
    assert asked.asked == [2, 3]
    assert sorted(journal.read_text().splitlines()) == sorted(whole.splitlines())


def test_answers__file_that_was_cut_is_made_whole(tmp_path: Path) -> None:
    fill(tmp_path)
    os.truncate(tmp_path / "outputs.f32", 7 * 2 * 3 * 4 - 1)
    asked = Asked()
    assert outputs(fill(tmp_path, asked), 6, 1) == [610, 611, 612]
    assert asked.asked == [6]


def test_answers__what_is_no_number_is_refused_and_not_kept(tmp_path: Path) -> None:
    def broken(rows: Sequence[int]) -> tuple[Floats, Floats]:
        found, features = Asked()(rows)
        return np.where(found == said(3, 1, 2), np.nan, found).astype(np.float32), features

    with pytest.raises(FinetuneError, match="samples 2 to 3 with what is no number"):
        filled(tmp_path, LAYOUT, PLACES, broken)
    assert '"chunk": 1,' not in (tmp_path / "chunks.jsonl").read_text()


def test_answers__features_are_standardised(tmp_path: Path) -> None:
    answers = fill(tmp_path)
    rows, views = torch.arange(7).repeat_interleave(2), torch.arange(2).repeat(7)
    found = answers.features(rows, views)
    assert found.shape == (14, 4)
    assert torch.allclose(found.mean(0), torch.zeros(4), atol=1e-5)
    assert torch.allclose(found.square().mean(0), torch.ones(4), atol=1e-5)
    # The features are -100 row - 10 view - d: of the first sample above the mean.
    assert (found[0] > 0).all()


def test_answers__feature_that_never_changes_is_zero(tmp_path: Path) -> None:
    def constant(rows: Sequence[int]) -> tuple[Floats, Floats]:
        return Asked()(rows)[0], np.full((len(rows), 2, 4), 5, dtype=np.float32)

    answers = filled(tmp_path, LAYOUT, PLACES, constant)
    assert answers.features(torch.tensor([1]), torch.tensor([1])).tolist() == [[0, 0, 0, 0]]


def test_answers__features_beyond_float16_are_cut(tmp_path: Path) -> None:
    def large(rows: Sequence[int]) -> tuple[Floats, Floats]:
        found, features = Asked()(rows)
        features[..., 0] = 1e9
        return found, features

    answers = filled(tmp_path, LAYOUT, PLACES, large)
    assert torch.isfinite(answers.features(torch.tensor([1]), torch.tensor([1]))).all()


@pytest.mark.parametrize(("row", "view"), [(0, 2), (7, 0)])
def test_answers__what_nobody_was_asked_is_refused(tmp_path: Path, row: int, view: int) -> None:
    with pytest.raises(FinetuneError, match=r"answered 2 views of 7 samples.*distill\.views"):
        outputs(fill(tmp_path), row, view)


def test_answers__without_features_have_none(tmp_path: Path) -> None:
    layout = Layout(samples=7, views=2, outputs=3, features=0, chunk=2)
    answers = filled(tmp_path, layout, PLACES, lambda rows: (Asked()(rows)[0], None))
    assert not (tmp_path / "features.f16").exists()
    with pytest.raises(FinetuneError, match=r"distill\.features"):
        answers.features(torch.tensor([0]), torch.tensor([0]))


def test_answers__full_disk_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("tasks.finetune.answers.os.pwrite", full)
        with pytest.raises(FinetuneError, match=r"can't be written \(No space left on device\); make room"):
            fill(tmp_path)
    assert unwritten(tmp_path) == list(range(7))
    assert outputs(fill(tmp_path), 6, 1) == [610, 611, 612]
