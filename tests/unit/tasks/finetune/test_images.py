import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tasks.data.stack import row_digest
from tasks.embedding.preprocess import crop
from tasks.embedding.sample import Sample, decoded
from tasks.errors import DataError
from tasks.finetune.images import Images, threads
from tasks.finetune.views import plain
from tasks.records import Preprocess

HOW = Preprocess(resize=32, size=28, interpolation="bicubic", mean=(0, 0, 0), std=(1, 1, 1))
LIMIT = 10_000_000  # px
BYTES = 3 * 32 * 48  # of an image of 60 × 40 whose shorter side is resized to 32


def write(folder: Path, sizes: Sequence[tuple[int, int]]) -> list[Sample]:
    """JPEG files of noise."""
    samples = []
    for number, (width, height) in enumerate(sizes):
        pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
        file = folder / f"{number}.jpg"
        Image.fromarray(pixels).save(file)
        samples.append(Sample(hashlib.sha256(file.read_bytes()).hexdigest(), file))
    return samples


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each file is read from now on."""
    counted: Counter[str] = Counter()
    read_bytes = Path.read_bytes

    def count(self: Path) -> bytes:
        counted[self.name] += 1
        return read_bytes(self)

    monkeypatch.setattr(Path, "read_bytes", count)
    return counted


@pytest.mark.parametrize("memory", [0, 10**9])
def test_images__plain_view_is_what_the_embedding_sees(tmp_path: Path, memory: int) -> None:
    sizes = [
        (60, 40),
        (40, 60),
        (32, 32),
        (48, 32),
        (20, 20),
        (9, 5),
        (33, 31),
        (400, 30),
        (30, 400),
        (9, 100),
    ]
    samples = write(tmp_path, sizes)
    images = Images(samples, HOW, LIMIT, memory)
    assert len(images) == len(samples)
    for row, sample in enumerate(samples):
        assert images[row].dtype == torch.uint8
        assert torch.equal(plain(images[row], HOW), crop(decoded(sample, LIMIT), HOW))


@pytest.mark.parametrize("memory", [0, 10**9])
def test_images__rows_of_stacks_beside_files(tmp_path: Path, memory: int) -> None:
    random = np.random.default_rng(0)
    grey = random.integers(0, 256, (3, 40, 50), dtype=np.uint8)
    colour = random.integers(0, 256, (2, 20, 20, 3), dtype=np.uint8)
    np.save(tmp_path / "grey.npy", grey)
    np.save(tmp_path / "colour.npy", colour)
    samples = [
        Sample(row_digest(grey[2][..., None]), tmp_path / "grey.npy", 2),
        *write(tmp_path, [(60, 40)]),
        Sample(row_digest(colour[1]), tmp_path / "colour.npy", 1),
    ]
    images = Images(samples, HOW, LIMIT, memory)
    as_rgb = torch.from_numpy(grey[2]).expand(3, -1, -1)
    assert images[0].shape == (3, 32, 40)
    assert torch.equal(plain(images[0], HOW), crop(as_rgb, HOW))
    assert torch.equal(plain(images[2], HOW), crop(torch.from_numpy(colour[1]).permute(2, 0, 1), HOW))


def test_images__are_read_once_where_they_fit_and_each_time_where_not(
    tmp_path: Path, reads: Counter[str]
) -> None:
    samples = write(tmp_path, [(60, 40)] * 5)
    reads.clear()
    images = Images(samples, HOW, LIMIT, 3 * BYTES)
    reads.clear()
    for _ in range(2):
        for row in range(5):
            assert images[row].shape == (3, 32, 48)
    assert reads == {"3.jpg": 2, "4.jpg": 2}


def test_images__a_byte_short_of_an_image_does_not_hold_it(tmp_path: Path, reads: Counter[str]) -> None:
    images = Images(write(tmp_path, [(60, 40)] * 2), HOW, LIMIT, 2 * BYTES - 1)
    reads.clear()
    for row in range(2):
        images[row]
    assert reads == {"1.jpg": 1}


def test_images__grey_and_small_ones_take_the_memory_of_what_they_are(tmp_path: Path) -> None:
    # 32 × 32 with one channel, and 10 × 10 with three before they are enlarged to 32 × 32.
    grey = np.zeros((1, 64, 64), dtype=np.uint8)
    np.save(tmp_path / "x.npy", grey)
    samples = [Sample(row_digest(grey[0][..., None]), tmp_path / "x.npy", 0), *write(tmp_path, [(10, 10)])]
    images = Images(samples, HOW, LIMIT, 32 * 32 + 3 * 10 * 10)
    for sample in samples:
        sample.file.unlink()
    assert [images[row].shape for row in range(2)] == [(3, 32, 32)] * 2


def test_images__leave_the_number_of_threads_as_it_was(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        Images(write(tmp_path, [(60, 40)] * 4), HOW, LIMIT, 10**9)
        assert torch.get_num_threads() == 3
        with threads() as pool:
            assert list(pool.map(lambda _: torch.get_num_threads(), range(9))) == [1] * 9
            assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("memory", [0, 10**9])
@pytest.mark.parametrize("what", ["changed", "vanished"])
def test_images__file_that_is_not_the_manifests_is_an_error(tmp_path: Path, what: str, memory: int) -> None:
    samples = write(tmp_path, [(60, 40)] * 3)
    if what == "changed":
        samples[1].file.write_bytes(samples[2].file.read_bytes())  # an image as good as any
    else:
        samples[1].file.unlink()
    with pytest.raises(DataError, match=rf"1\.jpg: {what} during the run.*run again"):
        Images(samples, HOW, LIMIT, memory)[1]


def test_images__changed_row_of_a_stack_is_an_error(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((2, 8, 8), dtype=np.uint8))
    with pytest.raises(DataError, match=r"x\.npy: changed during the run"):
        Images([Sample("0" * 64, tmp_path / "x.npy", 1)], HOW, LIMIT, 10**9)


def test_images__file_that_cannot_be_decoded_is_named(tmp_path: Path) -> None:
    file = tmp_path / "a.jpg"
    file.write_bytes(b"not an image")
    sample = Sample(hashlib.sha256(b"not an image").hexdigest(), file)
    with pytest.raises(DataError, match=r"a\.jpg: not an image \(12 bytes\)"):
        Images([sample], HOW, LIMIT, 10**9)


def test_images__of_none_are_none() -> None:
    assert len(Images([], HOW, LIMIT, 10**9)) == 0
