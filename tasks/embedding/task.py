"""The embedding stage as Prefect tasks."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import UUID

from prefect import task
from prefect.artifacts import create_progress_artifact, update_progress_artifact

from tasks import progress
from tasks.data.image import BadImage
from tasks.embedding import embed, shards, source
from tasks.embedding.cache import write_durably
from tasks.embedding.shards import Shard
from tasks.errors import CacheError, DataError
from tasks.params import DataParams, EmbeddingParams
from tasks.progress import Pace
from tasks.records import SPLITS, DatasetVersion, Embedder, Embeddings, Manifest, Split, digest_of
from tasks.settings import Settings
from tasks.task import options

log = logging.getLogger(__name__)

ARTIFACT_SECONDS = 3.0  # between two updates of a progress artifact


@task(name="resolve backbones", **options())
def resolve_embedder(params: EmbeddingParams) -> Embedder:
    """Names the backbones by their content. What they resolved to is remembered as long as their
    sources stay the same, because looking costs the import of torch."""
    root = Settings().root
    return remembered(params, root / "weights")


def remembered(params: EmbeddingParams, store: Path) -> Embedder:
    """`backbone.resolve`, by way of the memo in `store`."""
    memo = store / f"{digest_of(source.source_identity(params), str(store))}.json"
    if memo.exists():
        with suppress(ValueError):  # of another version of Regraft
            known = Embedder.model_validate_json(memo.read_bytes())
            if all(Path(backbone.weights).exists() for backbone in known.backbones):
                return known
    from tasks.embedding.backbone import resolve

    embedder = resolve(params, store)
    write_durably(memo, embedder.model_dump_json(indent=2).encode())
    return embedder


@task(name="resolve baselines", **options())
def resolve_baselines(params: EmbeddingParams) -> Embedder:
    """The same backbones with random weights, and raw pixels; remembered as the backbones are."""
    return remembered(source.baseline_params(params), Settings().root / "weights")


@task(name="embed", **options())
def embed_samples(
    manifest: Manifest,
    dataset: DatasetVersion,
    embedder: Embedder,
    params: DataParams,
    splits: tuple[Split, ...] = SPLITS,
) -> Embeddings:
    """Embeds what the cache lacks, in this process."""
    with _known_images(dataset):
        return embed.run(
            manifest, dataset.data, embedder, Settings(), params.max_pixels, splits, ProgressArtifact("embed")
        )


@task(name="plan shards", **options())
def plan_shards(manifest: Manifest, embedder: Embedder, splits: tuple[Split, ...]) -> list[Shard]:
    """Divides what the cache lacks; nothing where it lacks nothing."""
    return shards.plan(manifest, embedder, Settings(), splits)


# Its result is counted by the plan and lies in the cache: there is nothing to keep of it.
@task(
    name="embed shard",
    task_run_name="embed shard {shard.number} of {shard.shards}",
    **{**options(), "persist_result": False},
)
def embed_shard(shard: Shard, dataset: DatasetVersion, embedder: Embedder, params: DataParams) -> int:
    """Embeds what the cache lacks of one shard, wherever the task runner runs it; how many that were."""
    with _known_images(dataset):
        shown = ProgressArtifact(f"embed-shard-{shard.number}", listened=False)
        return shards.run(shard, dataset, embedder, Settings(), params.max_pixels, shown)


@task(name="collect embeddings", **options())
def collect_embeddings(
    manifest: Manifest, embedder: Embedder, splits: tuple[Split, ...], planned: list[Shard]
) -> Embeddings:
    """Brings to this machine what the shards made, and proves that nothing is lacking."""
    files = embed.files_of(manifest, splits)
    made = embed.complete(files, embedder, Settings(), sum(shard.samples for shard in planned))
    try:
        shards.clear(planned, Settings())
    except CacheError as error:  # all that was wanted is here
        log.warning("%s", error)
    return made


@contextmanager
def _known_images(dataset: DatasetVersion) -> Iterator[None]:
    try:
        yield
    except BadImage as error:
        raise DataError(
            f"{dataset.folder}: an image that passed the audit can't be decoded ({error})"
        ) from error


class ProgressArtifact:
    """Progress of a task in the Prefect UI, and for whoever listens in this process."""

    def __init__(self, key: str, listened: bool = True) -> None:
        self._key = key
        self._listened = listened
        self._pace = Pace()
        self._id: UUID | None = None
        self._written = -ARTIFACT_SECONDS

    def __call__(self, done: int, total: int) -> None:
        if self._listened:
            progress.report("embed", done, total)
        now = time.monotonic()
        if now - self._written < ARTIFACT_SECONDS and done < total:
            return
        self._written = now
        percent, text = 100 * done / max(1, total), self._pace.told(done, total)
        try:
            if self._id is None:
                made = create_progress_artifact(percent, key=self._key, description=text)
                self._id = made if isinstance(made, UUID) else None
            else:
                update_progress_artifact(self._id, percent, description=text)
        except Exception as error:  # what is computed matters more than what is shown of it
            log.warning("%s: progress can't be shown (%s)", self._key, type(error).__name__)
