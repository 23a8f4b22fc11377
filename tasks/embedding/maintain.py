"""Keeping the embedding cache: what is in it, whether it is intact, and making it smaller.

Each works beside any number of readers and writers, and may be killed at any moment.
"""

import json
import shutil
import uuid
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tasks.embedding import segment
from tasks.embedding.cache import DESCRIPTION
from tasks.embedding.compact import Compacted, compact, pieces, vectors_at
from tasks.embedding.folder import Counts, age_s, counts, folder_of, folders, intact, opened, total
from tasks.embedding.index import KeyIndex
from tasks.embedding.segment import SUFFIX, publish, read_header, sorted_once
from tasks.embedding.tier import Tier
from tasks.errors import CacheError

__all__ = [
    "Compacted",
    "Exported",
    "Pruned",
    "Space",
    "Verified",
    "compact",
    "export",
    "list_spaces",
    "prune",
    "verify",
]

_GROUP_BYTES = 64 << 20  # of a row group of Parquet
_PRUNED = ".pruned-"


class Space(Counts):
    """The embeddings of one fingerprint, in one place."""

    fingerprint: str
    place: Literal["here", "tier"]
    what: str  # backbone, layer, pooling, view and precision; empty where that was not written
    damaged: int  # segments that were set aside, or can't be read
    unused_days: float  # since an embedding run last opened it


class Verified(Counts):
    """`segments`, `rows` and `bytes` count what is intact."""

    damaged: tuple[str, ...]  # files that were set aside now


class Pruned(Counts):
    """What was removed, or would be (`dry_run`)."""

    spaces: tuple[Space, ...]
    dry_run: bool


class Exported(Counts):
    """`bytes` are those of the Parquet file."""

    file: str


def list_spaces(root: Path, tier: Tier | None = None) -> list[Space]:
    """Every fingerprint here and, with one, in the tier.

    Raises:
        CacheError: the tier can't be read.
    """
    here = [_space_here(folder) for folder in folders(root)]
    if tier is None:
        return here
    there = [_space_in_tier(tier, name, root) for name in tier.fingerprints()]
    return here + [space for space in there if space is not None]


def verify(root: Path, fingerprint: str | None = None) -> Verified:
    """Reads every byte of the segments of one fingerprint or of all; damaged ones are set aside.

    Raises:
        CacheError: there is no such fingerprint.
    """
    segment.forget()
    good: list[Counts] = []
    bad: list[str] = []
    for folder in folders(root) if fingerprint is None else [folder_of(root, fingerprint)]:
        files = set(folder.glob(f"*{SUFFIX}"))
        whole = intact(opened(folder))
        good.append(counts(whole))
        # What is neither there nor set aside was compacted in the meantime.
        rest = files - {one.file for one in whole}
        bad += sorted(str(file) for file in rest if file.exists() or file.with_suffix(".damaged").exists())
    return Verified(**total(good).model_dump(), damaged=tuple(bad))


def prune(
    root: Path,
    *,
    fingerprints: Collection[str] | None = None,
    unused_days: float | None = None,
    referenced: Collection[str] | None = None,
    tier: Tier | None = None,
    dry_run: bool = True,
) -> Pruned:
    """Removes all embeddings of the fingerprints to which every condition given applies.

    Args:
        fingerprints: it is one of these.
        unused_days: no run has opened it for longer than that.
        referenced: it is none of these (those that registered versions need).

    Raises:
        CacheError: no condition, an unknown fingerprint, or the disk or the tier can't be written to.
    """
    if fingerprints is None and unused_days is None and referenced is None:
        raise CacheError("prune: say what to remove: fingerprints, an age, or what is not referenced")
    found = list_spaces(root, tier)
    for unknown in sorted(set(fingerprints or ()) - {space.fingerprint for space in found}):
        raise CacheError(f"{root}: holds nothing of the fingerprint {unknown}")
    chosen = [
        space
        for space in found
        if (fingerprints is None or space.fingerprint in fingerprints)
        and (unused_days is None or space.unused_days > unused_days)
        and (referenced is None or space.fingerprint not in referenced)
    ]
    try:
        for space in chosen if not dry_run else ():
            folder = root / space.fingerprint
            if space.place == "here":  # it goes at once, then its files, so that no half of it is read
                with suppress(FileNotFoundError):
                    folder.rename(root / f"{_PRUNED}{uuid.uuid4().hex}")
            elif tier is not None:
                tier.namespace(space.fingerprint, folder).clear()
        for left in root.glob(f"{_PRUNED}*") if not dry_run else ():
            with suppress(FileNotFoundError):  # another process removes it too
                shutil.rmtree(left)
    except OSError as error:
        raise CacheError(f"{root}: can't be pruned ({error.strerror or error})") from None
    return Pruned(**total(chosen).model_dump(), spaces=tuple(chosen), dry_run=dry_run)


def export(root: Path, fingerprint: str, to: Path, tier: Tier | None = None) -> Exported:
    """Writes each sample once to a Parquet file: `digest_prefix` (the first 32 hex characters of its
    SHA-256) and `vector` (a list of D float32). Damaged segments are set aside, and left out. What
    only the tier has is brought first.

    Raises:
        CacheError: no such fingerprint, nothing in it, or `to` can't be written.
    """
    if tier is not None:
        _bring_all(root / fingerprint, tier)
    segments = intact(opened(folder_of(root, fingerprint)))
    if not segments:
        raise CacheError(f"{root / fingerprint}: holds no embeddings")
    index = KeyIndex([one.keys for one in segments])
    rows = np.sort(sorted_once(np.concatenate([one.keys for one in segments])))  # as they lie on the disk
    dim = segments[0].header.dim
    schema = pa.schema([("digest_prefix", pa.string()), ("vector", pa.list_(pa.float32(), dim))])

    def fill(stream: BinaryIO) -> str:
        with pq.ParquetWriter(stream, schema, compression="zstd", use_dictionary=False) as writer:
            for group in pieces(rows, _GROUP_BYTES, dim):
                text = index.keys_at(group).tobytes().hex()
                names = [text[start : start + 32] for start in range(0, len(text), 32)]
                vectors = pa.FixedSizeListArray.from_arrays(
                    pa.array(vectors_at(index, segments, group).reshape(-1)), dim
                )
                writer.write_table(pa.table([pa.array(names), vectors], schema=schema))
        return to.name

    try:
        publish(to.parent, fill)
        size = to.stat().st_size
    except OSError as error:
        raise CacheError(f"{to}: can't be written ({error.strerror or error})") from None
    return Exported(file=str(to), segments=len(segments), rows=len(rows), bytes=size)


def _bring_all(folder: Path, tier: Tier) -> None:
    """Brings the tier's segments that hold a sample which this disk lacks."""
    namespace = tier.namespace(folder.name, folder)
    while namespace.refresh():
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CacheError(f"{folder}: can't be made ({error.strerror})") from None
        here = {one.file.name: one.keys for one in opened(folder)}
        index = KeyIndex(list(here.values()))
        wanted = [name for name, keys in namespace.keys(here).items() if (index.find(keys) < 0).any()]
        if len(namespace.bring(wanted)) == len(wanted):
            break  # else some were compacted in the meantime, or damaged


def _space_here(folder: Path) -> Space:
    good, bad = [], len(list(folder.glob("*.damaged")))
    files = sorted(folder.glob(f"*{SUFFIX}"))
    for file in files:
        try:
            good.append(Counts(segments=1, rows=read_header(file).rows, bytes=file.stat().st_size))
        except CacheError:
            bad += 1
        except FileNotFoundError:  # compacted in the meantime
            continue
    note = folder / DESCRIPTION
    used = note if note.exists() else max(files, key=lambda file: -age_s(file), default=folder)
    text = note.read_bytes() if note.exists() else b""
    return Space(
        **total(good).model_dump(),
        fingerprint=folder.name,
        place="here",
        what=_what(text),
        damaged=bad,
        unused_days=age_s(used) / 86_400,
    )


def _space_in_tier(tier: Tier, fingerprint: str, root: Path) -> Space | None:
    namespace = tier.namespace(fingerprint, root / fingerprint)
    found = namespace.refresh()
    if not found:  # some servers keep the folder of objects that were removed
        return None
    note = found.get(DESCRIPTION)
    ages = [note.age_s] if note else [stored.age_s for stored in found.values()]
    return Space(
        segments=len(namespace.names),
        rows=sum(namespace.rows()),
        bytes=sum(namespace.names.values()),
        fingerprint=fingerprint,
        place="tier",
        what=_what(namespace.description(DESCRIPTION) if note else b""),
        damaged=sum(name.endswith(".damaged") for name in found),
        unused_days=min(ages, default=0.0) / 86_400,
    )


def _what(text: bytes) -> str:
    """The description of a block, in a line."""
    try:
        content = json.loads(text)
        backbone, block = content["backbone"], content["block"]
        pooling = "+".join(block["pooling"])
        words = (backbone["name"], block["layer"], pooling, block["view"], backbone["precision"])
    except (ValueError, KeyError, TypeError):
        return ""
    return " ".join(str(word) for word in words if word)
