"""Datasets under `s3://bucket/`: folders of class folders, and tables with files beside them."""

import posixpath
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.data.source import Entry, Listing, folder_listing, table_listing
from tasks.data.table import SUFFIXES
from tasks.errors import DataError
from tasks.records import Rejected, Target
from tasks.s3 import client as s3_client
from tasks.s3 import explained, read_body
from tasks.settings import Settings

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

_MAX_NAME, _MAX_PATH = 255, 1_024  # bytes: of a file's name on Linux, and of a key


def list_s3(source: str, settings: Settings, target: Target = "class") -> Listing:
    """Lists a dataset under `s3://bucket/prefix`, or the files of `s3://bucket/table.csv`.

    Raises:
        DataError: no such bucket or prefix, wrong credentials, or no dataset there.
    """
    bucket, _, key = source.removeprefix("s3://").partition("/")
    if not bucket:
        raise DataError(f"{source}: has no bucket; use s3://bucket/prefix")
    key = key.rstrip("/")
    with explained(source):
        client = s3_client(settings, source)
        if posixpath.splitext(key)[1].lower() in SUFFIXES:
            return _table(client, source, bucket, key, target)
        prefix = f"{key}/" if key else ""
        entries, rejected = _objects(client, bucket, prefix)
        if not entries and not rejected:
            raise DataError(f"{source}: holds no files")
        return folder_listing(
            f"s3://{bucket}/{key}", [entry for entry in entries if not _hidden(entry.path)], rejected
        )


def _table(client: "S3Client", source: str, bucket: str, key: str, target: Target) -> Listing:
    content = client.get_object(Bucket=bucket, Key=key)["Body"].read()
    folder, name = posixpath.split(key)
    prefix = f"{folder}/" if folder else ""
    entries, rejected = _objects(client, bucket, prefix)
    there: dict[str, Entry | str] = {entry.path: entry for entry in entries}
    there |= {bad.path: bad.reason for bad in rejected}
    return table_listing(source, name, content, lambda path: there.get(path, "no such object"), target)


def _objects(client: "S3Client", bucket: str, prefix: str) -> tuple[list[Entry], list[Rejected]]:
    entries: list[Entry] = []
    rejected: list[Rejected] = []
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
    for page in pages:
        for item in page.get("Contents", []):
            path = item["Key"].removeprefix(prefix)
            if not path or path.endswith("/"):  # a folder's marker
                continue
            reason = unsafe(path)
            if reason:
                rejected.append(Rejected(path=path, reason=reason))
                continue
            copy = partial(_download, client, bucket, item["Key"])
            entries.append(Entry(path, item["Size"], item["ETag"].strip('"'), copy))
    folders = {parent for entry in entries for parent in _parents(entry.path)}
    rejected += [
        Rejected(path=entry.path, reason="another key uses this name as a folder")
        for entry in entries
        if entry.path in folders
    ]
    return [entry for entry in entries if entry.path not in folders], rejected


def unsafe(path: str) -> str | None:
    """Why a key can't be the relative path of a file; None where it can."""
    parts = path.split("/")
    if path.startswith("/"):
        return "the key is an absolute path"
    if ".." in parts:
        return "the key holds .."
    if "" in parts or "." in parts:
        return "the key has an empty part"
    if "\\" in path:
        return "the key holds a backslash"
    if any(ord(character) < 32 or ord(character) == 127 for character in path):
        return "the key holds a control character"
    if len(path.encode()) > _MAX_PATH or any(len(part.encode()) > _MAX_NAME for part in parts):
        return "the key is too long for a file's name"
    return None


def _parents(path: str) -> Iterator[str]:
    while path := posixpath.dirname(path):
        yield path


def _hidden(path: str) -> bool:
    return any(part.startswith(".") for part in path.split("/"))


def _download(client: "S3Client", bucket: str, key: str, to: Path) -> None:
    """Writes one object to `to`; FileNotFoundError where it has gone."""

    def read() -> None:
        body = client.get_object(Bucket=bucket, Key=key)["Body"]
        with to.open("wb") as file:
            file.writelines(body.iter_chunks(1 << 20))

    with explained(f"s3://{bucket}/{key}"):
        try:
            read_body(read)
        except client.exceptions.NoSuchKey:
            raise FileNotFoundError(f"{key}: deleted while it was read") from None
