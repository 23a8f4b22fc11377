"""Single files that machines hand to each other through the tier of the embedding cache: objects right
under its prefix, beside the folders of the fingerprints."""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

from botocore.exceptions import ClientError

from tasks import s3
from tasks.embedding.segment import publish
from tasks.embedding.source import file_digest
from tasks.embedding.tier import Tier
from tasks.errors import CacheError


def give(tier: Tier, name: str, file: Path) -> None:
    """Writes a file as an object, unless there is one of that name.

    Raises:
        CacheError: the tier can't be written to.
    """
    key = tier.prefix + name
    with s3.explained(f"{tier.url}/{name}", CacheError):
        try:
            tier.client.head_object(Bucket=tier.bucket, Key=key)
        except ClientError as failure:
            if s3.code_of(failure) not in ("404", "NoSuchKey"):
                raise
            s3.put_new(tier.client, tier.bucket, key, memoryview(file.read_bytes()))


def take(tier: Tier, name: str, digest: str) -> bytes:
    """The content of a small object.

    Raises:
        CacheError: it is not there, or has another digest (hex SHA-256).
    """
    with s3.explained(f"{tier.url}/{name}", CacheError):
        content = s3.get(tier.client, tier.bucket, tier.prefix + name)
    _check(tier, name, hashlib.sha256(content).hexdigest(), digest)
    return content


def download(tier: Tier, name: str, digest: str, to: Path) -> None:
    """Brings an object as the file `to`, which appears when it is whole.

    Raises:
        CacheError: it is not there, or has another digest (hex SHA-256).
    """

    def fill(stream: BinaryIO) -> str:
        file, key = Path(stream.name), tier.prefix + name
        with s3.explained(f"{tier.url}/{name}", CacheError):
            size = tier.client.head_object(Bucket=tier.bucket, Key=key)["ContentLength"]
            s3.download(tier.client, tier.bucket, key, file, size)
        _check(tier, name, file_digest(file), digest)
        return to.name

    to.parent.mkdir(parents=True, exist_ok=True)
    publish(to.parent, fill)


def remove(tier: Tier, names: Iterable[str]) -> None:
    """Removes objects, as far as they are there.

    Raises:
        CacheError: the tier can't be written to.
    """
    with s3.explained(tier.url, CacheError):
        s3.delete(tier.client, tier.bucket, [tier.prefix + name for name in names])


def _check(tier: Tier, name: str, found: str, expected: str) -> None:
    if found != expected:
        raise CacheError(f"{tier.url}/{name}: is damaged (SHA-256 {found[:16]}, not {expected[:16]})")
