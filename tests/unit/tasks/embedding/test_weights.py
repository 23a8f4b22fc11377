import hashlib
import json
import os
import pickle
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from tasks.embedding import source, weights
from tasks.errors import BackboneError


class _Malicious:
    """Makes a folder when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "plain pickle"])
def test_read_checkpoint__code_in_a_pickle_is_not_run(tmp_path: Path, zipped: bool) -> None:
    marker, file = tmp_path / "ran", tmp_path / "evil.pth"
    content = {"weight": torch.zeros(2), "evil": _Malicious(marker)}
    if zipped:
        torch.save(content, file)
    else:
        file.write_bytes(pickle.dumps(content, protocol=2))

    with pytest.raises(BackboneError, match=r"evil\.pth: is not a file of weights"):
        weights.read_checkpoint(file)

    assert not marker.exists()
    with file.open("rb") as stream:  # the trap works: whoever unpickles it runs it
        if zipped:
            torch.load(stream, weights_only=False)
        else:
            pickle.load(stream)
    assert marker.exists()


@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
@pytest.mark.parametrize("content", [b"", b"not weights", b"\x80\x02}q\x00", bytes(100), b"PK\x03\x04"])
def test_read_checkpoint__damaged_file_is_an_error(tmp_path: Path, name: str, content: bytes) -> None:
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(BackboneError, match=f"{name}: is not a file of weights"):
        weights.read_checkpoint(file)


@pytest.mark.parametrize("name", ["none.pth", "none.safetensors"])
def test_read_checkpoint__missing_file_is_an_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(BackboneError, match=f"{name}: can't be read"):
        weights.read_checkpoint(tmp_path / name)


@pytest.mark.parametrize(
    "content", [{"epoch": 3, "weight": torch.zeros(1)}, [torch.zeros(1)], torch.zeros(1)]
)
def test_read_checkpoint__other_than_a_state_dict_is_refused(tmp_path: Path, content: object) -> None:
    file = tmp_path / "checkpoint.pth"
    torch.save(content, file)
    with pytest.raises(BackboneError, match="holds no plain state dict"):
        weights.read_checkpoint(file)


def test_read_checkpoint__reads_both_formats(tmp_path: Path) -> None:
    tensors = {"a": torch.arange(3.0), "b": torch.ones(2, 2)}
    torch.save(tensors, tmp_path / "a.pth")
    save_file(tensors, tmp_path / "a.safetensors")
    for name in ("a.pth", "a.safetensors"):
        read = weights.read_checkpoint(tmp_path / name)
        assert read.keys() == tensors.keys()
        assert all(torch.equal(read[key], tensors[key]) for key in tensors)


def test_keep__file_is_named_by_its_content_and_made_once(tmp_path: Path) -> None:
    tensors = {"a": torch.arange(6.0).reshape(2, 3).T}  # not contiguous
    file, digest = weights.keep(tensors, tmp_path)
    again, same = weights.keep(tensors, tmp_path)
    assert (again, same) == (file, digest)
    assert file.name == f"{source.file_digest(file)}.safetensors"
    assert list(tmp_path.iterdir()) == [file]
    assert torch.equal(load_file(file)["a"], tensors["a"])


def test_lite_to_timm__packaged_weights_load_strictly() -> None:
    file = source.packaged_file("timm:tf_efficientnet_lite0")
    assert file is not None
    network = timm.create_model("tf_efficientnet_lite0")  # with its classifier
    tensors = weights.lite_to_timm(weights.read_checkpoint(file), network)
    result = network.load_state_dict(tensors, strict=True)
    assert result.missing_keys == []
    assert result.unexpected_keys == []


def test_keep__what_was_trained_on_is_in_the_header(tmp_path: Path) -> None:
    tensors = {"b": torch.arange(3.0), "a": torch.ones(2, 2, dtype=torch.float16)}
    plain, plain_digest = weights.keep(tensors, tmp_path)
    file, digest = weights.keep(tensors, tmp_path, {weights.TUNED: "1" * 64})
    assert digest != plain_digest
    assert (weights.tuned_on(file), weights.tuned_on(plain)) == ("1" * 64, None)
    for one in (plain, file):
        read = weights.read_checkpoint(one)
        assert all(torch.equal(read[key], tensors[key]) for key in tensors)
    size = int.from_bytes(file.read_bytes()[:8], "little")
    assert size % 8 == 0  # tensors are aligned
    header = json.loads(file.read_bytes()[8 : 8 + size])
    assert header["__metadata__"] == {"regraft.tuned": "1" * 64}


def test_keep__same_bytes_whatever_the_order_of_what_is_said(tmp_path: Path) -> None:
    about = {f"regraft.{name}": name for name in "fabced"}
    digests = {
        weights.keep({"a": torch.zeros(2)}, tmp_path, dict(items))[1]
        for items in (list(about.items()), sorted(about.items()), sorted(about.items(), reverse=True))
    }
    assert len(digests) == 1
    # Worked out: the header in order, padded with spaces to a multiple of 8 bytes, and eight zeros.
    said = ",".join(f'"{key}":"{value}"' for key, value in sorted(about.items()))
    text = f'{{"__metadata__":{{{said}}},"a":{{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}}}'
    text += " " * (-len(text) % 8)
    expected = len(text).to_bytes(8, "little") + text.encode() + bytes(8)
    assert digests == {hashlib.sha256(expected).hexdigest()}


def test_keep__without_anything_to_say_is_the_librarys_file(tmp_path: Path) -> None:
    tensors = {"a": torch.zeros(2), "b": torch.ones(3)}
    save_file(tensors, tmp_path / "theirs.safetensors")
    file, _ = weights.keep(tensors, tmp_path / "store")
    assert file.read_bytes() == (tmp_path / "theirs.safetensors").read_bytes()


def test_keep__foreign_metadata_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must be of regraft"):
        weights.keep({"a": torch.zeros(2)}, tmp_path, {"tuned": "1"})
    assert list(tmp_path.iterdir()) == []


def test_tuned_on__file_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "bad.safetensors").write_bytes(b"not weights")
    for name in ("bad", "none"):
        with pytest.raises(BackboneError, match=rf"{name}\.safetensors: "):
            weights.tuned_on(tmp_path / f"{name}.safetensors")
    assert weights.tuned_on(tmp_path / "a.pth") is None
