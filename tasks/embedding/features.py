"""From crops to vectors: standardisation, the network, and the pooling of any of its layers, as one
module that every route of the forward pass runs."""

import threading
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tasks.errors import BackboneError
from tasks.params import NETWORK
from tasks.records import Backbone, Pooling, Preprocess


class Output(NamedTuple):
    """What is taken from a network."""

    layer: str  # `network`, or the name of a module
    pooling: tuple[Pooling, ...]  # empty for `network`


def outputs_of(backbone: Backbone) -> list[Output]:
    """What one forward pass of a backbone gives, whatever the view."""
    return list(dict.fromkeys(Output(block.layer, block.pooling) for block in backbone.blocks))


class Features(nn.Module):
    """Crops [B, 3, S, S] uint8 to one vector [B, d] float32 for each output, from one forward pass.

    Several threads may call it at once.
    """

    scale: Tensor  # [1, 3, 1, 1]
    shift: Tensor  # [1, 3, 1, 1]

    def __init__(
        self, network: nn.Module, preprocess: Preprocess, outputs: Sequence[Output], name: str
    ) -> None:
        super().__init__()
        self.network = network
        self.outputs = tuple(outputs)
        std = torch.tensor(preprocess.std).view(1, 3, 1, 1)
        self.register_buffer("scale", 1 / (255 * std), persistent=False)
        self.register_buffer("shift", torch.tensor(preprocess.mean).view(1, 3, 1, 1) / std, persistent=False)
        # Tokens before those of places: the class token, then registers; a network may have either.
        self._prefix = int(getattr(network, "num_prefix_tokens", hasattr(network, "class_token")))
        self._classified = bool(getattr(network, "has_class_token", self._prefix))
        self._name = name
        self._pass = threading.local()  # this thread's forward pass: its images, and what it gave
        modules = dict(network.named_modules())
        for layer in {output.layer for output in outputs} - {NETWORK}:
            if layer not in modules:
                raise BackboneError(f"{name}: has no layer {layer}; it has {_some(list(modules))}")
            modules[layer].register_forward_hook(self._note(layer))

    def forward(self, crops: Tensor) -> tuple[Tensor, ...]:
        x = crops.float() * self.scale - self.shift  # [B, 3, S, S]
        self._pass.images, self._pass.given = len(crops), {}
        final = self.network(x.to(next(self.network.parameters()).dtype))  # [B, D]
        given: dict[Output, Tensor] = self._pass.given
        self._pass.given = {}
        for output in self.outputs:
            if output.layer == NETWORK:
                given[output] = final.float()
            elif output not in given:
                raise BackboneError(f"{self._name}: layer {output.layer} takes no part in the forward pass")
        return tuple(given[output] for output in self.outputs)

    def _note(self, layer: str) -> Callable[[nn.Module, object, object], None]:
        """Pools at once: what follows may overwrite the layer's output, and it is large."""
        wanted = [output for output in self.outputs if output.layer == layer]

        def note(_module: nn.Module, _inputs: object, x: object) -> None:
            if not isinstance(x, Tensor):
                raise BackboneError(f"{self._name}: layer {layer} does not give one tensor; choose another")
            for output in wanted:
                self._pass.given[output] = self._pooled(x.float(), output)

        return note

    def _pooled(self, x: Tensor, wanted: Output) -> Tensor:
        """[B, C, H, W], [B, H, W, C] or tokens [B, T, C] to [B, C x poolings]."""
        shape = list(x.shape)
        whole = shape[:1] == [self._pass.images]  # windows of attention are several rows an image
        # Inputs are square, so the two equal sides are the places.
        if whole and x.ndim == 4 and shape[2] == shape[3]:
            cls, places = None, x.flatten(2).transpose(1, 2)
        elif whole and x.ndim == 4 and shape[1] == shape[2]:
            cls, places = None, x.flatten(1, 2)
        elif whole and x.ndim == 3 and shape[1] > self._prefix:
            cls = x[:, 0] if self._classified else None
            places = x[:, self._prefix :]
        else:
            raise BackboneError(
                f"{self._name}: layer {wanted.layer} gives {shape} for {self._pass.images} images, which"
                " has no places to pool; choose another"
            )
        return torch.cat([self._reduced(places, cls, how, wanted.layer) for how in wanted.pooling], dim=1)

    def _reduced(self, places: Tensor, cls: Tensor | None, how: Pooling, layer: str) -> Tensor:
        if how == "mean":
            return places.mean(1)
        if how == "max":
            return places.amax(1)
        if how == "std":
            return (places - places.mean(1, keepdim=True)).square().mean(1).sqrt()
        if cls is None:
            raise BackboneError(f"{self._name}: layer {layer} has no class token; use mean, max or std")
        return cls


def _some(modules: list[str]) -> str:
    """Names for people to choose from: the outermost first."""
    names = sorted((name for name in modules if name), key=lambda name: (name.count("."), name))
    return ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
