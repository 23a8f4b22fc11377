"""The embedding stage as Prefect tasks."""

from functools import partial
from pathlib import Path

from prefect import task

from tasks import progress
from tasks.data.image import BadImage
from tasks.embedding import embed, source
from tasks.embedding.cache import write_durably
from tasks.errors import DataError
from tasks.params import DataParams, EmbeddingParams
from tasks.records import SPLITS, Backbone, DatasetVersion, Embeddings, Manifest, Split, digest_of
from tasks.settings import Settings
from tasks.task import options


@task(name="resolve backbone", **options())
def resolve_backbone(params: EmbeddingParams) -> Backbone:
    """Names the backbone by its content. What it resolved to is remembered as long as its source
    stays the same, because looking costs the import of torch."""
    root = Settings().root
    return remembered(params, root / "weights")


def remembered(params: EmbeddingParams, store: Path) -> Backbone:
    """`backbone.resolve`, by way of the memo in `store`."""
    memo = store / f"{digest_of(source.source_identity(params), str(store))}.json"
    if memo.exists():
        known = Backbone.model_validate_json(memo.read_bytes())
        if Path(known.weights).exists():
            return known
    from tasks.embedding.backbone import resolve

    backbone = resolve(params, store)
    write_durably(memo, backbone.model_dump_json(indent=2).encode())
    return backbone


@task(name="embed", **options())
def embed_samples(
    manifest: Manifest,
    dataset: DatasetVersion,
    backbone: Backbone,
    params: DataParams,
    splits: tuple[Split, ...] = SPLITS,
) -> Embeddings:
    """Embeds what the cache lacks."""
    try:
        return embed.run(
            manifest,
            dataset.data,
            backbone,
            Settings().root / "embeddings",
            params.max_pixels,
            splits,
            partial(progress.report, "embed"),
        )
    except BadImage as error:
        raise DataError(
            f"{dataset.folder}: an image that passed the audit can't be decoded ({error})"
        ) from error
