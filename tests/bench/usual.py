"""The other side of the extraction figures: the loop that most code has. A Dataset that decodes
with PIL and transforms with torchvision's v1 transforms, a DataLoader, and torch's eager forward
pass on all threads, NCHW."""

from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from tasks.records import Backbone, Preprocess
from tests.bench import harness, machine

WORKERS = (0, 1, 2)
BATCHES = (4, 8, 16, 32)


def resize_and_crop(how: Preprocess) -> list[Any]:
    """v1 transforms from a PIL image to a float tensor [3, S, S] in [0, 1]."""
    transforms: Any = import_module("torchvision.transforms")
    mode = transforms.InterpolationMode(how.interpolation)
    return [
        transforms.Resize(how.resize, interpolation=mode),
        transforms.CenterCrop(how.size),
        transforms.ToTensor(),
    ]


def transform(how: Preprocess) -> Callable[[Image.Image], Tensor]:
    """The whole of v1's preprocessing."""
    transforms: Any = import_module("torchvision.transforms")
    made: Callable[[Image.Image], Tensor] = transforms.Compose(
        [*resize_and_crop(how), transforms.Normalize(how.mean, how.std)]
    )
    return made


class Files(Dataset[Tensor]):
    """Image files, one by one."""

    def __init__(self, files: Sequence[Path], how: Preprocess) -> None:
        self.files = files
        self.transform = transform(how)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Tensor:
        with Image.open(self.files[index]) as image:
            return self.transform(image.convert("RGB"))


def network(backbone: Backbone) -> nn.Module:
    """The backbone as its library makes it: nothing fused, NCHW."""
    library, name = backbone.name.split(":", 1)
    if library == "timm":
        made: Any = import_module("timm").create_model(name, num_classes=0)
    else:
        made = import_module("torchvision.models").get_model(name.partition("@")[0], weights=None)
        last = [key for key, module in made.named_modules() if isinstance(module, nn.Linear)][-1]
        made.set_submodule(last, nn.Identity())
    made.load_state_dict(load_file(backbone.weights))
    eager: nn.Module = made.eval().requires_grad_(False)
    return eager


def forward_all(eager: nn.Module, loader: DataLoader[Tensor]) -> Tensor:
    """[N, D], on all threads."""
    torch.set_num_threads(machine.cores())
    with torch.inference_mode():
        return torch.cat([eager(batch) for batch in loader])


def best_loop(backbone: Backbone, files: Sequence[Path], tried: int) -> tuple[str, Callable[[], None]]:
    """The loop over `files` with the workers and the batch size that are quickest on the first
    `tried` files; workers stay alive from round to round, as they do from epoch to epoch."""
    eager = network(backbone)

    def loop(some: Sequence[Path], workers: int, batch: int) -> Callable[[], None]:
        loader = DataLoader(
            Files(some, backbone.preprocess), batch, num_workers=workers, persistent_workers=workers > 0
        )

        def once() -> None:
            forward_all(eager, loader)

        return once

    settings = {f"{w} workers, batch {b}": (w, b) for w in WORKERS for b in BATCHES}
    best = harness.quickest({name: loop(files[:tried], *chosen) for name, chosen in settings.items()}, 1)
    return best, loop(files, *settings[best])
