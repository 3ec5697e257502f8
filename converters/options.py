"""Command-line options shared by the export commands."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmsr_edge.errors import OptionError

__all__ = ["check_names", "read_settings", "words"]


def words(text: str) -> tuple[str, ...]:
    """Split a list that is separated by commas or spaces."""
    return tuple(word for word in text.replace(",", " ").split() if word)


def check_names(kind: str, names: Sequence[str], known: Sequence[str]) -> None:
    """Check that all names are known.

    Raises:
        OptionError: a name is unknown; the message lists the known ones.
    """
    for name in names:
        if name not in known:
            raise OptionError(f"{kind} {name!r} is not supported; there are {', '.join(known)}")


def read_settings(path: Path | None) -> dict[str, dict[str, Any]]:
    """Read changes to `QuantConfig`, by component, from a JSON file; None: no changes.

    Raises:
        OptionError: the file cannot be read, or is no object of objects.
    """
    if path is None:
        return {}
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise OptionError(f"{str(path)!r} cannot be read as JSON: {error}") from None
    if not isinstance(settings, dict) or not all(isinstance(v, dict) for v in settings.values()):
        raise OptionError(f"{str(path)!r} must hold an object of settings for each component")
    return settings
