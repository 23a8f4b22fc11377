"""Checkpoints in a folder; those on S3 are in tests/stack/test_checkpoints.py."""

import logging
import os
import shutil
import struct
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tasks.errors import FinetuneError
from tasks.finetune import store
from tasks.finetune.checkpoint import Checkpoints, State, checkpoints_place, flatten, restore
from tasks.settings import Settings


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(state=tmp_path / "state", checkpoints_url=None)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "shared" / "key"


@pytest.fixture
def checkpoints(folder: Path, settings: Settings) -> Checkpoints:
    return Checkpoints(str(folder), 2, settings)


def state(step: int) -> State:
    return State(step, {"model.w": torch.full((3,), float(step))}, {"key": "abc", "best": 0.5})


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def same_bits(one: Tensor, other: Tensor) -> bool:
    raw = [tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in (one, other)]
    return one.dtype == other.dtype and one.shape == other.shape and torch.equal(*raw)


def test_checkpoints__every_type_comes_back_bit_for_bit(checkpoints: Checkpoints) -> None:
    shared = torch.arange(6.0)
    tensors = {
        "bfloat16": torch.randn(4, 5).bfloat16(),
        "half": torch.randn(3).half(),
        "float32": torch.tensor([0.1, -0.0, float("inf"), float("nan")]),
        "float64": torch.tensor([0.1], dtype=torch.float64),
        "int64": torch.tensor([2**62, -1]),
        "bool": torch.tensor([True, False, True]),
        "scalar": torch.tensor(7.0),
        "counter": torch.tensor(3),
        "empty": torch.zeros(0, 4),
        "shared": shared,
        "shared.too": shared,
        "part of it": shared[2:4],
        "transposed": torch.randn(2, 3).T,
        "trained": nn.Parameter(torch.randn(2)),
    }
    checkpoints.save(State(1, tensors, {}))
    found = checkpoints.latest()
    assert found is not None
    assert found.tensors.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert same_bits(found.tensors[name], tensor.detach()), name


def test_checkpoints__layout_in_memory_is_kept(checkpoints: Checkpoints) -> None:
    plain = torch.randn(2, 3, 4, 4)
    last = plain.to(memory_format=torch.channels_last)
    checkpoints.save(State(1, {"plain": plain, "last": last}, {}))
    found = checkpoints.latest()
    assert found is not None
    assert found.tensors["plain"].stride() == plain.stride()
    assert found.tensors["last"].stride() == last.stride()
    assert torch.equal(found.tensors["last"], last)


def test_checkpoints__values_are_json(checkpoints: Checkpoints) -> None:
    values = {"key": "ß", "best": float("-inf"), "lr": 0.1 + 0.2, "history": [{"epoch": 1}], "none": None}
    checkpoints.save(State(12, {}, values))
    found = checkpoints.latest()
    assert found is not None
    assert (found.step, found.values) == (12, values)


def test_checkpoints__last_ones_stay(checkpoints: Checkpoints, folder: Path) -> None:
    for step in (5, 100_000_000, 10, 99_999_999):  # 10 is written after a later one
        checkpoints.save(state(step))
    # keep = 2: of what is not later than 99,999,999 that and 10, and the later one.
    assert names(folder) == ["00000010.safetensors", "100000000.safetensors", "99999999.safetensors"]
    newest = checkpoints.latest()
    assert newest is not None
    assert newest.step == 100_000_000


def test_checkpoints__one_alone_stays(folder: Path, settings: Settings) -> None:
    checkpoints = Checkpoints(str(folder), 1, settings)
    for step in (1, 2, 3):
        checkpoints.save(state(step))
    assert names(folder) == ["00000003.safetensors"]


def test_checkpoints__none_is_none(checkpoints: Checkpoints) -> None:
    assert checkpoints.latest() is None
    checkpoints.clear()


def test_checkpoints__clear_removes_no_file_of_others(checkpoints: Checkpoints, folder: Path) -> None:
    checkpoints.save(state(1))
    (folder / "notes.txt").write_text("mine")
    (folder / ".abc.part").write_bytes(b"of a killed process")
    checkpoints.clear()
    assert names(folder) == ["notes.txt"]
    assert checkpoints.latest() is None


def test_checkpoints__truncated_at_any_place_is_passed_over(
    checkpoints: Checkpoints, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoints.save(state(1))
    checkpoints.save(state(2))
    newest = folder / "00000002.safetensors"
    content = newest.read_bytes()
    for length in range(len(content)):
        newest.write_bytes(content[:length])
        caplog.clear()
        found = checkpoints.latest()
        assert found is not None
        assert found.step == 1, length
        assert len(caplog.messages) == 1
        assert caplog.messages[0].startswith(f"{newest}: is passed over, ")
    newest.write_bytes(content)
    whole = checkpoints.latest()
    assert whole is not None
    assert whole.step == 2


def test_checkpoints__one_flipped_bit_is_found(checkpoints: Checkpoints, folder: Path) -> None:
    checkpoints.save(state(1))
    checkpoints.save(state(2))
    newest = folder / "00000002.safetensors"
    content = bytearray(newest.read_bytes())
    (header,) = struct.unpack("<Q", content[:8])
    padding = content[: 8 + header].rstrip(b" ")  # of the header, which means nothing
    for place in [*range(len(padding)), *range(8 + header, len(content))]:
        content[place] ^= 1
        newest.write_bytes(content)
        found = checkpoints.latest()
        assert found is not None
        assert found.step == 1, place
        content[place] ^= 1


@pytest.mark.parametrize(("was", "becomes"), [(b'"I64"', b'"F64"'), (b"[2,3]", b"[3,2]"), (b'"w"', b'"v"')])
def test_checkpoints__changed_header_is_found(
    checkpoints: Checkpoints, folder: Path, was: bytes, becomes: bytes
) -> None:
    checkpoints.save(State(1, {"w": torch.ones(2, 3, dtype=torch.int64)}, {}))
    file = folder / "00000001.safetensors"
    content = file.read_bytes()
    assert content.count(was) == 1
    file.write_bytes(content.replace(was, becomes))
    assert checkpoints.latest() is None


def test_checkpoints__foreign_safetensors_file_is_passed_over(
    checkpoints: Checkpoints, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder.mkdir(parents=True)
    save_file({"w": torch.zeros(2)}, folder / "00000007.safetensors")
    assert checkpoints.latest() is None
    assert caplog.messages == [
        f"{folder}/00000007.safetensors: is passed over, its content is not what was written"
    ]


def test_checkpoints__a_damaged_one_is_replaced_when_training_comes_by(
    checkpoints: Checkpoints, folder: Path
) -> None:
    checkpoints.save(state(1))
    (folder / "00000003.safetensors").write_bytes(b"half")
    checkpoints.save(state(2))
    assert "00000001.safetensors" in names(folder)
    checkpoints.save(state(3))
    found = checkpoints.latest()
    assert found is not None
    assert (found.step, names(folder)) == (3, ["00000002.safetensors", "00000003.safetensors"])


def test_checkpoints__killed_before_the_rename_leaves_the_one_before(
    checkpoints: Checkpoints, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class KilledError(BaseException):
        pass

    def killed(*_: object) -> None:
        raise KilledError

    checkpoints.save(state(1))
    checkpoints.save(state(2))
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", killed)
        with pytest.raises(KilledError):
            checkpoints.save(state(3))
    found = checkpoints.latest()
    assert found is not None
    assert (found.step, names(folder)) == (2, ["00000001.safetensors", "00000002.safetensors"])


def test_checkpoints__file_is_synced_before_it_has_its_name(
    checkpoints: Checkpoints, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[tuple[str, list[str]]] = []
    plain = store._sync

    def sync(path: Path) -> None:
        plain(path)
        synced.append((path.suffix, names(folder)))

    monkeypatch.setattr(store, "_sync", sync)
    checkpoints.save(state(1))
    (file, before), (_, after) = synced
    assert file == ".part"
    assert "00000001.safetensors" not in before
    assert after == ["00000001.safetensors"]


def test_checkpoints__what_a_killed_process_left_is_removed_after_an_hour(
    checkpoints: Checkpoints, folder: Path
) -> None:
    folder.mkdir(parents=True)
    for name, age_s in (("old", 3700), ("new", 100)):
        part = folder / f".{name}.part"
        part.write_bytes(b"")
        os.utime(part, (time.time() - age_s,) * 2)
    checkpoints.save(state(1))
    assert names(folder) == [".new.part", "00000001.safetensors"]


def test_checkpoints__folder_that_is_a_file_is_an_error_in_one_line(
    tmp_path: Path, settings: Settings
) -> None:
    (tmp_path / "file").write_text("")
    checkpoints = Checkpoints(str(tmp_path / "file" / "key"), 2, settings)
    with pytest.raises(FinetuneError, match="checkpoints can't be written or read there \\(Not a directory"):
        checkpoints.save(state(1))


def test_state__part_is_what_follows_a_prefix() -> None:
    tensors = {name: torch.zeros(1) for name in ("model.a.b", "model.c", "modelled.d", "optimiser.e")}
    assert State(1, tensors, {}).part("model").keys() == {"a.b", "c"}


def test_place__is_named_by_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    state = tmp_path / "state"
    places = [
        checkpoints_place(Settings(state=state, checkpoints_url=url), "abc")
        for url in (None, "s3://bucket", "s3://bucket/a/", "/shared/here", "~/here")
    ]
    assert places == [
        f"{state}/checkpoints/abc",
        "s3://bucket/abc",
        "s3://bucket/a/abc",
        "/shared/here/abc",
        f"{tmp_path}/home/here/abc",
    ]


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(8 * 36, 2)).to(memory_format=torch.channels_last)


def optimiser(kind: str, model: nn.Module) -> torch.optim.Optimizer:
    parameters = list(model.parameters())
    groups = [{"params": parameters[:2], "peak": 0.1}, {"params": parameters[2:], "weight_decay": 0.0}]
    if kind == "adamw":
        return torch.optim.AdamW(groups, lr=1e-2, betas=(0.8, 0.99))
    return torch.optim.SGD(groups, lr=1e-2, momentum=0.9 if kind == "momentum" else 0.0)


def steps(model: nn.Module, how: torch.optim.Optimizer, numbers: range) -> None:
    for number in numbers:
        torch.manual_seed(number)
        x = torch.randn(4, 3, 8, 8).to(memory_format=torch.channels_last)
        how.zero_grad()
        model(x).square().mean().backward()
        how.step()


@pytest.mark.parametrize("kind", ["adamw", "momentum", "sgd"])
def test_optimiser__ten_steps_are_five_and_a_checkpoint_and_five(checkpoints: Checkpoints, kind: str) -> None:
    whole = network()
    steps(whole, optimiser(kind, whole), range(10))

    first = network()
    how = optimiser(kind, first)
    steps(first, how, range(5))
    moments, values = flatten(how.state_dict())
    tensors = {f"model.{name}": tensor for name, tensor in first.state_dict().items()}
    tensors |= {f"optimiser.{name}": tensor for name, tensor in moments.items()}
    checkpoints.save(State(5, tensors, {"optimiser": values}))
    steps(first, how, range(5, 7))  # changes nothing of what was saved

    found = checkpoints.latest()
    assert found is not None
    second = network()
    other = optimiser(kind, second)
    second.load_state_dict(found.part("model"))
    other.load_state_dict(restore(found.part("optimiser"), found.values["optimiser"]))
    steps(second, other, range(5, 10))

    expected = whole.state_dict()
    assert not torch.equal(expected["0.weight"], found.part("model")["0.weight"])
    for name, tensor in second.state_dict().items():
        assert same_bits(tensor, expected[name]), name


@pytest.mark.parametrize("kind", ["adamw", "momentum", "sgd"])
def test_flatten__restore_gives_the_same_state(kind: str) -> None:
    model = network()
    how = optimiser(kind, model)
    steps(model, how, range(2))
    before = how.state_dict()
    after: dict[str, Any] = restore(*flatten(before))
    assert after["param_groups"] == before["param_groups"]
    assert after["state"].keys() == before["state"].keys()
    for number, entry in before["state"].items():
        assert after["state"][number].keys() == entry.keys()
        for name, value in entry.items():
            assert value is None or same_bits(after["state"][number][name], value)


def test_flatten__learning_rate_that_is_a_tensor_is_one_again() -> None:
    model = nn.Linear(2, 1)
    how = torch.optim.AdamW(model.parameters(), lr=torch.tensor(0.25), capturable=False, foreach=False)
    tensors, values = flatten(how.state_dict())
    assert tensors.keys() == {"groups.0.lr"}
    assert "lr" not in values["groups"]["0"]
    assert restore(tensors, values)["param_groups"][0]["lr"] == torch.tensor(0.25)


def test_checkpoints__one_that_was_just_removed_is_silently_passed_over(
    checkpoints: Checkpoints, folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    checkpoints.save(state(1))
    names = os.listdir(folder)  # noqa: PTH208
    shutil.copy(folder / names[0], folder / "00000000.safetensors")
    monkeypatch.setattr(store.Folder, "names", lambda self: ["00000009.safetensors", *names])
    found = checkpoints.latest()
    assert found is not None
    assert (found.step, caplog.messages) == (1, [])
