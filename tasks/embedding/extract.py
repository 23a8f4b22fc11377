"""Embedding images: as many symmetric threads as cores, each of which reads, decodes and runs a
single-threaded forward pass, so that no core waits for another."""

import hashlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from tasks.data.image import decode
from tasks.embedding.cache import EmbeddingCache
from tasks.embedding.preprocess import crop, standardise
from tasks.errors import DataError
from tasks.records import Backbone

# Small batches are quickest on a CPU. The number is fixed and the last batch padded, because
# kernels are chosen by shape: so a vector does not depend on what else was embedded with it.
BATCH = 4
SEGMENT_ROWS = 4096
SEGMENT_SECONDS = 60.0


@dataclass(frozen=True)
class Sample:
    """An image file and the digest that its bytes had when the manifest was made."""

    digest: str
    file: Path


def embed_images(module: nn.Module, images: Iterable[Image.Image], backbone: Backbone) -> NDArray[np.float32]:
    """Embeds decoded RGB images: [N, D], in their order."""
    crops = [crop(image, backbone.preprocess) for image in images]
    vectors = np.empty((len(crops), backbone.dim), dtype=np.float32)
    for start in range(0, len(crops), BATCH):
        some = crops[start : start + BATCH]
        padded = some + [some[0]] * (BATCH - len(some))
        with torch.inference_mode():
            batch = module(standardise(padded, backbone.preprocess))  # [BATCH, D]
        vectors[start : start + len(some)] = batch[: len(some)].numpy()
    return vectors


def extract(
    samples: Sequence[Sample],
    module: nn.Module,
    backbone: Backbone,
    cache: EmbeddingCache,
    max_pixels: int,
    progress: Callable[[int], None] = lambda _: None,
) -> None:
    """Embeds `samples` into `cache`; what was written stays when this is interrupted.

    Args:
        progress: called with the number of samples done so far.

    Raises:
        DataError: a file vanished or changed since the manifest was made.
        BadImage: a file that the audit passed can't be decoded.
    """
    threads = os.cpu_count() or 1
    batches = iter([samples[i : i + BATCH] for i in range(0, len(samples), BATCH)])
    digests: list[str] = []
    rows: list[NDArray[np.float32]] = []
    done, flushed = 0, time.monotonic()

    def embed(batch: Sequence[Sample]) -> tuple[list[str], NDArray[np.float32]]:
        torch.set_num_threads(1)  # of this thread: OpenMP keeps the number per thread
        images = [decode(_read(sample), max_pixels) for sample in batch]
        return [sample.digest for sample in batch], embed_images(module, images, backbone)

    def flush() -> None:
        nonlocal flushed
        if digests:
            cache.append(digests, np.concatenate(rows))
        digests.clear()
        rows.clear()
        flushed = time.monotonic()

    with _threads_restored(), ThreadPoolExecutor(threads) as pool:
        running: set[Future[tuple[list[str], NDArray[np.float32]]]] = set()
        try:
            while True:
                for batch in batches:
                    running.add(pool.submit(embed, batch))
                    if len(running) >= 2 * threads:
                        break
                if not running:
                    break
                finished, running = wait(running, return_when=FIRST_COMPLETED)
                for future in finished:
                    of_batch, vectors = future.result()
                    digests += of_batch
                    rows.append(vectors)
                    done += len(of_batch)
                progress(done)
                if len(digests) >= SEGMENT_ROWS or time.monotonic() - flushed > SEGMENT_SECONDS:
                    flush()
        finally:
            # Also on Ctrl-C or a bad sample: what was computed is kept.
            pool.shutdown(cancel_futures=True)
            flush()


def _read(sample: Sample) -> bytes:
    try:
        content = sample.file.read_bytes()
    except OSError as error:
        raise DataError(f"{sample.file}: vanished during the run ({error.strerror}); run again") from None
    if hashlib.sha256(content).hexdigest() != sample.digest:
        raise DataError(f"{sample.file}: changed during the run; run again")
    return content


@contextmanager
def _threads_restored() -> Iterator[None]:
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)
