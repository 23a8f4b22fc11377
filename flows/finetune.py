"""The flow that fine-tunes a backbone, on this machine or on one that shares nothing with it but DVC's
remote and MLflow."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from prefect import flow
from prefect.concurrency.asyncio import ConcurrencySlotAcquisitionError
from prefect.concurrency.sync import concurrency
from prefect.context import FlowRunContext

from flows.embedding import embed
from flows.gpu_pool import LIMIT
from flows.runner import task_runner
from flows.training_shown import TrainingShown
from tasks.data.task import audit_images, build_manifest, sample_manifest
from tasks.embedding.source import embedder_of
from tasks.errors import RegraftError, StackError
from tasks.finetune import bring
from tasks.finetune.request import FinetuneRequest
from tasks.finetune.task import bring_dataset, clear_checkpoints, find_backbone, progress_file, tune
from tasks.head.folds import check_folds
from tasks.head.task import train_head
from tasks.params import HeadParams
from tasks.records import Backbone, DatasetVersion, Head, Kind, Manifest, Target, Tuned
from tasks.registry.task import (
    close_training_run,
    fetch_backbone,
    fetch_teachers,
    give_up_training_run,
    sending_metrics,
)
from tasks.settings import Settings

_LEASE_S = 60.0  # a worker that died holds its slot for so long
_PART = {"distill": ", student", "trial": ", trial"}
_FRESH_HEAD = ("full", "scratch")  # methods that begin with a new head
# Neighbours or a hidden layer can't be the last layer of a network.
_LINEAR: dict[Target, Kind] = {"class": "logistic", "labels": "multilabel", "number": "ridge"}


@flow(name="finetune", task_runner=task_runner(Settings()), persist_result=True, result_serializer="json")
def finetune(request: FinetuneRequest) -> Tuned:
    """Trains what was asked for; a training that was begun is carried on from its last checkpoint.

    Args:
        request: References to data and weights, and parameters.
    """
    try:
        dataset = bring_dataset(request.dvc_file)
        audit = audit_images(dataset, request.data)
        manifest = build_manifest(dataset, audit, request.data)
        if request.take is not None:
            manifest = sample_manifest(manifest, request.take, request.finetune.seed)
        # Trained on other samples, the weights would be judged on some that they have seen.
        bring.check(manifest, request.manifest)
        found = find_backbone(request.backbone)
        backbone = found or fetch_backbone(request.backbone, request.run_id)
        distillation = request.distillation
        if distillation is not None:
            distillation = fetch_teachers(distillation, request.run_id)

        name = request.name + _PART.get(request.kind, "")
        progress, shown = progress_file(Settings(), request.key), TrainingShown(name)
        with _slot(), sending_metrics(request.run_id, progress):
            head = starting_head(manifest, dataset, backbone, request)
            tuned = tune(
                manifest,
                dataset,
                backbone,
                head,
                request.finetune,
                request.key,
                request.max_pixels,
                distillation,
                shown,
            )
            shown.complete(tuned)
    except RegraftError:
        give_up_training_run(request.run_id)
        raise
    # The training is kept whatever happens here; a rerun sends it.
    close_training_run(request.run_id, tuned, progress)
    clear_checkpoints(request.key)
    return tuned


def starting_head(
    manifest: Manifest, dataset: DatasetVersion, backbone: Backbone, request: FinetuneRequest
) -> Head | None:
    """A linear head on the frozen backbone's embeddings, as the usual stages fit it."""
    if request.finetune.method in _FRESH_HEAD:
        return None
    check_folds(manifest, request.head.folds)
    embeddings = embed(manifest, dataset, embedder_of([backbone]), request.data, ("train", "validation"))
    return train_head(manifest, embeddings, _linear(request.head, manifest.target))


def _linear(params: HeadParams, target: Target) -> HeadParams:
    kind = "prototype" if params.kind == "prototype" else _LINEAR[target]
    return params.model_copy(update={"kind": kind, "inputs": "concatenated"})


@contextmanager
def _slot() -> Iterator[None]:
    """One of the GPUs, on a worker of the pool; elsewhere nobody else is there.

    Raises:
        StackError: Prefect has no limit on them.
    """
    context = FlowRunContext.get()
    run = context.flow_run if context else None
    if run is None or run.deployment_id is None:
        yield
        return
    with ExitStack() as held:
        try:
            # That Prefect is away for a while does not stop a training that has its slot.
            slot = concurrency(
                LIMIT, strict=True, lease_duration=_LEASE_S, raise_on_lease_renewal_failure=False
            )
            held.enter_context(slot)
        except ConcurrencySlotAcquisitionError as error:
            raise StackError(
                f"{LIMIT}: no slot of this concurrency limit can be had ({error}); `regraft up` makes it, or"
                f" `prefect gcl create {LIMIT} --limit 1` (the number of GPUs)"
            ) from None
        yield
