"""Cache: the folder that keeps compiled models between processes."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path


def user_cache() -> Path:
    """This user's cache folder for mmsr-edge, by the convention of the platform.

    Raises:
        RuntimeError: the user has no home folder.
    """
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "mmsr-edge"


def writable_cache(folder: Path | None, name: str) -> Path | None:
    """The subfolder `name` of `folder` (default: `user_cache()`), created if it is missing.

    None: it cannot be written. Without a cache networks are compiled again, and results are the
    same.
    """
    try:
        path = (folder or user_cache()) / name
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            return path
    except (OSError, RuntimeError):
        return None
