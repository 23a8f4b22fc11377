"""Reads and decodes every file of a version once, and sets aside what is no usable image."""

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import PIL
import pyarrow as pa
import pyarrow.parquet as pq

from tasks.data import table
from tasks.data.image import DECODER, BadImage, decode
from tasks.errors import DataError
from tasks.params import DataParams
from tasks.records import Audit, DatasetVersion, Rejected, digest_of

_BATCH = 64  # files that a thread takes at a time
Sizes = dict[str, tuple[int, int]]  # digest -> width, height of a good image, px


@dataclass(frozen=True, slots=True)
class _File:
    path: str
    digest: str  # hex SHA-256
    size: int  # bytes
    width: int = 0
    height: int = 0
    reason: str | None = None  # why it is quarantined


def run(out: Path, version: DatasetVersion, params: DataParams, verified: Path) -> Audit:
    """Writes `files.parquet` and `audit.json` into `out`, and `audit.json` beside the version's
    `data` too, where it stays when the audit fails.

    Args:
        verified: folder that remembers, by content, which images are good, so that they are not
            decoded again.

    Raises:
        DataError: more than `params.max_quarantined_fraction` of the samples is unusable, or all.
    """
    paths = _samples(version)
    known = _known(verified)
    files = list(_read_all(version.data, paths, known, params.max_pixels))
    good = [file for file in files if file.reason is None]
    _remember(verified, {file.digest: (file.width, file.height) for file in good if file.digest not in known})
    unread = [Rejected(path=file.path, reason=file.reason) for file in files if file.reason is not None]
    quarantined = tuple(sorted((*version.rejected, *unread), key=lambda bad: (bad.path, bad.reason)))
    samples = len(good)
    fraction = len(quarantined) / max(1, samples + len(quarantined))

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
    if quarantined and (fraction > params.max_quarantined_fraction or not samples):
        raise DataError(_too_many(quarantined, samples, fraction, params.max_quarantined_fraction, stays))

    rows = [(file.path, file.digest, file.size, file.width, file.height) for file in good]
    columns = list(zip(*rows, strict=True)) or [(), (), (), (), ()]
    pq.write_table(
        pa.table(dict(zip(_SCHEMA.names, columns, strict=True)), schema=_SCHEMA), out / "files.parquet"
    )
    return Audit(
        digest=digest_of(rows, *quarantined),
        folder=str(out),
        samples=samples,
        quarantined=quarantined,
        quarantined_fraction=fraction,
    )


_SCHEMA = pa.schema(
    {
        "path": pa.string(),
        "digest": pa.string(),
        "size": pa.int64(),
        "width": pa.int32(),
        "height": pa.int32(),
    }
)
_MEMO = pa.schema({"digest": pa.string(), "width": pa.int32(), "height": pa.int32()})


def _samples(version: DatasetVersion) -> list[str]:
    """Paths of the samples below `data/`, sorted. A table's own folder may hold other files."""
    if version.table is None:
        return sorted(_below(version.data))
    rows, _ = table.read((version.data / version.table).read_bytes(), version.table)
    rejected = {bad.path for bad in version.rejected}
    return sorted(path for path in rows["path"] if path not in rejected)


def _below(folder: Path, prefix: str = "") -> Iterator[str]:
    with os.scandir(folder) as items:
        for item in items:
            if item.is_dir():
                yield from _below(Path(item.path), f"{prefix}{item.name}/")
            else:
                yield f"{prefix}{item.name}"


def _read_all(data: Path, paths: Sequence[str], known: Sizes, max_pixels: int) -> Iterator[_File]:
    def read_some(some: Sequence[str]) -> list[_File]:
        return [_read(data, path, known, max_pixels) for path in some]

    batches = [paths[start : start + _BATCH] for start in range(0, len(paths), _BATCH)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # reading, hashing and decoding leave the GIL
        for files in pool.map(read_some, batches):
            yield from files


def _read(data: Path, path: str, known: Sizes, max_pixels: int) -> _File:
    try:
        content = (data / path).read_bytes()
    except OSError as error:
        return _File(path, "", 0, reason=f"can't be read ({error.strerror})")
    digest = hashlib.sha256(content).hexdigest()
    width, height = known.get(digest, (0, 0))
    # A known image above the limit is decoded all the same, for the reason in its words.
    if not 0 < width * height <= max_pixels:
        try:
            width, height = decode(content, max_pixels).size
        except BadImage as error:
            return _File(path, digest, len(content), reason=str(error))
    return _File(path, digest, len(content), width, height)


def _memo(verified: Path) -> Path:
    """Another decoder may judge otherwise, so each has its own memory."""
    return verified / f"decoder-{DECODER}-pillow-{PIL.__version__}"


def _known(verified: Path) -> Sizes:
    """Good images of earlier runs. A file whose content is not what its name says is passed over."""
    known: Sizes = {}
    for file in sorted(_memo(verified).glob("*.parquet")):
        content = file.read_bytes()
        if hashlib.sha256(content).hexdigest() != file.stem:
            continue
        columns = pq.read_table(BytesIO(content)).to_pydict()
        sizes = zip(columns["width"], columns["height"], strict=True)
        known.update(zip(columns["digest"], sizes, strict=True))
    return known


def _remember(verified: Path, fresh: Sizes) -> None:
    if not fresh:
        return
    rows = [(digest, *size) for digest, size in sorted(fresh.items())]
    columns = dict(zip(_MEMO.names, zip(*rows, strict=True), strict=True))
    buffer = BytesIO()
    pq.write_table(pa.table(columns, schema=_MEMO), buffer)
    content = buffer.getvalue()
    place = _memo(verified) / f"{hashlib.sha256(content).hexdigest()}.parquet"
    place.parent.mkdir(parents=True, exist_ok=True)
    arriving = place.with_name(f".{place.stem}.{os.getpid()}")
    arriving.write_bytes(content)
    arriving.replace(place)


def _too_many(
    quarantined: Sequence[Rejected], samples: int, fraction: float, limit: float, report: Path
) -> str:
    first = quarantined[0]
    return (
        f"{first.path}: {first.reason}; {len(quarantined):,} of {samples + len(quarantined):,} files "
        f"quarantined ({fraction * 100:.2f} %), limit {limit * 100:.2f} % "
        f"(data.max_quarantined_fraction); see {report}"
    )
