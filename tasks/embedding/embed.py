"""The embedding stage: every sample of a manifest is in the cache when it ends."""

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pyarrow.parquet as pq

from tasks.data.stack import split_path
from tasks.embedding.cache import DESCRIPTION, EmbeddingCache, write_durably
from tasks.embedding.gather import open_caches
from tasks.errors import CacheError, DataError
from tasks.records import SPLITS, Backbone, Block, Embedder, Embeddings, Manifest, Split, digest_of
from tasks.settings import Settings

if TYPE_CHECKING:
    from tasks.embedding.tier import Tier

Progress = Callable[[int, int], None]
# Beside its weights a network needs their copy in the route's own layout, and its activations.
_MEMORY_PER_WEIGHT = 4
MAX_FRAGMENTS = 256  # small segments of a block, before they are compacted

log = logging.getLogger(__name__)


def run(
    manifest: Manifest,
    data: Path,
    embedder: Embedder,
    settings: Settings,
    max_pixels: int,
    splits: Sequence[Split] = SPLITS,
    progress: Progress = lambda done, total: None,
) -> Embeddings:
    """Embeds what the cache lacks, and proves that nothing is lacking.

    Args:
        data: folder that the manifest's paths are relative to.
        splits: only the samples of these.
        progress: called with (done, to do).

    Raises:
        CacheError: samples are still missing after embedding them, or the cache can't be written.
        DataError: a file vanished or changed since the manifest was made.
    """
    files = files_of(manifest, splits)
    check_views(files, embedder)
    computed = embed_missing(files, data, embedder, settings, max_pixels, progress)
    return complete(files, embedder, settings, computed)


def embed_missing(
    files: Mapping[str, str],
    data: Path,
    embedder: Embedder,
    settings: Settings,
    max_pixels: int,
    progress: Progress = lambda done, total: None,
) -> int:
    """Embeds those of `files` (digest -> path below `data`) that the cache lacks; how many they were."""
    caches = _open(embedder, settings)
    for cache in caches.values():
        cache.fetch(list(files))  # what is damaged in the tier is known from then on
    lacking = {block: set(cache.missing(list(files))) for block, cache in caches.items()}
    todo = [digest for digest in files if any(digest in some for some in lacking.values())]
    if not todo:
        return 0
    # torch takes seconds to import, and a run that embeds nothing does without.
    from tasks.embedding.extract import Extractor, Sample, extract
    from tasks.embedding.forward import forward_for

    passes = [
        (
            backbones,
            [digest for digest in todo if any(digest in lacking[block] for block in _names(backbones))],
        )
        for backbones in _passes(embedder, lacking)
    ]
    total, before = sum(len(digests) for _, digests in passes), 0
    for backbones, digests in passes:
        extractors = [
            Extractor(backbone, blocks, forward_for(backbone, settings.root / "forward", settings))
            for backbone, blocks in backbones
        ]
        samples = [
            Sample(digest, data / file, row)
            for digest in digests
            for file, row in [split_path(files[digest])]
        ]
        # In the order of the disk, the images of a stack side by side.
        samples.sort(key=lambda sample: (sample.file, sample.row or 0))
        extract(
            samples,
            extractors,
            caches,
            lacking,
            max_pixels,
            lambda done, before=before: progress(before + done, total),  # type: ignore[misc]
        )
        before += len(digests)
    return len(todo)


def complete(files: Mapping[str, str], embedder: Embedder, settings: Settings, computed: int) -> Embeddings:
    """Brings what the shared tier has and this disk lacks, and proves that nothing is lacking.

    Args:
        files: digest -> path of the samples.
        computed: samples that were embedded for this.

    Raises:
        CacheError: samples are missing.
    """
    for block, cache in _open(embedder, settings).items():
        cache.fetch(list(files))
        missing = cache.missing(list(files))
        if missing:
            raise CacheError(
                f"{cache.folder}: {len(missing)} samples are missing after embedding"
                f" (first: {missing[0]}, {files[missing[0]]}, block {block[:16]}); run again"
            )
        _tidy(cache.folder, settings)
    tuned = {
        block.digest: backbone.tuned
        for backbone in embedder.backbones
        if backbone.tuned is not None
        for block in backbone.blocks
    }
    return Embeddings(
        # What was seen in training changes no vector, and what may be concluded from them.
        digest=digest_of(embedder.digest, sorted(files), *([tuned] if tuned else [])),
        root=str(settings.root / "embeddings"),
        blocks=embedder.blocks,
        computed=computed,
        cached=len(files) - computed,
        tuned=tuned,
    )


def _tidy(folder: Path, settings: Settings) -> None:
    """Compacts the embeddings of a block where they lie in many small segments."""
    from tasks.embedding.compact import compact, fragments

    root, block = folder.parent, folder.name
    if fragments(root, block) > MAX_FRAGMENTS:
        try:
            compact(root, block, tier_of(settings))
        except CacheError as error:  # a full disk, say: the run has all that it needs
            log.warning("%s", error)


def files_of(manifest: Manifest, splits: Sequence[Split]) -> dict[str, str]:
    """Digest -> path of the distinct samples."""
    table = pq.read_table(manifest.file, columns=["digest", "path"], filters=[("split", "in", list(splits))])
    return dict(zip(table["digest"].to_pylist(), table["path"].to_pylist(), strict=True))


def check_views(files: Mapping[str, str], embedder: Embedder) -> None:
    """Raises DataError where images of a stack are to be cropped at random: the crop is seeded by the
    image's digest, which a served model, asked with an image file, would not know."""
    cropped = sorted({block.view for block in embedder.blocks if "crop-" in block.view})
    stacked = next((path for path in files.values() if split_path(path)[1] is not None), None)
    if cropped and stacked:
        raise DataError(
            f"{stacked}: embedding.views {', '.join(cropped)} can't be taken of images in a stack;"
            " use identity, hflip or vflip, or one file an image"
        )


def lacking(files: Mapping[str, str], embedder: Embedder, settings: Settings) -> dict[str, str]:
    """Those of `files` (digest -> path) that the cache, shared tier included, lacks a block of."""
    caches = _open(embedder, settings).values()
    missing = {digest for cache in caches for digest in cache.missing(list(files))}
    return {digest: path for digest, path in files.items() if digest in missing}


def _open(embedder: Embedder, settings: Settings) -> dict[str, EmbeddingCache]:
    caches = open_caches(embedder.blocks, settings.root / "embeddings", tier_of(settings))
    for backbone in embedder.backbones:
        # What the vectors are, for people.
        about = backbone.model_dump(mode="json", exclude={"digest", "weights", "blocks"})
        for block in backbone.blocks:
            text = json.dumps({"backbone": about, "block": block.model_dump(mode="json")}, indent=2)
            file = caches[block.digest].folder / DESCRIPTION
            if not file.exists():
                try:
                    write_durably(file, text.encode())
                except OSError as error:
                    raise CacheError(f"{file}: can't be written ({error.strerror})") from None
    return caches


def tier_of(settings: Settings) -> "Tier | None":
    """The shared tier, where one is configured."""
    if settings.cache_url is None:
        return None
    from tasks.embedding.tier import Tier  # boto3 takes a second to import

    return Tier(settings.cache_url, settings)


def _names(backbones: Iterable[tuple[Backbone, Sequence[Block]]]) -> list[str]:
    return [block.digest for _, blocks in backbones for block in blocks]


def _passes(
    embedder: Embedder, lacking: Mapping[str, set[str]]
) -> Iterator[list[tuple[Backbone, list[Block]]]]:
    """The backbones with blocks that lack something: together in one pass over the data as far as
    they fit into half of the free memory."""
    wanted = [
        (backbone, [block for block in backbone.blocks if lacking[block.digest]])
        for backbone in embedder.backbones
    ]
    free = psutil.virtual_memory().available / 2
    some: list[tuple[Backbone, list[Block]]] = []
    need = 0
    for backbone, blocks in wanted:
        if not blocks:
            continue
        size = _MEMORY_PER_WEIGHT * Path(backbone.weights).stat().st_size
        if some and need + size > free:
            yield some
            some, need = [], 0
        some.append((backbone, blocks))
        need += size
    if some:
        yield some
