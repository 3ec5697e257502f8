"""MMSR Edge: multimodal diffusion super-resolution on devices.

    from mmsr_edge import Upscaler
    Upscaler()("photo.jpg").image.save("photo-4x.png")

Importing this package loads the standard library only: the names below are imported on first use
(PEP 562), and a runtime when a session is opened.
"""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmsr_edge.bundle import shipped_bundles
    from mmsr_edge.config import UpscaleOptions
    from mmsr_edge.errors import (
        BackendError,
        BundleError,
        Cancelled,
        ImageError,
        MissingExtraError,
        MMSRError,
        OptionError,
        OutputError,
        ParityError,
        ReleaseError,
    )
    from mmsr_edge.jobs import Outcome, Report, Task, find_tasks, run_job
    from mmsr_edge.runtimes.registry import BackendStatus, list_backends
    from mmsr_edge.upscaler import Progress, Result, Upscaler

__version__ = "0.12.0"
"""Version of the SDK. A model has its own version, in its manifest."""

_HOMES = {
    "mmsr_edge.bundle": ("shipped_bundles",),
    "mmsr_edge.config": ("UpscaleOptions",),
    "mmsr_edge.errors": (
        "BackendError",
        "BundleError",
        "Cancelled",
        "ImageError",
        "MMSRError",
        "MissingExtraError",
        "OptionError",
        "OutputError",
        "ParityError",
        "ReleaseError",
    ),
    "mmsr_edge.jobs": ("Outcome", "Report", "Task", "find_tasks", "run_job"),
    "mmsr_edge.runtimes.registry": ("BackendStatus", "list_backends"),
    "mmsr_edge.upscaler": ("Progress", "Result", "Upscaler"),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "BackendError",
    "BackendStatus",
    "BundleError",
    "Cancelled",
    "ImageError",
    "MMSRError",
    "MissingExtraError",
    "OptionError",
    "Outcome",
    "OutputError",
    "ParityError",
    "Progress",
    "ReleaseError",
    "Report",
    "Result",
    "Task",
    "UpscaleOptions",
    "Upscaler",
    "__version__",
    "find_tasks",
    "list_backends",
    "run_job",
    "shipped_bundles",
]

# In a checkout that is on sys.path but not installed, three subpackages are beside the package.
if importlib.util.find_spec("mmsr_edge.runtimes") is None:
    from mmsr_edge._checkout import map_checkout

    map_checkout(Path(__file__).resolve().parent)


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'mmsr_edge' has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
