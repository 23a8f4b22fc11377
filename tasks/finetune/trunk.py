"""The parts of a network in the order of its forward pass: what is unfrozen, slowed or cut off as one."""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

_SEVERAL = 3  # children that are blocks or stages of their own: then they are the units


@dataclass(frozen=True)
class Unit:
    """A part of a network: modules, and parameters or buffers that none of these has."""

    names: tuple[str, ...]  # the first is a module wherever the unit has one with weights

    @property
    def name(self) -> str:
        """For people: its first module."""
        return self.names[0]

    def holds(self, tensor: str) -> bool:
        """Whether a parameter or buffer of this name is the unit's."""
        return any(tensor == name or tensor.startswith(f"{name}.") for name in self.names)

    def modules(self, network: nn.Module) -> list[nn.Module]:
        """The modules that it names."""
        found = dict(network.named_modules())
        return [found[name] for name in self.names if name in found]


def units(network: nn.Module) -> tuple[Unit, ...]:
    """All units from the input to the output; each parameter, buffer and layer is in exactly one.

    A network's children are its units. Where fewer than three of them are made of several layers with
    weights, the longest of these (the list of blocks or stages) gives way to its own children, and so on,
    as long as it is a chain. What has no weights of its own (normalisation, activation, pooling) joins
    the part before it, and so do tokens and positions that belong to no layer.

    The order is that in which the modules were assigned, which in the networks of timm and torchvision is
    that of the forward pass.
    """
    joined: list[list[str]] = []
    early: list[str] = []  # what comes before any weights
    for name, weighs in _parts(network, ""):
        if weighs:
            joined.append([name, *early])
            early = []
        else:
            (joined[-1] if joined else early).append(name)
    if early:  # a network without layers
        joined.append(early)
    return tuple(Unit(tuple(names)) for names in joined)


def _parts(module: nn.Module, prefix: str) -> Iterator[tuple[str, bool]]:
    """Names below an opened module, and whether each is a part with weights."""
    for name, _ in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
        yield prefix + name, False
    opened = _opened(module)
    for name, child in module.named_children():
        if child is opened:
            yield from _parts(child, f"{prefix}{name}.")
        else:
            yield prefix + name, _layers(child) > 0


def _opened(module: nn.Module) -> nn.Module | None:
    """The child that gives way to its children, if there is one."""
    compound = [child for child in module.children() if _layers(child) > 1]
    if not compound or len(compound) >= _SEVERAL:
        return None
    longest = max(compound, key=_layers)
    return longest if 2 * _layers(longest) > _layers(module) and _is_chain(longest) else None


def _is_chain(module: nn.Module) -> bool:
    """Whether its children follow one another: so in a list, and in what is a list of blocks and little
    else (an encoder). In a residual block they do not."""
    if isinstance(module, nn.Sequential | nn.ModuleList):
        return True
    return any(
        isinstance(child, nn.Sequential | nn.ModuleList)
        and sum(_layers(block) > 1 for block in child) > 1
        and 2 * _layers(child) > _layers(module)
        for child in module.children()
    )


def _layers(module: nn.Module) -> int:
    """The layers with weights in it: those of normalisation have vectors alone."""
    return sum(
        any(parameter.ndim > 1 for parameter in each.parameters(recurse=False)) for each in module.modules()
    )
