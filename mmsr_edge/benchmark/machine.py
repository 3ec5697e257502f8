"""Description of the machine that a measurement was taken on."""

from __future__ import annotations

import os
import platform
import sys
from importlib import metadata
from pathlib import Path

__all__ = ["describe_machine", "installed_version", "peak_rss_mb"]

_LIBRARIES = ("numpy", "pillow", "openvino", "onnxruntime", "coremltools", "torch")


def peak_rss_mb() -> float | None:
    """Peak memory (RSS) of this process so far, in MB (10⁶ bytes); None if unknown.

    Linux's VmHWM is preferred to `getrusage`, because a child inherits the latter from its parent.
    """
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e6
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e6


def describe_machine() -> dict[str, object]:
    """Processor, cores, system, Python, and versions of the numerical libraries and runtimes."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "cores_usable": _usable(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "libraries": {name: version for name in _LIBRARIES if (version := installed_version(name))},
    }


def _usable() -> int | None:
    """Cores that this process may run on."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count()


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def installed_version(name: str) -> str | None:
    """Version of an installed distribution; None if it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
