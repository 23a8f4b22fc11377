"""The champion, ready to be judged on today's test split."""

from dataclasses import dataclass

from flows.embedding import embed
from tasks.errors import RegraftError
from tasks.params import DataParams
from tasks.records import Champion, DatasetVersion, Embeddings, Manifest
from tasks.registry.task import current_champion, load_champion


@dataclass(frozen=True)
class Incumbent:
    """What serves today: a champion with the test split as its backbones see it; or why that can't be
    had; or nothing, where there is no champion yet."""

    version: str | None = None
    champion: Champion | None = None
    embeddings: Embeddings | None = None
    problem: str | None = None


def champion_on_test(name: str, manifest: Manifest, dataset: DatasetVersion, params: DataParams) -> Incumbent:
    try:
        champion = load_champion(name)
        if champion is None:
            return Incumbent()
        if champion.target != manifest.target:
            return Incumbent(
                champion.version,
                problem=f"version {champion.version} answers with a {champion.target}, the data has"
                f" a {manifest.target} (data.target); give the model another name",
            )
        embeddings = embed(manifest, dataset, champion.embedder, params, ("test",), name="embed for champion")
        return Incumbent(champion.version, champion, embeddings)
    except RegraftError as error:
        return Incumbent(_number(name), problem=str(error))


def _number(name: str) -> str | None:
    try:
        return current_champion(name)
    except RegraftError:  # the registry does not answer: the problem says so already
        return None
