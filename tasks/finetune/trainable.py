"""Which weights are trained from which epoch on, and how strongly, by method."""

import math
from dataclasses import dataclass

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from tasks.errors import FinetuneError
from tasks.finetune.lora import attach
from tasks.finetune.network import Tunable
from tasks.finetune.trunk import Unit, units
from tasks.params import FinetuneParams

_NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)

# Of the statistics of batch normalisation, at least: with the 0.01 that networks ported from TensorFlow have,
# they stay behind the weights for hundreds of steps, and validation judges by statistics of other weights.
_MOMENTUM = 0.1


@dataclass
class Group:
    """Parameters of one unit, or of the head, that are trained alike."""

    parameters: list[nn.Parameter]
    names: list[str]  # in the Tunable
    factor: float  # of the learning rate of the backbone, or of the head
    head: bool
    decay: float  # of the weights
    from_epoch: int  # from 0


class Trainable:
    """What is trained. `first` is the first unit with a trained parameter (none: the head alone is
    trained), before which all is frozen in every epoch; `count` the number of trained parameters."""

    def __init__(
        self, model: Tunable, parts: tuple[Unit, ...], groups: tuple[Group, ...], freeze_norms: bool
    ) -> None:
        self.groups = groups
        self.count = sum(parameter.numel() for group in groups for parameter in group.parameters)
        self._model, self._units, self._freeze_norms = model, parts, freeze_norms
        for norm in self._batch_norms():
            if norm.momentum is not None:
                norm.momentum = max(norm.momentum, _MOMENTUM)
        begins: dict[int, int] = {}  # place of a unit -> the epoch from which something of it is trained
        for group in groups:
            if not group.head:
                at = _place(parts, group.names[0])
                begins[at] = min(group.from_epoch, begins.get(at, group.from_epoch))
        self._begins = begins
        self.first = min(begins, default=None)
        model.requires_grad_(False)
        for group in groups:
            for parameter in group.parameters:
                parameter.requires_grad_(True)

    def start_epoch(self, epoch: int) -> None:
        """Sets what requires a gradient in an epoch (from 0), and the modes of all layers: units that
        are not trained yet are in eval mode as a whole (dropout, drop path, statistics)."""
        for group in self.groups:
            for parameter in group.parameters:
                parameter.requires_grad_(epoch >= group.from_epoch)
        self._model.train()
        for at, unit in enumerate(self._units):
            if at not in self._begins or epoch < self._begins[at]:
                for module in unit.modules(self._model.network):
                    module.eval()
        if self._freeze_norms:
            for norm in self._batch_norms():
                norm.eval()

    def _batch_norms(self) -> list[_BatchNorm]:
        return [module for module in self._model.network.modules() if isinstance(module, _BatchNorm)]


def plan(model: Tunable, params: FinetuneParams) -> Trainable:
    """What `params.method` trains; for lora it attaches the adapters. The head is always trained.

    - full, lp_ft, scratch: all units; last_blocks: the last ones.
    - gradual: the head alone in epoch 0, then the units from the top, one in each epoch; where there are
      more units than half of the epochs, several, so that all are trained by then. Of U units in E epochs
      the k-th from the top is trained from the epoch ⌈k · min(U, ⌊E/2⌋) / U⌉ on (ULMFiT,
      https://arxiv.org/abs/1801.06146).
    - norm_only: what normalisation multiplies and adds, in all units.

    The learning rate of a unit is layer_decay to the power of the number of units above it; weights
    decay, but for biases, normalisation and other vectors.

    Raises:
        FinetuneError: there are fewer units than last_blocks is to train, too few epochs for gradual, or
            nothing that the method trains.
    """
    parts = units(model.network)
    _require_effect(len(parts), params, model.name)
    if params.method == "lora":
        attach(model.network, params.rank, params.seed)
    norms = _norms(model.network)
    groups: dict[tuple[int, bool], Group] = {}  # (unit, whether it decays)
    for name, parameter in model.network.named_parameters():
        at = _place(parts, f"network.{name}")
        above = len(parts) - 1 - at
        if not _is_trained(name, above, norms, params):
            continue
        decays = parameter.ndim > 1 and name not in norms and not name.endswith("bias")
        group = groups.setdefault(
            (at, decays),
            Group(
                parameters=[],
                names=[],
                factor=params.layer_decay**above,
                head=False,
                decay=params.weight_decay if decays else 0.0,
                from_epoch=_from_epoch(above, len(parts), params),
            ),
        )
        group.parameters.append(parameter)
        group.names.append(f"network.{name}")
    if not groups:
        raise FinetuneError(
            f"{model.name}: has no layers that finetune.method {params.method} trains; choose another"
        )
    head = [
        Group([parameter], [f"head.{name}"], 1.0, True, params.weight_decay if name == "weight" else 0.0, 0)
        for name, parameter in model.head.named_parameters()
    ]
    ordered = [groups[key] for key in sorted(groups)]
    return Trainable(model, parts, (*ordered, *head), params.batch_norm == "frozen")


def _require_effect(count: int, params: FinetuneParams, backbone: str) -> None:
    if params.method == "last_blocks" and params.blocks > count:
        raise FinetuneError(
            f"finetune.blocks {params.blocks}: {backbone} has {count}; choose at most that many,"
            " or method full"
        )
    if params.method == "gradual" and params.epochs < 2:
        raise FinetuneError(
            f"finetune.epochs {params.epochs}: method gradual trains the head alone in the first one;"
            " give it more"
        )


def _is_trained(name: str, above: int, norms: set[str], params: FinetuneParams) -> bool:
    if params.method == "last_blocks":
        return above < params.blocks
    if params.method == "norm_only":
        return name in norms
    if params.method == "lora":
        return ".parametrizations." in f".{name}" and not name.endswith(".original")
    return True


def _from_epoch(above: int, count: int, params: FinetuneParams) -> int:
    if params.method != "gradual":
        return 0
    return math.ceil((above + 1) * min(count, params.epochs // 2) / count)


def _place(parts: tuple[Unit, ...], name: str) -> int:
    """The unit that has a parameter of the Tunable's network."""
    return next(at for at, unit in enumerate(parts) if unit.holds(name.removeprefix("network.")))


def _norms(network: nn.Module) -> set[str]:
    """Names of the parameters of all normalisation layers; timm has some that derive from none of
    torch's (RmsNorm, EvoNorm2d), known by their names."""
    return {
        f"{prefix}.{name}" if prefix else name
        for prefix, module in network.named_modules()
        if isinstance(module, _NORMS) or "Norm" in type(module).__name__
        for name, _ in module.named_parameters(recurse=False)
    }
