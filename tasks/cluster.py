"""Clusters that work is spread over: how they are reached."""

import logging
import os
import secrets
import socket
from typing import Any
from urllib.parse import urlsplit

from tasks.errors import StackError, public

_REACHED_S = 10.0
_STORE_BYTES = 128 << 20  # of Ray's shared memory: only records travel


def require_reachable(address: str) -> None:
    """Asks for a connection: the libraries try for minutes, and say it in many lines.

    Raises:
        StackError: nobody answers there, or the address is none.
    """
    try:
        place = urlsplit(address if "://" in address else f"tcp://{address}")
        host, port = place.hostname, place.port
    except ValueError:
        host = port = None
    if host is None or port is None:
        raise StackError(f"REGRAFT_RUNNER_ADDRESS: {public(address)}: is not an address like head:6379")
    try:
        socket.create_connection((host, port), timeout=_REACHED_S).close()
    except OSError as error:
        raise StackError(
            f"REGRAFT_RUNNER_ADDRESS: {public(address)}: can't be reached ({error.strerror or error})"
        ) from None


def set_up_ray(address: str | None) -> None:
    """How a cluster that starts here guards itself: on loopback, and with a token. Ray reads these when it
    is imported: call it before."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if address is None:
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # its way to say: listen on loopback alone
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))


def ray_slot(address: str | None) -> dict[str, Any]:
    """Connects this process to a cluster, or to one of this machine's cores that ends with it, for which
    `set_up_ray` was called.

    Returns:
        What one piece of work takes: a core; where there are GPUs, one of them with its part of the cores.

    Raises:
        StackError: the cluster can't be reached or used.
    """
    if address is None:
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
