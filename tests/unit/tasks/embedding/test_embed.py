from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks.embedding import embed
from tasks.embedding.cache import EmbeddingCache
from tasks.embedding.extract import Sample
from tasks.errors import CacheError
from tasks.records import SPLITS, Backbone, Manifest, Split, digest_of

LIMIT = 10_000_000  # px
MakeManifest = Callable[[Sequence[Sample]], Manifest]


@pytest.fixture
def manifest_of(tmp_path: Path) -> MakeManifest:
    """A manifest of samples; every third is in train, validation, test."""

    def make(samples: Sequence[Sample]) -> Manifest:
        folder = tmp_path / f"manifest-{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        digests = [sample.digest for sample in samples]
        rows = {
            "digest": digests,
            "path": [str(sample.file.relative_to("/")) for sample in samples],
            "split": [SPLITS[number % 3] for number in range(len(samples))],
        }
        pq.write_table(pa.table(rows), folder / "manifest.parquet")
        return Manifest(
            digest=digest_of(digests),
            folder=str(folder),
            samples=len(samples),
            classes=("a", "b"),
            slices=(),
            counts={},
            conflicts=(),
            left_out=(),
            quarantined=0,
        )

    return make


def test_run__computes_all_then_nothing(
    small: Backbone, photos: list[Sample], manifest_of: MakeManifest, tmp_path: Path
) -> None:
    manifest, root = manifest_of(photos), tmp_path / "embeddings"
    first = embed.run(manifest, Path("/"), small, root, LIMIT)
    second = embed.run(manifest, Path("/"), small, root, LIMIT)
    assert (first.computed, first.cached) == (11, 0)
    assert (second.computed, second.cached) == (0, 11)
    assert first.digest == second.digest
    assert EmbeddingCache(root, first.fingerprint, first.dim).missing([s.digest for s in photos]) == []


def test_run__computes_only_what_is_new(
    small: Backbone, photos: list[Sample], manifest_of: MakeManifest, tmp_path: Path
) -> None:
    root = tmp_path / "embeddings"
    before = embed.run(manifest_of(photos[:7]), Path("/"), small, root, LIMIT)
    after = embed.run(manifest_of(photos), Path("/"), small, root, LIMIT)
    assert (after.computed, after.cached) == (4, 7)
    assert after.digest != before.digest


def test_run__sample_that_occurs_twice_is_computed_once(
    small: Backbone, photos: list[Sample], manifest_of: MakeManifest, tmp_path: Path
) -> None:
    done = embed.run(manifest_of([photos[0], photos[1], photos[0]]), Path("/"), small, tmp_path / "e", LIMIT)
    assert (done.computed, done.cached) == (2, 0)


def test_run__only_the_splits_asked_for(
    small: Backbone, photos: list[Sample], manifest_of: MakeManifest, tmp_path: Path
) -> None:
    manifest, root = manifest_of(photos[:6]), tmp_path / "embeddings"
    test: tuple[Split, ...] = ("test",)
    done = embed.run(manifest, Path("/"), small, root, LIMIT, splits=test)
    assert (done.computed, done.cached) == (2, 0)  # samples 2 and 5
    cache = EmbeddingCache(root, done.fingerprint, done.dim)
    assert cache.missing([sample.digest for sample in photos[:6]]) == [
        photos[number].digest for number in (0, 1, 3, 4)
    ]


def test_run__nothing_to_do_loads_no_network(
    small: Backbone,
    photos: list[Sample],
    manifest_of: MakeManifest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    manifest = manifest_of(photos[:2])
    embed.run(manifest, Path("/"), small, tmp_path / "e", LIMIT)

    def forbidden(_: Backbone) -> None:
        raise AssertionError("the network was loaded")

    monkeypatch.setattr("tasks.embedding.backbone.load", forbidden)
    assert embed.run(manifest, Path("/"), small, tmp_path / "e", LIMIT).computed == 0


def test_run__proves_that_nothing_is_lacking(
    small: Backbone,
    photos: list[Sample],
    manifest_of: MakeManifest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def extract_nothing(*_: object) -> None:
        pass

    monkeypatch.setattr("tasks.embedding.extract.extract", extract_nothing)
    with pytest.raises(CacheError, match=r"3 samples are missing after embedding \(first: "):
        embed.run(manifest_of(photos[:3]), Path("/"), small, tmp_path / "e", LIMIT)


def test_run__says_what_the_vectors_are(
    small: Backbone, photos: list[Sample], manifest_of: MakeManifest, tmp_path: Path
) -> None:
    done = embed.run(manifest_of(photos[:1]), Path("/"), small, tmp_path, LIMIT)
    written = (tmp_path / done.fingerprint / "backbone.json").read_text()
    assert Backbone.model_validate_json(written) == small


def test_run__reports_progress(
    small: Backbone, photos: list[Sample], manifest_of: MakeManifest, tmp_path: Path
) -> None:
    heard: list[tuple[int, int]] = []
    embed.run(
        manifest_of(photos[:5]),
        Path("/"),
        small,
        tmp_path,
        LIMIT,
        progress=lambda *counts: heard.append(counts),
    )
    assert heard[-1] == (5, 5)
