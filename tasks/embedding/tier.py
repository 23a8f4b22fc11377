"""The tier of the embedding cache that machines share: segments under an S3 prefix.

    <prefix>/<fingerprint>/<name>.arrow   a segment, see segment.py
    <prefix>/<fingerprint>/<name>.keys    its header and its keys, written after it, removed before it
    <prefix>/<fingerprint>/block.json     what the vectors are; its age is the last use

A segment counts where both objects are there, so one whose writer or remover was killed is never
read. A worker fetches the keys of segments that it does not have, and the segments it has a use for.
"""

import hashlib
import logging
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from botocore.exceptions import BotoCoreError, ClientError
from numpy.typing import NDArray

from tasks import s3
from tasks.embedding.index import KeyIndex
from tasks.embedding.segment import SUFFIX, DamagedError, Header, Keys, Segment, damaged, publish
from tasks.errors import CacheError
from tasks.settings import Settings

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

log = logging.getLogger(__name__)

KEYS_SUFFIX = ".keys"
_PART_BYTES = 32 << 20  # of one request; larger segments take several at once
_PARTS = 4  # requests at once for one segment, and segments at once
_THERE = ("PreconditionFailed", "412")


@dataclass(frozen=True)
class Stored:
    """An object of a namespace."""

    bytes: int
    age_s: float  # by the server's clock


class Tier:
    """The S3 prefix that `url` (`s3://bucket/prefix`) names."""

    def __init__(self, url: str, settings: Settings) -> None:
        self.url = url.rstrip("/")
        self.bucket, _, prefix = self.url.removeprefix("s3://").partition("/")
        self.prefix = f"{prefix}/" if prefix else ""
        self.client: S3Client = s3.client(settings, self.url, CacheError)

    def namespace(self, fingerprint: str, folder: Path) -> "Namespace":
        """The segments of a fingerprint; `folder` is where they lie on this disk."""
        return Namespace(self, fingerprint, folder)

    def fingerprints(self) -> list[str]:
        """Raises CacheError where the tier can't be read."""
        with s3.explained(self.url, CacheError):
            pages = self.client.get_paginator("list_objects_v2").paginate(
                Bucket=self.bucket, Prefix=self.prefix, Delimiter="/"
            )
            found = [item["Prefix"] for page in pages for item in page.get("CommonPrefixes", [])]
        return [path.removeprefix(self.prefix).rstrip("/") for path in found]


class Namespace:
    """The segments of one fingerprint in the tier, as this process last listed them.

    Every method raises CacheError where the tier can't be read or written.
    """

    def __init__(self, tier: Tier, fingerprint: str, folder: Path) -> None:
        self._tier, self._client = tier, tier.client
        self._path = f"{tier.prefix}{fingerprint}/"
        self._url = f"{tier.url}/{fingerprint}"
        self._folder = folder
        self.names: dict[str, int] = {}  # file name -> bytes
        self._keys: dict[str, Keys] = {}  # of those that were looked into
        self._index: tuple[KeyIndex, list[str]] | None = None

    def refresh(self) -> None:
        """Lists the segments anew."""
        found = self.objects()
        self.names = {
            name: stored.bytes
            for name, stored in found.items()
            if name.endswith(SUFFIX) and _keys_name(name) in found
        }
        for name in set(self._keys) - set(self.names):
            del self._keys[name]
            self._index = None

    def objects(self) -> dict[str, Stored]:
        """All objects, by name."""
        found = {}
        with s3.explained(self._url, CacheError):
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self._tier.bucket, Prefix=self._path
            )
            for page in pages:
                now = parsedate_to_datetime(page["ResponseMetadata"]["HTTPHeaders"]["date"])
                for item in page.get("Contents", []):
                    age_s = max(0.0, (now - item["LastModified"]).total_seconds())
                    found[item["Key"].removeprefix(self._path)] = Stored(item["Size"], age_s)
        return found

    def holds(self, keys: Keys, here: Collection[str]) -> NDArray[np.bool_]:
        """Which of `keys` [N, 2] are in segments that are not `here`."""
        return self._indexed(here)[0].find(keys) >= 0

    def fetch(self, keys: Keys, here: Collection[str]) -> tuple[list[Path], bool]:
        """Downloads the segments, not `here`, that hold `keys` [N, 2].

        Returns:
            The files, and whether some of the segments had gone or were damaged: then the tier was
            listed anew, and others may hold their keys.
        """
        index, names = self._indexed(here)
        places = index.find(keys)
        needed = [names[part] for part, _, _ in index.split(places[places >= 0])]
        with s3.explained(self._url, CacheError), ThreadPoolExecutor(_PARTS) as pool:
            files = [file for file in pool.map(self._download, needed) if file is not None]
        if len(files) < len(needed):
            self.refresh()
        return files, len(files) < len(needed)

    def lacks(self, segments: Sequence[Segment]) -> list[Segment]:
        """Those of all segments on this disk that hold a key which the tier does not.

        Not only those whose names it does not: its own may be compacted.
        """
        absent = [one for one in segments if one.file.name not in self.names]
        if not absent:
            return []
        here = {one.file.name: one.keys for one in segments if one.file.name in self.names}
        self._look_into(here)
        index = KeyIndex([*here.values(), *(keys for name, keys in self._keys.items() if name not in here)])
        return [one for one in absent if (index.find(one.keys) < 0).any()]

    def upload(self, segments: Sequence[Segment]) -> None:
        """Adds segments whose vectors were checked."""
        with s3.explained(self._url, CacheError), ThreadPoolExecutor(_PARTS) as pool:
            list(pool.map(self._upload, segments))

    def describe(self, file: Path) -> None:
        """Writes what the vectors are, which also says that they are in use."""
        with s3.explained(self._url, CacheError):
            self._client.put_object(
                Bucket=self._tier.bucket, Key=self._path + file.name, Body=file.read_bytes()
            )

    def remove(self, names: Collection[str]) -> None:
        """Removes segments: the keys first, so that none is ever seen without its rows."""
        with s3.explained(self._url, CacheError):
            self.delete([_keys_name(name) for name in names])
            self.delete(names)
        for name in names:
            self.names.pop(name, None)
            self._keys.pop(name, None)
        self._index = None

    def delete(self, objects: Collection[str]) -> None:
        """Removes objects by name."""
        keys = [self._path + name for name in sorted(objects)]
        for start in range(0, len(keys), 1_000):  # the most that S3 takes at once
            some = [{"Key": key} for key in keys[start : start + 1_000]]
            answer = self._client.delete_objects(
                Bucket=self._tier.bucket,
                Delete={"Objects": some, "Quiet": True},  # type: ignore[typeddict-item]
            )
            for failure in answer.get("Errors", []):
                raise CacheError(f"{self._url}: {failure.get('Key')} can't be removed ({failure.get('Code')})")

    def abort_uploads(self, older_than_s: float) -> int:
        """Gives up what killed writers left half-uploaded; how many that were."""
        with s3.explained(self._url, CacheError):
            answer = self._client.list_multipart_uploads(Bucket=self._tier.bucket, Prefix=self._path)
            now = parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"])
            old = [
                item
                for item in answer.get("Uploads", [])
                if (now - item.get("Initiated", now)).total_seconds() > older_than_s
            ]
            for item in old:
                self._client.abort_multipart_upload(
                    Bucket=self._tier.bucket, Key=item["Key"], UploadId=item["UploadId"]
                )
        return len(old)

    def header(self, name: str) -> Header:
        """The header of a segment."""
        content = self._get(_keys_name(name))
        return _parse(content, name)[0]

    def _indexed(self, here: Collection[str]) -> tuple[KeyIndex, list[str]]:
        """An index over the segments that are not `here`."""
        self._look_into(here)
        names = [name for name in sorted(self._keys) if name not in here]
        if self._index is None or self._index[1] != names:
            self._index = KeyIndex([self._keys[name] for name in names]), names
        return self._index

    def _look_into(self, here: Collection[str]) -> None:
        """Has the keys of every segment that is not `here`: from this disk, else from the tier."""
        wanted = [name for name in self.names if name not in here and name not in self._keys]
        if not wanted:
            return
        with suppress(OSError):
            (self._folder / "keys").mkdir(exist_ok=True)
        with s3.explained(self._url, CacheError), ThreadPoolExecutor(s3.CONNECTIONS) as pool:
            for name, keys in zip(wanted, pool.map(self._keys_of, wanted), strict=True):
                if keys is None:
                    self.names.pop(name)
                else:
                    self._keys[name] = keys
        for left in (self._folder / "keys").glob(f"*{KEYS_SUFFIX}"):
            if left.with_suffix(SUFFIX).name not in self.names:
                left.unlink(missing_ok=True)

    def _keys_of(self, name: str) -> Keys | None:
        """The keys [rows, 2] of a segment; None where it has gone or was damaged."""
        file = self._folder / "keys" / _keys_name(name)
        with suppress(FileNotFoundError, DamagedError):
            return _parse(file.read_bytes(), name)[1]
        try:
            for last in (False, True):
                content = self._get(_keys_name(name))
                try:
                    keys = _parse(content, name)[1]
                except DamagedError:
                    if last:
                        raise
                    continue  # it may have been damaged on the way
                with suppress(OSError):  # a copy, so that the next run need not ask
                    publish(file.parent, partial(_write, content, file.name), durable=False)
                return keys
        except self._client.exceptions.NoSuchKey:
            return None
        except DamagedError as error:
            self._set_aside(name, str(error))
        return None

    def _get(self, name: str) -> bytes:
        def read() -> bytes:
            return self._client.get_object(Bucket=self._tier.bucket, Key=self._path + name)["Body"].read()

        return s3.read_body(read)
