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
from botocore.exceptions import ClientError
from numpy.typing import NDArray

from tasks import s3
from tasks.embedding.cache import DESCRIPTION
from tasks.embedding.folder import is_fingerprint
from tasks.embedding.index import KeyIndex
from tasks.embedding.segment import SUFFIX, DamagedError, Header, Keys, Segment, damaged, publish
from tasks.errors import CacheError
from tasks.settings import Settings

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client
    from mypy_boto3_s3.type_defs import ListMultipartUploadsOutputTypeDef, ListObjectsV2OutputTypeDef

log = logging.getLogger(__name__)

KEYS_SUFFIX = ".keys"
_DAMAGED_SUFFIX = ".damaged"
_AT_ONCE = 4  # segments; each takes several requests at once
_HEADER_BYTES = 64 << 10  # enough for the header of a segment of about 900 MB


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
        names = [path.removeprefix(self.prefix).rstrip("/") for path in found]
        return [name for name in names if is_fingerprint(name)]


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

    def refresh(self) -> dict[str, Stored]:
        """Lists the segments anew; returns all objects."""
        found = self.objects()
        self.names = {
            name: stored.bytes
            for name, stored in found.items()
            if name.endswith(SUFFIX) and _keys_name(name) in found
        }
        for name in set(self._keys) - set(self.names):
            del self._keys[name]
            self._index = None
        return found

    def objects(self) -> dict[str, Stored]:
        """All objects of the cache, by name; those of others are let alone."""
        found = {}
        with s3.explained(self._url, CacheError):
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self._tier.bucket, Prefix=self._path
            )
            for page in pages:
                now = _time_of(page)
                for item in page.get("Contents", []):
                    name = item["Key"].removeprefix(self._path)
                    age_s = max(0.0, (now - item["LastModified"]).total_seconds())
                    if _is_ours(name):
                        found[name] = Stored(item["Size"], age_s)
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
        files = self.bring(needed)
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
        index = KeyIndex(list(self.keys({one.file.name: one.keys for one in segments}).values()))
        return [one for one in absent if (index.find(one.keys) < 0).any()]

    def upload(self, segments: Sequence[Segment]) -> None:
        """Adds segments whose vectors were checked."""
        with s3.explained(self._url, CacheError), ThreadPoolExecutor(_AT_ONCE) as pool:
            list(pool.map(self._upload, segments))

    def describe(self, file: Path) -> None:
        """Writes what the vectors are, which also says that they are in use."""
        with s3.explained(self._url, CacheError):
            self._client.put_object(
                Bucket=self._tier.bucket, Key=self._path + file.name, Body=file.read_bytes()
            )

    def description(self, name: str) -> bytes:
        """What `describe` wrote; empty where it has not."""
        with s3.explained(self._url, CacheError), suppress(self._client.exceptions.NoSuchKey):
            return self._get(name)
        return b""

    def keys(self, here: Mapping[str, Keys]) -> dict[str, Keys]:
        """The keys [rows, 2] of every segment; `here` holds those of the segments on this disk."""
        self._look_into(here)
        return {name: here[name] if name in here else self._keys[name] for name in sorted(self.names)}

    def bring(self, names: Sequence[str]) -> list[Path]:
        """Downloads segments; those that have gone or were damaged are left out."""
        with s3.explained(self._url, CacheError), ThreadPoolExecutor(_AT_ONCE) as pool:
            return [file for file in pool.map(self._download, names) if file is not None]

    def clean(self, older_than_s: float, damaged_older_than_s: float) -> int:
        """Removes what writers and removers left when they were killed, and what was set aside; how
        many objects that were."""
        found = self.objects()
        left = [
            name
            for name, stored in found.items()
            if stored.age_s > older_than_s and _partner(name) is not None and _partner(name) not in found
        ]
        left += [
            name
            for name, stored in found.items()
            if stored.age_s > damaged_older_than_s and name.endswith(_DAMAGED_SUFFIX)
        ]
        with s3.explained(self._url, CacheError):
            self._delete(left)
            answer = self._client.list_multipart_uploads(Bucket=self._tier.bucket, Prefix=self._path)
            now = _time_of(answer)
            old = [
                item
                for item in answer.get("Uploads", [])
                if (now - item.get("Initiated", now)).total_seconds() > older_than_s
                and _is_ours(item["Key"].removeprefix(self._path))
            ]
            for item in old:
                self._client.abort_multipart_upload(
                    Bucket=self._tier.bucket, Key=item["Key"], UploadId=item["UploadId"]
                )
        return len(left) + len(old)

    def clear(self) -> None:
        """Removes everything that is the cache's."""
        found = self.objects()
        self.remove([name for name in found if name.endswith(SUFFIX)])
        with s3.explained(self._url, CacheError):
            self._delete(list(found))
        self.clean(-1, -1)
        self.names.clear()

    def remove(self, names: Collection[str]) -> None:
        """Removes segments: the keys first, so that none is ever seen without its rows."""
        with s3.explained(self._url, CacheError):
            self._delete([_keys_name(name) for name in names])
            self._delete(names)
        for name in names:
            self.names.pop(name, None)
            self._keys.pop(name, None)
        self._index = None

    def rows(self) -> list[int]:
        """How many rows each segment has."""

        def of_segment(name: str) -> int:
            name_of_keys = _keys_name(name)
            try:
                start = s3.get_start(
                    self._client, self._tier.bucket, self._path + name_of_keys, _HEADER_BYTES
                )
                content = start if b"\n" in start else self._get(name_of_keys)
                text = content.partition(b"\n")[0]
                return Header.read(text, Path(name).stem).rows
            except DamagedError:
                return 0
            except ClientError as failure:
                if s3.code_of(failure) not in ("NoSuchKey", "InvalidRange", "416"):
                    raise
                return 0

        with s3.explained(self._url, CacheError), ThreadPoolExecutor(s3.CONNECTIONS) as pool:
            return list(pool.map(of_segment, sorted(self.names)))

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
                    self.names.pop(name, None)
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
            self._set_aside(_keys_name(name), str(error))
        return None

    def _download(self, name: str) -> Path | None:
        """Brings a segment, checked as a whole; None where it has gone or was damaged."""
        try:
            for last in (False, True):
                try:
                    return publish(self._folder, partial(self._fill, name))
                except DamagedError:
                    if last:
                        raise
        except self._client.exceptions.NoSuchKey:
            pass
        except DamagedError as error:
            self._set_aside(name, str(error))
        except OSError as error:
            raise CacheError(f"{self._folder}: can't write {name} ({error.strerror or error})") from None
        return None

    def _fill(self, name: str, stream: BinaryIO) -> str:
        s3.download(self._client, self._tier.bucket, self._path + name, Path(stream.name), self.names[name])
        one = Segment(Path(stream.name), Path(name).stem)
        if damaged([(one, None)]):
            raise DamagedError("its vectors have changed")
        return name

    def _upload(self, one: Segment) -> None:
        name = one.file.name
        s3.put_new(self._client, self._tier.bucket, self._path + name, one.content)
        keys = memoryview(one.header.text + b"\n" + one.keys.tobytes())
        s3.put_new(self._client, self._tier.bucket, self._path + _keys_name(name), keys)
        self.names[name] = one.identity[2]
        self._index = None

    def _set_aside(self, name: str, reason: str) -> None:
        """Renames a damaged object to `.damaged`, unless another process has replaced it."""
        key, bucket = self._path + name, self._tier.bucket
        try:
            tag = self._client.head_object(Bucket=bucket, Key=key)["ETag"]
            self._client.copy_object(
                Bucket=bucket,
                Key=key + _DAMAGED_SUFFIX,
                CopySource={"Bucket": bucket, "Key": key},
                CopySourceIfMatch=tag,
            )
        except ClientError as failure:
            if s3.code_of(failure) not in ("404", "NoSuchKey", *s3.THERE):
                raise
            return
        if name.endswith(SUFFIX):
            self.remove([name])
        else:  # its segment may be intact: who has it writes the keys again
            self._delete([name])
        log.warning(
            "%s/%s: damaged (%s), set aside as .damaged; its samples are missing", self._url, name, reason
        )

    def _get(self, name: str) -> bytes:
        return s3.get(self._client, self._tier.bucket, self._path + name)

    def _delete(self, names: Collection[str]) -> None:
        s3.delete(self._client, self._tier.bucket, [self._path + name for name in names])


def _time_of(answer: "ListObjectsV2OutputTypeDef | ListMultipartUploadsOutputTypeDef") -> datetime:
    """The server's time, which is what its objects' ages are counted from."""
    return parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"])


def _partner(name: str) -> str | None:
    """The other object of a segment."""
    other = {SUFFIX: KEYS_SUFFIX, KEYS_SUFFIX: SUFFIX}.get(Path(name).suffix)
    return None if other is None else Path(name).with_suffix(other).name


def _is_ours(name: str) -> bool:
    """Whether an object may be removed: a prefix in a bucket may hold anything."""
    ours = (SUFFIX, KEYS_SUFFIX, _DAMAGED_SUFFIX)
    return "/" not in name and (name == DESCRIPTION or name.endswith(ours))


def _keys_name(name: str) -> str:
    return str(Path(name).with_suffix(KEYS_SUFFIX))


def _parse(content: bytes, name: str) -> tuple[Header, Keys]:
    """The header and keys [rows, 2] of a segment; raises DamagedError."""
    text, _, packed = content.partition(b"\n")
    header = Header.read(text, Path(name).stem)
    if hashlib.sha256(packed).hexdigest() != header.keys:
        raise DamagedError("its keys have changed")
    return header, np.frombuffer(packed, dtype=np.uint64).reshape(-1, 2)


def _write(content: bytes, name: str, stream: BinaryIO) -> str:
    stream.write(content)
    return name
