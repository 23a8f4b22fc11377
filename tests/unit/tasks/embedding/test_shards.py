import fcntl
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tasks.data import store
from tasks.embedding import embed, shards, source
from tasks.embedding.shards import Shard, clear, plan, run
from tasks.errors import StackError
from tasks.records import DatasetVersion, Embedder, Manifest
from tasks.settings import Settings

EMBEDDER = Embedder(digest="e", backbones=())
MANIFEST = Manifest(
    digest="m",
    folder="nowhere",
    samples=5,
    classes=(),
    slices=(),
    counts={},
    conflicts=(),
    left_out=(),
    quarantined=0,
)
DATASET = DatasetVersion(
    digest="d.dir",
    folder="nowhere",
    source="",
    layout="folders",
    table=None,
    files=3,
    size_bytes=3,
    rejected=(),
)
# Digest -> path: in the order of the digests, the folders are mixed.
FILES = {"01": "b/x.npy#0", "02": "a/1.png", "03": "b/x.npy#1", "04": "a/2.png", "05": "c.png"}


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Settings]:
    """Settings with which everything is lacking and there is no tier."""
    monkeypatch.setattr(embed, "files_of", lambda manifest, splits: FILES)
    monkeypatch.setattr(embed, "lacking", lambda files, embedder, settings: dict(files))
    return lambda **values: Settings.model_validate(
        {"state": tmp_path / "state", "cache_url": None, **values}
    )


def paths(shard: Shard) -> list[str]:
    found: list[str] = pq.read_table(shard.file)["path"].to_pylist()
    return found


def test_plan__keeps_neighbours_together(settings: Callable[..., Settings]) -> None:
    made = plan(MANIFEST, EMBEDDER, settings(shards=2), ("train",))
    assert [paths(shard) for shard in made] == [["a/1.png", "a/2.png"], ["b/x.npy#0", "b/x.npy#1", "c.png"]]
    assert [(shard.number, shard.shards, shard.samples) for shard in made] == [(0, 2, 2), (1, 2, 3)]


def test_plan__has_no_empty_shards(
    settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert [shard.samples for shard in plan(MANIFEST, EMBEDDER, settings(shards=64), ("train",))] == [1] * 5
    monkeypatch.setattr(embed, "lacking", lambda files, embedder, settings: {})
    assert plan(MANIFEST, EMBEDDER, settings(shards=64), ("train",)) == []


def test_clear__removes_the_lists(settings: Callable[..., Settings]) -> None:
    made = plan(MANIFEST, EMBEDDER, settings(shards=2), ("train",))
    clear(made, settings())
    assert list((settings().root / "shards").iterdir()) == []


def test_run__embeds_what_the_list_says(
    settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, second = plan(MANIFEST, EMBEDDER, settings(shards=2), ("train",))
    asked: list[object] = []
    monkeypatch.setattr(embed, "embed_missing", lambda files, data, *_: asked.append((files, data)))
    run(second, DATASET, EMBEDDER, settings(), 1)
    assert asked == [({"01": "b/x.npy#0", "03": "b/x.npy#1", "05": "c.png"}, DATASET.data)]


def test_run__state_of_its_own_without_a_tier_is_refused(
    settings: Callable[..., Settings], tmp_path: Path
) -> None:
    (shard,) = plan(MANIFEST, EMBEDDER, settings(shards=1), ("train",))
    with pytest.raises(StackError, match=r"is not the state folder of the run.*REGRAFT_CACHE_URL"):
        run(shard, DATASET, EMBEDDER, settings(state=tmp_path / "other"), 1)


def test_run__other_software_is_refused(
    settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    (shard,) = plan(MANIFEST, EMBEDDER, settings(shards=1), ("train",))
    monkeypatch.setattr(source, "EMBEDDING_VERSION", 0)
    with pytest.raises(StackError, match=r"has embedding 0, decoder .*; install the same on all machines"):
        run(shard, DATASET, EMBEDDER, settings(), 1)


def test_images__go_when_they_are_done_and_so_do_those_of_the_dead(
    settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, list[str]]] = []
    monkeypatch.setattr(
        store, "fetch", lambda digest, paths, to, settings: asked.append((digest, list(paths)))
    )
    place = settings().root / "fetched"
    for name in ("dead", "alive"):
        (place / name).mkdir(parents=True)
        (place / name / ".held").touch()
    with (place / "alive" / ".held").open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with shards._images(DATASET, ["b/x.npy#1", "c.png"], settings()) as data:
            assert data.parent.parent == place
            assert not (place / "dead").exists()
        assert {path.name for path in place.iterdir()} == {".lock", "alive"}
    assert asked == [("d.dir", ["b/x.npy", "c.png"])]
