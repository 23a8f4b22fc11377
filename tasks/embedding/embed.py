"""The embedding stage: every sample of a manifest is in the cache when it ends."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow.parquet as pq

from tasks.embedding.cache import EmbeddingCache, write_durably
from tasks.errors import CacheError
from tasks.records import SPLITS, Backbone, Embeddings, Manifest, Split, digest_of


def run(
    manifest: Manifest,
    data: Path,
    backbone: Backbone,
    root: Path,
    max_pixels: int,
    splits: Sequence[Split] = SPLITS,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Embeddings:
    """Embeds what the cache lacks, and proves that nothing is lacking.

    Args:
        data: folder that the manifest's paths are relative to.
        root: folder of all caches.
        splits: only the samples of these.
        progress: called with (done, to do).

    Raises:
        CacheError: samples are still missing after embedding them.
    """
    table = pq.read_table(manifest.file, columns=["digest", "path", "split"]).to_pylist()
    files = {row["digest"]: row["path"] for row in table if row["split"] in splits}
    cache = EmbeddingCache(root, backbone.digest, backbone.dim)
    write_durably(cache.folder / "backbone.json", backbone.model_dump_json(indent=2).encode())
    missing = cache.missing(list(files))
    if missing:
        # torch takes seconds to import, and a run that embeds nothing does without.
        from tasks.embedding.backbone import load
        from tasks.embedding.extract import Sample, extract

        samples = [Sample(digest, data / files[digest]) for digest in missing]
        extract(
            samples, load(backbone), backbone, cache, max_pixels, lambda done: progress(done, len(samples))
        )
        still = cache.missing(missing)
        if still:
            raise CacheError(
                f"{cache.folder}: {len(still)} samples are missing after embedding (first: {still[0]});"
                " run again"
            )
    return Embeddings(
        digest=digest_of(backbone.digest, sorted(files)),
        root=str(root),
        fingerprint=backbone.digest,
        dim=backbone.dim,
        computed=len(missing),
        cached=len(files) - len(missing),
    )
