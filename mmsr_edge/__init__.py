"""MMSR Edge: multimodal diffusion super-resolution on the device.

    from mmsr_edge import Upscaler
    Upscaler()("photo.jpg").image.save("photo-4x.png")

Importing this package loads the standard library only: the names below are fetched on first use
(PEP 562), and a runtime is imported when a session is opened.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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
    )
    from mmsr_edge.upscaler import Progress, Result, Upscaler

__version__ = "0.1.0"

__all__ = [
    "BackendError",
    "BundleError",
    "Cancelled",
    "ImageError",
    "MMSRError",
    "MissingExtraError",
    "OptionError",
    "OutputError",
    "ParityError",
    "Progress",
    "Result",
    "Upscaler",
    "__version__",
]

# Runtimes, converters and calib are top-level folders of the repository, mapped into this package
# when it is installed. In a checkout that is merely on sys.path they are missing.
if importlib.util.find_spec("mmsr_edge.runtimes") is None:
    raise ImportError(
        f"mmsr_edge is being imported from a checkout that is not installed ({__file__}): "
        "mmsr_edge.runtimes is missing. Run `pip install -e .` in the root of the checkout."
    )


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'mmsr_edge' has no attribute {name!r}")
    home = (
        "mmsr_edge.upscaler" if name in {"Progress", "Result", "Upscaler"} else "mmsr_edge.errors"
    )
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
