"""Commits the .dvc file of a version to the git repository of the working directory."""

import subprocess
from pathlib import Path

from tasks.data.store import DvcFile
from tasks.errors import DataError


def commit_dvc_file(file: Path, digest: str) -> None:
    """Copies `file` to the top of the repository as `data.dvc` and commits that path alone.

    Nothing happens where it is committed already.

    Raises:
        DataError: no git repository, a `data.dvc` there that is not Regraft's, or git fails.
    """
    top = Path(_git(None, "rev-parse", "--show-toplevel"))
    place = top / "data.dvc"
    if place.exists() and not DvcFile.is_ours(place.read_text(errors="replace")):
        raise DataError(
            f"{place}: was not written by Regraft and is not replaced; "
            "move it, or set data.git_commit to false"
        )
    place.write_bytes(file.read_bytes())
    if not _git(top, "status", "--porcelain", "--ignored", "--", "data.dvc"):
        return
    _git(top, "add", "--force", "--", "data.dvc")
    _git(top, "commit", "--quiet", "--only", "-m", f"Data version {digest}", "--", "data.dvc")


def _git(folder: Path | None, *arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", *arguments],  # noqa: S607  # the user's own git
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError:
        raise DataError("data.git_commit: git is not installed") from None
    if done.returncode:
        lines = (done.stderr.strip() or done.stdout.strip()).splitlines() or ["no message"]
        if arguments[0] == "rev-parse":
            raise DataError(
                f"data.git_commit: {Path.cwd()} is not in a git repository; "
                "run `git init`, or set it to false"
            )
        raise DataError(f"data.git_commit: git {arguments[0]} failed ({lines[-1]})")
    return done.stdout.strip()
