"""The network cut before a unit, into what is frozen and what is trained."""

import copy
from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from tasks.errors import FinetuneError
from tasks.finetune.network import Tunable
from tasks.finetune.trunk import Unit, units

TOLERANCE = 1e-5  # of the features, as a part of their greatest value


class Prefix:
    """The frozen units before the cut, in eval mode: crops [B, 3, S, S] to what enters the cut [B, ...]."""

    def __init__(self, model: Tunable, parts: tuple[Unit, ...], at: int) -> None:
        self.model, self.unit = model, parts[at].name
        self._first = model.network.get_submodule(self.unit)
        self._frozen = [module for unit in parts[:at] for module in unit.modules(model.network)]

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        for module in self._frozen:
            module.eval()
        handle = self._first.register_forward_pre_hook(_stop, with_kwargs=True)
        try:
            self.model.embed(x)
        except _Reached as reached:
            return reached.activation
        finally:
            handle.remove()
        raise _uncut(self.model, self.unit, "it takes no part in the forward pass")


class Suffix(nn.Module):
    """The units from the cut on, and the head: activations [B, ...] to logits [B, K] and features [B, D].

    Its units and its head are those of the model itself: what trains one trains the other, and their
    modes are shared. The network around them is a copy; what lay before the cut gives zeros there.
    """

    def __init__(self, model: Tunable, parts: tuple[Unit, ...], at: int, shapes: dict[str, Any]) -> None:
        super().__init__()
        network = model.network
        first = network.get_submodule(parts[at].name)
        self._entry = _Entry()
        # A copy of the containers alone: whatever is found in here is taken instead of being copied.
        taken: dict[int, Any] = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
        taken |= {id(module): module for unit in parts[at:] for module in unit.modules(network)}
        taken[id(first)] = _Resumed(first, self._entry)
        modules = dict(network.named_modules())
        for name in (name for unit in parts[:at] for name in unit.names if name in modules):
            taken[id(modules[name])] = _Zeros(modules[name], shapes.get(name))
        self.network: nn.Module = copy.deepcopy(network, taken)
        self.head = model.head
        self._size = model.preprocess.size

    def forward(self, activation: Tensor) -> tuple[Tensor, Tensor]:
        activation = activation.float()
        self._entry.activation = activation
        size = self._size
        nothing = activation.new_zeros(1).expand(len(activation), 3, size, size)  # takes no memory
        features = self.network(nothing).float()
        self._entry.activation = None
        return self.head(features), features


def split(model: Tunable, unit: int) -> tuple[Prefix, Suffix] | None:
    """The model before and from a unit (its number in `trunk.units`) on; none: nothing lies before.

    Raises:
        FinetuneError: what enters the unit does not determine the rest.
    """
    if not unit:
        return None
    parts = units(model.network)
    crops = noise(model)
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        prefix = Prefix(model, parts, unit)
        with torch.no_grad():
            whole = model.embed(crops)
            suffix = Suffix(model, parts, unit, _shapes(model, crops, parts[:unit]))
            _, found = suffix(prefix(crops))
    except (RuntimeError, ValueError, TypeError, AttributeError, LookupError, AssertionError) as error:
        raise _uncut(model, parts[unit].name, (str(error) or type(error).__name__).splitlines()[0]) from None
    finally:
        for module, mode in modes.items():
            module.training = mode
    error_of = float((found - whole).abs().max() / whole.abs().max().clamp(min=1e-12))
    if not error_of <= TOLERANCE:
        raise _uncut(model, parts[unit].name, f"its features would differ by {error_of:.1e}")
    return prefix, suffix


def noise(model: Tunable) -> Tensor:
    """Two crops [2, 3, S, S] for which a network can be asked what it gives."""
    size = model.preprocess.size
    chance = torch.Generator().manual_seed(0)
    crops = torch.randint(256, (2, 3, size, size), generator=chance, dtype=torch.uint8)
    return crops.to(model.scale.device)


class _Reached(Exception):  # noqa: N818 - it is no error
    """The forward pass came to the cut."""

    def __init__(self, activation: Tensor) -> None:
        super().__init__()
        self.activation = activation


class _Entry:
    """Where a Suffix leaves the activation for the unit that it belongs to."""

    activation: Tensor | None = None


class _Resumed(nn.Module):
    """The first unit's first module, which takes the cached activation in the place of its input."""

    def __init__(self, module: nn.Module, entry: _Entry) -> None:
        super().__init__()
        self.module, self._entry = module, entry

    def forward(self, _nothing: Tensor, *further: Any, **options: Any) -> Any:
        return self.module(self._entry.activation, *further, **options)


class _Zeros(nn.Module):
    """In the place of a module before the cut: zeros of the shape that it gave for one image. Settings
    stay, which the network around may ask for (grid_size of patches)."""

    def __init__(self, module: nn.Module, shape: tuple[int, ...] | None) -> None:
        super().__init__()
        self.__dict__ |= {
            name: value for name, value in vars(module).items() if name[0] != "_" and name != "training"
        }
        self._shape = shape

    def forward(self, x: Tensor, *_args: object, **_options: object) -> Tensor:
        if self._shape is None:
            raise ValueError("a layer before it gives more than one tensor")
        return x.new_zeros(1).expand(len(x), *self._shape)


def _stop(_module: nn.Module, inputs: tuple[Any, ...], _options: dict[str, Any]) -> NoReturn:
    if not inputs or not isinstance(inputs[0], Tensor):
        raise ValueError("what enters it is no tensor")
    raise _Reached(inputs[0])


def _shapes(model: Tunable, crops: Tensor, before: Sequence[Unit]) -> dict[str, tuple[int, ...]]:
    """What each module of the units before gives for an image, where it is one tensor."""
    shapes: dict[str, tuple[int, ...]] = {}
    handles = []
    modules = dict(model.network.named_modules())
    for name in (name for unit in before for name in unit.names if name in modules):

        def note(_module: nn.Module, _inputs: object, given: object, name: str = name) -> None:
            if isinstance(given, Tensor) and len(given) == len(crops):
                shapes[name] = tuple(given.shape[1:])

        handles.append(modules[name].register_forward_hook(note))
    try:
        model.embed(crops)
    finally:
        for handle in handles:
            handle.remove()
    return shapes


def _uncut(model: Tunable, unit: str, reason: str) -> FinetuneError:
    return FinetuneError(f"{model.name}: can't be cut before {unit} ({reason}); set finetune.cached_views 0")
