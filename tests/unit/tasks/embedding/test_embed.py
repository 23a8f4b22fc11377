import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from tasks.data.stack import row_digest
from tasks.embedding import embed
from tasks.embedding import extract as extraction
from tasks.embedding.backbone import resolve
from tasks.embedding.cache import EmbeddingCache
from tasks.embedding.extract import Sample
from tasks.embedding.gather import gather
from tasks.errors import BackboneError, CacheError, DataError
from tasks.params import EmbeddingParams
from tasks.records import SPLITS, Backbone, Block, Embedder, Embeddings, Manifest, Split, digest_of
from tasks.settings import Settings

LIMIT = 10_000_000  # px
MakeManifest = Callable[[Sequence[Sample]], Manifest]
Resolved = Callable[..., Embedder]
VIT = "timm:test_vit"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(state=tmp_path / "state", forward="torch", cache_url=None)


@pytest.fixture
def manifest_of(tmp_path: Path) -> MakeManifest:
    """A manifest of samples; every third is in train, validation, test."""

    def make(samples: Sequence[Sample]) -> Manifest:
        folder = tmp_path / f"manifest-{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        digests = [sample.digest for sample in samples]
        paths = [str(sample.file.relative_to("/")) for sample in samples]
        rows = {
            "digest": digests,
            "path": [
                path if sample.row is None else f"{path}#{sample.row}"
                for path, sample in zip(paths, samples, strict=True)
            ],
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


Run = Callable[[Sequence[Sample], Embedder], Embeddings]


@pytest.fixture
def run(manifest_of: MakeManifest, settings: Settings) -> Run:
    def call(samples: Sequence[Sample], embedder: Embedder) -> Embeddings:
        return embed.run(manifest_of(samples), Path("/"), embedder, settings, LIMIT)

    return call


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Layer and view of each block -> vectors that were written from now on."""
    counted: Counter[str] = Counter()
    append = EmbeddingCache.append

    def count(self: EmbeddingCache, digests: Sequence[str], vectors: NDArray[np.float32]) -> None:
        append(self, digests, vectors)
        about = json.loads((self.folder / "block.json").read_text())["block"]
        counted[f"{about['layer']} {about['view']}"] += len(digests)

    monkeypatch.setattr(EmbeddingCache, "append", count)
    return counted


def digests(samples: Sequence[Sample]) -> list[str]:
    return [sample.digest for sample in samples]


def cache(found: Embeddings, block: Block) -> EmbeddingCache:
    return EmbeddingCache(Path(found.root), block.digest, block.dim)


def test_run__computes_all_then_nothing(small: Embedder, photos: list[Sample], run: Run) -> None:
    first, second = run(photos, small), run(photos, small)
    assert (first.computed, first.cached) == (11, 0)
    assert (second.computed, second.cached) == (0, 11)
    assert first.digest == second.digest
    assert (first.blocks, first.dim) == (small.blocks, 256)
    assert cache(first, small.blocks[0]).missing(digests(photos)) == []


def test_run__computes_only_what_is_new(small: Embedder, photos: list[Sample], run: Run) -> None:
    before = run(photos[:7], small)
    after = run(photos, small)
    assert (after.computed, after.cached) == (4, 7)
    assert after.digest != before.digest


def test_run__sample_that_occurs_twice_is_computed_once(
    small: Embedder, photos: list[Sample], run: Run
) -> None:
    done = run([photos[0], photos[1], photos[0]], small)
    assert (done.computed, done.cached) == (2, 0)


def test_run__only_the_splits_asked_for(
    small: Embedder, photos: list[Sample], manifest_of: MakeManifest, settings: Settings
) -> None:
    test: tuple[Split, ...] = ("test",)
    done = embed.run(manifest_of(photos[:6]), Path("/"), small, settings, LIMIT, splits=test)
    assert (done.computed, done.cached) == (2, 0)  # samples 2 and 5
    assert cache(done, small.blocks[0]).missing(digests(photos[:6])) == [
        photos[number].digest for number in (0, 1, 3, 4)
    ]


def test_run__rows_of_a_stack_beside_files(
    small: Embedder, photos: list[Sample], tmp_path: Path, run: Run
) -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 28, 28), dtype=np.uint8)
    np.save(tmp_path / "x.npy", images)
    rows = [Sample(row_digest(images[row][..., None]), tmp_path / "x.npy", row) for row in (4, 1)]
    done = run([*rows, photos[0]], small)
    assert done.computed == 3
    assert gather(done, digests([*rows, photos[0]])).shape == (3, 256)


def test_run__random_crops_of_a_stack_are_refused(
    resolved: Resolved, photos: list[Sample], tmp_path: Path, run: Run
) -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 28, 28), dtype=np.uint8)
    np.save(tmp_path / "x.npy", images)
    row = Sample(row_digest(images[1][..., None]), tmp_path / "x.npy", 1)
    cropping = resolved(layers=["network"], views=["identity", "crop-0"])
    with pytest.raises(DataError, match=r"x\.npy#1: embedding\.views crop-0 can't be taken of images in a"):
        run([photos[0], row], cropping)
    run([photos[0]], cropping)


# Several layers, views and backbones


def test_run__another_layer_or_view_computes_that_alone(
    resolved: Resolved, small: Embedder, photos: list[Sample], run: Run, computed: Counter[str]
) -> None:
    first = run(photos[:5], small)
    assert computed == {"network identity": 5}
    computed.clear()

    more = resolved(layers=["network", "blocks.3"], views=["identity", "hflip"])
    second = run(photos[:6], more)

    assert computed == {
        "network identity": 1,
        "blocks.3 identity": 6,
        "network hflip": 6,
        "blocks.3 hflip": 6,
    }
    assert (second.computed, second.cached) == (6, 0)  # each lacked something
    assert second.dim == 2 * (256 + 48)
    # What was there is there still.
    a, b = gather(first, digests(photos[:5])), gather(second, digests(photos[:5]))[:, :256]
    assert a.tobytes() == b.tobytes()
    computed.clear()
    run(photos[:6], small)
    assert computed == {}


def test_run__backbones_share_a_pass_where_memory_allows(
    resolved: Resolved,
    weights_of: Callable[..., Path],
    photos: list[Sample],
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    other = {"backbone": VIT, "weights": str(weights_of(VIT)), "image_size": 64}
    embedder = resolved(others=[other])
    passes: list[int] = []
    extract = extraction.extract

    def note(samples: object, extractors: Sequence[object], *rest: object) -> None:
        passes.append(len(extractors))
        extract(samples, extractors, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(extraction, "extract", note)
    together = run(photos[:2], embedder)
    assert passes == [2]
    passes.clear()

    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=1))
    apart = run(photos[:3], embedder)
    assert passes == [1, 1]
    assert (apart.computed, apart.dim) == (1, 256 + 64)
    assert gather(apart, digests(photos[:2])).tobytes() == gather(together, digests(photos[:2])).tobytes()


def test_passes__are_as_few_as_fit_into_half_of_the_free_memory(
    small: Embedder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (template,) = small.backbones
    backbones = []
    for number, size in enumerate([100, 100, 300, 50, 100]):
        file = tmp_path / f"{number}"
        file.write_bytes(bytes(size))
        block = template.blocks[0].model_copy(update={"digest": f"{number}"})
        backbones.append(
            template.model_copy(update={"name": f"{number}", "weights": str(file), "blocks": (block,)})
        )
    lacking = {name: {"x"} for name in "01234"} | {"3": set()}
    embedder = Embedder(digest="", backbones=tuple(backbones))

    def names(available: int) -> list[list[str]]:
        monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=available))
        return [[backbone.name for backbone, _ in some] for some in embed._passes(embedder, lacking)]

    # Four times the weights are reckoned with.
    assert names(2 * 4 * 600) == [["0", "1", "2", "4"]]
    assert names(2 * 4 * 500) == [["0", "1", "2"], ["4"]]
    assert names(2 * 4 * 200) == [["0", "1"], ["2"], ["4"]]
    assert names(0) == [["0"], ["1"], ["2"], ["4"]]


# Weights


def test_run__weights_that_changed_under_the_same_name_are_other_vectors(
    weights_of: Callable[..., Path], photos: list[Sample], run: Run, tmp_path: Path
) -> None:
    file = tmp_path / "mine.safetensors"
    params = EmbeddingParams(backbone="timm:test_efficientnet", weights=str(file), image_size=64)
    found = []
    for seed in (0, 1):
        file.write_bytes(weights_of("timm:test_efficientnet", seed).read_bytes())
        found.append(run(photos[:3], resolve(params, tmp_path / "weights")))
    assert [done.computed for done in found] == [3, 3]  # nothing of the old cache was used
    assert found[0].blocks[0].digest != found[1].blocks[0].digest
    a, b = (gather(done, digests(photos[:3])) for done in found)
    assert not np.isclose(a, b).all(axis=1).any()


def test_run__weights_that_changed_since_they_were_resolved_are_refused(
    weights_of: Callable[..., Path], resolved: Resolved, photos: list[Sample], run: Run
) -> None:
    embedder = resolved(seed=3)
    (backbone,) = embedder.backbones
    Path(backbone.weights).write_bytes(weights_of(backbone.name, 4).read_bytes())
    with pytest.raises(BackboneError, match="is missing or not the weights"):
        run(photos[:1], embedder)


# Proof and progress


def test_run__nothing_to_do_loads_no_network(
    small: Embedder, photos: list[Sample], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(photos[:2], small)

    def forbidden(_: Backbone) -> None:
        raise AssertionError("the network was loaded")

    monkeypatch.setattr("tasks.embedding.forward.load", forbidden)
    assert run(photos[:2], small).computed == 0


def test_run__proves_that_nothing_is_lacking(
    small: Embedder, photos: list[Sample], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.embedding.extract.extract", lambda *_: None)
    with pytest.raises(CacheError, match=r"3 samples are missing after embedding \(first: .*; run again"):
        run(photos[:3], small)


def test_run__says_what_the_vectors_are(resolved: Resolved, photos: list[Sample], run: Run) -> None:
    embedder = resolved(layers=["blocks.3"], pooling=["max"])
    done = run(photos[:1], embedder)
    (backbone,), (block,) = embedder.backbones, embedder.blocks
    written = json.loads((Path(done.root) / block.digest / "block.json").read_text())
    assert Block.model_validate(written["block"]) == block
    assert written["backbone"]["name"] == "timm:test_efficientnet"
    assert written["backbone"]["weights_digest"] == backbone.weights_digest
    assert backbone.weights not in json.dumps(written)  # a place of this machine


def test_run__reports_progress_over_all_passes(
    resolved: Resolved,
    weights_of: Callable[..., Path],
    photos: list[Sample],
    manifest_of: MakeManifest,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=1))
    embedder = resolved(others=[{"backbone": VIT, "weights": str(weights_of(VIT)), "image_size": 64}])
    heard: list[tuple[int, int]] = []
    manifest = manifest_of(photos[:5])
    embed.run(manifest, Path("/"), embedder, settings, LIMIT, progress=lambda *counts: heard.append(counts))
    assert heard == sorted(heard)
    assert heard[-1] == (10, 10)
    assert {total for _, total in heard} == {10}


def test_embed__says_which_blocks_are_of_a_tuned_backbone(
    resolved: Resolved, photos: list[Sample], run: Run
) -> None:
    one, other = resolved("timm:test_efficientnet", 32), resolved(VIT, 32)
    (tuned,) = (backbone.model_copy(update={"tuned": "m"}) for backbone in one.backbones)
    plain = one.model_copy(update={"backbones": (*one.backbones, *other.backbones)})
    mixed = plain.model_copy(update={"backbones": (tuned, *other.backbones)})
    before, after = run(photos[:2], plain), run(photos[:2], mixed)
    assert before.tuned == {}
    assert before.digest == digest_of(plain.digest, sorted(photo.digest for photo in photos[:2]))
    assert after.tuned == {tuned.blocks[0].digest: "m"}
    # The vectors are the same and what follows from them is not.
    assert (after.blocks, after.computed) == (before.blocks, 0)
    assert after.digest != before.digest
