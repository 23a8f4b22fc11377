"""A SeaweedFS server for the length of a case."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tasks.settings import Settings
from tests.stack.conftest import S3Server, free_ports, wait_until_ready

BUCKET = "ready"  # `wait_until_ready` makes it


@contextmanager
def settings(folder: Path) -> Iterator[Settings]:
    """Settings whose shared tier lies on the server; credentials are in the environment meanwhile."""
    (folder / "data").mkdir(parents=True)
    master, volume, filer, s3 = free_ports(4)
    server = S3Server(f"http://127.0.0.1:{s3}", "bench", "a-secret-for-the-bench")
    keys = [{"accessKey": server.access_key, "secretKey": server.secret_key}]
    identity = {"name": "bench", "credentials": keys, "actions": ["Admin", "Read", "Write", "List"]}
    (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
    command = [
        str(Path(sys.executable).with_name("weed")), "-logtostderr=true", "server", f"-dir={folder}/data",
        "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-master.telemetry=false", "-master.volumeSizeLimitMB=512",
        "-volume.max=0", "-s3", f"-s3.config={folder}/s3.json", f"-master.port={master}",
        f"-volume.port={volume}", f"-filer.port={filer}", f"-s3.port={s3}", "-s3.port.iceberg=0",
        "-s3.port.lance=0",
    ]  # fmt: skip
    os.environ |= {
        "AWS_ACCESS_KEY_ID": server.access_key,
        "AWS_SECRET_ACCESS_KEY": server.secret_key,
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        wait_until_ready(server, process, folder / "log")
        yield Settings(s3_endpoint_url=server.url, cache_url=f"s3://{BUCKET}/cache")
    finally:
        process.kill()  # it takes half a minute to leave on SIGTERM, and its data is not needed
        process.wait()
