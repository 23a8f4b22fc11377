import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from numpy.typing import NDArray
from PIL import Image

from tasks.data.image import BadImage
from tasks.embedding.backbone import load
from tasks.embedding.cache import EmbeddingCache
from tasks.embedding.extract import Sample, embed_images, extract
from tasks.embedding.preprocess import crop, standardise
from tasks.errors import DataError
from tasks.records import Backbone

LIMIT = 10_000_000  # px


def cache_of(backbone: Backbone, root: Path) -> EmbeddingCache:
    return EmbeddingCache(root, backbone.digest, backbone.dim)


def opened(samples: list[Sample]) -> list[Image.Image]:
    return [Image.open(sample.file).convert("RGB") for sample in samples]


def cosine(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    x, y = a.astype(np.float64), b.astype(np.float64)
    return float(x @ y / np.sqrt((x @ x) * (y @ y)))


def test_embed_images__agrees_with_a_plain_reference(lite0: Backbone, photos: list[Sample]) -> None:
    (image,) = opened(photos[:1])
    scale = 256 / min(image.size)
    resized = image.resize(
        (round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC
    )
    left, top = (resized.width - 224) // 2, (resized.height - 224) // 2
    cut = np.asarray(resized.crop((left, top, left + 224, top + 224)))
    x = torch.tensor(cut, dtype=torch.float32).permute(2, 0, 1)[None]
    x = (x / 255 - 0.5) / 0.5
    network = timm.create_model("tf_efficientnet_lite0", num_classes=0)
    network.load_state_dict(load(lite0).state_dict())
    with torch.inference_mode():
        reference = network.eval()(x)[0].numpy()

    (vector,) = embed_images(load(lite0), [image], lite0)

    np.testing.assert_allclose(
        standardise([crop(image, lite0.preprocess)], lite0.preprocess)[0].numpy(),
        x[0].numpy(),
        atol=2.1 / 127,
    )
    assert 1 - cosine(vector, reference) <= 1e-3


@pytest.mark.parametrize("which", ["small", "lite0"])
def test_embed_images__vector_depends_on_its_image_alone(
    request: pytest.FixtureRequest, photos: list[Sample], which: str
) -> None:
    backbone: Backbone = request.getfixturevalue(which)
    network, images = load(backbone), opened(photos)
    alone = np.concatenate([embed_images(network, [image], backbone) for image in images])

    together = embed_images(network, images, backbone)
    backwards = embed_images(network, images[::-1], backbone)[::-1]
    among_others = embed_images(network, [images[3], images[0], images[3]], backbone)[1:2]

    assert together.tobytes() == alone.tobytes()
    assert backwards.tobytes() == alone.tobytes()
    assert among_others.tobytes() == alone[:1].tobytes()


def test_embed_images__of_none_is_empty(small: Backbone) -> None:
    assert embed_images(load(small), [], small).shape == (0, small.dim)


def test_extract__fills_the_cache_with_the_same_vectors_in_any_order(
    small: Backbone, photos: list[Sample], tmp_path: Path
) -> None:
    forth, back = cache_of(small, tmp_path / "a"), cache_of(small, tmp_path / "b")
    extract(photos, load(small), small, forth, LIMIT)
    extract(photos[::-1], load(small), small, back, LIMIT)
    digests = [sample.digest for sample in photos]
    assert forth.gather(digests).tobytes() == back.gather(digests).tobytes()
    # On several threads at once the sums of one forward pass are added in another order.
    expected = embed_images(load(small), opened(photos), small)
    np.testing.assert_allclose(forth.gather(digests), expected, rtol=1e-4, atol=1e-5)


def test_extract__counts_progress_up_to_all(small: Backbone, photos: list[Sample], tmp_path: Path) -> None:
    heard: list[int] = []
    extract(photos, load(small), small, cache_of(small, tmp_path), LIMIT, heard.append)
    assert heard == sorted(heard)
    assert heard[-1] == len(photos)


def test_extract__leaves_the_number_of_threads_as_it_was(
    small: Backbone, photos: list[Sample], tmp_path: Path
) -> None:
    before = torch.get_num_threads()
    extract(photos[:2], load(small), small, cache_of(small, tmp_path), LIMIT)
    assert torch.get_num_threads() == before


def test_extract__interrupted_keeps_what_was_done(
    small: Backbone, photos: list[Sample], tmp_path: Path
) -> None:
    cache, done = cache_of(small, tmp_path), 0

    def interrupt(so_far: int) -> None:
        nonlocal done
        done = so_far
        if so_far >= 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extract(photos, load(small), small, cache, LIMIT, interrupt)

    again = cache_of(small, tmp_path)
    missing = again.missing([sample.digest for sample in photos])
    assert len(again) == done
    assert len(missing) == len(photos) - done


def test_extract__segments_are_written_along_the_way(
    small: Backbone, photos: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.embedding.extract.SEGMENT_ROWS", 4)
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    cache = cache_of(small, tmp_path)
    extract(photos, load(small), small, cache, LIMIT)
    assert len(list(cache.segments())) > 1
    assert len(cache) == len(photos)


def copied(photos: list[Sample], folder: Path) -> list[Sample]:
    folder.mkdir()
    return [
        Sample(photo.digest, Path(shutil.copy(photo.file, folder / f"{number}.jpg")))
        for number, photo in enumerate(photos)
    ]


@pytest.mark.parametrize("what", ["changed", "vanished"])
def test_extract__file_that_is_not_the_manifests_is_an_error(
    small: Backbone, photos: list[Sample], tmp_path: Path, what: str
) -> None:
    samples = copied(photos[:3], tmp_path / "data")
    if what == "changed":
        samples[1].file.write_bytes(samples[2].file.read_bytes())  # an image as good as any
    else:
        samples[1].file.unlink()
    cache = cache_of(small, tmp_path / "cache")
    with pytest.raises(DataError, match=rf"1\.jpg: {what} during the run.*run again"):
        extract(samples, load(small), small, cache, LIMIT)
    assert len(cache) == 0


def test_extract__image_that_cannot_be_decoded_is_an_error(small: Backbone, tmp_path: Path) -> None:
    file = tmp_path / "a.jpg"
    file.write_bytes(b"not an image")
    sample = Sample(hashlib.sha256(b"not an image").hexdigest(), file)
    with pytest.raises(BadImage, match="not an image"):
        extract([sample], load(small), small, cache_of(small, tmp_path / "cache"), LIMIT)
