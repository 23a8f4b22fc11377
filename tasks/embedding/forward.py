"""The routes of the forward pass: torch on the CPU or on all GPUs, and OpenVINO where it is installed.
All float32 routes give the same vectors up to rounding (1 - cos <= 1e-6), so they share a fingerprint.
"""

import importlib.metadata
import importlib.util
import itertools
import logging
import os
import platform
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tasks.embedding.backbone import load
from tasks.embedding.cache import write_durably
from tasks.embedding.features import Features, outputs_of
from tasks.embedding.fuse import fused
from tasks.errors import BackboneError
from tasks.params import PIXELS
from tasks.records import Backbone, digest_of
from tasks.settings import Settings

log = logging.getLogger(__name__)

MAX_DISTANCE = 1e-6  # 1 - cos between the float32 routes
MAX_DISTANCE_BFLOAT16 = 1e-2
_ROUNDS, _CALLS = 3, 3  # of the measurement: the best round, of so many calls in each thread
_CPU_PIXELS = 4 * 224**2  # of the crops in a batch
_GPU_PIXELS = 128 * 224**2
_GPU_CALLS = 3  # at once on a GPU: one copies in, one computes, one copies out


class Forward(Protocol):
    """A way to run a network's forward pass; many threads may call it at once."""

    batch: int  # B, crops in each call

    def __call__(self, crops: Tensor) -> list[NDArray[np.float32]]:
        """Crops [B, 3, S, S] uint8 in channels-last memory to one [B, d] for each of `outputs_of`."""


def threads() -> int:
    """Cores that this process may use: no more than OMP_NUM_THREADS, which Ray and Dask set to the share
    of their workers."""
    cores = len(os.sched_getaffinity(0))
    limit = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return min(cores, max(1, int(limit))) if limit.isdecimal() else cores


def _processor() -> str:
    """The processor's name: machines may share the state folder."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def forward_for(backbone: Backbone, store: Path, settings: Settings) -> Forward:
    """The quickest route on this machine. What was measured is remembered in `store`, so that the
    same state always takes the same route.

    Raises:
        BackboneError: the weights are not those of the backbone, or the route that
            REGRAFT_FORWARD names is not installed or gives other vectors.
    """
    if backbone.name == PIXELS:  # nothing to be quick at
        return TorchForward(backbone)
    if settings.forward == "auto" and torch.cuda.is_available():
        gpus = [torch.device("cuda", number) for number in range(torch.cuda.device_count())]
        on_gpus, plain = TorchForward(backbone, gpus), TorchForward(backbone)
        return on_gpus if _agree(on_gpus, plain, backbone) else plain
    installed = importlib.util.find_spec("openvino") is not None
    if settings.forward == "openvino" and not installed:
        raise BackboneError(
            "REGRAFT_FORWARD=openvino: OpenVINO is not installed; install the extra `cpu`, or set auto"
        )
    if settings.forward == "torch" or not installed:
        return TorchForward(backbone)
    versions = [importlib.metadata.version(name) for name in ("torch", "openvino")]
    # Not the blocks: the pass is the same whatever views go through it, disturbed ones too.
    network = backbone.model_dump(mode="json", exclude={"digest", "weights", "blocks"})
    key = digest_of(network, outputs_of(backbone), versions, _processor(), threads())[:16]
    memo = store / f"{key}.route"
    remembered = memo.read_text() if memo.exists() else None
    if settings.forward == "auto" and remembered == "torch":
        return TorchForward(backbone)
    from tasks.embedding.openvino import OpenVinoForward  # takes a second to import

    quick = OpenVinoForward(backbone, store / f"{key}.openvino")
    if remembered == "openvino":
        return quick
    plain = TorchForward(backbone)
    agree = _agree(quick, plain, backbone)
    if settings.forward == "openvino":
        if not agree:
            raise BackboneError(
                f"REGRAFT_FORWARD=openvino: {backbone.name} gives other vectors there; set auto"
            )
        return quick
    better = agree and _rate(quick, backbone) > _rate(plain, backbone)
    chosen: Forward = quick if better else plain
    with suppress(OSError):  # a full disk: it is measured again next time
        write_durably(memo, b"openvino" if better else b"torch")
    return chosen


class TorchForward:
    """PyTorch: on the CPU with one thread a call; on GPUs in turn, each calling thread with a stream
    of its own, so that copies and kernels of several threads overlap."""

    def __init__(self, backbone: Backbone, gpus: Sequence[torch.device] = ()) -> None:
        self.batch = batch_for(backbone.preprocess.size, _GPU_PIXELS if gpus else _CPU_PIXELS)
        self._features = [
            features_of(backbone).to(device).to(memory_format=torch.channels_last)
            for device in gpus or (torch.device("cpu"),)
        ]
        self._gpus = list(gpus)
        if gpus and backbone.precision == "float32":
            # TensorFloat-32, the default of convolutions, has the precision of bfloat16.
            torch.backends.cudnn.allow_tf32 = False
        self._free = [threading.Semaphore(_GPU_CALLS) for _ in gpus]
        self._turn = itertools.count()
        self._own = threading.local()  # GPU and stream of each calling thread

    def __call__(self, crops: Tensor) -> list[NDArray[np.float32]]:
        with torch.inference_mode():
            if not self._gpus:
                return [vectors.numpy() for vectors in self._features[0](crops)]
            if not hasattr(self._own, "gpu"):
                self._own.gpu = next(self._turn) % len(self._gpus)
                self._own.stream = torch.cuda.Stream(self._gpus[self._own.gpu])  # type: ignore[no-untyped-call]
            gpu: int = self._own.gpu
            stream: torch.cuda.Stream = self._own.stream
            with self._free[gpu], torch.cuda.device(self._gpus[gpu]), torch.cuda.stream(stream):
                there = crops.pin_memory().to(self._gpus[gpu], non_blocking=True)
                vectors = [found.cpu() for found in self._features[gpu](there)]
                stream.synchronize()
            return [found.numpy() for found in vectors]


def features_of(backbone: Backbone) -> Features:
    """The network of a backbone with its outputs, in its precision, with folded normalisation."""
    outputs = outputs_of(backbone)
    size = backbone.preprocess.size
    plain = load(backbone)
    quick = fused(plain, torch.zeros(1, 3, size, size), {output.layer for output in outputs})
    both = [Features(network, backbone.preprocess, outputs, backbone.name) for network in (plain, quick)]
    with torch.inference_mode():
        pairs = zip(*(features(_noise(1, size)) for features in both), strict=True)
        same = all(distance(a.numpy(), b.numpy()) <= MAX_DISTANCE for a, b in pairs)
    features = both[1] if same else both[0]
    if backbone.precision == "bfloat16":
        features.network.to(torch.bfloat16)
    return features.eval().requires_grad_(False)


def batch_for(size: int, pixels: int = _CPU_PIXELS) -> int:
    """Crops of size x size px in a batch: on a CPU 4 at 224 px, more where they are smaller.

    Small batches are quickest on a CPU, because their activations stay in its cache. The number is
    fixed and the last batch padded: kernels are chosen by shape, so a vector does not depend on its
    company (but for the last bit, where torch computes few exponentials: they are rounded by place).
    """
    return max(4, min(256, round(pixels / size**2)))


def distance(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """The largest 1 - cos between rows of two [N, D]."""
    x, y = a.astype(np.float64), b.astype(np.float64)
    norms = np.sqrt((x * x).sum(1) * (y * y).sum(1))
    # Rows of zeros agree with each other and with nothing else.
    cosines = np.where(norms > 0, (x * y).sum(1) / np.where(norms > 0, norms, 1), (x == y).all(1))
    return float((1 - cosines).max())


def _probe(forward: Forward, backbone: Backbone) -> Tensor:
    noise = _noise(4, backbone.preprocess.size)
    return noise[torch.arange(forward.batch) % 4].contiguous(memory_format=torch.channels_last)


def _noise(count: int, size: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (count, 3, size, size), generator=generator).to(torch.uint8)


def _agree(quick: Forward, plain: Forward, backbone: Backbone) -> bool:
    rows = min(quick.batch, plain.batch)
    pairs = zip(quick(_probe(quick, backbone)), plain(_probe(plain, backbone)), strict=True)
    far = max(distance(a[:rows], b[:rows]) for a, b in pairs)
    limit = MAX_DISTANCE if backbone.precision == "float32" else MAX_DISTANCE_BFLOAT16
    if not far <= limit:  # NaN too
        log.warning("%s: %s is off by 1 - cos = %.1e; not used", backbone.name, type(quick).__name__, far)
        return False
    return True


def _rate(forward: Forward, backbone: Backbone) -> float:
    """Crops a second, all threads together."""
    crops, count = _probe(forward, backbone), threads()

    def call(times: int) -> None:
        torch.set_num_threads(1)
        for _ in range(times):
            forward(crops)

    seconds = []
    with ThreadPoolExecutor(count) as pool:
        list(pool.map(call, [1] * count))
        for _ in range(_ROUNDS):
            started = time.perf_counter()
            list(pool.map(call, [_CALLS] * count))
            seconds.append(time.perf_counter() - started)
    return count * _CALLS * forward.batch / min(seconds)
