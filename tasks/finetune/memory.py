"""Memory of a training step: where it runs out, the batch is computed in more parts; and an allocator
that keeps what a CPU's steps use again and again."""

import ctypes
import gc
import json
import logging
import os
import platform
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import fields
from pathlib import Path

import torch
from torch import Tensor

from tasks.errors import FinetuneError
from tasks.finetune.batches import Batch

log = logging.getLogger(__name__)

# Of errors that are RuntimeErrors like others; CUDA's own is torch.OutOfMemoryError.
_TEXTS = ("not enough memory", "can't allocate memory", "out of memory", "STATUS_ALLOC_FAILED")
# <malloc.h>
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3


class Fitting:
    """Runs batches in as many parts as memory asks for, and remembers what fitted in a file of this
    machine. The file is advice: a damaged or unwritable one is passed over."""

    def __init__(
        self, memo: Path, of: tuple[str, ...], batch: int, parts: int = 1, *, alone: bool = True
    ) -> None:
        """
        Args:
            memo: the JSON file; it may be missing.
            of: what memory depends on: hardware, backbone, size, method, precision.
            batch: the most samples of a batch, of this process.
            parts: at least so many.
            alone: no other processes wait for this one's gradients.
        """
        self._memo, self._key, self._batch, self._alone = memo, " | ".join(of), batch, alone
        self.parts = max(parts, -(-batch // max(1, _read(memo).get(self._key, batch))))

    def run(
        self, batch: Batch, backward: Callable[[Batch, bool], Tensor], reset: Callable[[], object]
    ) -> Tensor:
        """The sum of what `backward(part, whether it is the last)` gives for the parts of a batch; all
        anew with twice the parts as long as memory runs out.

        Statistics of batch normalisation see the samples of a failed attempt too.

        Args:
            reset: forgets the gradients, before each attempt.

        Raises:
            FinetuneError: memory doesn't hold one sample; or it ran out beside other processes, which
                wait for this one and have to start again too: then in the parts that were remembered.
        """
        samples, short = len(batch.rows), ""
        while True:
            parts = min(self.parts, samples)
            try:
                reset()
                total = _summed(batch, parts, backward)
                break
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                short = (str(error) or type(error).__name__).splitlines()[0]
            # Now the error is gone, and with it the frames that held the tensors.
            _free()
            if parts == samples:
                raise FinetuneError(
                    f"{self._key}: the memory does not hold one sample ({short}); take a smaller image_size"
                    " or backbone, or a method that trains less"
                )
            self.parts = min(2 * parts, self._batch)
            if not self._alone:
                _remember(self._memo, self._key, -(-samples // min(self.parts, samples)))
                raise FinetuneError(
                    f"{self._key}: {-(-samples // parts)} samples at once do not fit into the memory"
                    f" ({short}); run again, which computes each batch in {self.parts} parts"
                )
        if short:
            log.warning(
                "%s: %d samples at once do not fit into the memory (%s), %d do: from now on a batch is"
                " computed in %d parts (remembered in %s)",
                *(self._key, samples, short, -(-samples // parts), self.parts, self._memo),
            )
            _remember(self._memo, self._key, -(-samples // parts))
        return total


def is_out_of_memory(error: BaseException) -> bool:
    """Of a GPU or of the machine."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _TEXTS)


def hardware(device: torch.device | None = None) -> str:
    """`NVIDIA H200, 139 GiB`, or `AMD EPYC 9R14, 2 cores`: those that this process may use."""
    if device is None:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cuda":
        of = torch.cuda.get_device_properties(device)
        return f"{of.name}, {of.total_memory / 2**30:.0f} GiB"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return f"{_cpu()}, {cores} core{'s' if cores > 1 else ''}"


def quick_allocator() -> None:
    """Has malloc keep large blocks that are freed, instead of giving them back and clearing each page
    anew in the next step: 2.8 times the throughput of a large batch on a CPU. Of glibc; nothing elsewhere.

    The same as MALLOC_MMAP_THRESHOLD_=2147483647 MALLOC_TRIM_THRESHOLD_=4294967295
    MALLOC_TOP_PAD_=268435456 in the environment, which only counts from a process's start on.
    https://man7.org/linux/man-pages/man3/mallopt.3.html
    """
    if platform.libc_ver()[0] != "glibc":
        return
    mallopt = ctypes.CDLL(None).mallopt
    # Older glibcs refuse more than half of an arena's size.
    mallopt(_MMAP_THRESHOLD, 2**31 - 1) or mallopt(_MMAP_THRESHOLD, 32 << 20)
    mallopt(_TRIM_THRESHOLD, -1)  # the greatest size_t
    mallopt(_TOP_PAD, 256 << 20)


def _summed(batch: Batch, parts: int, backward: Callable[[Batch, bool], Tensor]) -> Tensor:
    """Parts that differ by one sample at most."""
    split = [torch.tensor_split(getattr(batch, field.name), parts) for field in fields(batch)]
    given = [
        backward(Batch(*tensors), number == parts)
        for number, tensors in enumerate(zip(*split, strict=True), start=1)
    ]
    return torch.stack(given).sum(0)


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _cpu() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def _read(memo: Path) -> dict[str, int]:
    """The most samples at once that fitted."""
    with suppress(OSError, ValueError):
        content = json.loads(memo.read_text())
        if isinstance(content, dict):
            return {key: size for key, size in content.items() if type(size) is int and size > 0}
    return {}


def _remember(memo: Path, key: str, size: int) -> None:
    made = memo.with_name(f".{memo.name}-{uuid.uuid4().hex}")
    with suppress(OSError):
        try:
            memo.parent.mkdir(parents=True, exist_ok=True)
            made.write_text(json.dumps({**_read(memo), key: size}, indent=2, sort_keys=True) + "\n")
            made.replace(memo)
        finally:
            made.unlink(missing_ok=True)
