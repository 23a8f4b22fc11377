"""Shards on Ray: on a cluster that is there, or on one of this machine's cores while the flow runs."""

from typing import Any, Self

from prefect.task_runners import TaskRunner
from prefect_ray import RayTaskRunner
from prefect_ray.context import remote_options
from prefect_ray.task_runners import PrefectRayFuture

from tasks.cluster import ray_slot


class RayRunner(RayTaskRunner):  # type: ignore[misc]
    """A worker that dies has its shard run again by Ray, up to three times, on any worker."""

    _slot: dict[str, Any] | None = None  # what a shard takes of a machine; None: not connected yet

    def __enter__(self) -> Self:
        TaskRunner.__enter__(self)  # a flow that embeds nothing needs no cluster
        return self

    def submit(self, *args: Any, **kwargs: Any) -> PrefectRayFuture[Any]:
        if self._slot is None:
            self._slot = ray_slot(self.address)
        with remote_options(**self._slot):
            return super().submit(*args, **kwargs)

    def __exit__(self, *exc_info: Any) -> None:
        TaskRunner.__exit__(self, *exc_info)
        if self._slot is not None:
            import ray

            ray.shutdown()
            self._slot = None
