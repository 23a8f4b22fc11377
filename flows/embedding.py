"""Embedding a manifest: in this process, or spread over the shards of a cluster."""

from prefect import unmapped

from tasks.embedding.task import collect_embeddings, embed_samples, embed_shard
from tasks.params import DataParams
from tasks.records import SPLITS, DatasetVersion, Embedder, Embeddings, Manifest, Split
from tasks.settings import Settings


def embed(
    manifest: Manifest,
    dataset: DatasetVersion,
    embedder: Embedder,
    params: DataParams,
    splits: tuple[Split, ...] = SPLITS,
    name: str = "embed",
) -> Embeddings:
    """Embeds what the cache lacks. Each shard writes its own segments, so one that dies costs only
    its unfinished segment, and is run again elsewhere."""
    shards = Settings().shards
    if shards == 1:
        return embed_samples.with_options(name=name)(manifest, dataset, embedder, params, splits)
    fixed = [unmapped(value) for value in (manifest, dataset, embedder, params, splits)]
    counts = (
        embed_shard.with_options(name=f"{name} shard").map(*fixed, range(shards), unmapped(shards)).result()
    )
    return collect_embeddings.with_options(name=name)(manifest, embedder, splits, sum(counts))
