"""The folders of the embedding cache on this disk: their segments, opened and checked, and counted."""

import re
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from tasks.embedding.segment import SUFFIX, DamagedError, Segment, damaged, identity, set_aside
from tasks.errors import CacheError


class Result(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Counts(Result):
    segments: int
    rows: int
    bytes: int


def is_fingerprint(name: str) -> bool:
    """Whether a folder of this name is the cache's: others may lie beside it, above all in a bucket."""
    return re.fullmatch(r"[0-9a-f]{64}", name) is not None


def folders(root: Path) -> list[Path]:
    """The folders of all fingerprints."""
    found = root.iterdir() if root.is_dir() else ()
    return sorted(folder for folder in found if is_fingerprint(folder.name) and folder.is_dir())


def folder_of(root: Path, fingerprint: str) -> Path:
    """The folder of a fingerprint; raises CacheError where there is none."""
    folder = root / fingerprint
    if not folder.is_dir():
        raise CacheError(f"{root}: holds nothing of the fingerprint {fingerprint}")
    return folder


def opened(folder: Path) -> list[Segment]:
    """The segments that can be opened; damaged ones are set aside."""
    return [one for file in sorted(folder.glob(f"*{SUFFIX}")) for one in opened_file(file)]


def opened_file(file: Path) -> list[Segment]:
    """One segment; none where it has gone, or was damaged and is set aside."""
    try:
        seen = identity(file)
        try:
            return [Segment(file)]
        except DamagedError as error:
            set_aside(file, seen, str(error))
    except FileNotFoundError:  # compacted in the meantime
        pass
    return []


def intact(segments: Sequence[Segment]) -> list[Segment]:
    """Those of which every byte was checked; the others are set aside."""
    bad = damaged([(one, None) for one in segments])
    for one in bad:
        set_aside(one.file, one.identity, "its vectors have changed")
    return [one for one in segments if one not in bad]


def counts(segments: Iterable[Segment]) -> Counts:
    """What segments hold together."""
    return total(Counts(segments=1, rows=one.header.rows, bytes=one.identity[2]) for one in segments)


def total(counts: Iterable[Counts]) -> Counts:
    """The sum of counts."""
    listed = list(counts)
    return Counts(
        segments=sum(one.segments for one in listed),
        rows=sum(one.rows for one in listed),
        bytes=sum(one.bytes for one in listed),
    )


def age_s(file: Path) -> float:
    """Seconds since a file was written; 0 where it has gone or was written in the future, by a clock
    that jumped."""
    with suppress(FileNotFoundError):
        return max(0.0, time.time() - file.stat().st_mtime)
    return 0.0
