"""The network that is trained: a backbone and a linear head, from crops to logits; and the way back, to a
backbone with trained weights."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from tasks.embedding.backbone import architecture, load
from tasks.embedding.source import named
from tasks.embedding.weights import TUNED, keep
from tasks.errors import FinetuneError
from tasks.head.fitted import FittedHead
from tasks.head.linear import Linear
from tasks.params import NETWORK, PIXELS
from tasks.records import Backbone, Preprocess


class Tunable(nn.Module):
    """Crops [B, 3, S, S] to logits [B, K] and features [B, D], those of the layer `network`.

    K = number of outputs: the classes, or 1 for a number.
    """

    scale: Tensor  # [1, 3, 1, 1]
    shift: Tensor  # [1, 3, 1, 1]

    def __init__(self, network: nn.Module, preprocess: Preprocess, outputs: int, name: str) -> None:
        """The head begins with zeros, at the same answer for all; K outputs."""
        super().__init__()
        self.name, self.preprocess = name, preprocess
        self.network = network
        std = torch.tensor(preprocess.std).view(1, 3, 1, 1)
        self.register_buffer("scale", 1 / (255 * std), persistent=False)
        self.register_buffer("shift", torch.tensor(preprocess.mean).view(1, 3, 1, 1) / std, persistent=False)
        self.features = _length(network, preprocess.size)  # D
        self.head: nn.Linear = _Float32Linear(self.features, outputs)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [B, K] and features [B, D], float32.

        Args:
            x: crops, uint8; of floats those that are standardised already.
        """
        features = self.embed(x)
        return self.classify(features), features

    def embed(self, x: Tensor) -> Tensor:
        """[B, 3, S, S] to [B, D] float32."""
        if x.dtype == torch.uint8:
            x = x.float() * self.scale - self.shift
        features: Tensor = self.network(x)
        return features.float()

    def classify(self, features: Tensor) -> Tensor:
        """[B, D] to [B, K]."""
        logits: Tensor = self.head(features)
        return logits


def tunable(
    backbone: Backbone,
    outputs: int,
    start: FittedHead | None,
    seed: int,
    blocks: tuple[str, ...] | None = None,
) -> Tunable:
    """A backbone with its weights and a head. The head gives what `start` gives, calibrated, where that
    is an affine map (logistic, multilabel, ridge: a number is in its own unit); else it begins with
    zeros, as without `start`: a prototype head divides by the length of each embedding, and neighbours
    and hidden units are no linear layer.

    Args:
        outputs: K.
        seed: of what an architecture draws beside its weights.
        blocks: digests of the blocks that `start` stands on (`Head.blocks`); none: all of the backbone's.

    Raises:
        BackboneError: the weights are not those that were resolved.
        FinetuneError: `start` stands on other blocks than the layer `network` of this backbone, or has
            another number of outputs.
    """
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        model = Tunable(load(backbone).requires_grad_(True), backbone.preprocess, outputs, backbone.name)
    if start is not None:
        _require_own(backbone, blocks, start, model)
        if type(start.model) is Linear:
            _copy(start.model, start, model.head)
    return model


def scratch(backbone: Backbone, outputs: int, seed: int) -> Tunable:
    """The architecture of a backbone with weights drawn anew, and a head of zeros.

    Raises:
        FinetuneError: the backbone is no network.
    """
    if backbone.name == PIXELS:
        raise FinetuneError(f"{PIXELS}: has no weights to train; choose a network in embedding.backbone")
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        network = architecture(backbone.name, backbone.preprocess.size)
        return Tunable(network, backbone.preprocess, outputs, backbone.name)


def export(backbone: Backbone, network: nn.Module, store: Path, tuned: str) -> Backbone:
    """The backbone with the weights of `network`, kept in `store`: equal weights make equal digests.

    Args:
        network: of the backbone's architecture; on any device, adapters merged.
        tuned: digest of the manifest that it was trained on.

    Raises:
        FinetuneError: a weight is no number, or an adapter is not merged.
        BackboneError: the network is of another architecture.
    """
    if any(parametrize.is_parametrized(module) for module in network.modules()):
        raise FinetuneError(f"{backbone.name}: adapters are not weights of their own; merge them first")
    # Copies: tensors that share memory can't be kept.
    tensors = {name: tensor.detach().cpu().clone() for name, tensor in network.state_dict().items()}
    broken = [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise FinetuneError(
            f"{backbone.name}: {len(broken)} tensors are not finite (first: {broken[0]}), and can't be kept;"
            " lower finetune.learning_rate"
        )
    file, digest = keep(tensors, store, {TUNED: tuned})
    changed = {"weights": str(file), "weights_digest": digest, "tuned": tuned}
    exported = named(backbone.model_copy(update=changed))
    load(exported)
    return exported


class _Float32Linear(nn.Linear):
    """Under autocast too: in bfloat16 many logits would be equal."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.float())


def _length(network: nn.Module, size: int) -> int:
    """D."""
    was, parameter = network.training, next(network.parameters())
    with torch.no_grad():
        some = network.eval()(torch.zeros(1, 3, size, size, device=parameter.device, dtype=parameter.dtype))
    network.train(was)
    return int(some.shape[1])


def _require_own(
    backbone: Backbone, blocks: tuple[str, ...] | None, start: FittedHead, model: Tunable
) -> None:
    own = [block.digest for block in backbone.blocks if block.layer == NETWORK and block.view == "identity"]
    of = tuple(block.digest for block in backbone.blocks) if blocks is None else tuple(blocks)
    length = len(np.asarray(vars(start.model)["mean"]))
    if list(of) != own or length != model.features:
        raise FinetuneError(
            f"{backbone.name}: the head stands on {length} numbers of {len(of)} blocks, not on the"
            f" {model.features} of the layer {NETWORK} alone; fit one on that"
        )
    outputs = len(start.calibration.bias)
    if outputs != model.head.out_features:
        raise FinetuneError(
            f"{backbone.name}: the head has {outputs} outputs, {model.head.out_features} are wanted;"
            " fit it on this target"
        )


def _copy(linear: Linear, start: FittedHead, head: nn.Linear) -> None:
    """(W (x - mean) / scale + b) · scale' + bias'  =  (scale' W / scale) x + what is left at x = 0"""
    weight = start.calibration.scale[:, None] * linear.weight / linear.scale  # [K, D]
    bias = start.calibration.scale * linear.bias + start.calibration.bias - weight @ linear.mean  # [K]
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(weight))
        head.bias.copy_(torch.from_numpy(bias))
