"""Staging: bundles that appear whole or not at all, and exports that survive an interruption."""

from __future__ import annotations

import contextlib
import json
import re
import secrets
import shutil
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mmsr_edge.bundle.folder import MANIFEST_NAME, describe_file
from mmsr_edge.bundle.records import decode, encode
from mmsr_edge.bundle.specs import Artifact
from mmsr_edge.errors import MMSRError, OutputError
from mmsr_edge.files import write_text

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_JOURNAL = "journal.json"
_OLD = "old"


@dataclass
class Stage:
    """A staging folder: an unfinished bundle, and a journal of its finished artifacts."""

    folder: Path
    """The staging folder; it is removed once the bundle is in place."""
    journal: dict[str, dict[str, Any]] = field(default_factory=dict)
    """`artifact` (with its parity card) and `notes` of each finished artifact, by name."""

    @property
    def root(self) -> Path:
        """Folder of the unfinished bundle."""
        return self.folder / "bundle"

    def finish(self, name: str, artifact: Artifact, notes: dict[str, Any]) -> None:
        """Record that an artifact's files are written and measured.

        Args:
            name: key of the artifact, the same in every run.
            artifact: the artifact, with its parity card.
            notes: JSON values that `finished` returns.
        """
        self.journal[name] = {"artifact": encode(artifact), "notes": notes}
        write_text(self.folder / _JOURNAL, json.dumps(self.journal))

    def finished(self, name: str) -> tuple[Artifact, dict[str, Any]] | None:
        """Artifact and notes from `finish`; None if there are none, or a file has changed since."""
        entry = self.journal.get(name)
        if entry is None:
            return None
        try:
            artifact = decode(Artifact, entry["artifact"])
            intact = all(describe_file(self.root, f.path) == f for f in artifact.files)
            return (artifact, entry["notes"]) if intact else None
        except (MMSRError, OSError, KeyError):
            return None


@contextlib.contextmanager
def staged_bundle(out: Path) -> Iterator[Path]:
    """Context manager: an empty folder beside `out`, which replaces `out` if the block succeeds.

    An older bundle at `out` stays until then, and is kept if the block fails.

    Raises:
        OutputError: `out` is not a bundle, so it is not replaced; or its parent cannot be written.
    """
    with resumable_bundle(out, secrets.token_hex(8), keep=False) as stage:
        yield stage.root


@contextlib.contextmanager
def resumable_bundle(out: Path, key: str, *, keep: bool = True) -> Iterator[Stage]:
    """Context manager like `staged_bundle`, but the files of an interrupted block can be reused.

    An `MMSRError` (a missed gate, a bad option) removes the staging folder, since it would recur.
    Any other end (Ctrl-C, a kill, lack of memory) leaves the folder, hidden beside `out`, for the
    next run with the same key. A run with another key removes it.

    Args:
        out: folder of the bundle.
        key: 16 hexadecimal digits that identify everything the files depend on.
        keep: whether an interruption leaves the staging folder.
    """
    check_replaceable(out)
    stage = Stage(out.parent / f".{out.name}.{key}.part")
    others = re.compile(rf"\.{re.escape(out.name)}\.[0-9a-f]{{16}}\.part")
    try:
        if keep and out.parent.is_dir():
            for folder in sorted(out.parent.iterdir()):
                if not others.fullmatch(folder.name):
                    continue
                if (folder / _OLD).exists() and not out.exists():  # interrupted in `_put`
                    (folder / _OLD).rename(out)
                if folder != stage.folder:
                    shutil.rmtree(folder)
        stage.root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot create {str(stage.folder)!r}: {error}") from error
    with contextlib.suppress(OSError, ValueError):
        stage.journal = json.loads((stage.folder / _JOURNAL).read_text("utf-8"))
    try:
        yield stage
        _put(stage.root, out, stage.folder / _OLD)
    except BaseException as error:
        if not keep or isinstance(error, MMSRError):
            shutil.rmtree(stage.folder, ignore_errors=True)
        raise
    shutil.rmtree(stage.folder, ignore_errors=True)


def _put(made: Path, out: Path, old: Path) -> None:
    """Move a finished bundle from `made` to `out`; a previous bundle is moved to `old`."""
    check_replaceable(out)
    try:
        if out.exists():
            out.rename(old)
        try:
            made.rename(out)
        except OSError:
            if old.exists():
                old.rename(out)
            raise
    except OSError as error:
        raise OutputError(f"cannot write {str(out)!r}: {error}") from error


def check_replaceable(out: Path) -> None:
    """Check that `out` may be replaced: it is absent, empty or a bundle.

    Raises:
        OutputError: `out` is something else.
    """
    if not out.exists() or (out / MANIFEST_NAME).is_file():
        return
    if not out.is_dir() or any(out.iterdir()):
        raise OutputError(
            f"{str(out)!r} exists and is not a bundle ({MANIFEST_NAME} is missing), so it is not "
            "replaced; give another folder"
        )
