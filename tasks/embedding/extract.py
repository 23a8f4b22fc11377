"""Embedding images: as many symmetric threads as cores, each of which reads, decodes and runs its own
forward pass, so that no core waits for another."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tasks.embedding.cache import EmbeddingCache
from tasks.embedding.disturbance import disturb
from tasks.embedding.features import Output, outputs_of
from tasks.embedding.forward import Forward, threads
from tasks.embedding.preprocess import batch
from tasks.embedding.preprocess import crops as crops_of_stack
from tasks.embedding.sample import Sample, decoded, rows
from tasks.embedding.views import divided
from tasks.records import Backbone, Block

__all__ = ["Extractor", "Sample", "extract", "threads_restored"]

Vectors = dict[str, NDArray[np.float32]]  # digest of a block -> [N, d]

SEGMENT_ROWS = 4096
SEGMENT_SECONDS = 60.0
_WAITING = 4  # pieces of work for each thread that are ready for it
_PIXELS = 2**22  # of decoded images that a thread holds before it cuts their crops


class Extractor:
    """Some blocks of one backbone. Many threads may call it at once."""

    def __init__(self, backbone: Backbone, blocks: Sequence[Block], forward: Forward) -> None:
        self.batch = forward.batch
        self._how = backbone.preprocess
        self._forward = forward
        outputs = outputs_of(backbone)
        self._wanted: dict[str, list[tuple[int, str]]] = {}  # view -> (output, block) that it gives
        for block in blocks:
            place = outputs.index(Output(block.layer, block.pooling))
            self._wanted.setdefault(block.view, []).append((place, block.digest))

    def __call__(self, images: Sequence[Tensor], digests: Sequence[str]) -> Vectors:
        """Embeds N decoded images [3, H, W] of any sizes; for what a vector depends on see `batch_for`."""
        return self.vectors(self.crops(images, digests))

    def crops(self, images: Sequence[Tensor] | Tensor, digests: Sequence[str]) -> list[Tensor]:
        """The crops [N, 3, S, S] uint8 of each view of N images [3, H, W], or of a stack [N, C, H, W]."""
        shown: dict[str, Tensor] = {}  # undisturbed: each is cut once, however often it is disturbed
        for view in {divided(view)[0] for view in self._wanted}:
            if isinstance(images, Tensor):
                shown[view] = crops_of_stack(images, self._how, view, digests)
            else:
                shown[view] = batch(images, self._how, view, digests)
        return [disturb(shown[divided(view)[0]], view, digests) for view in self._wanted]

    def vectors(self, views: Sequence[Tensor]) -> Vectors:
        """The vectors of the blocks, from the crops of each view."""
        vectors: Vectors = {}
        for crops, blocks in zip(views, self._wanted.values(), strict=True):
            parts = [self._padded(crops[at : at + self.batch]) for at in range(0, len(crops), self.batch)]
            for place, block in blocks:
                vectors[block] = np.concatenate([part[place] for part in parts])
        return vectors

    def _padded(self, crops: Tensor) -> list[NDArray[np.float32]]:
        rows = len(crops)
        if rows < self.batch:
            crops = torch.cat([crops, crops[:1].expand(self.batch - rows, -1, -1, -1)])
        crops = crops.contiguous(memory_format=torch.channels_last)
        return [vectors[:rows] for vectors in self._forward(crops)]


def extract(
    samples: Sequence[Sample],
    extractors: Sequence[Extractor],
    caches: Mapping[str, EmbeddingCache],
    lacking: Mapping[str, set[str]],
    max_pixels: int,
    progress: Callable[[int], None] = lambda _: None,
) -> None:
    """Embeds `samples` into `caches`; what was written stays when this is interrupted.

    Args:
        extractors: all run in one pass over the samples.
        caches: digest of a block -> its cache.
        lacking: digest of a block -> digests of the samples that it lacks; others are not written.
        progress: called with the number of samples done so far.

    Raises:
        DataError: a file vanished or changed since the manifest was made.
        BadImage: a file that the audit passed can't be decoded.
    """
    size = max(extractor.batch for extractor in extractors)
    pieces = iter([samples[at : at + size] for at in range(0, len(samples), size)])
    segment = _Segment(caches, lacking)

    def embed(piece: Sequence[Sample]) -> tuple[list[str], Vectors]:
        torch.set_num_threads(1)  # of this thread: OpenMP keeps the number per thread
        # Crops are small; of the decoded images only a few are held at a time.
        cut = [
            [extractor.crops(images, digests) for extractor in extractors]
            for images, digests in _images(piece, max_pixels)
        ]
        vectors: Vectors = {}
        for number, extractor in enumerate(extractors):
            views = zip(*(groups[number] for groups in cut), strict=True)
            vectors |= extractor.vectors([torch.cat(parts) for parts in views])
        return [sample.digest for sample in piece], vectors

    done = 0
    with threads_restored(), ThreadPoolExecutor(threads()) as pool, ThreadPoolExecutor(1) as writer:
        running: set[Future[tuple[list[str], Vectors]]] = set()
        written: Future[None] | None = None
        try:
            while True:
                for piece in pieces:
                    running.add(pool.submit(embed, piece))
                    if len(running) >= (_WAITING + 1) * threads():
                        break
                if not running:
                    break
                finished, running = wait(running, return_when=FIRST_COMPLETED)
                for future in finished:
                    segment.add(*future.result())
                    done += len(future.result()[0])
                progress(done)
                if segment.full:
                    if written is not None:
                        written.result()  # so that no more than two segments are held
                    written = writer.submit(segment.write, *segment.taken())
        finally:
            # Also on Ctrl-C or a bad sample: what was computed is kept.
            pool.shutdown(cancel_futures=True)
            if written is not None:
                written.result()
            segment.write(*segment.taken())


class _Segment:
    """Vectors on their way into the caches."""

    def __init__(self, caches: Mapping[str, EmbeddingCache], lacking: Mapping[str, set[str]]) -> None:
        self._caches, self._lacking = caches, lacking
        self._digests: list[str] = []
        self._pieces: list[Vectors] = []
        self._started = time.monotonic()

    @property
    def full(self) -> bool:
        late = time.monotonic() - self._started > SEGMENT_SECONDS
        return len(self._digests) >= SEGMENT_ROWS or (late and bool(self._digests))

    def add(self, digests: Sequence[str], vectors: Vectors) -> None:
        self._digests += digests
        self._pieces.append(vectors)

    def taken(self) -> tuple[list[str], list[Vectors]]:
        """What is here, which then is here no more."""
        taken = self._digests, self._pieces
        self._digests, self._pieces, self._started = [], [], time.monotonic()
        return taken

    def write(self, digests: list[str], pieces: list[Vectors]) -> None:
        for block in pieces[0] if pieces else ():
            rows = [row for row, digest in enumerate(digests) if digest in self._lacking[block]]
            if rows:
                vectors = np.concatenate([piece[block] for piece in pieces])
                self._caches[block].append([digests[row] for row in rows], vectors[rows])


def _images(
    piece: Sequence[Sample], max_pixels: int
) -> Iterator[tuple[Sequence[Tensor] | Tensor, list[str]]]:
    """The decoded images of a piece with their digests: rows of one stack together, others in groups
    of a few megapixels."""
    numbers = [sample.row for sample in piece if sample.row is not None]
    if len(numbers) == len(piece) and len({sample.file for sample in piece}) == 1:
        yield rows(piece, numbers), [sample.digest for sample in piece]
        return
    images: list[Tensor] = []
    digests: list[str] = []
    held = 0
    for sample in piece:
        images.append(decoded(sample, max_pixels))
        digests.append(sample.digest)
        held += images[-1].shape[1] * images[-1].shape[2]
        if held >= _PIXELS:
            yield images, digests
            images, digests, held = [], [], 0
    if images:
        yield images, digests


@contextmanager
def threads_restored() -> Iterator[None]:
    """Afterwards torch has as many threads as before."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)
