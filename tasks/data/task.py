"""The data stages as Prefect tasks."""

import json

from prefect import task

from tasks.data import audit, manifest, sample, version
from tasks.params import DataParams
from tasks.records import Audit, DatasetVersion, Manifest, Split
from tasks.settings import Settings
from tasks.stage import build_anew, build_once
from tasks.task import options, stage_folder


@task(name="version data", **options())
def version_data(data: str, params: DataParams, rehash: bool = False) -> DatasetVersion:
    """Mirrors, adds and pushes the dataset; cheap where nothing changed."""
    return version.version_data(data, params, Settings(), rehash)


# Prefect remembers nothing of it: the result's folder does, and `rehash` is no part of its key.
@task(name="audit images", **options())
def audit_images(dataset: DatasetVersion, params: DataParams, rehash: bool = False) -> Audit:
    root = Settings().root
    build = build_anew if rehash else build_once
    return build(
        stage_folder("audit", dataset, params),
        Audit,
        lambda out: audit.run(out, dataset, params, root, rehash),
    )


@task(name="build manifest", **options("manifest"))
def build_manifest(dataset: DatasetVersion, audited: Audit, params: DataParams) -> Manifest:
    return build_once(
        stage_folder("manifest", dataset, audited, params),
        Manifest,
        lambda out: manifest.run(out, dataset, audited, params),
    )


TRAIN_SHARE = 0.6  # of the samples on which baselines are trained and judged


@task(name="sample", **options())
def sample_manifest(manifest: Manifest, take: dict[Split, int], seed: int) -> Manifest:
    """A part of the manifest, for what need not see all samples."""
    return build_once(
        stage_folder("sample", manifest, json.dumps([take, seed])),
        Manifest,
        lambda out: sample.run(out, manifest, take, seed),
    )
