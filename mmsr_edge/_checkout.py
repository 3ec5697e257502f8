"""Import hook for a checkout: the folders beside `mmsr_edge/` under their installed names.

`runtimes/`, `converters/` and `calib/` are at the top of the repository and are installed inside
`mmsr_edge`. When the package is imported from a checkout that is not installed, a finder maps these
three names to their folders.
"""

from __future__ import annotations

import importlib.util
import sys
from importlib.abc import MetaPathFinder
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from pathlib import Path
    from types import ModuleType

__all__ = ["MAPPED", "map_checkout"]

MAPPED = ("calib", "converters", "runtimes")
"""Top-level folders that are installed as subpackages of `mmsr_edge`."""


class _CheckoutFinder(MetaPathFinder):
    """Finds the packages in `MAPPED` in the root of a checkout."""

    def __init__(self, root: Path) -> None:
        self._folders = {f"mmsr_edge.{name}": root / name for name in MAPPED}

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,
        target: ModuleType | None = None,
    ) -> ModuleSpec | None:
        """The spec of a mapped package; None for every other name."""
        folder = self._folders.get(fullname)
        if folder is None:
            return None
        return importlib.util.spec_from_file_location(
            fullname, folder / "__init__.py", submodule_search_locations=[str(folder)]
        )


def map_checkout(package: Path) -> None:
    """Make the folders in `MAPPED` importable as subpackages of `mmsr_edge`.

    Args:
        package: folder of `mmsr_edge`; the folders are beside it.

    Raises:
        ImportError: a folder is missing.
    """
    root = package.parent
    missing = [name for name in MAPPED if not (root / name / "__init__.py").is_file()]
    if missing:
        raise ImportError(
            f"mmsr_edge is imported from {str(package)!r}, which is neither installed nor in a "
            f"complete checkout: {', '.join(missing)} must be beside it. "
            "Run `pip install .` in the root of a checkout."
        )
    sys.meta_path.append(_CheckoutFinder(root))
