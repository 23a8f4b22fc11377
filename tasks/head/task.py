"""The head stage as a Prefect task."""

from prefect import task

from tasks.params import HeadParams
from tasks.records import Embeddings, Head, Manifest
from tasks.settings import Settings
from tasks.stage import build_once
from tasks.task import options, stage_folder


@task(name="train head", **options("head"))
def train_head(manifest: Manifest, embeddings: Embeddings, params: HeadParams) -> Head:
    from tasks.head import fit  # scikit-learn: not needed where the head is there

    return build_once(
        stage_folder("head", manifest, embeddings, params),
        Head,
        lambda out: fit.run(out, manifest, embeddings, params, memory_bytes=Settings().memory_bytes),
    )
