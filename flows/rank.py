"""Which backbone suits a dataset: candidates ranked on its training split, in seconds where the cache
has their embeddings."""

from prefect import flow
from prefect.artifacts import create_markdown_artifact, create_table_artifact

from flows.embedding import embed
from flows.runner import task_runner
from tasks.data.task import audit_images, build_manifest, version_data
from tasks.embedding.task import resolve_embedder
from tasks.errors import BackboneError
from tasks.head.folds import check_folds
from tasks.params import BUILTIN, EmbeddingParams, Params
from tasks.records import Rejected
from tasks.report.ranking import Candidate, Candidates, Ranking, candidates, ranking_report, wanted
from tasks.report.task import rank_candidates
from tasks.report.words import number
from tasks.settings import Settings


@flow(name="rank", task_runner=task_runner(Settings()), persist_result=True, result_serializer="json")
def rank(
    data: str = BUILTIN,
    params: Params = Params(),  # noqa: B008
    backbones: tuple[str, ...] = (),
) -> Ranking:
    """Embeds the training split by each candidate and ranks them by LogME and a cross-validated head.

    Args:
        data: As for adapt.
        params: See params.yaml.
        backbones: timm:NAME or torchvision:NAME[@WEIGHTS]; none: those of the parameters, and each of
            their layers.
    """
    dataset = version_data(data, params.data)
    audit = audit_images(dataset, params.data)
    manifest = build_manifest(dataset, audit, params.data)
    check_folds(manifest, params.head.folds)

    # Only the training split: a backbone chosen by the test split would be judged on what chose it.
    ready: list[Candidate] = []
    lacking: list[Rejected] = []
    for one in wanted(params.embedding, backbones):
        try:
            embedder = resolve_embedder(EmbeddingParams.model_validate(one.model_dump()))
            name = f"embed for {one.backbone}"
            embeddings = embed(manifest, dataset, embedder, params.data, ("train",), name)
        except BackboneError as error:  # the others are worth ranking without it
            reason = str(error).removeprefix(f"{one.backbone}: ")
            lacking.append(Rejected(path=one.backbone, reason=reason))
        else:
            ready += candidates(embedder, embeddings)

    ranking = rank_candidates(manifest, Candidates.of(ready, lacking), params.head, params.gate.metric)
    return _published(ranking)


def _published(ranking: Ranking) -> Ranking:
    create_markdown_artifact(ranking_report(ranking), key="ranking", description="Backbones, ranked")
    create_table_artifact(
        [
            {
                "backbone": one.name,
                "length": one.dim,
                "loss": number(one.loss.value, 4),
                "standard error": number(one.loss.standard_error, 4),
                ranking.metric: number(one.metric, 4),
                "LogME": number(one.logme, 4),
            }
            for one in ranking.ranked
        ],
        key="ranking-table",
        description="Backbones, ranked",
    )
    return ranking
