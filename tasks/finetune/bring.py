"""What a fine-tuning needs, brought to the machine that it runs on, and proved to be what was asked for."""

import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

from tasks.data.store import DvcFile
from tasks.data.version import SNAPSHOTS, checkout, opened
from tasks.embedding.source import file_digest, named
from tasks.errors import BackboneError, DataError
from tasks.lock import locked
from tasks.params import NETWORK, BackboneParams
from tasks.records import Backbone, Block, DatasetVersion, Manifest, Tuned, digest_of
from tasks.settings import Settings


def dataset(dvc_file: str, settings: Settings) -> DatasetVersion:
    """The version with the text `dvc_file`: this machine's snapshot of it, else from DVC's remote.

    Raises:
        DataError: the remote fails or lacks the version.
    """
    file = DvcFile.parse(dvc_file)
    rejected = [bad.model_dump() for bad in file.rejected]
    name = digest_of(file.digest, file.layout, file.table, rejected)[:16]  # as `version_data` names them
    with suppress(DataError):
        found = opened(settings.root / "versions" / name)
        if found.digest == file.digest:
            return found
    # Apart from the snapshots, which are whole when they are there.
    folder = settings.root / "checkouts" / name
    with locked(folder.with_name(f".{name}.lock")):
        if not (folder / "data.dvc").exists():  # which a checkout writes last
            checkout(dvc_file, folder, settings, force=True)
        os.utime(folder)
    _tidy(folder.parent)
    return opened(folder)


def check(manifest: Manifest, wanted: str) -> None:
    """Raises DataError where this machine's manifest is not the one that was asked for."""
    if manifest.digest != wanted:
        raise DataError(
            f"manifest: this machine makes {manifest.digest} of the data version, {wanted} was asked for;"
            " use the same version of Regraft and the same data parameters on both"
        )


def backbone(wanted: Backbone, store: Path) -> Backbone | None:
    """The backbone with its weights on this machine: as kept before, else resolved anew by its name;
    None where neither gives the weights with its digest."""
    kept = store / f"{wanted.weights_digest}.safetensors"
    if kept.is_file() and file_digest(kept) == wanted.weights_digest:
        return with_weights(wanted, kept)
    from tasks.embedding.backbone import resolve_backbone

    with suppress(BackboneError):
        params = BackboneParams(backbone=wanted.name, image_size=wanted.preprocess.size)
        found = resolve_backbone(params, store)
        if found.weights_digest == wanted.weights_digest:
            return with_weights(wanted, Path(found.weights))
    return None


def keep(given: Backbone, store: Path) -> None:
    """Puts the weights where `backbone` looks for them."""
    kept = store / f"{given.weights_digest}.safetensors"
    if kept.exists():
        return
    store.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".", dir=store) as folder:
        made = shutil.copyfile(given.weights, Path(folder) / kept.name)
        made.replace(kept)


def with_weights(wanted: Backbone, file: Path) -> Backbone:
    """The backbone as this machine's libraries compute it, with the layer `network` alone.

    Raises:
        BackboneError: the file is not that of the weights, or does not fit.
    """
    here = wanted.model_copy(update={"weights": str(file)})
    blocks = tuple(b for b in here.blocks if b.layer == NETWORK and b.view == "identity")
    return named(here.model_copy(update={"blocks": blocks or (_network(here),)}))


def placed(tuned: Tuned) -> Tuned:
    """The record with its weights where its folder is now."""
    weights = tuned.path / "weights.safetensors"
    return tuned.model_copy(
        update={"backbone": named(tuned.backbone.model_copy(update={"weights": str(weights)}))}
    )


def _network(backbone: Backbone) -> Block:
    import torch

    from tasks.embedding.backbone import load
    from tasks.embedding.features import Features, Output

    size = backbone.preprocess.size
    features = Features(load(backbone), backbone.preprocess, [Output(NETWORK, ())], backbone.name)
    with torch.inference_mode():
        (vectors,) = features(torch.zeros(1, 3, size, size, dtype=torch.uint8))  # [1, D]
    return Block(digest="", layer=NETWORK, pooling=(), view="identity", parts=(vectors.shape[1],))


def _tidy(folder: Path) -> None:
    """Removes the oldest checkouts; what they held, the remote has."""
    kept = sorted((p for p in folder.iterdir() if p.is_dir()), key=lambda path: path.stat().st_mtime)
    for old in kept[:-SNAPSHOTS]:
        shutil.rmtree(old, ignore_errors=True)
