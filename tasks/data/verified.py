"""What earlier runs found to be good images, by content: such content isn't decoded again. A file
whose content is not what its name says is passed over."""

import hashlib
import os
from io import BytesIO
from pathlib import Path

import PIL
import pyarrow as pa
import pyarrow.parquet as pq

from tasks.data import stack
from tasks.data.image import DECODER

SIZES = pa.schema({"digest": pa.string(), "width": pa.int32(), "height": pa.int32()})


def images(folder: Path) -> pa.Table:
    """Digest, width and height (px) of every known image."""
    found = [SIZES.empty_table()]
    for file in sorted(_of_decoder(folder).glob("*.parquet")):
        content = file.read_bytes()
        if hashlib.sha256(content).hexdigest() == file.stem:
            found.append(pq.read_table(BytesIO(content), schema=SIZES))
    return pa.concat_tables(found)


def remember_images(folder: Path, fresh: pa.Table) -> None:
    """Adds good images, as `SIZES`."""
    if fresh.num_rows:
        buffer = BytesIO()
        pq.write_table(fresh, buffer)
        _write(_of_decoder(folder), ".parquet", buffer.getvalue())


def stack_rows(folder: Path, digest: str) -> stack.Rows | None:
    """The rows of a known stack."""
    try:
        content = (_of_stacks(folder) / digest).read_bytes()
    except FileNotFoundError:
        return None
    return stack.Rows.unpack(content) if hashlib.sha256(content).hexdigest() == digest else None


def remember_stack(folder: Path, rows: stack.Rows) -> None:
    """Adds a good stack."""
    _write(_of_stacks(folder), "", rows.pack())


def _of_decoder(folder: Path) -> Path:
    """Another decoder may judge otherwise, so each has its own memory."""
    return folder / f"decoder-{DECODER}-pillow-{PIL.__version__}"


def _of_stacks(folder: Path) -> Path:
    return folder / f"stack-{stack.VERSION}"


def _write(folder: Path, suffix: str, content: bytes) -> None:
    name = hashlib.sha256(content).hexdigest()
    folder.mkdir(parents=True, exist_ok=True)
    arriving = folder / f".{name}.{os.getpid()}"
    arriving.write_bytes(content)
    arriving.replace(folder / f"{name}{suffix}")
