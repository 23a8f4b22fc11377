"""What a user can get wrong: one clear line, a failing status, no stack trace."""

import json
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from tests.flows.workplace import PARAMS, REGRAFT, Workplace, add_images

FORK = Path(__file__).with_name("fork.py")
Failed = Mapping[str, "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def bad(new_place: Callable[[str], Workplace]) -> Workplace:
    """Small datasets in `<root>/<name>`."""
    place = new_place("bad")
    (place.root / "empty").mkdir()
    add_images(place.root / "one-class", "nominal", 0, 5)
    add_images(place.root / "few", "nominal", 0, 20)
    add_images(place.root / "few", "local", 0, 1)
    add_images(place.root / "broken", "nominal", 0, 10)
    add_images(place.root / "broken", "local", 0, 7)
    for number in range(3):
        (place.root / "broken" / "local" / f"x{number}.jpg").write_bytes(b"not an image")
    return place


@pytest.fixture(scope="module")
def failed(bad: Workplace, api_url: str) -> Failed:
    """Runs that start alike, by name: of a dataset, or of what is wrong with the parameters."""
    params = bad.params(PARAMS)
    unknown = bad.params(PARAMS + "embedding: {backbone: timm:nosuch}\n")
    runs = {name: (name, params) for name in ("nosuch", "empty", "one-class", "few", "broken")}
    runs["backbone"] = ("few", unknown)
    commands = [
        ["adapt", "--json", "--data", str(bad.root / data), "--params", str(file)]
        for data, file in runs.values()
    ]
    done = bad.run(sys.executable, FORK, api_url, bad.state, given=json.dumps(commands))
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return {
        name: subprocess.CompletedProcess(command, *line)
        for name, command, line in zip(runs, commands, lines, strict=True)
    }


def refused(done: subprocess.CompletedProcess[str]) -> str:
    """The message of a command that failed as it should."""
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    message, *more = done.stderr.rstrip("\n").split("\n")
    assert message.startswith("error: "), done.stderr
    assert not message.startswith("error: unexpected"), done.stderr
    assert not [line for line in more if line.startswith("error: ")]
    return done.stderr.rstrip("\n").removeprefix("error: ")


def test_adapt__missing_folder(bad: Workplace, failed: Failed) -> None:
    data = bad.root / "nosuch"
    assert refused(failed[data.name]) == f"{data}: no such folder or table"


def test_adapt__empty_folder(bad: Workplace, failed: Failed) -> None:
    data = bad.root / "empty"
    assert refused(failed[data.name]) == (
        f"{data}: has no class folders with files; put the images of each class in one"
    )


def test_adapt__one_class(bad: Workplace, failed: Failed) -> None:
    data = bad.root / "one-class"
    assert refused(failed[data.name]) == f"{data}: has only one class (nominal); two are needed"


def test_adapt__unknown_parameter(bad: Workplace) -> None:
    params = bad.params(PARAMS.replace("folds: 2", "folds: 2, fold: 3"))
    message = refused(bad.regraft("adapt", "--json", "--data", bad.root / "few", "--params", params))
    assert message.endswith(".yaml: head.fold: unknown field (given: 3)")


def test_adapt__too_many_broken_files(failed: Failed) -> None:
    message = refused(failed["broken"])
    start, _, report = message.partition("; see ")
    assert start == (
        "local/x0.jpg: not an image (12 bytes); 3 of 20 files quarantined (15.00 %), limit 5.00 %"
        " (data.max_quarantined_fraction)"
    )
    assert "local/x2.jpg" in Path(report).read_text()


def test_adapt__too_few_of_a_class(failed: Failed) -> None:
    message = refused(failed["few"])
    start = "1 of 2 classes have fewer than 1 samples in a split (data.min_per_class): local "
    assert message.startswith(start)
    counts = re.findall(r"(\d+) (train|validation|test)", message)
    assert sorted(int(count) for count, _ in counts) == [0, 0, 1]  # its one sample is in one of them


def test_adapt__unknown_backbone(failed: Failed) -> None:
    message = refused(failed["backbone"])
    assert message.startswith("timm:nosuch: timm ")
    assert message.endswith(" has no such model; see timm.list_models()")


def test_command__state_folder_that_cannot_be_made(bad: Workplace) -> None:
    file = bad.root / "file"
    file.write_text("")
    message = refused(bad.run(REGRAFT, "adapt", "--data", bad.root / "few", "--state", file / "state"))
    assert message == (
        f"{file}/state: can't be the state folder (Not a directory); name another with --state"
    )


def test_command__setting_that_is_none(bad: Workplace) -> None:
    environment = {**bad.environment(), "REGRAFT_PREFECT_PORT": "many"}
    done = subprocess.run(
        [str(REGRAFT), "adapt"], cwd=bad.cwd, env=environment, capture_output=True, text=True, check=False
    )
    message = refused(done)
    assert message.startswith("environment, REGRAFT_*: prefect_port: ")
    assert "many" not in message  # it may be a password in an address
