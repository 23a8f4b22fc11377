"""The main flow: from a dataset to a registered, gated model, at the cost of what changed."""

from prefect import flow

from flows import artifacts
from flows.distilling import behind
from flows.ladder import climb
from flows.run import Run, model_name
from flows.rung import FROZEN, Ground, judge
from flows.runner import task_runner
from tasks.data.task import audit_images, build_manifest, version_data
from tasks.embedding.task import resolve_embedder
from tasks.head.folds import check_folds
from tasks.params import BUILTIN, Params
from tasks.records import AdaptResult
from tasks.registry.names import check_name
from tasks.registry.task import find_finished, register
from tasks.report.task import write_report
from tasks.settings import Settings


@flow(name="adapt", task_runner=task_runner(Settings()), persist_result=True, result_serializer="json")
def adapt(
    data: str = BUILTIN,
    name: str = "",
    params: Params = Params(),  # noqa: B008
    rehash: bool = False,
) -> AdaptResult:
    """Versions the data, embeds what is new, trains a head, fine-tunes where that pays, judges each,
    and registers the one that is taken if it passed.

    Args:
        data: A folder of class folders, a .csv or .parquet table (path,label[,split,group,…]), the
            same under s3://, or builtin:surface-inspection.
        name: Name of the model in the registry; empty: after the data.
        params: See params.yaml.
        rehash: Read and hash every file anew, also those whose size, time and inode are unchanged.
    """
    name = check_name(name or model_name(data))
    dataset = version_data(data, params.data, rehash)
    audit = audit_images(dataset, params.data, rehash)
    embedder = resolve_embedder(params.embedding)
    run = Run.of(name, params, dataset, audit, embedder, behind(name, params))

    # The key names data, parameters, code and embedder: what was decided on them stays decided.
    finished = find_finished(run.name, run.key)
    if finished is not None:
        return artifacts.publish_result(run.unchanged(finished))

    manifest = build_manifest(dataset, audit, params.data)
    artifacts.publish_data(dataset, audit, manifest)
    check_folds(manifest, params.head.folds)

    # The first rung is cheap: cached embeddings and a light head. What is above it has to pay.
    ground = Ground(name, params, dataset, audit, manifest)
    frozen = judge(ground, FROZEN, embedder)
    ladder, best = climb(ground, frozen)
    artifacts.publish_gate(best.decision, best.evidence)
    report = write_report(
        name, best.decision, best.evidence, best.head, manifest, dataset, best.embeddings,
        run.lineage(best), ladder, best.tuned,
    )  # fmt: skip

    # Idempotent: the run's key names the one MLflow run and the one version that there can be.
    result = run.result(audit, manifest, frozen, best, ladder, report)
    registration = register(run.record(audit, manifest, best, ladder, report), result.model_dump(mode="json"))
    return artifacts.publish_result(run.registered(result, registration))
