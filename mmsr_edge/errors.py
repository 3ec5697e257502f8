"""Errors: one family, and each also the builtin it resembles.

`except mmsr_edge.MMSRError` catches everything this package raises on purpose; code that knows
nothing of the package still catches them as `ValueError`, `OSError` and so on.
Every message quotes the offending value and says what to do about it.
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
    "missing_extra",
]


class MMSRError(Exception):
    """The root of every error raised here."""


class BundleError(MMSRError, ValueError):
    """A bundle is incomplete, altered, or written for another version."""


class BackendError(MMSRError, RuntimeError):
    """No runtime can open a component, or the one asked for failed."""


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


class Cancelled(MMSRError, RuntimeError):  # noqa: N818 - an outcome the caller asked for
    """The caller asked to stop."""


def missing_extra(module: str, extra: str) -> MissingExtraError:
    """The error for a `module` that only comes with the optional dependency group `extra`."""
    return MissingExtraError(
        f'{module!r} is not installed; it comes with: pip install "mmsr-edge[{extra}]"',
        name=module,
    )
