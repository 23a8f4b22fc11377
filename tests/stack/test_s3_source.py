"""Datasets and DVC remotes on a real S3 server."""

import io
import shutil
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import boto3
import pytest
from PIL import Image

from tasks.data.source import list_source
from tasks.data.version import checkout, version_data
from tasks.errors import DataError
from tasks.params import DataParams
from tasks.settings import Settings

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

    from tests.stack.conftest import S3Server

PARAMS = DataParams()


def png(shade: int) -> bytes:
    out = io.BytesIO()
    Image.new("L", (8, 8), shade).save(out, "PNG")
    return out.getvalue()


FILES = {
    f"{label}/{number}.png": png(number + offset)
    for label, offset in (("cat", 0), ("dog", 100))
    for number in range(6)
}


@pytest.fixture
def s3(s3_server: "S3Server", monkeypatch: pytest.MonkeyPatch) -> "S3Client":
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3_server.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3_server.secret_key)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    return boto3.client("s3", endpoint_url=s3_server.url)


@pytest.fixture
def bucket(s3: "S3Client") -> str:
    name = f"test-{uuid.uuid4().hex[:12]}"
    s3.create_bucket(Bucket=name)
    return name


@pytest.fixture
def settings(s3_server: "S3Server", tmp_path: Path) -> Settings:
    return Settings(state=tmp_path / "state", s3_endpoint_url=s3_server.url)


def upload(s3: "S3Client", bucket: str, prefix: str, files: dict[str, bytes]) -> None:
    for path, content in files.items():
        s3.put_object(Bucket=bucket, Key=prefix + path, Body=content)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_s3_source__folders_are_mirrored_and_followed(
    s3: "S3Client", bucket: str, settings: Settings
) -> None:
    upload(s3, bucket, "sets/pets/", {**FILES, "readme.txt": b"x", ".hidden/a": b"x", "cat/": b""})
    upload(s3, bucket, "sets/petsandmore/", {"fish/1.png": b"x"})
    source = f"s3://{bucket}/sets/pets"
    first = version_data(source, PARAMS, settings)
    assert contents(first.data) == FILES
    assert (first.layout, first.files, first.rejected) == ("folders", 12, ())
    assert version_data(f"{source}/", PARAMS, settings) == first

    upload(s3, bucket, "sets/pets/", {"cat/0.png": png(200), "dog/new.png": png(201)})
    s3.delete_object(Bucket=bucket, Key="sets/pets/dog/5.png")
    changed = {**FILES, "cat/0.png": png(200), "dog/new.png": png(201)}
    del changed["dog/5.png"]
    assert contents(version_data(source, PARAMS, settings).data) == changed


def test_s3_source__table_takes_the_files_that_it_names(
    s3: "S3Client", bucket: str, settings: Settings
) -> None:
    table = b"path,label\ncat/0.png,cat\ndog/1.png,dog\ngone.png,dog\n../up.png,dog\n"
    upload(s3, bucket, "pets/", {**FILES, "t.csv": table})
    got = version_data(f"s3://{bucket}/pets/t.csv", PARAMS, settings)
    assert sorted(contents(got.data)) == ["cat/0.png", "dog/1.png", "t.csv"]
    assert [(bad.path, bad.reason) for bad in got.rejected] == [
        ("../up.png", "row 5: the path leaves the table's folder"),
        ("gone.png", "row 4: no such object"),
    ]


def test_s3_source__remote_on_s3_alone_brings_a_version_back(
    s3: "S3Client", bucket: str, settings: Settings, tmp_path: Path
) -> None:
    for path, content in FILES.items():
        (tmp_path / "pets" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "pets" / path).write_bytes(content)
    on_s3 = settings.model_copy(update={"dvc_remote": f"s3://{bucket}/dvc"})
    made = version_data(str(tmp_path / "pets"), PARAMS, on_s3)
    assert not (settings.root / "dvc" / "remote").exists()
    text = made.dvc_file.read_text()
    shutil.rmtree(settings.root)
    got = checkout(text, tmp_path / "there", on_s3)
    assert contents(got.data) == FILES
    assert got.digest == made.digest


def test_s3_source__missing_buckets_and_prefixes(bucket: str, settings: Settings) -> None:
    with pytest.raises(DataError, match=r"^s3://no-such-bucket-here/x: there is no such bucket$"):
        list_source("s3://no-such-bucket-here/x", PARAMS, settings)
    with pytest.raises(DataError, match=f"^s3://{bucket}/none: holds no files$"):
        list_source(f"s3://{bucket}/none", PARAMS, settings)
    with pytest.raises(DataError, match=r"/none\.csv: there is no such object$"):
        list_source(f"s3://{bucket}/none.csv", PARAMS, settings)


def test_s3_source__wrong_credentials_are_named_without_the_secret(
    bucket: str, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-secret-of-mine")
    with pytest.raises(DataError) as listing:
        list_source(f"s3://{bucket}/pets", PARAMS, settings)
    assert str(listing.value) == (
        f"s3://{bucket}/pets: the credentials are wrong; check AWS_SECRET_ACCESS_KEY"
    )

    for label in ("cat", "dog"):
        (tmp_path / "pets" / label).mkdir(parents=True)
        (tmp_path / "pets" / label / "1.png").write_bytes(FILES[f"{label}/1.png"])
    on_s3 = settings.model_copy(update={"dvc_remote": f"s3://{bucket}/dvc"})
    with pytest.raises(DataError) as pushing:
        version_data(str(tmp_path / "pets"), PARAMS, on_s3)
    assert str(pushing.value).startswith(f"DVC could not push to s3://{bucket}/dvc: ")
    assert str(pushing.value).endswith("Forbidden; check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
    assert "wrong-secret-of-mine" not in str(pushing.value)


def test_s3_source__no_server_and_no_credentials(
    bucket: str, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    nowhere = settings.model_copy(update={"s3_endpoint_url": "http://127.0.0.1:9"})
    with pytest.raises(DataError, match="the S3 server can't be reached; check REGRAFT_S3_ENDPOINT_URL"):
        list_source(f"s3://{bucket}/pets", PARAMS, nowhere)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    with pytest.raises(DataError, match="no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"):
        list_source(f"s3://{bucket}/pets", PARAMS, settings)
