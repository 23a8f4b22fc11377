"""Several processes that train together, as torchrun starts them: `RANK`, `WORLD_SIZE` and `LOCAL_RANK`
in the environment. A process alone is rank 0 of 1, and all of this costs it nothing."""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tasks.errors import FinetuneError

_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK")


@dataclass(frozen=True)
class Processes:
    """This process among those that train together. All of them have to call each method, in the same
    order."""

    rank: int
    world: int
    device: torch.device  # of this process

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module (on `device`), whose gradients are then means over the processes after each
        backward pass, and whose buffers are those of rank 0; alone, the module itself.

        It is to be wrapped anew where other parameters than now require a gradient.
        """
        if self.world == 1:
            return module
        return DistributedDataParallel(module, [self.device] if self.device.type == "cuda" else None)

    def synchronised(self, wrapped: nn.Module, now: bool) -> AbstractContextManager[None]:
        """Within it the gradients become means over the processes if `now`, else they are added up here:
        of the parts of a batch, the last one synchronises."""
        if now or not isinstance(wrapped, DistributedDataParallel):
            return nullcontext()
        return cast(AbstractContextManager[None], wrapped.no_sync())

    def total(self, tensor: Tensor) -> Tensor:
        """The sum over the processes, of tensors of one shape and type on `device`; `tensor` stays."""
        if self.world == 1:
            return tensor
        summed = tensor.detach().clone()
        dist.all_reduce(summed)
        return summed

    def any(self, flag: bool) -> bool:
        """Whether it is set in any process: the same answer for everyone, so that all stop at one step."""
        if self.world == 1:
            return flag  # without waiting for the GPU
        return bool(self.total(torch.tensor(int(flag), device=self.device)).item())

    def barrier(self) -> None:
        """Waits for all."""
        self.any(False)


@contextmanager
def joined() -> Iterator[Processes]:
    """Joins the process group that the environment names (NCCL on GPUs, else Gloo), and leaves it; one that
    is there already stays.

    Raises:
        FinetuneError: the environment is incomplete, there are fewer GPUs than processes, or the others
            can't be reached.
    """
    cuda = torch.cuda.is_available()
    if dist.is_initialized():  # by Ray
        device = torch.device("cuda", torch.cuda.current_device()) if cuda else torch.device("cpu")
        yield Processes(dist.get_rank(), dist.get_world_size(), device)
        return
    if not any(name in os.environ for name in _VARIABLES):
        yield Processes(0, 1, torch.device("cuda", 0) if cuda else torch.device("cpu"))
        return
    try:
        rank, world, local = (int(os.environ[name]) for name in _VARIABLES)
    except (KeyError, ValueError) as error:
        raise FinetuneError(
            f"distributed: {', '.join(_VARIABLES)} have to be numbers ({error}); start it by torchrun"
        ) from None
    if cuda and local >= torch.cuda.device_count():
        raise FinetuneError(
            f"distributed: process {local} of this machine has no GPU, there are {torch.cuda.device_count()};"
            " start fewer (torchrun --nproc-per-node)"
        )
    device = torch.device("cuda", local) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    try:
        # With the device NCCL connects at once, not at the first sum.
        dist.init_process_group("nccl" if cuda else "gloo", device_id=device if cuda else None)
    except (RuntimeError, ValueError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise FinetuneError(f"distributed: process {rank} of {world} can't join ({reason})") from None
    try:
        yield Processes(rank, world, device)
    finally:
        dist.destroy_process_group()
