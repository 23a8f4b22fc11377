"""DVC, wrapped: add, push and pull of one workspace, with a shared cache. Nothing else imports it."""

import json
import logging
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from tasks.data.split import NAMES
from tasks.data.table import SUFFIXES
from tasks.errors import DataError, public
from tasks.records import Rejected
from tasks.settings import Settings

Layout = Literal["folders", "split_folders", "table"]
_SECRETS = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_ACCESS_KEY_ID")


class DvcFile(BaseModel):
    """What a `data.dvc` says: DVC's digest of the folder `data`, and Regraft's notes on it."""

    model_config = ConfigDict(frozen=True)

    digest: str
    files: int
    size_bytes: int
    layout: Layout | None
    table: str | None
    rejected: tuple[Rejected, ...]

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads the text of a `data.dvc` that tracks the folder `data` and nothing else.

        Raises:
            DataError: it is anything else, in particular one that runs commands or writes
                elsewhere.
        """
        try:
            content = yaml.safe_load(text)
            (out,) = content["outs"]
            about = content.get("meta", {}).get("regraft", {})
            if not set(content) <= {"outs", "meta", "md5"} or out["path"] != "data":
                raise ValueError("tracks something other than the folder data")
            if not set(out) <= {"md5", "size", "nfiles", "hash", "path"}:
                raise ValueError("has settings of its own")
            if not re.fullmatch(r"[0-9a-f]{32}\.dir", out["md5"]) or out.get("hash") != "md5":
                raise ValueError("has no MD5 of a folder")
            return cls(
                digest=out["md5"],
                files=out["nfiles"],
                size_bytes=out["size"],
                layout=about.get("layout"),
                table=about.get("table"),
                rejected=tuple(about.get("rejected", ())),
            )
        except (yaml.YAMLError, KeyError, TypeError, AttributeError, ValidationError):
            raise DataError("data.dvc: is not the .dvc file of a dataset version") from None
        except ValueError as error:
            raise DataError(f"data.dvc: is not the .dvc file of a dataset version ({error})") from None

    @classmethod
    def is_ours(cls, text: str) -> bool:
        """Whether Regraft wrote this file."""
        try:
            return cls.parse(text).layout is not None
        except DataError:
            return False

    def layout_of(self, data: Path) -> tuple[Layout, str | None]:
        """The layout and table as noted; where another tool wrote the file, as the files lie."""
        if self.layout is not None:
            return self.layout, self.table
        tables = [path.name for path in data.iterdir() if path.suffix.lower() in SUFFIXES]
        if len(tables) == 1:
            return "table", tables[0]
        folders = [path.name.lower() for path in data.iterdir() if path.is_dir()]
        return ("split_folders" if all(name in NAMES for name in folders) else "folders"), None


def remote_url(settings: Settings) -> str:
    """Where versions are pushed to."""
    if settings.dvc_remote is None:
        return str(settings.root / "dvc" / "remote")
    if "://" in settings.dvc_remote:
        return settings.dvc_remote
    return str(Path(settings.dvc_remote).expanduser().resolve())


def may_hold(digest: str, settings: Settings) -> bool:
    """False where the remote is a folder that lacks the version; other remotes are not asked."""
    remote = remote_url(settings)
    return "://" in remote or _object(Path(remote), digest).exists()


def add(workspace: Path, about: dict[str, Any], settings: Settings) -> None:
    """Adds `<workspace>/data` to the cache and writes `data.dvc` with the notes `about`."""
    # A kill may have cut the file off, and DVC would refuse to read it.
    (workspace / "data.dvc").unlink(missing_ok=True)
    with _repo(workspace, settings, "hardlink,copy", "add the files to its cache") as repo:
        (stage,) = repo.add(str(workspace / "data"))
        stage.meta = {"regraft": about}
        stage.dump()


def push(workspace: Path, settings: Settings) -> None:
    """Pushes the version that `data.dvc` names to the remote."""
    with _repo(workspace, settings, "hardlink,copy", f"push to {public(remote_url(settings))}") as repo:
        repo.push(targets=[str(workspace / "data.dvc")])


def pull(workspace: Path, settings: Settings) -> None:
    """Fills `<workspace>/data` with what `data.dvc` names, as copies of their own."""
    with _repo(workspace, settings, "reflink,copy", f"pull from {public(remote_url(settings))}") as repo:
        repo.pull(targets=[str(workspace / "data.dvc")])


def fetch(digest: str, paths: Iterable[str], to: Path, settings: Settings) -> None:
    """Brings some files of a version from the remote to their paths below `to`, and nothing else.

    Raises:
        DataError: the remote fails, or lacks the version or one of the files.
    """
    with _repo(to, settings, "reflink,copy", f"fetch from {public(remote_url(settings))}") as repo:
        from dvc_data.hashfile.hash_info import HashInfo
        from dvc_data.hashfile.tree import Tree

        remote = repo.cloud.get_remote_odb("regraft")
        listed: Any = Tree.load(remote, HashInfo("md5", digest))
        known = {"/".join(path): found for path, (_, found) in listed.iteritems()}
        files = list(dict.fromkeys(paths))
        objects = [remote.oid_to_path(known[path].value) for path in files]
        remote.fs.get(objects, [str(to / path) for path in files])


def distrust(workspace: Path, paths: Sequence[str], settings: Settings) -> None:
    """Drops from the cache the content of files that were edited in place: they are links into
    it, so the edit damaged it, and DVC would take the damaged content for good."""
    cache = settings.root / "dvc" / "cache"
    try:
        digest = DvcFile.parse((workspace / "data.dvc").read_text()).digest
        listed = json.loads(_object(cache, digest).read_text())
    except (OSError, ValueError, DataError):
        return
    edited = set(paths)
    for file in listed:
        if file["relpath"] in edited:
            _object(cache, file["md5"]).unlink(missing_ok=True)


def _object(place: Path, digest: str) -> Path:
    return place / "files" / "md5" / digest[:2] / digest[2:]


@contextmanager
def _repo(workspace: Path, settings: Settings, links: str, act: str) -> Iterator[Any]:
    """A DVC repository at `workspace`, configured anew, so that a torn or old file does no harm.

    Raises:
        DataError: whatever fails in DVC; the text says what it tried to do.
    """
    tmp = workspace / ".dvc" / "tmp"
    tmp.mkdir(parents=True, exist_ok=True)
    # Names processes that were killed; ours is the only one here, and a pid may be in use again.
    (tmp / "rwlock").unlink(missing_ok=True)
    logs = _Logs()
    from dvc.repo import Repo  # takes a second; an unchanged dataset does without

    with logs.kept(), redirect_stdout(StringIO()):  # stdout is for the results of commands
        try:
            _configure(workspace, settings, links)
            repo = Repo(str(workspace))
            try:
                yield repo
            finally:
                repo.close()
        except DataError:
            raise
        except Exception as error:  # DVC lets through whatever the remote's library raises
            raise DataError(f"DVC could not {act}: {_reason(error, logs)}") from None


def _configure(workspace: Path, settings: Settings, links: str) -> None:
    """Writes what `dvc init --no-scm`, `dvc config` and `dvc remote add` would."""
    from configobj import ConfigObj  # type: ignore[import-untyped]  # DVC's own file format

    remote = {"url": remote_url(settings)}
    endpoint = settings.s3_endpoint_url or os.environ.get("AWS_ENDPOINT_URL")
    if remote["url"].startswith("s3://") and endpoint:
        remote["endpointurl"] = endpoint
    config = ConfigObj(interpolation=False)
    config["core"] = {
        "no_scm": "True",
        "analytics": "False",
        "check_update": "False",
        "remote": "regraft",
        "site_cache_dir": str(settings.root / "dvc" / "site"),
    }
    config["cache"] = {"dir": str(settings.root / "dvc" / "cache"), "type": links}
    config['remote "regraft"'] = remote
    place = workspace / ".dvc" / "config"
    fresh = place.with_name("config.new")
    with fresh.open("wb") as out:
        config.write(out)
    fresh.replace(place)


class _Logs(logging.Handler):
    """Keeps DVC's log off the terminal; a failed transfer's cause is only there."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.causes: list[BaseException] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info and record.exc_info[1]:
            self.causes.append(record.exc_info[1])

    @contextmanager
    def kept(self) -> Iterator[None]:
        loggers = [logging.getLogger(name) for name in ("dvc", "dvc_data", "dvc_objects", "dvc_s3")]
        before = [logger.propagate for logger in loggers]
        bars = logging.getLogger("dvc.progress")
        bars.setLevel(logging.CRITICAL)  # no progress bars either
        for logger in loggers:
            logger.addHandler(self)
            logger.propagate = False
        try:
            yield
        finally:
            for logger, propagate in zip(loggers, before, strict=True):
                logger.removeHandler(self)
                logger.propagate = propagate


def _reason(error: BaseException, logs: _Logs) -> str:
    causes = [*logs.causes[-1:], error.__cause__, error]
    texts = [" ".join(str(cause).split()) for cause in causes if cause is not None]
    text = next((text for text in texts if text), type(error).__name__)
    if re.search(r"\b403\b|Forbidden|AccessDenied|credentials|SignatureDoesNotMatch|AccessKeyId", text):
        text += "; check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    for name in _SECRETS:
        if value := os.environ.get(name):
            text = text.replace(value, f"<{name}>")
    return public(text)
