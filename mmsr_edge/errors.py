"""Errors: one base class, and each error is also the builtin that it resembles.

`except mmsr_edge.MMSRError` catches every error that this package raises on purpose. Code that does
not import the package can catch them as `ValueError`, `OSError` and so on.
Every message quotes the offending value and gives a remedy.
"""

from __future__ import annotations

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
    "ReleaseError",
    "missing_extra",
]


class MMSRError(Exception):
    """Base class of all errors of this package."""


class BundleError(MMSRError, ValueError):
    """A bundle is incomplete, altered or written for another version."""


class BackendError(MMSRError, RuntimeError):
    """No runtime can open a component, or the requested one failed."""


class MissingExtraError(MMSRError, ImportError):
    """An optional dependency is not installed."""


class ImageError(MMSRError, ValueError):
    """An input picture or map cannot be read or has the wrong form."""


class OptionError(MMSRError, ValueError):
    """An option is unknown or outside its range."""


class OutputError(MMSRError, OSError):
    """The result cannot be written."""


class ParityError(MMSRError, RuntimeError):
    """A converted component differs too much from its reference."""


class ReleaseError(MMSRError, RuntimeError):
    """A trained model fails a gate of its release."""


class Cancelled(MMSRError, RuntimeError):  # noqa: N818 - the caller asked for it
    """The caller cancelled the call."""


def missing_extra(module: str, extra: str) -> MissingExtraError:
    """The error for a missing `module` that the optional dependency group `extra` installs."""
    return MissingExtraError(
        f'{module!r} is not installed; it comes with: pip install "mmsr-edge[{extra}]"',
        name=module,
    )
