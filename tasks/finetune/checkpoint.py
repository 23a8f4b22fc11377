"""Checkpoints of a training, in a folder or under an S3 prefix: one safetensors file for each step.

    <place>/<step, eight digits>.safetensors

Tensors lie there bit for bit. The header's metadata hold `state` (JSON: the step, the values, which
tensors are channels last in memory) and `digest` (SHA-256 of that text and of all tensors). A file
takes its name when all of it is on the disk, an object when all of it is in the bucket, so a process
that is killed leaves whole checkpoints alone; a damaged one is passed over, and the one before is read.
"""

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tasks import s3
from tasks.errors import FinetuneError
from tasks.finetune.store import NAME, Bucket, Folder
from tasks.settings import Settings

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class State:
    """What a training goes on from."""

    step: int
    tensors: dict[str, Tensor]  # on the CPU where they were read; of any type and shape
    values: dict[str, Any]  # JSON: tuples come back as lists; infinity and NaN as they are

    def part(self, prefix: str) -> dict[str, Tensor]:
        """The tensors `<prefix>.<name>`, by their names."""
        start = f"{prefix}."
        return {name.removeprefix(start): t for name, t in self.tensors.items() if name.startswith(start)}


def checkpoints_place(settings: Settings, key: str) -> str:
    """Where the checkpoints of the training `key` lie: a folder, or s3://bucket/prefix."""
    url = settings.checkpoints_url
    if url is None:
        return str(settings.root / "checkpoints" / key)
    if url.startswith("s3://"):
        return f"{url.rstrip('/')}/{key}"
    return str(Path(url).expanduser().resolve() / key)


class Checkpoints:
    """The checkpoints of one training, of which one process at a time writes.

    Every method raises FinetuneError where the place can't be read or written.
    """

    def __init__(self, place: str, keep: int, settings: Settings) -> None:
        self.place, self._keep = place, keep
        self._store: Folder | Bucket = (
            Bucket(place, settings) if place.startswith("s3://") else Folder(Path(place))
        )

    def save(self, state: State) -> None:
        """Writes a checkpoint, over one of the same step; once it is durable, the older ones but the
        last `keep` - 1 are removed."""
        with _explained(self.place):
            self._store.put(_name(state.step), partial(_write, state))
            # Later ones are there where they are damaged: training passes them again.
            older = [step for step in self._steps() if step < state.step]
            self._store.remove([_name(step) for step in older[: max(0, len(older) - self._keep + 1)]])

    def latest(self) -> State | None:
        """The newest whole checkpoint, its tensors on the CPU; None where there is none. Whether it
        belongs to this training is for the caller to compare, by a key among its values."""
        with _explained(self.place):
            for step in reversed(self._steps()):
                try:
                    with self._store.opened(_name(step)) as file:
                        return _read(file)
                except FileNotFoundError:
                    continue  # it has just been removed
                except _DamagedError as damage:
                    log.warning("%s/%s: is passed over, %s", self.place, _name(step), damage)
        return None

    def clear(self) -> None:
        """Removes all of them."""
        with _explained(self.place):
            self._store.remove([_name(step) for step in self._steps()])
            self._store.clean()

    def _steps(self) -> list[int]:
        """In ascending order; other files and objects are let alone."""
        found = [NAME.fullmatch(name) for name in self._store.names()]
        return sorted(int(match[1]) for match in found if match)


def flatten(state: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The `state_dict()` of a torch optimiser as named tensors, and the rest of it as JSON; see
    `restore`."""
    parts = {"state": state["state"], "groups": dict(enumerate(state["param_groups"]))}
    tensors: dict[str, Tensor] = {}
    values: dict[str, Any] = {part: {} for part in parts}
    for part, entries in parts.items():
        for number, entry in entries.items():
            plain = values[part][str(number)] = {}
            for name, value in entry.items():
                if isinstance(value, Tensor):
                    tensors[f"{part}.{number}.{name}"] = value
                else:
                    plain[name] = value
    return tensors, values


def restore(tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> dict[str, Any]:
    """What `flatten` took apart, for `load_state_dict()`."""
    parts: dict[str, dict[int, dict[str, Any]]] = {
        part: {int(number): dict(entry) for number, entry in entries.items()}
        for part, entries in values.items()
    }
    for path, tensor in tensors.items():
        part, number, name = path.split(".", 2)
        parts[part][int(number)][name] = tensor
    for group in parts["groups"].values():
        if "betas" in group:
            group["betas"] = tuple(group["betas"])
    return {"state": parts["state"], "param_groups": [group for _, group in sorted(parts["groups"].items())]}


class _DamagedError(Exception):
    """What is wrong with a file, in words."""


@contextmanager
def _explained(place: str) -> Iterator[None]:
    try:
        with s3.explained(place, FinetuneError):
            yield
    except FinetuneError as error:
        raise FinetuneError(f"{error}; mend that and run again") from None
    except OSError as error:
        reason = error.strerror or str(error)
    except SafetensorError as error:  # what it makes of a full disk
        reason = str(error)
    else:
        return
    raise FinetuneError(
        f"{place}: checkpoints can't be written or read there ({reason}); mend that and run again"
    )


def _name(step: int) -> str:
    return f"{step:08d}.safetensors"


def _write(state: State, file: Path) -> None:
    # A copy each: tensors that share memory are refused otherwise.
    tensors = {
        name: tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, tensor in state.tensors.items()
    }
    text = json.dumps(
        {
            "step": state.step,
            "values": state.values,
            "channels_last": [name for name, tensor in state.tensors.items() if _channels_last(tensor)],
        }
    )
    save_file(tensors, file, {"state": text, "digest": _digest(text, tensors)})


def _read(file: Path) -> State:
    try:
        with safe_open(file, framework="pt") as opened:
            header = opened.metadata() or {}
            tensors: dict[str, Tensor] = {key: opened.get_tensor(key).clone() for key in opened.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise
    except (SafetensorError, RuntimeError, ValueError) as error:
        raise _DamagedError(f"it is no whole safetensors file ({str(error).splitlines()[0]})") from None
    text = header.get("state", "")
    if header.get("digest") != _digest(text, tensors):
        raise _DamagedError("its content is not what was written")
    state = json.loads(text)
    for name in state["channels_last"]:  # as sums depend on the order of what they add
        tensors[name] = tensors[name].contiguous(memory_format=torch.channels_last)
    return State(state["step"], tensors, state["values"])


def _channels_last(tensor: Tensor) -> bool:
    return (
        tensor.ndim == 4
        and tensor.is_contiguous(memory_format=torch.channels_last)
        and not tensor.is_contiguous()
    )


def _digest(text: str, tensors: Mapping[str, Tensor]) -> str:
    """Hex SHA-256; the tensors are contiguous."""
    hashed = hashlib.sha256(text.encode())
    for name, tensor in sorted(tensors.items()):
        hashed.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        hashed.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return hashed.hexdigest()
