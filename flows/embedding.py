"""Embedding a manifest: in this process, or spread over the shards of a cluster."""

from prefect import unmapped
from prefect.futures import as_completed

from flows.runner import explained
from tasks import progress
from tasks.embedding.task import collect_embeddings, embed_samples, embed_shard, plan_shards
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
    if Settings().shards == 1:
        return embed_samples.with_options(name=name)(manifest, dataset, embedder, params, splits)
    shards = plan_shards.with_options(name=f"plan {name}")(manifest, embedder, splits)
    if shards:  # else no cluster is asked for
        fixed = [unmapped(value) for value in (dataset, embedder, params)]
        futures = embed_shard.with_options(name=f"{name} shard").map(shards, *fixed)
        samples = {future.task_run_id: shard.samples for future, shard in zip(futures, shards, strict=True)}
        done, total = 0, sum(samples.values())
        progress.report("embed", done, total)
        with explained():
            for future in as_completed(list(futures)):
                future.result()
                done += samples[future.task_run_id]
                progress.report("embed", done, total)
    return collect_embeddings.with_options(name=name)(manifest, embedder, splits, shards)
