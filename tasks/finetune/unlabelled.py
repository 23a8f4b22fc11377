"""Further images without labels, which a teacher can answer and a student learn from."""

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tasks.data import content, digests
from tasks.data.stack import split_path
from tasks.embedding.sample import Sample
from tasks.errors import DataError
from tasks.params import DataParams
from tasks.records import Manifest, Rejected, digest_of


@dataclass(frozen=True)
class Unlabelled:
    """The usable images of a folder, each content once."""

    samples: tuple[Sample, ...]  # by digest
    quarantined: tuple[Rejected, ...]  # what can't be used, and why
    held: int  # contents that were left out: the dataset has them
    digest: str  # of the samples' contents

    @property
    def quarantined_fraction(self) -> float:
        """Of all that was found."""
        return len(self.quarantined) / max(1, len(self.samples) + self.held + len(self.quarantined))


def find(folder: Path, manifest: Manifest, params: DataParams, state: Path) -> Unlabelled:
    """Lists and checks the images below `folder`, hidden ones left out; rows of stacks are images too.

    Content that the dataset holds is left out: of validation and test, for a student must not see what it
    is judged on, and of train, where it has its label.

    Args:
        params: as in the dataset's making: `max_pixels`, `max_quarantined_fraction`, `follow_links`.
        state: the state folder; contents that are known there to be good are not decoded again.

    Raises:
        DataError: there is no such folder, it has no usable images, or too much of it is bad.
    """
    folder = folder.expanduser()
    if not folder.is_dir():
        raise DataError(f"distill.unlabelled: {folder}: no such folder")
    listed, rejected = _listed(folder.resolve(), params.follow_links)
    memo_file = state / "digests" / f"{digest_of('unlabelled', str(folder.resolve()))[:32]}.arrow"
    known = digests.known(listed, digests.load(memo_file))
    found = content.look(folder.resolve(), listed, known, state / "verified", params.max_pixels)
    if not found.digests.equals(known):
        digests.save(memo_file, listed, found.digests)
    held = set(pq.read_table(manifest.file, columns=["digest"])["digest"].to_pylist())
    rows = found.samples.sort_by([("digest", "ascending"), ("path", "ascending")])
    places = dict(zip(reversed(rows["digest"].to_pylist()), reversed(rows["path"].to_pylist()), strict=True))
    made = Unlabelled(
        samples=tuple(
            _sample(folder.resolve(), digest, places[digest]) for digest in sorted(set(places) - held)
        ),
        quarantined=tuple(sorted((*rejected, *found.bad), key=lambda bad: bad.path)),
        held=len(held & set(places)),
        digest=digest_of("unlabelled", sorted(set(places) - held)),
    )
    _check(folder, made, params.max_quarantined_fraction)
    return made


def listing(folder: Path, follow: bool) -> str:
    """Digest of names, sizes and times of the files below `folder`, none of which is read; empty: there is
    no such folder."""
    if not folder.is_dir():
        return ""
    files, _ = _listed(folder.resolve(), follow)
    return digest_of("listing", *(files[name].to_pylist() for name in files.column_names))


def _check(folder: Path, made: Unlabelled, limit: float) -> None:
    bad, fraction = made.quarantined, made.quarantined_fraction
    if fraction > limit:
        raise DataError(
            f"distill.unlabelled: {folder}: {bad[0].path}: {bad[0].reason}; {len(bad):,} files quarantined"
            f" ({fraction:.2%}), limit {limit:.2%} (data.max_quarantined_fraction); take them out"
        )
    if not made.samples:
        why = f"; the dataset holds all {made.held:,}" if made.held else ""
        raise DataError(f"distill.unlabelled: {folder}: has no images that could be used{why}; name another")


def _sample(folder: Path, digest: str, path: str) -> Sample:
    file, row = split_path(path)
    return Sample(digest, folder / file, row)


def _listed(root: Path, follow: bool) -> tuple[pa.Table, list[Rejected]]:
    """The files below `root`, as `digests.FILES`; and those that are not to be read."""
    rows: list[tuple[str, int, int, int]] = []
    rejected: list[Rejected] = []
    for path, place in _walk(root, rejected):
        found = _status(place, root, follow)
        if isinstance(found, str):
            readable = os.fsencode(path).decode("utf-8", "backslashreplace")
            rejected.append(Rejected(path=readable, reason=found))
        else:
            rows.append((path, found.st_size, found.st_mtime_ns, found.st_ino))
    columns = list(zip(*rows, strict=True)) or [()] * len(digests.FILES)
    return pa.table(dict(zip(digests.FILES.names, columns, strict=True)), schema=digests.FILES), rejected


def _status(place: Path, root: Path, follow: bool) -> os.stat_result | str:
    """The status of a file, or why it is not to be read."""
    try:
        str(place).encode()
        if not follow and place.is_symlink() and not place.resolve().is_relative_to(root):
            return "link leads outside the folder (data.follow_links would follow it)"
        status = place.stat()
    except UnicodeEncodeError:
        return "the name is not UTF-8"
    except OSError as error:
        return f"can't be read ({error.strerror})"
    return status if stat.S_ISREG(status.st_mode) else "not a regular file"


def _walk(root: Path, rejected: list[Rejected]) -> Iterator[tuple[str, Path]]:
    """Path relative to `root` and place of each file, hidden ones left out. Links to folders are not
    followed: they may lead in a circle."""

    def failed(error: OSError) -> None:
        at = Path(error.filename).relative_to(root).as_posix()
        rejected.append(Rejected(path=at, reason=f"can't be read ({error.strerror})"))

    for folder, names, files in os.walk(root, onerror=failed):
        names[:] = sorted(name for name in names if not name.startswith("."))
        for name in list(names):
            place = Path(folder) / name
            if place.is_symlink():
                names.remove(name)
                path = place.relative_to(root).as_posix()
                rejected.append(Rejected(path=path, reason="is a link to a folder; name that folder itself"))
        for name in sorted(files):
            if not name.startswith("."):
                place = Path(folder) / name
                yield place.relative_to(root).as_posix(), place
