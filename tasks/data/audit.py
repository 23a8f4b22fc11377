"""Which samples of a version can be used; reads and decodes what isn't known, and sets aside the rest."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tasks.data import content, digests, stack, table
from tasks.data.content import Content
from tasks.errors import DataError
from tasks.params import DataParams
from tasks.records import Audit, DatasetVersion, Rejected, Target, digest_of


def run(out: Path, version: DatasetVersion, params: DataParams, state: Path, rehash: bool = False) -> Audit:
    """Writes `files.parquet` and `audit.json` into `out`, and `audit.json` beside the version's
    `data` too, where it stays when the audit fails.

    Args:
        state: folder with what earlier audits found: `digests/` the digests of files that are
            unchanged since, `verified/` which contents are good images.
        rehash: read and hash every file anew, also the unchanged ones.

    Raises:
        DataError: more than `params.max_quarantined_fraction` of the samples is unusable, or all.
    """
    wanted = _wanted(version, params.target)
    files = digests.scan(version.data)
    if wanted is not None:
        of_wanted = pa.array({stack.split_path(path)[0] for path in wanted}, pa.string())
        files = files.filter(pc.is_in(files["path"], value_set=of_wanted))
    memo_file = digests.place(state / "digests", version)
    memo = digests.load(memo_file)
    known = pa.nulls(len(files), pa.string()) if rehash else digests.known(files, memo)
    found = content.look(version.data, files, known, state / "verified", params.max_pixels)
    if not found.digests.equals(known) or len(memo) != len(files) - known.null_count:
        digests.save(memo_file, files, found.digests)

    samples, unread = (found.samples, found.bad) if wanted is None else _chosen(wanted, found)
    samples = samples.sort_by("path")
    quarantined = tuple(sorted((*version.rejected, *unread), key=lambda bad: (bad.path, bad.reason)))
    fraction = len(quarantined) / max(1, len(samples) + len(quarantined))
    _report(out, version, len(samples), quarantined, fraction)
    if quarantined and (fraction > params.max_quarantined_fraction or not len(samples)):
        limit, stays = params.max_quarantined_fraction, version.path / "audit.json"
        raise DataError(_too_many(quarantined, len(samples), fraction, limit, stays))
    pq.write_table(samples, out / "files.parquet")
    return Audit(
        digest=digest_of(*samples.to_pydict().values(), *quarantined),
        folder=str(out),
        samples=len(samples),
        quarantined=quarantined,
        quarantined_fraction=fraction,
    )


def _wanted(version: DatasetVersion, target: Target) -> list[str] | None:
    """The samples that a table names; None: all that the files hold. A table's own folder may hold
    other files."""
    if version.table is None:
        return None
    rows, _ = table.read((version.data / version.table).read_bytes(), version.table, target)
    rejected = {bad.path for bad in version.rejected}
    return sorted(path for path in rows["path"] if path not in rejected)


def _chosen(wanted: Sequence[str], found: Content) -> tuple[pa.Table, tuple[Rejected, ...]]:
    """The samples of a table, and why the others that it names can't be had."""
    samples = found.samples.filter(pc.is_in(found.samples["path"], value_set=pa.array(wanted, pa.string())))
    lost = sorted(set(wanted).difference(samples["path"].to_pylist()))
    reasons = {bad.path: bad.reason for bad in found.bad}
    images = set(found.samples["path"].to_pylist()) if lost else set()

    def why(path: str) -> str:
        file, row = stack.split_path(path)
        if file in reasons:
            return reasons[file]
        if file in images:
            return "is one image, no stack; name it without #"
        if file not in found.stacks:
            return "can't be read (No such file or directory)"
        if row is None:
            return f"is a stack; name its rows ({file}#0 to {file}#{found.stacks[file] - 1})"
        return stack.no_row(found.stacks[file])

    return samples, tuple(Rejected(path=path, reason=why(path)) for path in lost)


def _report(
    out: Path, version: DatasetVersion, samples: int, quarantined: Sequence[Rejected], fraction: float
) -> None:
    summary = {
        "version": version.digest,
        "samples": samples,
        "quarantined_fraction": fraction,
        "quarantined": [bad.model_dump() for bad in quarantined],
    }
    text = json.dumps(summary, indent=2, ensure_ascii=False) + "\n"
    (out / "audit.json").write_text(text, encoding="utf-8")
    stays = version.path / "audit.json"
    fresh = stays.with_name(f".audit.json.{os.getpid()}")
    fresh.write_text(text, encoding="utf-8")
    fresh.replace(stays)


def _too_many(
    quarantined: Sequence[Rejected], samples: int, fraction: float, limit: float, report: Path
) -> str:
    first = quarantined[0]
    return (
        f"{first.path}: {first.reason}; {len(quarantined):,} of {samples + len(quarantined):,} files "
        f"quarantined ({fraction * 100:.2f} %), limit {limit * 100:.2f} % "
        f"(data.max_quarantined_fraction); see {report}"
    )
