"""Backbones by name: `timm:NAME` or `torchvision:NAME[@WEIGHTS]`, with the weights of an installed
package, of a local safetensors file, or of the model hub, or as they are before any training; thinner
ones as `NAME:0.5`; raw pixels as `regraft:pixels`; and the blocks that are taken from them."""

import os
from importlib import import_module
from pathlib import Path
from typing import Any, cast
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

import torch
from torch import Tensor, nn

from tasks.embedding.features import Features, Output
from tasks.embedding.pixels import PixelMeans
from tasks.embedding.pixels import preprocess as preprocess_of_pixels
from tasks.embedding.source import (
    baseline_params,
    embedder_of,
    file_digest,
    library_of,
    local_file,
    named,
    packaged_file,
    width_of,
)
from tasks.embedding.thin import require_thinnable, thin
from tasks.embedding.weights import TUNED, keep, lite_to_timm, read_checkpoint, tuned_on
from tasks.errors import BackboneError
from tasks.params import NETWORK, PIXELS, RANDOM, BackboneParams, EmbeddingParams
from tasks.records import Backbone, Block, Embedder, Preprocess

_USUAL_SIZE = 224  # px, of images that a network is tried with


def resolve(params: EmbeddingParams, store: Path) -> Embedder:
    """The backbones that `params` names, in their order.

    Raises:
        BackboneError: see `resolve_backbone`; or two of them are the same.
    """
    backbones = tuple(resolve_backbone(one, store) for one in (params, *params.others))
    embedder = embedder_of(backbones)
    if len({block.digest for block in embedder.blocks}) < len(embedder.blocks):
        raise BackboneError("embedding.others: names a backbone with the same layers and views twice")
    return embedder


def baseline_embedder(params: EmbeddingParams, store: Path) -> Embedder:
    """What the backbones of `params` have to beat: themselves with random weights, and raw pixels, whose
    block is the last.

    Raises:
        BackboneError: see `resolve_backbone`.
    """
    return resolve(baseline_params(params), store)


def resolve_backbone(params: BackboneParams, store: Path) -> Backbone:
    """Finds the weights, checks that they fit, keeps them as safetensors in `store`, and names
    everything that determines the embeddings.

    Raises:
        BackboneError: the name or a layer is unknown, its weights can't be had or do not fit, or a
            pooling does not go with a layer.
    """
    whole, width = width_of(params.backbone)
    library, name = whole.split(":", 1)
    wide = params.model_copy(update={"backbone": whole})
    if width < 1:  # said before any weights are fetched
        size = params.image_size or _USUAL_SIZE
        require_thinnable(lambda: architecture(whole, size), width, size, params.backbone)
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)  # of random weights
        if whole == PIXELS:
            network, preprocess, tensors = _pixels(wide)
        elif library == "timm":
            network, preprocess, tensors = _timm(name, wide)
        else:
            network, preprocess, tensors = _torchvision(name, wide, store)
    tensors = _of_network(tensors, network, whole)
    if width < 1:
        tensors = _thinned(network, tensors, width, params.backbone)
    _load(network, tensors, params.backbone)
    named_file = params.weights not in ("auto", RANDOM) and params.backbone != PIXELS
    tuned = tuned_on(local_file(params.weights)) if named_file else None
    file, digest = keep(tensors, store, {} if tuned is None else {TUNED: tuned})
    backbone = Backbone(
        digest="",
        name=params.backbone,
        weights=str(file),
        weights_digest=digest,
        library=library_of(params.backbone),
        preprocess=preprocess,
        precision=params.precision,
        tuned=tuned,
        blocks=(),
    )
    return named(backbone.model_copy(update={"blocks": _blocks(backbone, network.eval(), params)}))


def load(backbone: Backbone) -> nn.Module:
    """The frozen network of a resolved backbone: [B, 3, S, S] float32 to [B, D].

    Raises:
        BackboneError: the file is not the one that was resolved.
    """
    file = Path(backbone.weights)
    if not file.is_file() or file_digest(file) != backbone.weights_digest:
        raise BackboneError(f"{file}: is missing or not the weights that {backbone.name} was resolved with")
    network = architecture(backbone.name, backbone.preprocess.size)
    _load(network, read_checkpoint(file), backbone.name)
    return network.eval().requires_grad_(False)


def architecture(name: str, size: int | None) -> nn.Module:
    """The network of a backbone's name, for images of `size` px, before any training.

    Raises:
        BackboneError: there is no such architecture, or it can't be made thinner.
    """
    if name == PIXELS:
        return PixelMeans()
    whole, width = width_of(name)
    library, own = whole.split(":", 1)
    network = (
        timm_network(own, size) if library == "timm" else torchvision_network(own.partition("@")[0], size)
    )
    if width < 1:
        thin(network, width, name)
    return network


def _thinned(
    network: nn.Module, tensors: dict[str, Tensor], width: float, backbone: str
) -> dict[str, Tensor]:
    """Makes the network thinner, and its weights too, unless they are those of a thin one already."""
    whole = {key: tensor.shape for key, tensor in network.state_dict().items()}
    if any(tensors[key].shape != shape for key, shape in whole.items()):
        thin(network, width, backbone)
        return tensors
    _load(network, tensors, backbone)
    thin(network, width, backbone)
    return network.state_dict()


def _blocks(backbone: Backbone, network: nn.Module, params: BackboneParams) -> tuple[Block, ...]:
    outputs = [Output(layer, () if layer == NETWORK else params.pooling) for layer in params.layers]
    features = Features(network, backbone.preprocess, outputs, backbone.name)
    size = backbone.preprocess.size
    with torch.inference_mode():
        try:
            vectors = features(torch.zeros(1, 3, size, size, dtype=torch.uint8))
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            raise BackboneError(f"{params.backbone}: does not take {size} px images ({reason})") from None
    blocks = []
    for view in params.views:
        for output, vector in zip(outputs, vectors, strict=True):
            count = max(1, len(output.pooling))
            parts = (vector.shape[1] // count,) * count
            blocks.append(
                Block(digest="", layer=output.layer, pooling=output.pooling, view=view, parts=parts)
            )
    return tuple(blocks)


def _of_network(tensors: dict[str, Tensor], network: nn.Module, backbone: str) -> dict[str, Tensor]:
    """The tensors of the network alone; its classifier's stay behind."""
    wanted = network.state_dict()
    # Checkpoints of before PyTorch 0.4.1 lack these counters, which only training reads.
    counters = {key: tensor for key, tensor in wanted.items() if key.endswith("num_batches_tracked")}
    tensors = {**counters, **tensors}
    missing = sorted(set(wanted) - set(tensors))
    if missing:
        raise BackboneError(
            f"{backbone}: the weights lack {len(missing)} of {len(wanted)} tensors"
            f" (first: {missing[0]}); they belong to another architecture"
        )
    # A deeper network of the same family has all of these, and more.
    more = set(tensors) - set(wanted)
    foreign = sorted(more - _with_classifier(backbone)) if more else []
    if foreign:
        raise BackboneError(
            f"{backbone}: the weights have {len(foreign)} tensors that it has not"
            f" (first: {foreign[0]}); they belong to another architecture"
        )
    return {key: tensors[key] for key in wanted}


def _with_classifier(backbone: str) -> set[str]:
    """The names of all tensors of an architecture."""
    library, name = backbone.split(":", 1)
    if library == "timm":
        whole: Any = import_module("timm").create_model(name, pretrained=False)
    else:
        whole = import_module("torchvision.models").get_model(name.partition("@")[0], weights=None)
    return set(whole.state_dict())


def _load(network: nn.Module, tensors: dict[str, Tensor], name: str) -> None:
    try:
        network.load_state_dict(tensors, strict=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise BackboneError(f"{name}: the weights do not fit ({reason})") from None


def _offline(name: str, reason: object) -> BackboneError:
    return BackboneError(
        f"{name}: no installed package ships its weights and the model hub can't be reached ({reason});"
        " give a local file in embedding.weights"
    )


def _require_hub(backbone: str, address: str) -> None:
    """Asks once, shortly: the hub's own client tries for most of a minute."""
    try:
        urlopen(address, timeout=10).close()  # noqa: S310 - the hub's own https address
    except HTTPError:
        return
    except OSError as error:
        raise _offline(backbone, getattr(error, "reason", error)) from None


def _preprocess(
    size: int, resize: int, interpolation: str, mean: Any, std: Any, wanted: int | None
) -> Preprocess:
    """`wanted` replaces the trained size and keeps the share of the image that the crop shows."""
    if wanted is not None:
        size, resize = wanted, round(wanted * resize / size)
    kind = "bilinear" if interpolation == "bilinear" else "bicubic"
    return Preprocess(
        resize=resize, size=size, interpolation=kind, mean=tuple(map(float, mean)), std=tuple(map(float, std))
    )


def _pixels(params: BackboneParams) -> tuple[nn.Module, Preprocess, dict[str, Tensor]]:
    network = PixelMeans()
    return network, preprocess_of_pixels(params.image_size), network.state_dict()


def timm_network(name: str, size: int | None, *, pretrained: bool = False) -> nn.Module:
    timm: Any = import_module("timm")
    if not timm.is_model(name):
        raise BackboneError(f"timm:{name}: timm {timm.__version__} has no such model; see timm.list_models()")
    config = timm.get_pretrained_cfg(name)
    sized = {"img_size": size} if size and config and config.fixed_input_size else {}
    return cast(nn.Module, timm.create_model(name, pretrained=pretrained, num_classes=0, **sized))


def _timm(name: str, params: BackboneParams) -> tuple[nn.Module, Preprocess, dict[str, Tensor]]:
    network = timm_network(name, params.image_size)
    config: dict[str, Any] = import_module("timm.data").resolve_data_config({}, model=network)
    trained_size = cast(Any, network).pretrained_cfg["input_size"][-1]
    preprocess = _preprocess(
        trained_size,
        int(trained_size / config["crop_pct"]),
        config["interpolation"],
        config["mean"],
        config["std"],
        params.image_size,
    )
    if params.weights == RANDOM:
        return network, preprocess, network.state_dict()
    if params.weights != "auto":
        return network, preprocess, read_checkpoint(local_file(params.weights))
    file = packaged_file(params.backbone)
    if file is not None:
        return network, preprocess, lite_to_timm(read_checkpoint(file), network)
    _require_hub(params.backbone, import_module("huggingface_hub.constants").ENDPOINT)
    try:
        trained = timm_network(name, params.image_size, pretrained=True)
    except Exception as error:  # the hub's client raises many unrelated kinds
        raise _offline(params.backbone, type(error).__name__) from None
    return network, preprocess, trained.state_dict()


def torchvision_network(name: str, size: int | None) -> nn.Module:
    models: Any = import_module("torchvision.models")
    if name not in models.list_models(module=models):
        raise BackboneError(f"torchvision:{name}: torchvision has no such classifier; see list_models()")
    sized = {"image_size": size} if size and name.startswith("vit_") else {}
    network = models.get_model(name, weights=None, **sized)
    # The classifier's last layer is the task's; what enters it is the embedding.
    linear = [key for key, module in network.named_modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise BackboneError(f"torchvision:{name}: its classifier is not linear; choose another network")
    network.set_submodule(linear[-1], nn.Identity())
    return cast(nn.Module, network)


def _torchvision(
    name: str, params: BackboneParams, store: Path
) -> tuple[nn.Module, Preprocess, dict[str, Tensor]]:
    models: Any = import_module("torchvision.models")
    architecture, _, chosen = name.partition("@")
    network = torchvision_network(architecture, params.image_size)
    known = models.get_model_weights(architecture)
    try:
        entry = known[chosen] if chosen else known.DEFAULT
    except KeyError:
        names = ", ".join(known.__members__)
        raise BackboneError(f"torchvision:{name}: no such weights; {architecture} has {names}") from None
    how = entry.transforms()
    preprocess = _preprocess(
        how.crop_size[0], how.resize_size[0], how.interpolation.value, how.mean, how.std, params.image_size
    )
    if params.weights == RANDOM:
        return network, preprocess, network.state_dict()
    if params.weights != "auto":
        return network, preprocess, read_checkpoint(local_file(params.weights))
    file = store / "hub" / Path(entry.url).name
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(f".{os.getpid()}.part")
        try:
            torch.hub.download_url_to_file(entry.url, str(part), file.stem.rpartition("-")[2], progress=False)
            part.replace(file)
        except (URLError, OSError, RuntimeError) as error:
            raise _offline(params.backbone, getattr(error, "reason", error)) from None
        finally:
            part.unlink(missing_ok=True)
    return network, preprocess, read_checkpoint(file)
