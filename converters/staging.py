"""Staging: a folder that appears whole or not at all."""

from __future__ import annotations

import contextlib
import secrets
import shutil
from typing import TYPE_CHECKING

from mmsr_edge.bundle import MANIFEST_NAME
from mmsr_edge.errors import OutputError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextlib.contextmanager
def staged_bundle(out: Path) -> Iterator[Path]:
    """Context: an empty folder beside `out`, which takes `out`'s place when the block succeeds.

    An older bundle at `out` stays until then; when the block fails, it stays for good.

    Raises:
        OutputError: `out` is something else than a bundle, which would be lost, or its parent
            cannot be written.
    """
    check_replaceable(out)
    token = secrets.token_hex(4)
    part = out.parent / f".{out.name}.{token}.part"
    old = out.parent / f".{out.name}.{token}.old"
    try:
        part.mkdir(parents=True)
    except OSError as error:
        raise OutputError(f"cannot create {str(part)!r}: {error}") from error
    try:
        yield part
        check_replaceable(out)
        if out.exists():
            out.rename(old)
        try:
            part.rename(out)
        except OSError as error:
            if old.exists():
                old.rename(out)
            raise OutputError(f"cannot write {str(out)!r}: {error}") from error
    finally:
        for folder in (part, old):
            shutil.rmtree(folder, ignore_errors=True)


def check_replaceable(out: Path) -> None:
    """Check that nothing is lost when `out` is replaced: it is absent, empty or a bundle.

    Raises:
        OutputError: it is something else.
    """
    if not out.exists() or (out / MANIFEST_NAME).is_file():
        return
    if not out.is_dir() or any(out.iterdir()):
        raise OutputError(
            f"{str(out)!r} exists and is no bundle ({MANIFEST_NAME} is missing), so it is not "
            "replaced; give another folder"
        )
