"""The stage as it runs: a process of its own, which is killed, told to end, and loses its parent."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file

from tasks.embedding.source import named
from tasks.errors import DataError, FinetuneError
from tasks.finetune import process, run, training
from tasks.finetune.checkpoint import checkpoints_place
from tasks.finetune.progress import Progress
from tasks.finetune.spec import Spec
from tasks.finetune.stop import PREEMPTED, Stop
from tasks.records import Backbone, Manifest, Tuned
from tasks.settings import ROOT, Settings
from tests.unit.tasks.finetune import given
from tests.unit.tasks.finetune.toy import difference

EPOCHS, STEPS = 12, 3
PARAMS = given.params(epochs=EPOCHS, augment=("hflip", "crop"), average=0.9, soup=2)
WAIT_S = 120.0  # for something that is sure to come


def _prepare(monkeypatch: pytest.MonkeyPatch) -> None:
    """One thread, one process, quick looks."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.delenv("REGRAFT_CHECKPOINTS_URL", raising=False)
    monkeypatch.setattr(run, "_LOOK_S", 0.02)
    monkeypatch.setattr(
        run, "_command", lambda spec: [sys.executable, "-m", "tasks.finetune.process", str(spec)]
    )


@pytest.fixture(autouse=True)
def _prepared(monkeypatch: pytest.MonkeyPatch) -> None:
    _prepare(monkeypatch)


@dataclass
class Given:
    folder: Path
    manifest: Manifest
    backbone: Backbone

    def settings(self, name: str) -> Settings:
        return Settings(state=self.folder / name)

    def checkpoints(self, name: str) -> Path:
        return Path(checkpoints_place(self.settings(name), "key"))

    def out(self, name: str) -> Path:
        """For another attempt."""
        made = self.folder / f"{name}-{len(list(self.folder.glob(f'{name}-*')))}"
        made.mkdir()
        return made

    def train(self, name: str, watch: Callable[[Any], None] = lambda lines: None, **changed: Any) -> Tuned:
        """As the task does it: each attempt has a folder of its own."""
        return run.run(
            self.out(name), changed.pop("manifest", self.manifest), self.folder / "data", self.backbone, None,
            changed.pop("params", PARAMS), self.settings(name), key="key", max_pixels=10_000, watch=watch,
        )  # fmt: skip


@pytest.fixture(scope="module")
def some(tmp_path_factory: pytest.TempPathFactory) -> Given:
    folder = tmp_path_factory.mktemp("run")
    return Given(folder, given.manifest(folder), given.backbone(folder / "store"))


@pytest.fixture(scope="module")
def quiet(some: Given) -> tuple[Tuned, list[Progress]]:
    """The training that nothing disturbs, and its progress."""
    lines: list[Progress] = []
    with pytest.MonkeyPatch.context() as patched:
        _prepare(patched)
        return some.train("quiet", lines.extend), lines


def test_run__result(some: Given, quiet: tuple[Tuned, list[Progress]]) -> None:
    made, lines = quiet
    assert made.backbone == named(made.backbone)
    assert made.backbone.tuned == some.manifest.digest
    assert Path(made.backbone.weights) == made.path / "weights.safetensors"
    assert made.steps == EPOCHS * STEPS
    assert [line.record for line in lines if line.kind == "epoch"] == list(made.history)
    assert len(made.history) == EPOCHS
    assert Tuned.load(made.path).digest == made.digest


@dataclass
class Killer:
    """Kills the training process of this one, when what it waits for is there."""

    due: Callable[[], bool]
    number: signal.Signals = signal.SIGKILL
    killed: int = 0
    _over: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> "Killer":
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.002):
            for child in children():
                if self.due():
                    child.send_signal(self.number)
                    self.killed += 1
                    return


def children(of: int | None = None) -> list[psutil.Process]:
    """The training processes that a process started."""
    found = []
    for child in psutil.Process(of).children():
        try:
            if "tasks.finetune.process" in child.cmdline() and child.status() != psutil.STATUS_ZOMBIE:
                found.append(child)
        except psutil.NoSuchProcess:
            continue
    return found


def latest(folder: Path) -> int:
    """The step of the newest checkpoint."""
    return max((int(file.stem) for file in folder.glob("[0-9]*.safetensors")), default=0)


def test_run__killed_ten_times_it_ends_with_the_same_weights(
    some: Given, quiet: tuple[Tuned, list[Progress]]
) -> None:
    folder, chance = some.checkpoints("killed"), Random(2)
    reached = []
    for _ in range(10):
        further = latest(folder) + STEPS
        moments: list[Callable[[], bool]] = [
            lambda: True,  # while it starts
            lambda: latest(folder) >= further,  # noqa: B023
            lambda: latest(folder) >= further and any(folder.glob(".*.part")),  # noqa: B023
        ]
        with Killer(chance.choice(moments)) as killer, pytest.raises(FinetuneError, match="by signal 9"):
            some.train("killed")
        assert killer.killed == 1
        reached.append(latest(folder))
    assert reached == sorted(reached)
    assert len(set(reached)) > 4
    assert reached[-1] < EPOCHS * STEPS
    made = some.train("killed")
    assert made.backbone.weights_digest == quiet[0].backbone.weights_digest
    assert (made.chosen, made.validation) == (quiet[0].chosen, quiet[0].validation)
    assert [one.loss for one in made.history] == [one.loss for one in quiet[0].history]


class LostError(Exception):
    pass


SCRIPT = """
import sys
from pathlib import Path
from tasks.finetune import run
from tasks.finetune.spec import Spec
from tasks.settings import Settings
spec = Spec.load(Path(sys.argv[1]))
run.run(spec.out, spec.manifest, spec.data, spec.backbone, None, spec.params, Settings(state=spec.state),
        key=spec.key, max_pixels=spec.max_pixels)
"""


def test_run__whoever_asks_it_to_end_it_saves_and_carries_on(
    some: Given, quiet: tuple[Tuned, list[Progress]]
) -> None:
    """The one who watches fails; a signal comes; the parent dies."""
    folder = some.checkpoints("asked")

    def lose(_: object) -> None:
        raise LostError

    with pytest.raises(LostError):
        some.train("asked", lose)
    assert children() == []
    first = latest(folder)
    assert first > 0

    asked = r"^training was asked to end; a checkpoint holds all that it did: run again$"
    due = Killer(lambda: latest(folder) >= first + STEPS, signal.SIGTERM)
    with due, pytest.raises(FinetuneError, match=asked):
        some.train("asked")
    assert due.killed == 1
    second = latest(folder)

    spec = spec_of(some, "asked")
    parent = subprocess.Popen([sys.executable, "-c", SCRIPT, str(spec.save())], cwd=ROOT)
    try:
        wait(lambda: latest(folder) >= second + STEPS)
        (child,) = children(parent.pid)
    finally:
        parent.kill()
        parent.wait()
    child.wait(WAIT_S)  # raises where it lives on
    third = latest(folder)
    assert first < second < third < EPOCHS * STEPS
    assert json.loads((spec.out / "error.json").read_text())["message"].endswith("run again")

    assert some.train("asked").backbone.weights_digest == quiet[0].backbone.weights_digest


def wait(done: Callable[[], bool]) -> None:
    over = threading.Event()
    for _ in range(int(WAIT_S / 0.01)):
        if done():
            return
        over.wait(0.01)
    raise AssertionError


def spec_of(some: Given, name: str, **changed: Any) -> Spec:
    out = some.out(name)
    values = {
        "key": "key", "manifest": some.manifest, "data": some.folder / "data", "backbone": some.backbone,
        "head": None, "params": PARAMS, "distillation": None, "max_pixels": 10_000, "memory_bytes": 10**8,
        "state": some.settings(name).root, "checkpoints": str(some.checkpoints(name)), "out": out,
    }  # fmt: skip
    return Spec.model_validate({**values, **changed})


def test_run__image_that_vanished_is_named(some: Given, tmp_path: Path) -> None:
    other = Given(tmp_path, given.manifest(tmp_path), some.backbone)
    gone = next(file for file in sorted((tmp_path / "data").iterdir()))
    gone.unlink()
    with pytest.raises(DataError, match=rf"^{gone}: vanished during the run \(No such file or directory\)"):
        other.train("gone")


@pytest.fixture
def silent(some: Given, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Spec]:
    """Has `run` start what a script says instead."""

    def made(script: str) -> Spec:
        monkeypatch.setattr(run, "_command", lambda spec: [sys.executable, "-c", script])
        return given.spec(tmp_path, some.manifest, some.backbone)

    return made


def watched(spec: Spec) -> None:
    run._watched(run._command(spec.save()), spec, lambda lines: None)


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("raise SystemExit(3)", r"ended with status 3 \(it said nothing\); .*; run again to carry on"),
        (
            "raise KeyError('x')",
            r"ended with status 1 \(KeyError: 'x'\); all that it said is in .*; run again",
        ),
        ("import os; os.kill(os.getpid(), 9)", r"ended by signal 9 \(it said nothing\); .*; run again"),
    ],
)
def test_run__process_that_fails_is_told_of(silent: Callable[[str], Spec], script: str, said: str) -> None:
    spec = silent(script)
    # What an earlier attempt left says nothing of this one.
    (spec.out / "error.json").write_text('{"kind": "DataError", "message": "old"}')
    with pytest.raises(FinetuneError, match=said):
        watched(spec)
    kept = (spec.state / "finetune" / f"{spec.key}.log").read_text()
    assert ("Traceback" in kept) == ("KeyError" in script)


def test_run__error_of_the_process_is_raised_here(silent: Callable[[str], Spec], tmp_path: Path) -> None:
    told = json.dumps({"kind": "DataError", "message": "a.jpg: bad"})
    spec = silent(f"open({str(tmp_path / 'out' / 'error.json')!r}, 'w').write({told!r}); raise SystemExit(1)")
    with pytest.raises(DataError, match=r"^a\.jpg: bad$"):
        watched(spec)


def test_process__that_heeds_nothing_is_killed(
    silent: Callable[[str], Spec], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "LEAVE_S", 0.1)
    before = psutil.Process().children()  # of other tests
    script = (
        "import signal, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "print('ready', flush=True)\n"
        "time.sleep(600)\n"
    )
    spec = silent(script)
    command = run._command(spec.save())
    log = spec.out / "process.log"

    def follow(*_: object) -> Any:
        if log.read_text() == "ready\n":
            raise LostError
        return [], 0

    monkeypatch.setattr(run, "follow", follow)
    with pytest.raises(LostError):
        run._watched(command, spec, lambda lines: None)
    fresh = [child for child in psutil.Process().children() if child not in before]
    assert not [child for child in fresh if child.status() != psutil.STATUS_ZOMBIE]


def test_main__status(some: Given, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "leave_with_the_parent", lambda: None)
    spec = given.spec(tmp_path, some.manifest, some.backbone)
    file = spec.save()

    def ends(error: Exception | None) -> int:
        def end(*_: object) -> None:
            if error:
                raise error

        monkeypatch.setattr(training, "run", end)
        return process.main(file)

    assert ends(None) == 0
    assert not (spec.out / "error.json").exists()
    assert ends(DataError("a.jpg: bad")) == 1
    assert json.loads((spec.out / "error.json").read_text()) == {"kind": "DataError", "message": "a.jpg: bad"}
    assert ends(training.Preempted()) == PREEMPTED
    assert ends(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nmore")) == 1
    said = json.loads((spec.out / "error.json").read_text())
    assert said["kind"] == "FinetuneError"
    assert "does not hold the training beside its batches (CUDA out of memory. Tried to" in said["message"]
    for error in (KeyError(), RuntimeError("shapes differ")):
        with pytest.raises(type(error)):
            ends(error)


def test_process__two_of_them_train_as_one(some: Given, tmp_path: Path) -> None:
    """By torchrun, started by hand: nobody holds its standard input."""
    params = given.params(
        method="lp_ft", batch_norm="frozen", epochs=3, optimiser="sgd", learning_rate=0.5, augment=("crop",),
        head_learning_rate=0.5, average=0.5, batch=7,
    )  # fmt: skip
    both = spec_of(some, "both", params=params)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    launcher = ["torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(port)]
    subprocess.run(
        [sys.executable, "-m", *launcher, "-m", "tasks.finetune.process", str(both.save())],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        check=True,
        timeout=300,
    )
    alone = spec_of(some, "alone", params=params)
    training.run(alone, Stop())
    found, expected = Tuned.load(both.out), Tuned.load(alone.out)
    expected_weights = given.weights(alone.out)
    assert difference(given.weights(both.out), expected_weights) < 1e-5
    losses = [[one.loss for one in made.history] for made in (found, expected)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    before = load_file(some.backbone.weights)
    assert difference({name: before[name] for name in expected_weights}, expected_weights) > 1e-2
    assert (found.steps, found.chosen) == (expected.steps, expected.chosen)
