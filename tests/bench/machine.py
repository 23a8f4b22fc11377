"""What the figures were measured on."""

import importlib.metadata
import os
import platform
from pathlib import Path

import psutil

LIBRARIES = ("torch", "torchvision", "timm", "openvino", "numpy", "pyarrow", "pillow")


def describe() -> dict[str, str]:
    """Processor, cores, memory, system and versions; equal on one machine until something of it
    changes."""
    return {
        "processor": _processor(),
        "cores": str(cores()),
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        "system": f"{platform.system()} {platform.release()} ({platform.machine()})",
        "python": platform.python_version(),
        **{name: _version(name) for name in LIBRARIES},
    }


def cores() -> int:
    """That this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _processor() -> str:
    """Its name with the family and model, which virtual machines' names often leave out."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    name = facts.get("model name", platform.processor())
    extras = [
        flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in facts.get("flags", "")
    ]
    return f"{name}, family {facts.get('cpu family')} model {facts.get('model')} ({', '.join(extras)})"
