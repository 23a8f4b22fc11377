"""The head stage as a Prefect task."""

from prefect import task

from tasks.errors import DataError
from tasks.params import HeadParams
from tasks.records import Embeddings, Head, Manifest
from tasks.stage import build_once
from tasks.task import options, stage_folder


def check_folds(manifest: Manifest, params: HeadParams) -> None:
    """Before anything is embedded: every class needs a training sample in every fold.

    Raises:
        DataError: one has fewer; the message has the count.
    """
    counts = manifest.counts["train"]
    label = min(counts, key=lambda name: counts[name])
    if counts[label] < params.folds:
        raise DataError(
            f"class {label!r} has {counts[label]} training samples, fewer than head.folds = {params.folds};"
            " add samples or lower head.folds"
        )


@task(name="train head", **options("head"))
def train_head(manifest: Manifest, embeddings: Embeddings, params: HeadParams) -> Head:
    from tasks.head import fit  # scikit-learn: not needed where the head is there

    return build_once(
        stage_folder("head", manifest, embeddings, params),
        Head,
        lambda out: fit.run(out, manifest, embeddings, params),
    )
