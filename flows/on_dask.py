"""Shards on Dask: on a cluster that is there, or on one of this machine's cores while the flow runs."""

import logging
import os
from typing import Any

from prefect_dask.task_runners import DaskTaskRunner, PrefectDaskFuture

from tasks.cluster import require_reachable
from tasks.errors import StackError, public


class DaskRunner(DaskTaskRunner):
    """A worker that dies has its shard run again by the scheduler, up to three times, on any worker."""

    def __init__(self, address: str | None = None, **others: Any) -> None:
        logging.getLogger("distributed").setLevel(logging.CRITICAL)  # the terminal is for the result
        if address is None:
            others["cluster_kwargs"] = {
                "n_workers": len(os.sched_getaffinity(0)),
                "threads_per_worker": 1,
                "processes": True,
                "host": "127.0.0.1",
                "dashboard_address": "127.0.0.1:0",
                "memory_limit": 0,  # else it kills workers; the system knows better what is left
                "silence_logs": logging.CRITICAL,
            }
        super().__init__(address=address, **others)

    def submit(self, *args: Any, **kwargs: Any) -> PrefectDaskFuture[Any]:  # type: ignore[override]
        if self._client is None:
            self._connect()
        return super().submit(*args, **kwargs)

    def _connect(self) -> None:
        if self.address is not None:
            require_reachable(self.address)
        try:
            assert self.client is not None  # reaches the cluster, or starts it
        except Exception as error:  # its kinds are many
            place = public(self.address) if self.address else "this machine"
            raise StackError(f"dask: {place}: can't be used ({' '.join(str(error).split())[:300]})") from None
