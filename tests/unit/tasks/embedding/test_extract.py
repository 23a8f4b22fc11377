import hashlib
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from tasks.data.image import BadImage
from tasks.data.stack import row_digest
from tasks.embedding import extract as extraction
from tasks.embedding.cache import EmbeddingCache
from tasks.embedding.decode import pixels
from tasks.embedding.extract import Extractor, Sample, extract
from tasks.embedding.forward import Forward, TorchForward
from tasks.embedding.gather import open_caches
from tasks.embedding.preprocess import crop
from tasks.errors import CacheError, DataError
from tasks.records import Backbone, Embedder

LIMIT = 10_000_000  # px
Route = Callable[[Backbone], Forward]
Resolved = Callable[..., Embedder]
Caches = dict[str, EmbeddingCache]


def extractors(embedder: Embedder, batch: int = 4) -> list[Extractor]:
    """Of all blocks, by torch, in small batches."""
    made = []
    for backbone in embedder.backbones:
        forward = TorchForward(backbone)
        forward.batch = batch
        made.append(Extractor(backbone, backbone.blocks, forward))
    return made


def fill(
    samples: Sequence[Sample],
    embedder: Embedder,
    root: Path,
    progress: Callable[[int], None] = lambda _: None,
    batch: int = 4,
) -> Caches:
    caches = open_caches(embedder.blocks, root)
    lacking = {block: {sample.digest for sample in samples} for block in caches}
    extract(samples, extractors(embedder, batch), caches, lacking, LIMIT, progress)
    return caches


def digests(samples: Sequence[Sample]) -> list[str]:
    return [sample.digest for sample in samples]


def decoded(samples: Sequence[Sample]) -> list[Tensor]:
    return [pixels(sample.file.read_bytes(), LIMIT) for sample in samples]


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Counter[Path]:
    """How often each file is read from now on."""
    counted: Counter[Path] = Counter()
    read_bytes = Path.read_bytes

    def count(self: Path) -> bytes:
        counted[self] += 1
        return read_bytes(self)

    monkeypatch.setattr(Path, "read_bytes", count)
    return counted


# One image's vector


@pytest.mark.parametrize(
    ("name", "size", "layers"),
    [
        ("timm:test_resnet", 64, ["network", "layer2"]),
        ("timm:test_resnet", 224, ["network", "layer2"]),
        ("timm:test_vit", 64, ["network", "blocks.3"]),
    ],
)
def test_extractor__vector_depends_on_its_image_alone(
    resolved: Resolved, route: Route, photos: list[Sample], name: str, size: int, layers: list[str]
) -> None:
    views, pooling = ["identity", "crop-0"], ["mean", "max", "std"]
    (backbone,) = resolved(name, size, layers=layers, pooling=pooling, views=views).backbones
    extractor = Extractor(backbone, backbone.blocks, route(backbone))
    images, names = decoded(photos[:5]), digests(photos[:5])

    def embed(which: Sequence[int]) -> dict[str, NDArray[np.float32]]:
        return extractor([images[one] for one in which], [names[one] for one in which])

    alone = [embed([one]) for one in range(5)]
    for which in ([0, 1, 2, 3, 4], [4, 3, 2, 1, 0], [3, 0, 3], [1] * 9):
        together = embed(which)
        for block in backbone.blocks:
            expected = np.concatenate([alone[one][block.digest] for one in which])
            assert together[block.digest].tobytes() == expected.tobytes()


def test_extractor__vector_depends_on_its_image_alone_up_to_the_last_bit_of_an_exponential(
    small: Embedder, route: Route, photos: list[Sample]
) -> None:
    # torch computes exponentials in vectors of numbers, and what is left over at a tensor's end one by
    # one, which may round the other way: seen where a batch has few numbers, as in squeeze-excitation.
    (backbone,) = small.backbones
    extractor = Extractor(backbone, backbone.blocks, route(backbone))
    images, names = decoded(photos), digests(photos)
    (forth,) = extractor(images, names).values()
    (back,) = extractor(images[::-1], names[::-1]).values()
    np.testing.assert_allclose(forth, back[::-1], rtol=1e-5, atol=1e-7)


def test_extractor__mirrored_views_are_those_of_the_mirrored_image(
    resolved: Resolved, photos: list[Sample]
) -> None:
    (backbone,) = resolved(views=["identity", "hflip", "vflip"]).backbones
    plain, across, down = (block.digest for block in backbone.blocks)
    how = backbone.preprocess
    # Resized already: to resize a mirrored image rounds in another order.
    images = [crop(image, how) for image in decoded(photos[:3])]
    as_it_is = backbone.model_copy(update={"preprocess": how.model_copy(update={"resize": how.size})})
    extractor = Extractor(as_it_is, backbone.blocks, TorchForward(backbone))

    found = extractor(images, digests(photos[:3]))

    for view, axis in ((across, 2), (down, 1)):
        mirrored = extractor([image.flip(axis) for image in images], digests(photos[:3]))
        assert found[view].tobytes() == mirrored[plain].tobytes()
    assert len({vectors.tobytes() for vectors in found.values()}) == 3


def test_extractor__random_crops_depend_on_image_digest_and_number(
    resolved: Resolved, photos: list[Sample]
) -> None:
    embedder = resolved(views=["identity", "crop-0", "crop-1"])
    (extractor,) = extractors(embedder)
    plain, first, second = (block.digest for block in embedder.blocks)
    images, names = decoded(photos[:3]), digests(photos[:3])
    found, again = extractor(images, names), extractor(images, names)
    others = extractor(images, [f"{number:064x}" for number in range(3)])
    assert found.keys() == again.keys()
    assert all(found[block].tobytes() == again[block].tobytes() for block in found)
    assert found[plain].tobytes() == others[plain].tobytes()
    assert (found[first] != others[first]).any(axis=1).all()
    assert (found[first] != found[second]).any(axis=1).all()


def test_extractor__takes_images_of_all_sizes_and_grey_ones(small: Embedder) -> None:
    (extractor,) = extractors(small)
    noise = torch.Generator().manual_seed(0)
    shapes = [(3, 28, 28), (1, 28, 28), (3, 300, 20), (3, 64, 64), (1, 500, 400), (3, 1, 1)]
    images = [torch.randint(256, shape, generator=noise, dtype=torch.uint8) for shape in shapes]
    names = [str(number) for number in range(len(images))]
    (together,) = extractor(images, names).values()
    assert together.shape == (6, 256)
    for number, image in enumerate(images):
        (alone,) = extractor([image.expand(3, -1, -1)], names[:1]).values()
        # Few exponentials are rounded by their place in the batch: see `batch_for`.
        np.testing.assert_allclose(alone[0], together[number], rtol=1e-5, atol=1e-6)


# A pass over the data


def test_extract__fills_the_cache_with_the_same_bits_in_any_order(
    resolved: Resolved, photos: list[Sample], tmp_path: Path
) -> None:
    small = resolved("timm:test_resnet")
    (block,) = small.blocks
    forth = fill(photos, small, tmp_path / "a")[block.digest].gather(digests(photos))
    back = fill(photos[::-1], small, tmp_path / "b")[block.digest].gather(digests(photos))
    assert forth.tobytes() == back.tobytes()
    # On several threads at once the sums of one forward pass are added in another order.
    (expected,) = extractors(small)[0](decoded(photos), digests(photos)).values()
    np.testing.assert_allclose(forth, expected, rtol=1e-4, atol=1e-5)


def test_extract__layers_views_and_backbones_in_one_pass(
    resolved: Resolved,
    weights_of: Callable[..., Path],
    photos: list[Sample],
    tmp_path: Path,
    reads: Counter[Path],
) -> None:
    vit = {"backbone": "timm:test_vit", "weights": str(weights_of("timm:test_vit")), "image_size": 64}
    embedder = resolved(
        layers=["network", "blocks.3"],
        pooling=["mean", "std"],
        views=["identity", "hflip"],
        others=[{**vit, "layers": ["blocks.2"], "pooling": ["cls"]}],
    )
    assert [block.dim for block in embedder.blocks] == [256, 96, 256, 96, 64]
    reads.clear()

    caches = fill(photos, embedder, tmp_path)

    assert {file: count for file, count in reads.items() if file.suffix == ".jpg"} == {
        photo.file: 1 for photo in photos
    }
    # Each as if it were alone.
    convolution = resolved(layers=["blocks.3"], pooling=["mean", "std"], views=["hflip"])
    transformer = resolved("timm:test_vit", layers=["blocks.2"], pooling=["cls"])
    for number, (embedder_alone, block) in enumerate(
        [(convolution, embedder.blocks[3]), (transformer, embedder.blocks[4])]
    ):
        assert embedder_alone.blocks == (block,)
        alone = fill(photos, embedder_alone, tmp_path / str(number))
        a, b = (some[block.digest].gather(digests(photos)) for some in (caches, alone))
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_extract__writes_what_each_block_lacks_alone(
    resolved: Resolved, photos: list[Sample], tmp_path: Path
) -> None:
    embedder = resolved(views=["identity", "hflip"])
    caches = open_caches(embedder.blocks, tmp_path)
    first, second = caches
    names = digests(photos)
    lacking = {first: set(names[:2]), second: set(names[1:4])}
    extract(photos[:4], extractors(embedder), caches, lacking, LIMIT)
    assert caches[first].missing(names) == names[2:]
    assert caches[second].missing(names) == [names[0], *names[4:]]


def test_extract__counts_progress_up_to_all(small: Embedder, photos: list[Sample], tmp_path: Path) -> None:
    heard: list[int] = []
    fill(photos, small, tmp_path, heard.append, batch=2)
    assert heard == sorted(heard)
    assert heard[-1] == len(photos)
    assert len(heard) > 1


def test_extract__leaves_the_number_of_threads_as_it_was(
    small: Embedder, photos: list[Sample], tmp_path: Path
) -> None:
    before = torch.get_num_threads()
    fill(photos[:2], small, tmp_path)
    assert torch.get_num_threads() == before


def test_extract__of_none_does_nothing(small: Embedder, tmp_path: Path) -> None:
    (cache,) = fill([], small, tmp_path).values()
    assert len(cache) == 0


# Stacks


@pytest.mark.parametrize("channels", [1, 3])
def test_extract__rows_of_a_stack(small: Embedder, tmp_path: Path, channels: int) -> None:
    images = np.random.default_rng(0).integers(0, 256, (9, 28, 28, channels), dtype=np.uint8)
    np.save(tmp_path / "x.npy", images if channels == 3 else images[..., 0])
    rows = [5, 0, 8, 3]
    samples = [Sample(row_digest(images[row]), tmp_path / "x.npy", row) for row in rows]
    (cache,) = fill(samples, small, tmp_path / "cache").values()
    pictures = [torch.from_numpy(images[row]).permute(2, 0, 1).expand(3, -1, -1) for row in rows]
    (expected,) = extractors(small)[0](pictures, digests(samples)).values()
    np.testing.assert_allclose(cache.gather(digests(samples)), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("what", ["changed", "shorter", "no stack", "gone"])
def test_extract__stack_that_is_not_the_manifests_is_an_error(
    small: Embedder, tmp_path: Path, what: str
) -> None:
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
    file = tmp_path / f"{what}.npy"
    sample = Sample(row_digest(images[3]), file, 3)
    if what == "changed":
        np.save(file, images[::-1].copy())
    elif what == "shorter":
        np.save(file, images[:3])
    elif what == "no stack":
        file.write_bytes(b"\x93NUMPY")
    with pytest.raises(DataError, match=rf"{what}\.npy: changed during the run.*run again"):
        fill([sample], small, tmp_path / "cache")


# Segments, and what can go wrong


def test_extract__interrupted_keeps_what_was_done(
    small: Embedder, photos: list[Sample], tmp_path: Path
) -> None:
    done = 0

    def interrupt(so_far: int) -> None:
        nonlocal done
        done = so_far
        if so_far >= 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fill(photos, small, tmp_path, interrupt, batch=2)

    (again,) = open_caches(small.blocks, tmp_path).values()
    assert 4 <= len(again) == done < len(photos)
    assert len(again.missing(digests(photos))) == len(photos) - done


@pytest.mark.parametrize(
    ("rows", "seconds", "parts"),
    [(4096, 60.0, 1), (4, 60.0, 3), (4096, -1.0, 3)],
    ids=["few", "rows", "late"],
)
def test_extract__segments_are_written_along_the_way(
    small: Embedder,
    photos: list[Sample],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    rows: int,
    seconds: float,
    parts: int,
) -> None:
    monkeypatch.setattr(extraction, "SEGMENT_ROWS", rows)
    monkeypatch.setattr(extraction, "SEGMENT_SECONDS", seconds)
    monkeypatch.setattr(extraction, "threads", lambda: 1)
    (cache,) = fill(photos, small, tmp_path).values()
    # The last pieces may be ready before the writer is.
    assert 1 + (parts > 1) <= len(list(cache.segments())) <= parts
    assert len(cache) == len(photos)


def test_extract__waits_for_a_slow_disk_rather_than_fill_the_memory(
    small: Embedder, photos: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extraction, "SEGMENT_ROWS", 2)
    monkeypatch.setattr(extraction, "threads", lambda: 1)
    append, written, waiting = EmbeddingCache.append, 0, []
    go_on = threading.Event()

    def slow(self: EmbeddingCache, digests: Sequence[str], vectors: NDArray[np.float32]) -> None:
        nonlocal written
        assert go_on.wait(60)
        append(self, digests, vectors)
        written += len(digests)

    def hear(done: int) -> None:
        waiting.append(done - written)
        if done >= 2:
            go_on.set()

    monkeypatch.setattr(EmbeddingCache, "append", slow)
    fill(photos, small, tmp_path, hear, batch=2)
    # One segment being written, one that is full, and what the pieces in between brought.
    assert max(waiting) <= 2 + 2 * (1 + extraction._WAITING + 1)
    assert written == len(photos)


def test_extract__holds_few_large_images_decoded_at_a_time(
    small: Embedder, photos: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_once: list[int] = []
    crops = Extractor.crops

    def counted(self: Extractor, images: Sequence[Tensor], digests: Sequence[str]) -> list[Tensor]:
        at_once.append(len(images))
        return crops(self, images, digests)

    expected = gathered(fill(photos, small, tmp_path / "a", batch=11), photos)
    monkeypatch.setattr(Extractor, "crops", counted)
    monkeypatch.setattr(extraction, "_PIXELS", 2 * 250 * 250)  # two of these photos
    caches = fill(photos, small, tmp_path / "b", batch=11)
    assert at_once == [2, 2, 2, 2, 2, 1]
    assert gathered(caches, photos).tobytes() == expected.tobytes()


def test_extract__files_and_rows_of_stacks_side_by_side(
    small: Embedder, photos: list[Sample], tmp_path: Path
) -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 20, 24, 1), dtype=np.uint8)
    np.save(tmp_path / "a.npy", images)
    rows = [Sample(row_digest(image), tmp_path / "a.npy", row) for row, image in enumerate(images)]
    mixed = [rows[0], photos[0], rows[2], photos[1], rows[1]]
    together = gathered(fill(mixed, small, tmp_path / "together", batch=5), mixed)
    apart = gathered(fill(mixed, small, tmp_path / "apart", batch=1), mixed)
    np.testing.assert_allclose(together, apart, rtol=1e-4, atol=1e-5)


def gathered(caches: Caches, samples: Sequence[Sample]) -> NDArray[np.float32]:
    (cache,) = caches.values()
    return cache.gather(digests(samples))


def test_extract__disk_that_is_full_ends_it(
    small: Embedder, photos: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extraction, "SEGMENT_ROWS", 2)
    append, calls = EmbeddingCache.append, 0

    def fail(self: EmbeddingCache, names: Sequence[str], vectors: NDArray[np.float32]) -> None:
        nonlocal calls
        calls += 1
        if calls > 1:
            raise CacheError("can't write (No space left on device)")
        append(self, names, vectors)

    monkeypatch.setattr(EmbeddingCache, "append", fail)
    heard: list[int] = []
    with pytest.raises(CacheError, match="No space left on device"):
        fill(photos * 40, small, tmp_path, heard.append, batch=2)
    assert heard[-1] < 40 * len(photos)  # it ended then
    (cache,) = open_caches(small.blocks, tmp_path).values()
    assert len(cache) > 0


def copied(photos: list[Sample], folder: Path) -> list[Sample]:
    folder.mkdir()
    return [
        Sample(photo.digest, Path(shutil.copy(photo.file, folder / f"{number}.jpg")))
        for number, photo in enumerate(photos)
    ]


@pytest.mark.parametrize("what", ["changed", "vanished"])
def test_extract__file_that_is_not_the_manifests_is_an_error(
    small: Embedder, photos: list[Sample], tmp_path: Path, what: str
) -> None:
    samples = copied(photos[:3], tmp_path / "data")
    if what == "changed":
        samples[1].file.write_bytes(samples[2].file.read_bytes())  # an image as good as any
    else:
        samples[1].file.unlink()
    with pytest.raises(DataError, match=rf"1\.jpg: {what} during the run.*run again"):
        fill(samples, small, tmp_path / "cache")
    (cache,) = open_caches(small.blocks, tmp_path / "cache").values()
    assert len(cache) == 0


def test_extract__image_that_cannot_be_decoded_is_an_error(small: Embedder, tmp_path: Path) -> None:
    file = tmp_path / "a.jpg"
    file.write_bytes(b"not an image")
    sample = Sample(hashlib.sha256(b"not an image").hexdigest(), file)
    with pytest.raises(BadImage, match="not an image"):
        fill([sample], small, tmp_path / "cache")
