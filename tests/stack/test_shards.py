"""`regraft adapt` on real clusters of two workers on this machine, one of which is killed in the middle;
and on a worker that shares no disk with the flow."""

import importlib.util
import json
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import boto3
import numpy as np
import psutil
import pyarrow as pa
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from tasks.finetune import run as finetune
from tasks.params import FinetuneParams
from tasks.records import Backbone, Head, Manifest, Tuned
from tasks.settings import Settings
from tests.flows.workplace import PARAMS, Workplace
from tests.stack.local import alive
from tests.unit.tasks.finetune import given as small

if TYPE_CHECKING:
    from tests.stack.conftest import S3Server

DYING = Path(__file__).with_name("dying")
SIZE = 64  # px, so that a batch is 49 images
SAMPLES = 300


@dataclass(frozen=True)
class Place(Workplace):
    """Where commands run, with settings from the environment."""

    settings_: dict[str, str] = field(default_factory=dict)

    def environment(self, api_url: str | None = None) -> dict[str, str]:
        return {**super().environment(api_url), "REGRAFT_FORWARD": "torch", **self.settings_}

    def head(self) -> str:
        """Digest of the head, of which there is one, however often it was made."""
        files = (self.state / "stages" / "head").glob("*/record.json")
        (digest,) = {Head.load(file.parent).digest for file in files}
        return digest

    def segments(self) -> dict[str, list[bytes]]:
        """Name -> keys."""
        files = (self.state / "embeddings").rglob("*.arrow")
        return {file.name: pa.ipc.open_file(file).read_all()["key"].to_pylist() for file in files}


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Images of three colours, and parameters with a tiny backbone."""
    folder = tmp_path_factory.mktemp("given")
    noise = np.random.default_rng(0)
    for colour, label in enumerate(("red", "green", "blue")):
        (folder / "tiles" / label).mkdir(parents=True)
        for number in range(SAMPLES // 3):
            pixels = noise.integers(0, 120, (SIZE, SIZE, 3), dtype=np.uint8)
            pixels[:, :, colour] += 60
            Image.fromarray(pixels).save(folder / "tiles" / label / f"{number}.png")
    torch.manual_seed(0)
    weights = folder / "weights.safetensors"
    save_file(timm.create_model("test_efficientnet").state_dict(), weights)
    backbone = {"backbone": "timm:test_efficientnet", "weights": str(weights), "image_size": SIZE}
    params = PARAMS
    for name, value in (("baseline_samples", 40), ("robustness_samples", 4)):  # each embeds some more
        params = params.replace(f"{name}: {value}", f"{name}: 0")
    return folder / "tiles", f"embedding: {json.dumps(backbone)}\n{params}"


@pytest.fixture
def place_of(tmp_path_factory: pytest.TempPathFactory, given: tuple[Path, str]) -> Callable[..., Place]:
    def make(**settings: str) -> Place:
        place = Place(tmp_path_factory.mktemp("shards"), settings)
        place.data.symlink_to(given[0])
        return place

    return make


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, given: tuple[Path, str]) -> Place:
    """After a run in one process."""
    place = Place(tmp_path_factory.mktemp("undisturbed"))
    place.data.symlink_to(given[0])
    assert place.adapt(given[1])["embedding"] == {"computed": SAMPLES, "cached": 0}
    return place


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder with a short path: Ray puts sockets into it."""
    folder = Path(tempfile.mkdtemp(prefix="r", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def _needs(*libraries: str) -> None:
    if any(importlib.util.find_spec(library) is None for library in libraries):
        pytest.skip(f"needs {' and '.join(libraries)}")


@pytest.mark.parametrize("runner", ["ray", "dask"])
def test_shards__worker_killed_in_the_middle_costs_its_unfinished_segment(
    runner: str, place_of: Callable[..., Place], given: tuple[Path, str], undisturbed: Place, short: Path
) -> None:
    _needs("ray", "prefect_ray") if runner == "ray" else _needs("distributed", "prefect_dask")
    killed = short / "killed"
    place = place_of(
        REGRAFT_RUNNER=runner,
        REGRAFT_SHARDS="2",
        KILL_ONCE=str(killed),
        PYTHONPATH=str(DYING),
        RAY_TMPDIR=str(short),
    )
    told = place.adapt(given[1])
    assert told["embedding"] == {"computed": SAMPLES, "cached": 0}
    assert place.head() == undisturbed.head()
    segments = place.segments()
    before = killed.read_text().splitlines()
    assert before  # a worker was killed after it had written
    assert set(before) <= set(segments)
    # No sample is in two segments: what was written before the kill was not computed again.
    keys = [key for some in segments.values() for key in some]
    assert len(keys) == len(set(keys)) == SAMPLES
    assert list((place.state / "shards").iterdir()) == []


def test_shards__nothing_new_needs_no_cluster(undisturbed: Place, given: tuple[Path, str]) -> None:
    _needs("distributed", "prefect_dask")
    nobody = {"REGRAFT_RUNNER": "dask", "REGRAFT_RUNNER_ADDRESS": "127.0.0.1:9", "REGRAFT_SHARDS": "2"}
    place = Place(undisturbed.root, nobody)
    told = place.adapt(given[1].replace("bootstrap: 200", "bootstrap: 201"))
    assert told["embedding"] == {"computed": 0, "cached": SAMPLES}


def test_shards__worker_with_a_disk_of_its_own(
    place_of: Callable[..., Place],
    given: tuple[Path, str],
    undisturbed: Place,
    s3_server: "S3Server",
    tmp_path: Path,
) -> None:
    _needs("distributed", "prefect_dask")
    client = boto3.client(
        "s3",
        endpoint_url=s3_server.url,
        aws_access_key_id=s3_server.access_key,
        aws_secret_access_key=s3_server.secret_key,
        region_name="us-east-1",
    )
    client.create_bucket(Bucket="shards")
    shared = {
        "AWS_ACCESS_KEY_ID": s3_server.access_key,
        "AWS_SECRET_ACCESS_KEY": s3_server.secret_key,
        "AWS_DEFAULT_REGION": "us-east-1",
        "REGRAFT_S3_ENDPOINT_URL": s3_server.url,
        "REGRAFT_CACHE_URL": "s3://shards/cache",
        "REGRAFT_DVC_REMOTE": "s3://shards/dvc",
    }
    apart = place_of(**shared, REGRAFT_STATE=str(tmp_path / "apart"))
    with _dask(apart.environment(), apart.cwd) as address:
        place = place_of(**shared, REGRAFT_RUNNER="dask", REGRAFT_RUNNER_ADDRESS=address, REGRAFT_SHARDS="3")
        told = place.adapt(given[1])
    assert told["embedding"] == {"computed": SAMPLES, "cached": 0}
    assert place.head() == undisturbed.head()
    own = {path.name for path in (tmp_path / "apart").iterdir()}
    assert own >= {"weights", "embeddings", "fetched"}
    assert "versions" not in own
    # It embedded all by itself, and kept neither images nor lists.
    assert len(list((tmp_path / "apart" / "embeddings").rglob("*.arrow"))) == 3
    assert [path.name for path in (tmp_path / "apart" / "fetched").iterdir()] == [".lock"]
    listed = client.list_objects_v2(Bucket="shards", Prefix="cache/", Delimiter="/")
    assert [item["Key"].startswith("cache/weights-") for item in listed["Contents"]] == [True]


@contextmanager
def _dask(environment: dict[str, str], cwd: Path) -> Iterator[str]:
    """A scheduler, and a worker with this environment; the scheduler's address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"tcp://127.0.0.1:{port}"
    log = cwd / "dask.log"
    processes = []

    def start(*arguments: str) -> None:
        command = [sys.executable, "-m", "distributed.cli.dask_" + arguments[0], *arguments[1:]]
        with log.open("ab") as out:
            processes.append(
                subprocess.Popen(command, env=environment, cwd=cwd, stdout=out, stderr=subprocess.STDOUT)
            )

    try:
        start("scheduler", "--host", "127.0.0.1", "--port", str(port), "--no-dashboard", "--no-show")
        start("worker", address, "--host", "127.0.0.1", "--nthreads", "1", "--no-dashboard")
        deadline = time.monotonic() + 60
        while "Starting established connection" not in log.read_text():
            assert time.monotonic() < deadline, log.read_text()
            assert all(process.poll() is None for process in processes), log.read_text()
            time.sleep(0.2)  # between two looks
        yield address
    finally:
        family = [child for one in processes for child in psutil.Process(one.pid).children(recursive=True)]
        for process in processes:
            process.terminate()
            process.wait(timeout=30)
        for left in alive(family):
            left.kill()


# Training by Ray Train. Here, since two clusters on one machine at a time take each other's ports.


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> tuple[Manifest, Backbone]:
    return small.manifest(tmp_path_factory.mktemp("toy")), small.backbone(tmp_path_factory.mktemp("weights"))


def trained(folder: Path, toy: tuple[Manifest, Backbone], trainers: int) -> Tuned:
    # Statistics of batches would be those of each process's own part.
    params: FinetuneParams = small.params(epochs=2, batch_norm="frozen", augment=["hflip"])
    settings = Settings(state=folder / "state", trainers=trainers)
    (folder / "out").mkdir(parents=True)
    data = toy[0].path.parent / "data"
    return finetune.run(
        folder / "out", toy[0], data, toy[1], None, params, settings, key="0" * 32, max_pixels=10_000
    )


def test_ray__two_processes_train_to_the_weights_of_one(
    tmp_path: Path, toy: tuple[Manifest, Backbone], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray")
    monkeypatch.setenv("REGRAFT_TRAINERS", "2")
    one, two = trained(tmp_path / "one", toy, 1), trained(tmp_path / "two", toy, 2)
    assert (two.steps, two.batch) == (one.steps, one.batch // 2)
    ours, theirs = small.weights(two.path), small.weights(one.path)
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-3, atol=1e-5)
