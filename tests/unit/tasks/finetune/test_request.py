from pathlib import Path

import pytest

from tasks.finetune.request import FinetuneRequest
from tasks.params import Params
from tasks.records import Backbone, DatasetVersion, Manifest, Preprocess

BACKBONE = Backbone(
    digest="ba",
    name="timm:test_efficientnet",
    weights="/weights",
    weights_digest="we",
    library="timm 1",
    preprocess=Preprocess(resize=32, size=32, interpolation="bicubic", mean=(0, 0, 0), std=(1, 1, 1)),
    precision="float32",
    blocks=(),
)


def key(folder: Path, params: Params, backbone: Backbone = BACKBONE, manifest: str = "ma") -> str:
    (folder / "data.dvc").write_text("the version")
    dataset = DatasetVersion(
        digest="da", folder=str(folder), source="/photos", layout="folders", table=None, files=1,
        size_bytes=1, rejected=(),
    )  # fmt: skip
    made = Manifest(
        digest=manifest, folder=str(folder), samples=1, classes=("a",), slices=(), counts={}, conflicts=(),
        left_out=(), quarantined=0,
    )  # fmt: skip
    request = FinetuneRequest.of("wear", dataset, made, backbone, params)
    assert (request.dvc_file, request.manifest) == ("the version", manifest)
    assert FinetuneRequest.model_validate_json(request.model_dump_json()) == request
    return request.key


@pytest.mark.parametrize(
    "changed", [{"finetune": {"epochs": 3}}, {"head": {"folds": 3}}, {"data": {"max_pixels": 10_000_000}}]
)
def test_key__is_another_where_the_weights_would_be(tmp_path: Path, changed: dict[str, object]) -> None:
    assert key(tmp_path, Params.model_validate(changed)) != key(tmp_path, Params())


def test_key__is_that_of_data_and_weights(tmp_path: Path) -> None:
    other = BACKBONE.model_copy(update={"weights_digest": "other"})
    elsewhere = BACKBONE.model_copy(update={"weights": "/elsewhere", "digest": "other blocks"})
    first = key(tmp_path, Params())
    assert key(tmp_path, Params(), other) != first
    assert key(tmp_path, Params(), manifest="other") != first
    assert key(tmp_path, Params(), elsewhere) == first


def test_key__price_and_checkpoints_change_no_weight(tmp_path: Path) -> None:
    changed = {"when": "always", "price_per_hour": 9, "worth_per_point": 9, "trial_samples": 20, "keep": 5}
    params = Params.model_validate({"finetune": {**changed, "checkpoint_s": 5}})
    assert key(tmp_path, params) == key(tmp_path, Params())
