"""Checkpoints on a real S3 server, and through a proxy that fails."""

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import boto3
import pytest
import torch

from tasks.errors import FinetuneError
from tasks.finetune import store
from tasks.finetune.checkpoint import Checkpoints, State
from tasks.settings import Settings
from tests.stack.faulty_proxy import FaultyProxy

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

    from tests.stack.conftest import S3Server

PREFIX = "a/key/"


class Place:
    """A prefix in a bucket, seen through the proxy."""

    def __init__(self, server: "S3Client", proxy: FaultyProxy, bucket: str, folder: Path) -> None:
        self.server, self.proxy, self.bucket, self.folder = server, proxy, bucket, folder

    def checkpoints(self, keep: int = 2) -> Checkpoints:
        settings = Settings(state=self.folder, s3_endpoint_url=self.proxy.url)
        return Checkpoints(f"s3://{self.bucket}/{PREFIX}".rstrip("/"), keep, settings)

    def names(self) -> list[str]:
        listed = self.server.list_objects_v2(Bucket=self.bucket, Prefix=PREFIX).get("Contents", [])
        return sorted(item["Key"].removeprefix(PREFIX) for item in listed)

    def get(self, name: str) -> bytes:
        return self.server.get_object(Bucket=self.bucket, Key=PREFIX + name)["Body"].read()

    def put(self, name: str, content: bytes) -> None:
        self.server.put_object(Bucket=self.bucket, Key=PREFIX + name, Body=content)


@pytest.fixture
def place(s3_server: "S3Server", tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3_server.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3_server.secret_key)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # retries needn't wait
    server = boto3.client("s3", endpoint_url=s3_server.url)
    bucket = f"test-{uuid.uuid4().hex[:12]}"
    server.create_bucket(Bucket=bucket)
    with FaultyProxy(s3_server.url).running() as proxy:
        yield Place(server, proxy, bucket, tmp_path)


def state(step: int, count: int = 3) -> State:
    return State(step, {"w": torch.full((count,), step).bfloat16(), "n": torch.tensor(step)}, {"key": "abc"})


def check(found: State | None, step: int, count: int = 3) -> None:
    assert found is not None
    assert (found.step, found.values) == (step, {"key": "abc"})
    for name, tensor in state(step, count).tensors.items():
        assert torch.equal(found.tensors[name], tensor)
        assert found.tensors[name].dtype == tensor.dtype


def test_checkpoints__on_s3_the_last_ones_stay(place: Place) -> None:
    assert place.checkpoints().latest() is None
    for step in (1, 2, 3):
        place.checkpoints().save(state(step))
    assert place.names() == ["00000002.safetensors", "00000003.safetensors"]
    check(place.checkpoints().latest(), 3)
    assert list(place.folder.iterdir()) == []  # nothing is left on this disk


def test_checkpoints__on_s3_one_of_the_same_step_is_replaced(place: Place) -> None:
    place.checkpoints().save(state(1, count=3))
    place.checkpoints().save(state(1, count=5))
    check(place.checkpoints().latest(), 1, count=5)


def test_checkpoints__on_s3_each_is_one_request(place: Place) -> None:
    place.proxy.requests.clear()
    place.checkpoints().save(state(1, count=20 << 20))  # 40 MB
    assert (place.proxy.asked("PUT", ""), place.proxy.asked("POST", "")) == (1, 0)
    check(place.checkpoints().latest(), 1, count=20 << 20)  # read in parts


def test_checkpoints__on_s3_larger_than_one_request_takes_several(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "_ONE_PUT", 8 << 20)
    place.checkpoints().save(state(1, count=10 << 20))  # 20 MB in parts of 8
    assert place.proxy.asked("PUT", "") == 3
    check(place.checkpoints().latest(), 1, count=10 << 20)


def test_checkpoints__on_s3_truncated_one_is_passed_over(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    for step in (1, 2):
        place.checkpoints().save(state(step))
    place.put("00000002.safetensors", place.get("00000002.safetensors")[:-1])
    check(place.checkpoints().latest(), 1)
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith(
        f"s3://{place.bucket}/{PREFIX}00000002.safetensors: is passed over, "
    )


def test_checkpoints__on_s3_clear_removes_no_object_of_others(place: Place) -> None:
    place.checkpoints().save(state(1))
    place.put("notes.txt", b"mine")
    place.put("other/00000001.safetensors", b"of another training")
    upload = place.server.create_multipart_upload(Bucket=place.bucket, Key=f"{PREFIX}00000002.safetensors")
    assert upload["UploadId"]
    place.checkpoints().clear()
    assert place.names() == ["notes.txt", "other/00000001.safetensors"]
    assert not place.server.list_multipart_uploads(Bucket=place.bucket).get("Uploads")


def test_checkpoints__on_s3_server_that_fails_is_asked_again(place: Place) -> None:
    count = iter(range(1_000_000))
    place.proxy.fault = lambda method, name: 503 if next(count) % 3 == 0 else None
    for step in (1, 2, 3):
        place.checkpoints().save(state(step))
    check(place.checkpoints().latest(), 3)
    assert place.names() == ["00000002.safetensors", "00000003.safetensors"]


def test_checkpoints__on_s3_errors_are_one_line_without_secrets(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-wrong-secret")
    for call in (lambda: place.checkpoints().save(state(1)), place.checkpoints().latest):
        with pytest.raises(
            FinetuneError, match=f"^s3://{place.bucket}/a/key: the credentials are wrong"
        ) as error:
            call()
        assert "secret" not in str(error.value).replace("AWS_SECRET_ACCESS_KEY", "")
        assert "\n" not in str(error.value)
