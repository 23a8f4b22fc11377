"""Where checkpoints lie: a folder, or a prefix in a bucket. What has a name there is whole."""

import os
import re
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from boto3.s3.transfer import TransferConfig
from botocore.exceptions import ClientError

from tasks import s3
from tasks.errors import FinetuneError
from tasks.settings import Settings

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

NAME = re.compile(r"(\d{8,})\.safetensors")  # of a checkpoint; others are let alone

_PART = ".part"  # of a file that is being written
_PART_AGE_S = 3600  # from then on its writer is taken to be dead
_ONE_PUT = 4 << 30  # bytes; S3 refuses 5 GiB and more in one request


class Folder:
    """Of this disk, or one that machines share."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def names(self) -> list[str]:
        with suppress(FileNotFoundError):
            return [file.name for file in self._folder.iterdir()]
        return []

    def put(self, name: str, write: Callable[[Path], None]) -> None:
        """Has `write` write a file, which takes the name when it is durable."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self._remove_parts(older_than_s=_PART_AGE_S)
        made = self._folder / f".{uuid.uuid4().hex}{_PART}"
        try:
            write(made)
            _sync(made)
            made.replace(self._folder / name)
        finally:
            made.unlink(missing_ok=True)
        _sync(self._folder)

    @contextmanager
    def opened(self, name: str) -> Iterator[Path]:
        """A file to read."""
        yield self._folder / name

    def remove(self, names: Sequence[str]) -> None:
        for name in names:
            (self._folder / name).unlink(missing_ok=True)

    def clean(self) -> None:
        """Removes what killed writers left."""
        self._remove_parts(older_than_s=0)
        with suppress(OSError):  # there is none, or something else in it
            self._folder.rmdir()

    def _remove_parts(self, older_than_s: float) -> None:
        for part in self._folder.glob(f".*{_PART}"):
            with suppress(FileNotFoundError):
                if time.time() - part.stat().st_mtime >= older_than_s:
                    part.unlink()


class Bucket:
    """What begins with the prefix of `url` (`s3://bucket/prefix`). Raises boto3's errors."""

    def __init__(self, url: str, settings: Settings) -> None:
        self._bucket, _, prefix = url.removeprefix("s3://").rstrip("/").partition("/")
        self._prefix = f"{prefix}/" if prefix else ""
        self._scratch = settings.root
        self._client: S3Client = s3.client(settings, url, FinetuneError)

    def names(self) -> list[str]:
        return list(self._sizes())

    def put(self, name: str, write: Callable[[Path], None]) -> None:
        """Has `write` write a file, and puts it into the bucket."""
        with self._file(name) as file:
            write(file)
            with file.open("rb") as stream:
                self._client.upload_fileobj(
                    stream, self._bucket, self._prefix + name, Config=TransferConfig(_ONE_PUT)
                )

    @contextmanager
    def opened(self, name: str) -> Iterator[Path]:
        """A copy to read; raises FileNotFoundError where there is none."""
        size = self._sizes().get(name)
        if size is None:
            raise FileNotFoundError
        with self._file(name) as file:
            try:
                s3.download(self._client, self._bucket, self._prefix + name, file, size)
            except ClientError as failure:
                if s3.code_of(failure) not in ("NoSuchKey", "404"):
                    raise
                raise FileNotFoundError from None
            yield file

    def remove(self, names: Sequence[str]) -> None:
        s3.delete(self._client, self._bucket, [self._prefix + name for name in names])

    def clean(self) -> None:
        """Ends uploads in parts that were broken off."""
        answer = self._client.list_multipart_uploads(Bucket=self._bucket, Prefix=self._prefix)
        for upload in answer.get("Uploads", []):
            if NAME.fullmatch(upload["Key"].removeprefix(self._prefix)):
                self._client.abort_multipart_upload(
                    Bucket=self._bucket, Key=upload["Key"], UploadId=upload["UploadId"]
                )

    def _sizes(self) -> dict[str, int]:
        """Bytes by name."""
        pages = self._client.get_paginator("list_objects_v2").paginate(
            Bucket=self._bucket, Prefix=self._prefix
        )
        return {
            item["Key"].removeprefix(self._prefix): item["Size"]
            for page in pages
            for item in page.get("Contents", [])
        }

    @contextmanager
    def _file(self, name: str) -> Iterator[Path]:
        """A place on this disk for the time of a transfer."""
        self._scratch.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".checkpoint-", dir=self._scratch) as folder:
            yield Path(folder) / name


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
