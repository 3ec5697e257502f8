"""The one atomic write: a file that appears whole or not at all."""

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
    """A binary file to fill, which takes the place of `path` in one step when the block is left.

    The draft lies in the target's folder under a random name, so that two writers of one file never
    share a draft; the last to finish wins. The draft is on the disk before the rename (fsync). On
    failure nothing is left behind, and a file that was there before is untouched.

    Args:
        path: the target. A symbolic link is followed: the file that it points to is replaced.

    Raises:
        OutputError: the file cannot be written. Errors of our family that the block raises, and
            `MemoryError` and `KeyboardInterrupt`, pass as they are.
    """
    target = Path(os.path.realpath(path))
    # In the same folder, since a rename is one step within a file system only.
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
    """Write `text` as UTF-8 with Unix line ends, as `replacing` does.

    Raises:
        OutputError: the file cannot be written.
    """
    with replacing(path) as file:
        file.write(text.encode())


def write_csv(path: str | os.PathLike[str], rows: Sequence[Mapping[str, object]]) -> None:
    """Write a table: a header of all keys in the order of their first use, then a line per row.

    Raises:
        OutputError: the file cannot be written.
    """
    columns = dict.fromkeys(column for row in rows for column in row)
    text = io.StringIO(newline="")
    table = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    write_text(path, text.getvalue())
