"""The champion, ready to be judged on today's test split."""

from flows.embedding import embed
from tasks.errors import RegraftError
from tasks.params import DataParams
from tasks.records import Champion, DatasetVersion, Embeddings, Manifest
from tasks.registry.task import load_champion


def champion_on_test(
    name: str, manifest: Manifest, dataset: DatasetVersion, params: DataParams
) -> tuple[Champion | None, Embeddings | None, str | None]:
    """The champion with the test split as its backbones see it; or why that can't be had; or
    neither, where there is no champion yet."""
    try:
        champion = load_champion(name)
        if champion is None:
            return None, None, None
        embeddings = embed(manifest, dataset, champion.embedder, params, ("test",), name="embed for champion")
        return champion, embeddings, None
    except RegraftError as error:
        return None, None, str(error)
