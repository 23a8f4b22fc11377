"""Compaction of the embedding cache: small segments, and those that hold the same samples, merged into
larger ones, here and in the tier.

It runs beside any number of readers, writers and other compactions, and may be killed at any moment:
a segment is removed only after all its rows were written, durably and under a name that no other file
ever had or will have, by the process that removes it. So the latest such file that holds a row stays.
"""

import uuid
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from tasks.embedding.folder import Counts, Result, age_s, counts, folder_of, intact, opened, opened_file
from tasks.embedding.index import KeyIndex, Places
from tasks.embedding.segment import KEY_BYTES, SUFFIX, Keys, Segment, Vectors, sorted_once, write
from tasks.embedding.tier import Namespace, Tier
from tasks.errors import CacheError

TARGET_BYTES = 256 << 20  # of a compacted segment
LEFT_S = 24 * 3600  # after which a temporary file is one that a killed process left
DAMAGED_S = 30 * LEFT_S  # for which what was set aside can be looked into


class Compacted(Result):
    before: Counts
    after: Counts
    tier_before: Counts | None  # None: no tier was given
    tier_after: Counts | None
    leftovers: int  # removed: temporary files of killed processes, and what was set aside long ago


def compact(
    root: Path, fingerprint: str, tier: Tier | None = None, target_bytes: int = TARGET_BYTES
) -> Compacted:
    """Compacts one fingerprint.

    Args:
        target_bytes: about what a segment should have; one of less than half of that is small.

    Raises:
        CacheError: no such fingerprint, or the disk or the tier can't be written to.
    """
    folder = root / fingerprint
    tier_counts: tuple[Counts | None, Counts | None] = (None, None)
    leftovers = 0
    try:
        if tier is not None:
            folder.mkdir(parents=True, exist_ok=True)
            namespace = tier.namespace(fingerprint, folder)
            leftovers = namespace.clean(LEFT_S, DAMAGED_S)
            tier_counts = _compact_tier(folder, namespace, target_bytes)
        segments = {one.file.name: one for one in opened(folder_of(root, fingerprint))}
        leftovers += _remove_leftovers(folder)
        before = counts(segments.values())
        sizes = {name: one.identity[2] for name, one in segments.items()}
        chosen = _to_merge({name: one.keys for name, one in segments.items()}, sizes, target_bytes)
        _merge(folder, intact([segments[name] for name in chosen]), target_bytes)
        after = counts(opened(folder))
    except OSError as error:
        raise CacheError(
            f"{folder}: can't be compacted ({error.strerror or error}); nothing was lost"
        ) from None
    return Compacted(
        before=before, after=after, tier_before=tier_counts[0], tier_after=tier_counts[1], leftovers=leftovers
    )


def fragments(root: Path, fingerprint: str, target_bytes: int = TARGET_BYTES) -> int:
    """How many segments are small enough to be merged, by the sizes of their files alone."""
    small = 0
    for file in (root / fingerprint).glob(f"*{SUFFIX}"):
        with suppress(FileNotFoundError):  # compacted in the meantime
            small += file.stat().st_size < target_bytes // 2
    return small


def _remove_leftovers(folder: Path) -> int:
    """Removes temporary files of killed processes, and old damaged ones; how many those were."""
    temporary = [*folder.glob(".*"), *folder.glob("keys/.*")]
    old = [file for file in temporary if file.is_file() and age_s(file) > LEFT_S]
    old += [file for file in folder.glob("*.damaged") if age_s(file) > DAMAGED_S]
    for file in old:
        file.unlink(missing_ok=True)
    return len(old)


def _compact_tier(folder: Path, namespace: Namespace, target_bytes: int) -> tuple[Counts, Counts]:
    """Compacts the tier, of which the segments of this disk become a part first."""
    namespace.refresh()
    here = {one.file.name: one for one in opened(folder)}
    namespace.upload(intact(namespace.lacks(list(here.values()))))
    keys = namespace.keys({name: one.keys for name, one in here.items()})
    before = _counts_in_tier(namespace, keys)
    chosen = _to_merge(keys, namespace.names, target_bytes)
    namespace.bring([name for name in chosen if name not in here])
    merged = [folder / name for name in chosen if (folder / name).exists()]
    segments = intact([one for file in merged for one in opened_file(file)])
    outputs = _merge(folder, segments, target_bytes, namespace)
    keys = {name: some for name, some in keys.items() if name in namespace.names}
    return before, _counts_in_tier(namespace, keys | {one.file.name: one.keys for one in outputs})


def _to_merge(keys: dict[str, Keys], sizes: dict[str, int], target_bytes: int) -> list[str]:
    """The segments that are smaller than half of what they should be, or hold what another does too."""
    names = sorted(keys)
    index = KeyIndex([keys[name] for name in names])
    chosen = {names[part] for part, _, _ in index.split(index.repeated())}
    chosen |= {name for name in names if sizes[name] < target_bytes // 2}
    return sorted(chosen) if len(chosen) > 1 else []


def _merge(
    folder: Path, segments: Sequence[Segment], target_bytes: int, namespace: Namespace | None = None
) -> list[Segment]:
    """Writes the distinct rows of segments, here and in the tier; then removes the segments."""
    if len(segments) < 2:
        return []
    index = KeyIndex([one.keys for one in segments])
    rows = sorted_once(np.concatenate([one.keys for one in segments]))
    files = [
        write(folder, index.keys_at(piece), vectors_at(index, segments, piece), merged=uuid.uuid4().hex)
        for piece in pieces(rows, target_bytes, segments[0].header.dim)
    ]
    outputs = []
    if namespace is not None:
        outputs = [one for file in files for one in opened_file(file)]
        if len(outputs) < len(files):  # merged again already, by another process on this machine
            return []
        namespace.upload(outputs)
        namespace.remove([one.file.name for one in segments])
    for one in segments:
        one.file.unlink(missing_ok=True)
    return outputs


def pieces(rows: Places, piece_bytes: int, dim: int) -> list[Places]:
    """Equal parts, of about `piece_bytes` each."""
    count = max(1, round(len(rows) * (KEY_BYTES + 4 * dim) / piece_bytes))
    return np.array_split(rows, count)


def vectors_at(index: KeyIndex, segments: Sequence[Segment], places: Places) -> Vectors:
    """The vectors at places of the index over `segments`, [N, D]."""
    vectors = np.empty((len(places), segments[0].header.dim), dtype=np.float32)
    for part, which, rows in index.split(places):
        vectors[which] = segments[part].vectors[rows]
    return vectors


def _counts_in_tier(namespace: Namespace, keys: dict[str, Keys]) -> Counts:
    rows = sum(len(some) for some in keys.values())
    return Counts(segments=len(namespace.names), rows=rows, bytes=sum(namespace.names.values()))
