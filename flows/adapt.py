"""The main flow: from a dataset to a registered, gated model, at the cost of what changed."""

from prefect import flow

from flows import artifacts
from flows.champion import champion_on_test
from flows.embedding import embed
from flows.evidence import examine
from flows.run import Run, model_name
from flows.runner import task_runner
from tasks.data.task import audit_images, build_manifest, version_data
from tasks.embedding.task import resolve_embedder
from tasks.evaluation.task import decide
from tasks.head.folds import check_folds
from tasks.head.task import train_head
from tasks.params import BUILTIN, Params
from tasks.records import AdaptResult
from tasks.registry.names import check_name
from tasks.registry.task import find_finished, package_model, register
from tasks.report.task import write_report
from tasks.settings import Settings


@flow(name="adapt", task_runner=task_runner(Settings()), persist_result=True, result_serializer="json")
def adapt(
    data: str = BUILTIN,
    name: str = "",
    params: Params = Params(),  # noqa: B008
    rehash: bool = False,
) -> AdaptResult:
    """Versions the data, embeds what is new, trains a head, judges it, registers it if it passed.

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
    run = Run.of(name, params, dataset, audit, embedder)

    # The key names data, parameters, code and embedder: what was decided on them stays decided.
    finished = find_finished(run.name, run.key)
    if finished is not None:
        return artifacts.publish_result(run.unchanged(finished))

    manifest = build_manifest(dataset, audit, params.data)
    artifacts.publish_data(dataset, audit, manifest)
    check_folds(manifest, params.head.folds)

    # Only samples that the cache lacks are computed, whatever else changed.
    embeddings = embed(manifest, dataset, embedder, params.data)
    head = train_head(manifest, embeddings, params.head)
    # From here on, only the blocks that the head stands on; what is judged is what would be registered.
    chosen, seen = embedder.select(head.blocks), embeddings.select(head.blocks)
    package = package_model(chosen, head, params.data.max_pixels)

    # The champion is judged anew on today's test split, never by its old numbers; one that can't
    # be loaded closes the gate.
    incumbent = champion_on_test(run.name, manifest, dataset, params.data)
    evidence = examine(audit, manifest, dataset, chosen, seen, head, package, incumbent, params)
    decision = decide(evidence, params.gate, incumbent.version, incumbent.problem, manifest.target)
    artifacts.publish_gate(decision, evidence)
    report = write_report(name, decision, evidence, head, manifest, dataset, seen, run.lineage())

    # Idempotent: the run's key names the one MLflow run and the one version that there can be.
    result = run.result(audit, manifest, embeddings, head, evidence, decision, report)
    registration = register(
        run.record(audit, manifest, chosen, head, package, evidence, decision, report),
        result.model_dump(mode="json"),
    )
    return artifacts.publish_result(run.registered(result, registration))
