"""The champion, ready to be judged on today's test split."""

from tasks.embedding.task import embed_samples
from tasks.errors import RegraftError
from tasks.params import DataParams
from tasks.records import Champion, DatasetVersion, Embeddings, Manifest
from tasks.registry.task import load_champion

_embed_for_champion = embed_samples.with_options(name="embed for champion")


def champion_on_test(
    name: str, manifest: Manifest, dataset: DatasetVersion, params: DataParams
) -> tuple[Champion | None, Embeddings | None, str | None]:
    """The champion with the test split as its backbone sees it; or why that can't be had; or
    neither, where there is no champion yet."""
    try:
        champion = load_champion(name)
        if champion is None:
            return None, None, None
        return champion, _embed_for_champion(manifest, dataset, champion.backbone, params, ("test",)), None
    except RegraftError as error:
        return None, None, str(error)
