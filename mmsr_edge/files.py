"""Atomic writes: a file appears whole or not at all."""

from __future__ import annotations

import contextlib
import csv
import io
import os
import secrets
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from mmsr_edge.errors import MMSRError, OutputError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

__all__ = ["replacing", "write_csv", "write_text"]


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Context manager: a binary file that replaces `path` in one step at the end of the block.

    The draft is in the target's folder under a random name, so that two writers of one file never
    share a draft; the last to finish wins. The draft is on the disk (fsync) before the rename. On
    failure the draft is removed, and an existing file is untouched.

    Args:
        path: the target. A symbolic link is followed: the file that it points to is replaced.

    Raises:
        OutputError: the file cannot be written. An `MMSRError` raised by the block, `MemoryError`
            and `KeyboardInterrupt` pass unchanged.
    """
    target = Path(os.path.realpath(path))
    # In the same folder, since a rename is atomic only within a file system.
    draft = target.with_name(f".{secrets.token_hex(8)}.part")
    try:
        with draft.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        draft.replace(target)
    except BaseException as error:
        with contextlib.suppress(OSError):
            draft.unlink()
        if not isinstance(error, Exception) or isinstance(error, (MMSRError, MemoryError)):
            raise
        raise OutputError(f"{path} cannot be written: {error}") from error


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write `text` in one step, as UTF-8 and with its line ends unchanged.

    Raises:
        OutputError: the file cannot be written.
    """
    with replacing(path) as file:
        file.write(text.encode())


def write_csv(path: str | os.PathLike[str], rows: Sequence[Mapping[str, object]]) -> None:
    """Write a table in one step: a header of all keys in order of first use, and a line per row.

    Raises:
        OutputError: the file cannot be written.
    """
    columns = dict.fromkeys(column for row in rows for column in row)
    text = io.StringIO(newline="")
    table = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    write_text(path, text.getvalue())
