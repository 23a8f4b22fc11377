"""Shards on Ray: on a cluster that is there, or on one of this machine's cores while the flow runs."""

import logging
import os
import secrets
from typing import Any, Self

from prefect.task_runners import TaskRunner
from prefect_ray import RayTaskRunner
from prefect_ray.context import remote_options
from prefect_ray.task_runners import PrefectRayFuture

from flows.runner import require_reachable
from tasks.errors import StackError, public

_STORE_BYTES = 128 << 20  # of Ray's shared memory: only records travel


class RayRunner(RayTaskRunner):  # type: ignore[misc]
    """A worker that dies has its shard run again by Ray, up to three times, on any worker."""

    _slot: dict[str, Any] | None = None  # what a shard takes of a machine; None: not connected yet

    def __enter__(self) -> Self:
        TaskRunner.__enter__(self)  # a flow that embeds nothing needs no cluster
        return self

    def submit(self, *args: Any, **kwargs: Any) -> PrefectRayFuture[Any]:
        if self._slot is None:
            self._slot = _connect(self.address)
        with remote_options(**self._slot):
            return super().submit(*args, **kwargs)

    def __exit__(self, *exc_info: Any) -> None:
        TaskRunner.__exit__(self, *exc_info)
        if self._slot is not None:
            import ray

            ray.shutdown()
            self._slot = None


def _connect(address: str | None) -> dict[str, Any]:
    """Returns the slot of a shard: a core; where there are GPUs, one of them with its part of the cores."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if address is None:
        # Ray reads these when it is imported. The first is its way to say: listen on loopback alone.
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        here: dict[str, Any] = {
            "num_cpus": len(os.sched_getaffinity(0)),
            "object_store_memory": _STORE_BYTES,
            "include_dashboard": False,
            "_node_ip_address": "127.0.0.1",
        }
    else:
        require_reachable(address)
        here = {}
    import ray

    # It would print what its workers say, and that one died, among the output of the command.
    ray._private.worker._worker_logs_enabled = False
    try:
        ray.init(
            address or "local", log_to_driver=False, logging_level=logging.ERROR, namespace="regraft", **here
        )
    except Exception as error:  # its kinds are many
        place = public(address) if address else "this machine"
        raise StackError(f"ray: {place}: can't be used ({' '.join(str(error).split())[:300]})") from None
    found: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    gpus, cores = int(found.get("GPU", 0)), int(found.get("CPU", 0))
    return {"num_gpus": 1, "num_cpus": max(1, cores // gpus)} if gpus else {"num_cpus": 1}
