"""The packaged model tried before it is registered: how quickly it answers requests of one image, as
they will be served, and whether its answers are those that were judged."""

import time
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from tasks.data.split import position
from tasks.data.stack import check_stack, split_path
from tasks.errors import DataError
from tasks.records import Manifest, Trial, digest_of
from tasks.records.student import Throughput
from tasks.registry.package import Package, read

_ROUNDS = 5  # in which a student and its teachers take turns
_WARM_UPS = 3  # requests that are not timed: the first ones allocate memory, and choose kernels

Times = tuple[float, float, float]  # p50 and p95 of a request, ms; size, MB (10^6 bytes)


def run(
    out: Path,
    package_folder: Path,
    manifest: Manifest,
    data: Path,
    outputs: NDArray[np.float64],
    champion_folder: Path | None,
    samples: int,
    seed: int,
) -> Trial:
    """Sends test images one by one to the package and to the champion's, and all of them at once to
    the package.

    Args:
        data: folder that the manifest's paths are relative to.
        outputs: [N, K] that the test samples were judged by, in the manifest's order.
        samples: images at most, taken by a seeded hash of their content.

    Raises:
        DataError: there are no test samples, an image is gone, or `outputs` are not of this manifest.
        RegistryError: a folder holds no sound package.
    """
    digests, paths = _tests(manifest)
    if len(digests) != len(outputs) or not digests:
        raise DataError(
            f"{manifest.file}: {len(digests)} test samples, but {len(outputs)} outputs; run again"
        )
    rows = _chosen(digests, samples, seed)
    requests = [_request(data, paths[row]) for row in rows]
    tried = read(package_folder)
    answers, times = _answers(tried, requests)
    judged = outputs[rows]  # [n, K]
    together = tried.outputs(requests)
    p50, p95, size = times
    theirs = None if champion_folder is None else _answers(read(champion_folder), requests)[1]
    made = Trial(
        digest="",
        folder=str(out),
        package=tried.digest,
        samples=len(rows),
        p50_ms=p50,
        p95_ms=p95,
        size_mb=size,
        largest_difference=max(_apart(answers, judged), _apart(together, judged)),
        champion_p50_ms=theirs[0] if theirs else None,
        champion_p95_ms=theirs[1] if theirs else None,
        champion_size_mb=theirs[2] if theirs else None,
    )
    return made.model_copy(update={"digest": digest_of(made.model_dump(mode="json", exclude={"folder"}))})


def throughput(
    out: Path,
    package_folder: Path,
    teacher_folders: Sequence[Path],
    manifest: Manifest,
    data: Path,
    samples: int,
    seed: int,
) -> Throughput:
    """Sends the same test images to a packaged student and to its teachers, in turn, some rounds long:
    what else the machine does then slows both. A machine that is busy in one round changes no median.

    Args:
        samples: images at most, all in one request.

    Raises:
        DataError: there are no test samples, or an image is gone.
        RegistryError: a folder holds no sound package.
    """
    digests, paths = _tests(manifest)
    if not digests or not teacher_folders:
        raise DataError(
            f"{manifest.file}: {len(digests)} test samples, {len(teacher_folders)} teachers; run again"
        )
    requests = [_request(data, paths[row]) for row in _chosen(digests, samples, seed)]
    student, teachers = read(package_folder), [read(folder) for folder in teacher_folders]
    for package in (student, *teachers):
        package.warm_up()
        package.outputs(requests)
    pairs = [(_seconds([student], requests), _seconds(teachers, requests)) for _ in range(_ROUNDS)]
    ours, theirs = np.array(pairs).T
    made = Throughput(
        digest="",
        folder=str(out),
        package=student.digest,
        teachers=tuple(teacher.digest for teacher in teachers),
        samples=len(requests),
        rounds=_ROUNDS,
        images_per_s=len(requests) / float(np.median(ours)),
        teacher_images_per_s=len(requests) / float(np.median(theirs)),
        speedup=float(np.median(theirs / ours)),
        size_mb=_size_mb(student),
        teacher_size_mb=sum(map(_size_mb, teachers)),
    )
    return made.model_copy(update={"digest": digest_of(made.model_dump(mode="json", exclude={"folder"}))})


def _tests(manifest: Manifest) -> tuple[list[str], list[str]]:
    """Digests and paths of the test samples, in the manifest's order."""
    table = pq.read_table(manifest.file, columns=["digest", "path"], filters=[("split", "=", "test")])
    return table["digest"].to_pylist(), table["path"].to_pylist()


def _chosen(digests: Sequence[str], samples: int, seed: int) -> list[int]:
    """Rows of some samples, taken by a seeded hash of their content."""
    return sorted(range(len(digests)), key=lambda row: (position(digests[row], seed), row))[:samples]


def _request(data: Path, path: str) -> bytes:
    """The bytes of an image file; of a stack's image a PNG file with its pixels."""
    name, row = split_path(path)
    try:
        if row is None:
            return (data / name).read_bytes()
        (image,) = check_stack(data / name, max_pixels=2**62).read([row])  # [H, W, C]
    except OSError as error:
        raise DataError(f"{data / name}: vanished during the run ({error.strerror}); run again") from None
    file = BytesIO()
    Image.fromarray(image.squeeze(2) if image.shape[2] == 1 else image).save(file, "PNG")
    return file.getvalue()


def _answers(package: Package, requests: list[bytes]) -> tuple[NDArray[np.float64], Times]:
    """The outputs [n, K] of single requests, and what they took."""
    package.warm_up()
    for request in requests[:_WARM_UPS]:
        package.outputs([request])
    answers, seconds = [], []
    for request in requests:
        started = time.perf_counter()
        answers.append(package.outputs([request])[0])
        seconds.append(time.perf_counter() - started)
    p50, p95 = 1000 * np.percentile(seconds, [50, 95])
    return np.array(answers), (float(p50), float(p95), _size_mb(package))


def _size_mb(package: Package) -> float:
    return sum(file.stat().st_size for file in package.folder.iterdir() if file.is_file()) / 1e6


def _seconds(packages: Sequence[Package], requests: list[bytes]) -> float:
    """What all of them take for the images together."""
    started = time.perf_counter()
    for package in packages:
        package.outputs(requests)
    return time.perf_counter() - started


def _apart(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """The largest difference; infinite where they are not of the same outputs."""
    return float(np.abs(a - b).max()) if a.shape == b.shape else float("inf")
