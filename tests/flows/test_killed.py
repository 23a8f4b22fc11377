"""Killed without warning at every stage, one after another on one state folder; then run plainly."""

import json
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import pyarrow as pa
import pytest

from tasks.records import Head
from tests.flows.workplace import PARAMS, Done, Workplace, make_dataset, seen

KILL_AT = Path(__file__).with_name("kill_at.py")
OF_ITS_OWN = ""  # the command starts its own Prefect API

# Stage, function in its middle, which call of it.
Trap = tuple[str, str, int]
STAGES: list[Trap] = [
    ("version data", "tasks.data.store:push", 1),  # added to the cache, not pushed
    ("audit images", "tasks.data.audit:_report", 1),  # decoded, not reported
    ("build manifest", "tasks.data.manifest:_digest", 1),  # file written, record not
    ("embed", "tasks.embedding.cache:EmbeddingCache.append", 2),  # one segment written
    ("train head", "tasks.head.fit:conformal", 1),  # fitted, not written
    ("package", "tasks.registry.package:read", 1),  # written, not checked
    ("audit embeddings", "tasks.audit.review:write_csv", 1),
    ("evaluate", "tasks.evaluation.predictions:write", 1),
    ("embed disturbed", "tasks.embedding.cache:EmbeddingCache.append", 3),  # some views written
    ("compare baselines", "tasks.evaluation.charts:baselines", 1),
    ("write report", "tasks.report.card:card", 1),  # page written, card not
    ("register", "tasks.registry.register:_create_version", 1),  # model logged, no version
    ("register", "tasks.registry.register:_set_aliases", 1),  # version made, run not finished
]


@dataclass(frozen=True)
class Survivor:
    """The state after all kills and the plain run."""

    place: Workplace
    done: Done
    segments: tuple[frozenset[str], ...]  # names of the cache's files after each kill


def _segments(place: Workplace) -> frozenset[str]:
    return frozenset(file.name for file in (place.state / "embeddings").rglob("*.arrow"))


def _apis(place: Workplace) -> list[psutil.Process]:
    """API servers that commands with this state folder started."""
    found = []
    for process in psutil.process_iter():
        try:
            ours = process.environ().get("REGRAFT_STATE") == str(place.state)
            if ours and "flows.api_server" in process.cmdline():
                found.append(process)
        except psutil.Error:
            continue
    return found


def _kill(place: Workplace, traps: Sequence[Trap], api_url: str) -> Iterator[frozenset[str]]:
    """Kills a run at each of `traps`; the cache's files after each."""
    arguments = ("adapt", "--json", "--data", place.data, "--params", place.params(PARAMS))
    functions = json.dumps([(function, call) for _, function, call in traps])
    done = place.run(sys.executable, KILL_AT, api_url, place.state, functions, *arguments)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    for (stage, *_), (status, segments) in zip(traps, lines, strict=True):
        assert status == -signal.SIGKILL, f"{stage}: {status}\n{done.stdout}{done.stderr}"
        yield frozenset(segments)


@pytest.fixture(scope="module")
def survivor(new_place: Callable[[str], Workplace], api_url: str) -> Survivor:
    place = new_place("killed")
    make_dataset(place.data)
    segments = [*_kill(place, STAGES[:-1], api_url), *_kill(place, STAGES[-1:], OF_ITS_OWN)]
    return Survivor(place, seen(place, place.adapt(api_url=api_url)), tuple(segments))


def test_killed__plain_run_ends_registered_with_one_version(survivor: Survivor) -> None:
    assert survivor.done.told["state"] == "registered"
    assert survivor.done.told["model"] == {"name": "tiles", "version": "1", "alias": "champion"}
    assert survivor.done.versions == ("1",)
    assert survivor.done.aliases == {"champion": "1", "challenger": "1"}


def test_killed__result_is_that_of_an_undisturbed_run(survivor: Survivor, first_run: Done) -> None:
    for same in ("dataset", "head", "audit", "metrics", "champion_metrics"):
        assert survivor.done.told[same] == first_run.told[same], same

    def checks(done: Done) -> list[tuple[str, bool]]:
        return [(check.check, check.passed) for check in done.result.gate.reasons]  # latencies differ

    assert checks(survivor.done) == checks(first_run)


@pytest.mark.usefixtures("first_run")
def test_killed__head_is_that_of_an_undisturbed_run(survivor: Survivor, place: Workplace) -> None:
    def heads(state: Path) -> set[str]:
        return {Head.load(file.parent).digest for file in (state / "stages" / "head").glob("*/record.json")}

    (of_survivor,) = heads(survivor.place.state)
    assert of_survivor in heads(place.state)  # which other tests add heads of other data to


def test_killed__embeddings_are_complete(survivor: Survivor) -> None:
    embedding = survivor.done.result.embedding
    assert embedding.computed + embedding.cached == 180


def test_killed__embeddings_of_before_are_not_computed_again(survivor: Survivor) -> None:
    of_stage = dict(zip([stage for stage, _, _ in STAGES], survivor.segments, strict=True))
    assert of_stage["build manifest"] == frozenset()
    assert len(of_stage["embed"]) == 1
    assert of_stage["embed"] < of_stage["train head"] == of_stage["evaluate"]
    assert of_stage["evaluate"] < of_stage["embed disturbed"] < of_stage["compare baselines"]
    assert of_stage["compare baselines"] == of_stage["register"] == _segments(survivor.place)
    # Every sample is in one segment of a block only; what is compared is of samples.
    counts = []
    for block in (survivor.place.state / "embeddings").iterdir():
        files = [pa.ipc.open_file(file).read_all() for file in block.glob("*.arrow")]
        keys = [key for file in files for key in file["key"].to_pylist()]
        assert len(keys) == len(set(keys)), block
        counts.append(len(keys))
    assert counts.count(180) == 1
    assert max(counts) == 180
    assert survivor.done.told["embedding"] == {"computed": 0, "cached": 180}


def test_killed__mlflow_has_one_run(survivor: Survivor) -> None:
    runs = list((survivor.place.state / "mlflow" / "artifacts" / "tiles").glob("*/artifacts/decision.json"))
    assert [run.parts[-3] for run in runs] == [survivor.done.result.run_id]


def test_killed__leaves_no_server_behind(survivor: Survivor) -> None:
    deadline = time.monotonic() + 60
    while _apis(survivor.place) and time.monotonic() < deadline:
        time.sleep(0.2)  # between two looks
    assert _apis(survivor.place) == []
