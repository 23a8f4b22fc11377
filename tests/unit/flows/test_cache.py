import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from flows.cli import app
from tasks.embedding.cache import EmbeddingCache
from tasks.errors import CacheError, ParamsError

FIRST, SECOND = "aa11" * 16, "ab22" * 16
Run = Callable[..., Any]


def digests(count: int) -> list[str]:
    return [hashlib.sha256(str(number).encode()).hexdigest() for number in range(count)]


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two kinds of embeddings: 5 samples in 2 segments, and 3 in 1."""
    monkeypatch.delenv("REGRAFT_CACHE_URL", raising=False)
    monkeypatch.setenv("REGRAFT_STATE", str(tmp_path))
    first = EmbeddingCache(tmp_path / "embeddings", FIRST, 4)
    first.append(digests(3), np.ones((3, 4), dtype=np.float32))
    first.append(digests(5)[3:], np.full((2, 4), 2, dtype=np.float32))
    EmbeddingCache(tmp_path / "embeddings", SECOND, 2).append(digests(3), np.zeros((3, 2), dtype=np.float32))
    return tmp_path


@pytest.fixture
def run(state: Path) -> Run:
    def run(*words: str, status: int = 0) -> Any:
        """The command's JSON."""
        result = CliRunner().invoke(app, ["cache", *words, "--state", str(state), "--json"])
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == status, result.output
        return json.loads(result.output.splitlines()[-1])

    return run


def segments(state: Path, fingerprint: str) -> list[Path]:
    return sorted((state / "embeddings" / fingerprint).glob("*.arrow"))


def test_cache_list__counts_samples_segments_and_bytes(state: Path, run: Run) -> None:
    spaces = {space["fingerprint"]: space for space in run("list")["spaces"]}
    assert {name: (space["rows"], space["segments"]) for name, space in spaces.items()} == {
        FIRST: (5, 2),
        SECOND: (3, 1),
    }
    assert spaces[FIRST]["bytes"] == sum(file.stat().st_size for file in segments(state, FIRST))


def test_cache_list__for_people_shows_each_kind(state: Path) -> None:
    result = CliRunner().invoke(app, ["cache", "list", "--state", str(state)], env={"COLUMNS": "160"})
    assert FIRST[:16] in result.output
    assert SECOND[:16] in result.output


def test_cache_verify__fails_and_names_a_damaged_segment(state: Path, run: Run) -> None:
    assert run("verify")[SECOND] == {**run("verify")[SECOND], "rows": 3, "damaged": []}
    (segment,) = segments(state, SECOND)
    content = bytearray(segment.read_bytes())
    content[len(content) // 2] ^= 1
    segment.write_bytes(content)
    told = run("verify", status=1)
    assert told[SECOND]["rows"] == 0
    assert [Path(file).stem for file in told[SECOND]["damaged"]] == [segment.stem]
    assert told[FIRST]["rows"] == 5


def test_cache_compact__merges_and_keeps_every_sample(state: Path, run: Run) -> None:
    told = run("compact", FIRST[:6])
    assert list(told) == [FIRST]
    assert (told[FIRST]["before"]["segments"], told[FIRST]["after"]["segments"]) == (2, 1)
    vectors = EmbeddingCache(state / "embeddings", FIRST, 4).gather(digests(5))
    np.testing.assert_array_equal(vectors[:, 0], [1, 1, 1, 2, 2])


def test_cache_prune__says_first_and_removes_with_yes(state: Path, run: Run) -> None:
    said = run("prune", SECOND[:4])
    assert (said["dry_run"], said["rows"], len(segments(state, SECOND))) == (True, 3, 1)
    done = run("prune", SECOND[:4], "--yes")
    assert (done["dry_run"], done["bytes"]) == (False, said["bytes"])
    assert [space["fingerprint"] for space in run("list")["spaces"]] == [FIRST]


def test_cache_prune__by_age_spares_what_is_in_use(state: Path, run: Run) -> None:
    assert run("prune", "--older-than", "1")["spaces"] == []


def test_cache_prune__age_below_zero_is_refused(state: Path, run: Run) -> None:
    result = CliRunner().invoke(app, ["cache", "prune", "--older-than", "-1", "--yes"])
    assert result.exit_code == 2
    assert {space["fingerprint"] for space in run("list")["spaces"]} == {FIRST, SECOND}


def test_cache_prune__spares_folders_that_are_not_the_caches(state: Path, run: Run) -> None:
    other = state / "embeddings" / "datasets"
    other.mkdir()
    (other / "a.arrow").touch()
    run("prune", "--older-than", "0", "--yes")
    assert [folder.name for folder in (state / "embeddings").iterdir()] == ["datasets"]


def test_cache__url_with_credentials_is_refused_and_not_repeated(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REGRAFT_CACHE_URL", "s3://key:secret@bucket/prefix")
    with pytest.raises(ParamsError) as refused:
        run("list")
    assert "cache_url" in str(refused.value)
    assert "secret" not in str(refused.value)


class OtherTier:
    """A tier with a fingerprint that this disk lacks."""

    def fingerprints(self) -> list[str]:
        return ["cc33" * 16]


def test_cache_verify__is_of_this_disk_whatever_the_tier_has(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.embedding.embed.tier_of", lambda settings: OtherTier())
    assert sorted(run("verify")) == [FIRST, SECOND]
    with pytest.raises(CacheError, match=r"^cc: no such fingerprint on this disk; see"):
        run("verify", "cc")


def test_cache_prune__without_a_condition_is_refused(run: Run) -> None:
    with pytest.raises(CacheError, match="say what to remove"):
        run("prune", "--yes")


def test_cache_export__writes_parquet(state: Path, run: Run, tmp_path: Path) -> None:
    told = run("export", FIRST, "--to", str(tmp_path / "out.parquet"))
    assert told["rows"] == 5
    table = pq.read_table(told["file"]).to_pylist()
    assert {row["digest_prefix"]: row["vector"][0] for row in table} == {
        digest[:32]: 1.0 if number < 3 else 2.0 for number, digest in enumerate(digests(5))
    }


@pytest.mark.parametrize(("given", "reason"), [("a", "beginning of 2"), ("ffff", "no such fingerprint")])
def test_cache__beginning_of_none_or_several_is_refused(run: Run, given: str, reason: str) -> None:
    with pytest.raises(CacheError, match=reason):
        run("compact", given)
