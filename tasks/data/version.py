"""Dataset versions, made and brought back. DVC itself is behind `store`, the only module that imports it.

A source is mirrored into a workspace of its own, added to a cache that all workspaces share, and
pushed to the remote. DVC makes the mirrored files read-only hard links into its cache.
"""

import json
import os
import re
import shutil
import tempfile
from pathlib import Path

from tasks.data import digests, git, store
from tasks.data.mirror import Mirrored, mirror, remember
from tasks.data.source import Listing, list_source
from tasks.data.store import DvcFile
from tasks.errors import DataError
from tasks.lock import locked
from tasks.params import DataParams
from tasks.records import DatasetVersion, Rejected, digest_of
from tasks.settings import Settings

SNAPSHOTS = 5  # versions of which the files are kept at hand


def version_data(source: str, params: DataParams, settings: Settings, rehash: bool = False) -> DatasetVersion:
    """Versions a dataset: afterwards DVC's remote holds it, and the workspace is a copy of it.

    Where nothing changed since the last push, nothing is read but names, sizes and times. Two
    processes may do this at once, and one that is killed is made good by the next.

    Args:
        source: see `list_source`.
        rehash: read every file anew and compare it with its copy, also where names, sizes and
            times are as before.

    Raises:
        DataError: the source is no dataset, or DVC or its remote failed.
    """
    listing = list_source(source, params, settings)
    workspace = settings.root / "data" / _name(listing.source)
    workspace.mkdir(parents=True, exist_ok=True)
    # The lock lies beside the workspace, which a user may delete.
    with locked(workspace.parent / f".{workspace.name}.lock"):
        mirrored = mirror(listing.entries, workspace, rehash)
        rejected = (*listing.rejected, *mirrored.rejected)
        if listing.table is not None and any(bad.path == listing.table for bad in mirrored.rejected):
            raise DataError(f"{source}: the table vanished while it was read; run again")
        state = {
            "listing": _listing_digest(listing, rejected),
            "remote": store.remote_url(settings),
        }
        file = None if mirrored.changed else _already_pushed(workspace, state, settings)
        if file is None:
            file = _add_and_push(workspace, listing, mirrored, rejected, settings)
            remember(listing.entries, workspace)
            _write_state(workspace, {**state, "digest": file.digest})
        if params.git_commit:
            git.commit_dvc_file(workspace / "data.dvc", file.digest)
        version = DatasetVersion(
            digest=file.digest,
            folder=str(workspace),
            source=listing.source,
            layout=listing.layout,
            table=listing.table,
            files=file.files,
            size_bytes=file.size_bytes,
            rejected=rejected,
        )
        snapshot = settings.root / "versions" / version.identity[:16]
        # A snapshot is linked to the copies: to damaged ones, or no longer to them.
        if mirrored.edited or (rehash and _scanned(snapshot) != _scanned(workspace)):
            shutil.rmtree(snapshot, ignore_errors=True)
        return _snapshot(version, snapshot)


def checkout(dvc_file: str, to: Path, settings: Settings, force: bool = False) -> DatasetVersion:
    """Brings a version from the remote: `<to>/data.dvc` and `<to>/data` with exactly its files,
    which are copies of their own (not read-only, not linked).

    Args:
        dvc_file: the text of the version's `data.dvc`.
        force: replace a `<to>/data` that holds anything else.

    Raises:
        DataError: not such a text; `<to>/data` holds other files; or the remote fails or lacks
            the version.
    """
    DvcFile.parse(dvc_file)  # refuses a text that would do anything else
    to = to.resolve()
    data = to / "data"
    if data.exists() and not data.is_dir():
        raise DataError(f"{data}: is a file; choose another folder")
    to.mkdir(parents=True, exist_ok=True)
    # On the same file system as `to`, so that the finished folder is renamed into place.
    arriving = Path(tempfile.mkdtemp(prefix=".regraft-checkout-", dir=to))
    try:
        (arriving / "data.dvc").write_text(dvc_file, encoding="utf-8")
        store.pull(arriving, settings)
        if data.exists() and any(data.iterdir()):
            difference = _difference(data, arriving / "data")
            if difference and not force:
                raise DataError(f"{data}: {difference}; use another folder, or force to replace this one")
            if difference:
                data.rename(arriving / "replaced")
        if data.exists() and not any(data.iterdir()):
            data.rmdir()
        if not data.exists():
            (arriving / "data").rename(data)
        (arriving / "data.dvc").replace(to / "data.dvc")
    except BaseException:
        if (arriving / "replaced").exists() and not data.exists():
            (arriving / "replaced").rename(data)
        raise
    finally:
        shutil.rmtree(arriving, ignore_errors=True)
    return opened(to)


def opened(folder: Path) -> DatasetVersion:
    """The version that was checked out into `folder`.

    Raises:
        DataError: the folder holds no data.dvc, or no data.
    """
    folder = folder.resolve()
    try:
        file = DvcFile.parse((folder / "data.dvc").read_text(encoding="utf-8"))
    except OSError:
        raise DataError(f"{folder}/data.dvc: can't be read; `regraft data checkout` makes it") from None
    if not (folder / "data").is_dir():
        raise DataError(f"{folder}/data: no such folder; `regraft data checkout` makes it")
    layout, table = file.layout_of(folder / "data")
    return DatasetVersion(
        digest=file.digest,
        folder=str(folder),
        source=f"dvc:{file.digest}",
        layout=layout,
        table=table,
        files=file.files,
        size_bytes=file.size_bytes,
        rejected=file.rejected,
    )


def _snapshot(version: DatasetVersion, folder: Path) -> DatasetVersion:
    """The version in a folder of its own, which no later run on the same source changes: hard links
    to the workspace's files. The oldest snapshots go; what they held, the remote has."""
    versions = folder.parent
    if not folder.exists():
        versions.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=".", dir=versions))
        try:
            shutil.copytree(version.data, made / "data", copy_function=os.link)
            shutil.copyfile(version.dvc_file, made / "data.dvc")
            made.rename(folder)
        except OSError:
            if not folder.exists():  # another source with the same content was quicker
                raise
        finally:
            shutil.rmtree(made, ignore_errors=True)
    os.utime(folder)
    kept = sorted(
        (p for p in versions.iterdir() if not p.name.startswith(".")), key=lambda p: p.stat().st_mtime
    )
    for old in kept[:-SNAPSHOTS]:
        shutil.rmtree(old, ignore_errors=True)
    return version.model_copy(update={"folder": str(folder)})


def _scanned(folder: Path) -> list[dict[str, object]] | None:
    """Path, size, time and inode of all files of a version; None where there is none."""
    if not (folder / "data").is_dir():
        return None
    files: list[dict[str, object]] = digests.scan(folder / "data").sort_by("path").to_pylist()
    return files


def _name(source: str) -> str:
    """`<slug>-<8 hex of the source>`."""
    last = re.split(r"[/:]", source.rstrip("/"))[-1]
    slug = re.sub(r"[^a-z0-9]+", "-", last.lower()).strip("-")[:40].strip("-") or "data"
    return f"{slug}-{digest_of(source)[:8]}"


def _listing_digest(listing: Listing, rejected: tuple[Rejected, ...]) -> str:
    files = [(entry.path, entry.size, entry.token) for entry in listing.entries]
    return digest_of(listing.layout, listing.table, files, [bad.model_dump() for bad in rejected])


def _already_pushed(workspace: Path, state: dict[str, str], settings: Settings) -> DvcFile | None:
    """The version, if what is in the workspace now was pushed to this remote before."""
    try:
        written = json.loads((workspace / "pushed.json").read_text())
        file = DvcFile.parse((workspace / "data.dvc").read_text())
    except (OSError, ValueError, DataError):
        return None
    same = written == {**state, "digest": file.digest}
    return file if same and store.may_hold(file.digest, settings) else None


def _write_state(workspace: Path, state: dict[str, str]) -> None:
    fresh = workspace / "pushed.json.new"
    with fresh.open("w") as out:
        json.dump(state, out, indent=2)
        out.flush()
        os.fsync(out.fileno())
    fresh.replace(workspace / "pushed.json")


def _add_and_push(
    workspace: Path,
    listing: Listing,
    mirrored: Mirrored,
    rejected: tuple[Rejected, ...],
    settings: Settings,
) -> DvcFile:
    (workspace / "pushed.json").unlink(missing_ok=True)
    if mirrored.edited:
        store.distrust(workspace, mirrored.edited, settings)
    about = {
        "layout": listing.layout,
        "table": listing.table,
        "rejected": [bad.model_dump() for bad in rejected],
    }
    store.add(workspace, about, settings)
    store.push(workspace, settings)
    return DvcFile.parse((workspace / "data.dvc").read_text())


def _difference(have: Path, want: Path) -> str | None:
    """How the files below two folders differ; None where they are the same."""
    mine, theirs = _files(have), _files(want)
    if extra := sorted(mine - theirs):
        return f"holds {len(extra):,} files that are not in this version ({extra[0]})"
    changed = sorted(
        path for path in mine & theirs if (have / path).read_bytes() != (want / path).read_bytes()
    )
    if changed:
        return f"{len(changed):,} files would be overwritten ({changed[0]})"
    return f"lacks {len(theirs - mine):,} files of this version" if theirs - mine else None


def _files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()}
