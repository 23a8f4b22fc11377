import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from tasks.errors import FinetuneError
from tasks.finetune.distributed import Processes, joined
from tasks.settings import ROOT
from tests.unit.tasks.finetune import two_processes

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK")


@pytest.fixture(autouse=True)
def _not_under_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def test_joined__alone_needs_no_group() -> None:
    with joined() as processes:
        assert (processes.rank, processes.world) == (0, 1)
        assert not torch.distributed.is_initialized()
        model, tensor = nn.Linear(2, 1), torch.ones(2)
        assert processes.wrap(model) is model
        assert processes.total(tensor) is tensor
        assert (processes.any(True), processes.any(False)) == (True, False)
        with processes.synchronised(model, False):
            pass
        processes.barrier()


def test_joined__two_processes_have_the_gradients_of_one(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    launcher = ["torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(port)]
    subprocess.run(
        [sys.executable, "-m", *launcher, two_processes.__file__, str(tmp_path / "found.json")],
        cwd=ROOT,
        # On processors alone, so that it runs where there are fewer than two GPUs.
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        check=True,
        timeout=300,
    )
    found = json.loads((tmp_path / "found.json").read_text())
    assert (found["world"], found["device"]) == (2, "cpu")
    assert (found["total"], found["own"]) == ([3.0, 30.0], [1.0, 10.0])  # 1 + 2, 10 + 20
    assert (found["any of one"], found["any of none"]) == (True, False)
    expected = two_processes.gradients(Processes(0, 1, torch.device("cpu")))
    assert max(gradient.abs().max().item() for gradient in expected) > 0.1
    assert len(found["gradients"]) == len(expected) == 4
    for gradient, other in zip(expected, found["gradients"], strict=True):
        torch.testing.assert_close(torch.tensor(other), gradient.flatten(), rtol=1e-6, atol=1e-6)


def test_joined__half_an_environment_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(FinetuneError, match=r"WORLD_SIZE.*start it by torchrun"), joined():
        pass


def test_joined__group_that_cannot_be_made_is_an_error_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in zip(VARIABLES, ("0", "2", "0"), strict=True):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.delenv("MASTER_PORT", raising=False)
    with (
        pytest.raises(FinetuneError, match=r"^distributed: process 0 of 2 can't join \(.*MASTER_PORT"),
        joined(),
    ):
        pass
