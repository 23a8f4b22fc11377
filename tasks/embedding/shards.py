"""The parts of an embedding that many machines work on at once.

A machine works in the state folder of the run, where that is shared and its REGRAFT_STATE names it,
or else in one of its own: then the list of its samples and the weights come through the tier of the
cache, the images from DVC's remote, and the vectors go into the tier.
"""

import fcntl
import hashlib
import importlib.metadata
import io
import shutil
import socket
import tempfile
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tasks.data import store
from tasks.data.stack import split_path
from tasks.embedding import embed
from tasks.embedding.source import decoding
from tasks.errors import StackError
from tasks.lock import locked
from tasks.records import DatasetVersion, Embedder, Manifest, Record, Split
from tasks.settings import Settings

_FORGOTTEN_S = 7 * 86_400  # age of a list whose run did not end
_AT_ONCE = 16  # lists on their way to the tier


class Shard(Record):
    """Samples to embed. `digest` is that of their list, a Parquet file of digests and paths."""

    file: str  # the list, in the state folder of the run
    number: int
    shards: int
    samples: int
    software: str  # beside the weights, what vectors depend on

    @property
    def object(self) -> str:
        """Name of the list in the tier."""
        return f"shard-{Path(self.file).name}"


def plan(manifest: Manifest, embedder: Embedder, settings: Settings, splits: Sequence[Split]) -> list[Shard]:
    """Divides what the cache lacks into REGRAFT_SHARDS parts, none of them empty.

    Samples of a folder or a stack stay together, because a machine brings whole files.

    Raises:
        CacheError: the tier can't be read or written to.
    """
    files = embed.files_of(manifest, splits)
    embed.check_views(files, embedder)
    todo = embed.lacking(files, embedder, settings)
    samples = sorted(todo.items(), key=lambda sample: sample[1])
    count = min(settings.shards, len(samples))
    folder = settings.root / "shards"
    folder.mkdir(parents=True, exist_ok=True)
    for file in folder.iterdir():
        with suppress(FileNotFoundError):  # another run removes its own
            if time.time() - file.stat().st_mtime > _FORGOTTEN_S:
                file.unlink()
    run = uuid.uuid4().hex  # the lists are this run's own, which it removes when it is through
    shards = []
    for number in range(count):
        part = samples[len(samples) * number // count : len(samples) * (number + 1) // count]
        content = _packed(part)
        file = folder / f"{run}-{number}.parquet"
        file.write_bytes(content)
        shards.append(
            Shard(
                digest=hashlib.sha256(content).hexdigest(),
                file=str(file),
                number=number,
                shards=count,
                samples=len(part),
                software=_software(embedder),
            )
        )
    tier = embed.tier_of(settings)
    if tier is not None and shards:
        from tasks.embedding import objects

        for backbone in embedder.backbones:
            objects.give(tier, _weights(backbone.weights_digest), Path(backbone.weights))
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            list(pool.map(lambda shard: objects.give(tier, shard.object, Path(shard.file)), shards))
    return shards


def clear(shards: Sequence[Shard], settings: Settings) -> None:
    """Removes the lists."""
    for shard in shards:
        Path(shard.file).unlink(missing_ok=True)
    tier = embed.tier_of(settings)
    if tier is not None:
        from tasks.embedding import objects

        objects.remove(tier, [shard.object for shard in shards])


def run(
    shard: Shard,
    dataset: DatasetVersion,
    embedder: Embedder,
    settings: Settings,
    max_pixels: int,
    progress: embed.Progress = lambda done, total: None,
) -> int:
    """Embeds the samples of a shard that the cache lacks, on whatever machine this is; how many they were.

    Raises:
        StackError: this machine has no way to hand over the vectors, or would compute others.
        CacheError, DataError, BackboneError: see `embed.run`.
    """
    if _software(embedder) != shard.software:
        raise StackError(
            f"{socket.gethostname()}: has {_software(embedder)}, the run has {shard.software};"
            " install the same on all machines"
        )
    if Path(shard.file).is_relative_to(settings.root) and Path(shard.file).exists():
        files = _unpacked(Path(shard.file).read_bytes())
        return embed.embed_missing(files, dataset.data, embedder, settings, max_pixels, progress)
    tier = embed.tier_of(settings)
    if tier is None:
        raise StackError(
            f"{socket.gethostname()}: {settings.root} is not the state folder of the run, and there is no"
            " tier; set REGRAFT_STATE to a folder that all machines share, or REGRAFT_CACHE_URL on all"
        )
    from tasks.embedding import objects

    files = _unpacked(objects.take(tier, shard.object, shard.digest))
    files = embed.lacking(files, embedder, settings)
    if not files:
        return 0
    for backbone in embedder.backbones:
        weights = settings.root / "weights" / f"{backbone.weights_digest}.safetensors"
        with locked(weights.with_suffix(".lock")):
            if not weights.exists():
                objects.download(tier, _weights(backbone.weights_digest), backbone.weights_digest, weights)
        embedder = _moved(embedder, backbone.digest, weights)
    with _images(dataset, files.values(), settings) as data:
        return embed.embed_missing(files, data, embedder, settings, max_pixels, progress)


def _packed(samples: Sequence[tuple[str, str]]) -> bytes:
    digests, paths = zip(*samples, strict=True)
    out = io.BytesIO()
    pq.write_table(pa.table({"digest": digests, "path": paths}), out, compression="zstd")
    return out.getvalue()


def _unpacked(content: bytes) -> dict[str, str]:
    table = pq.read_table(io.BytesIO(content))
    return dict(zip(table["digest"].to_pylist(), table["path"].to_pylist(), strict=True))


def _weights(digest: str) -> str:
    """Name of a weights file in the tier."""
    return f"weights-{digest}.safetensors"


def _moved(embedder: Embedder, digest: str, weights: Path) -> Embedder:
    """The embedder with the weights of one backbone in another place, which changes no vector."""
    backbones = tuple(
        one.model_copy(update={"weights": str(weights)}) if one.digest == digest else one
        for one in embedder.backbones
    )
    return embedder.model_copy(update={"backbones": backbones})


def _software(embedder: Embedder) -> str:
    """What the fingerprints name as well, and the decoder; a build for a GPU is no other version."""
    libraries = sorted({one.name.split(":", 1)[0] for one in embedder.backbones})
    versions = [f"{name} {importlib.metadata.version(name).partition('+')[0]}" for name in libraries]
    return ", ".join([*decoding(), *versions])


@contextmanager
def _images(dataset: DatasetVersion, paths: Iterable[str], settings: Settings) -> Iterator[Path]:
    """A folder with the files of `paths`, brought from DVC's remote; it goes when they are embedded,
    for each image is needed only once."""
    place = settings.root / "fetched"
    with locked(place / ".lock"):
        _remove_left(place)
        folder = Path(tempfile.mkdtemp(dir=place))
        held = (folder / ".held").open("w")
        fcntl.flock(held, fcntl.LOCK_EX)  # until this process ends, however it does
    with held:
        try:
            store.fetch(dataset.digest, (split_path(path)[0] for path in paths), folder / "data", settings)
            yield folder / "data"
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _remove_left(place: Path) -> None:
    """Removes the folders of processes that were killed."""
    for left in place.glob("*/.held"):
        with suppress(FileNotFoundError), left.open() as held:
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            shutil.rmtree(left.parent, ignore_errors=True)
