import json
import logging
import os
import platform
import re
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tasks.errors import FinetuneError
from tasks.finetune.batches import Batch
from tasks.finetune.memory import Fitting, hardware, is_out_of_memory
from tasks.settings import ROOT

OF = ("NVIDIA H200, 139 GiB", "timm:resnet18", "224 px", "full", "float32")
KEY = "NVIDIA H200, 139 GiB | timm:resnet18 | 224 px | full | float32"
Reason = Callable[[], BaseException]


def batch(samples: int) -> Batch:
    rows = torch.arange(samples)
    return Batch(torch.zeros(samples, 3, 2, 2), torch.zeros(samples, 1), torch.ones(samples), rows, rows)


class Machine:
    """Whose memory holds so many samples; adds up their rows like gradients."""

    def __init__(
        self, holds: int, reason: Reason = lambda: torch.OutOfMemoryError("CUDA out of memory")
    ) -> None:
        self.holds, self.reason = holds, reason
        self.gradient = 0
        self.sizes: list[int] = []
        self.last: list[bool] = []

    def reset(self) -> None:
        self.gradient = 0
        self.last = []

    def backward(self, part: Batch, last: bool) -> Tensor:
        self.sizes.append(len(part.rows))
        if len(part.rows) > self.holds:
            raise self.reason()
        self.gradient += int(part.rows.sum())
        self.last.append(last)
        return part.weight.sum()


def run(fitting: Fitting, machine: Machine, samples: int) -> float:
    return fitting.run(batch(samples), machine.backward, machine.reset).item()


def cpu_error() -> BaseException:
    try:
        torch.empty(1 << 50, dtype=torch.uint8)  # a petabyte
    except RuntimeError as error:
        return error
    raise AssertionError


@pytest.mark.parametrize(
    "reason",
    [
        cpu_error,
        lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        lambda: RuntimeError(
            "[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate 8"
        ),
        lambda: RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        MemoryError,
    ],
)
def test_fitting__halves_until_it_fits_and_counts_nothing_twice(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, reason: Reason
) -> None:
    machine = Machine(5, reason)
    fitting = Fitting(tmp_path / "memo.json", OF, 32)
    assert run(fitting, machine, 32) == 32.0
    # 32, 16 and 8 at once are too many, 4 are not.
    assert machine.sizes == [32, 16, 8, *[4] * 8]
    assert (machine.gradient, machine.last) == (31 * 32 // 2, [False] * 7 + [True])
    assert fitting.parts == 8
    assert run(fitting, machine, 32) == 32.0
    assert machine.sizes[11:] == [4] * 8  # it isn't tried again
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith(f"{KEY}: 32 samples at once do not fit into the memory (")
    assert "4 do: from now on a batch is computed in 8 parts" in caplog.messages[0]


def test_fitting__fails_in_a_later_part_and_begins_anew(tmp_path: Path) -> None:
    machine = Machine(2)
    fitting = Fitting(tmp_path / "memo.json", OF, 5, parts=2)
    assert run(fitting, machine, 5) == 5.0
    # In 2 parts 3 + 2, of which the first is too many; in 4 parts 2 + 1 + 1 + 1.
    assert machine.sizes == [3, 2, 1, 1, 1]
    assert machine.gradient == 0 + 1 + 2 + 3 + 4


def test_fitting__remembers_for_the_next_run_of_the_same_kind(tmp_path: Path) -> None:
    memo = tmp_path / "memo.json"
    run(Fitting(memo, OF, 32), Machine(5), 32)
    assert json.loads(memo.read_text()) == {KEY: 4}
    assert Fitting(memo, OF, 32).parts == 8
    assert Fitting(memo, OF, 9).parts == 3  # 4, 4 and 1
    assert Fitting(memo, OF, 3).parts == 1
    assert Fitting(memo, OF, 32, parts=16).parts == 16
    assert Fitting(memo, (*OF[:-1], "bfloat16"), 32).parts == 1
    run(Fitting(memo, ("other",), 4), Machine(2), 4)
    assert json.loads(memo.read_text()) == {KEY: 4, "other": 2}
    assert [file.name for file in tmp_path.iterdir()] == ["memo.json"]


def test_fitting__without_trouble_writes_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    machine = Machine(32)
    assert run(Fitting(tmp_path / "memo.json", OF, 32, parts=4), machine, 3) == 3.0
    assert machine.sizes == [1, 1, 1]  # the last batch has fewer samples than parts
    assert (list(tmp_path.iterdir()), caplog.messages) == ([], [])


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[1]", b"\xff\xfe", b'{"a": "b"}', json.dumps({KEY: 0}).encode(), b"null"]
)
def test_fitting__damaged_memo_is_no_advice(tmp_path: Path, content: bytes) -> None:
    memo = tmp_path / "memo.json"
    memo.write_bytes(content)
    fitting = Fitting(memo, OF, 8)
    assert fitting.parts == 1
    run(fitting, Machine(4), 8)
    assert json.loads(memo.read_text()) == {KEY: 4}


def test_fitting__memo_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    fitting = Fitting(tmp_path / "file" / "memo.json", OF, 8)
    assert run(fitting, Machine(4), 8) == 8.0
    assert fitting.parts == 2


def test_fitting__memo_stays_whole_where_writing_is_broken_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError

    memo = tmp_path / "memo.json"
    memo.write_text(json.dumps({"other": 2}))
    monkeypatch.setattr(Path, "replace", full)
    run(Fitting(memo, OF, 8), Machine(4), 8)
    assert json.loads(memo.read_text()) == {"other": 2}
    assert [file.name for file in tmp_path.iterdir()] == ["memo.json"]


def test_fitting__parts_are_never_more_than_samples(tmp_path: Path) -> None:
    machine = Machine(1)
    fitting = Fitting(tmp_path / "memo.json", OF, 6)
    run(fitting, machine, 6)
    assert machine.sizes == [6, 3, 2, 1, 1, 1, 1, 1, 1]  # in 1, 2, 4 and 6 parts
    assert fitting.parts == 6


def test_fitting__one_sample_that_does_not_fit_is_an_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    machine = Machine(0)
    with pytest.raises(
        FinetuneError, match=f"^{re.escape(KEY)}: the memory does not hold one sample \\(CUDA"
    ):
        run(Fitting(tmp_path / "memo.json", OF, 6), machine, 6)
    assert machine.sizes == [6, 3, 2, 1]  # in 1, 2, 4 and 6 parts
    assert (list(tmp_path.iterdir()), caplog.messages) == ([], [])


def test_fitting__beside_other_processes_ends_and_remembers(tmp_path: Path) -> None:
    memo = tmp_path / "memo.json"
    machine = Machine(4)
    with pytest.raises(FinetuneError, match=r"16 samples at once do not fit .* in 2 parts$"):
        run(Fitting(memo, OF, 16, alone=False), machine, 16)
    with pytest.raises(FinetuneError, match=r"8 samples at once do not fit .* in 4 parts$"):
        run(Fitting(memo, OF, 16, alone=False), machine, 16)
    assert run(Fitting(memo, OF, 16, alone=False), machine, 16) == 16.0
    assert machine.sizes == [16, 8, 4, 4, 4, 4]


def test_fitting__other_errors_pass(tmp_path: Path) -> None:
    machine = Machine(1, lambda: RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        run(Fitting(tmp_path / "memo.json", OF, 4), machine, 4)
    assert machine.sizes == [4]


def test_fitting__lets_go_of_what_the_failed_attempt_held(tmp_path: Path) -> None:
    held: list[weakref.ref[Tensor]] = []
    gone: list[bool] = []

    def backward(part: Batch, last: bool) -> Tensor:
        gone.extend(ref() is None for ref in held)
        activations = part.x + 1
        if len(part.rows) > 4:
            held.append(weakref.ref(activations))
            raise torch.OutOfMemoryError("CUDA out of memory")
        return activations.sum()

    Fitting(tmp_path / "memo.json", OF, 8).run(batch(8), backward, lambda: None)
    assert gone == [True, True]


def test_out_of_memory__is_told_from_other_errors() -> None:
    assert is_out_of_memory(torch.cuda.OutOfMemoryError("any"))
    assert not is_out_of_memory(ValueError("out of memory"))
    assert not is_out_of_memory(RuntimeError("CUDA error: device-side assert triggered"))


def test_hardware__names_the_cpu_and_the_cores_of_this_process() -> None:
    name, _, cores = hardware(torch.device("cpu")).rpartition(", ")
    assert name
    assert re.fullmatch(r"\d+ cores?", cores)
    if hasattr(os, "sched_getaffinity"):
        assert int(cores.split()[0]) == len(os.sched_getaffinity(0))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_hardware__names_the_gpu_and_its_memory() -> None:
    assert re.fullmatch(rf"{re.escape(torch.cuda.get_device_name())}, \d+ GiB", hardware())


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc's malloc")
def test_quick_allocator__pages_are_cleared_once_not_in_each_step() -> None:
    script = (
        "import resource, torch\n"
        "from tasks.finetune.memory import quick_allocator\n"
        "def faults():\n"
        "    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "    for _ in range(5):\n"
        "        torch.empty(64 << 20, dtype=torch.uint8).fill_(1)\n"
        "    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before\n"
        "plain = faults()\n"
        "quick_allocator()\n"
        "faults()\n"  # the pages of now are cleared once
        "print(plain, faults())\n"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    plain, quick = map(int, done.stdout.split())
    # Five times 64 MiB are at least 160 pages, of 2 MiB each where the kernel has such; then none.
    assert plain >= 160
    assert quick < 16
