"""Staging: a folder that appears whole or not at all, and work that survives an interruption."""

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
    """A staging folder: the bundle in the making, and what is known of its finished files."""

    folder: Path
    """Holds all of it; gone when the bundle is in its place."""
    journal: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By the name of a finished artifact: `artifact`, with its card, and `notes`."""

    @property
    def root(self) -> Path:
        """Folder of the bundle."""
        return self.folder / "bundle"

    def finish(self, name: str, artifact: Artifact, notes: dict[str, Any]) -> None:
        """Note that an artifact's files are written and measured.

        Args:
            name: what to find it by, the same in every run.
            artifact: with its card.
            notes: JSON that `finished` gives back.
        """
        self.journal[name] = {"artifact": encode(artifact), "notes": notes}
        write_text(self.folder / _JOURNAL, json.dumps(self.journal))

    def finished(self, name: str) -> tuple[Artifact, dict[str, Any]] | None:
        """What `finish` was told; None when it was not, or a file is not what it was then."""
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
    """Context: an empty folder beside `out`, which takes `out`'s place when the block succeeds.

    An older bundle at `out` stays until then; when the block fails, it stays for good.

    Raises:
        OutputError: `out` is something else than a bundle, which would be lost, or its parent
            cannot be written.
    """
    with resumable_bundle(out, secrets.token_hex(8), keep=False) as stage:
        yield stage.root


@contextlib.contextmanager
def resumable_bundle(out: Path, key: str, *, keep: bool = True) -> Iterator[Stage]:
    """As `staged_bundle`, but an interrupted block finds its files again.

    What ends the block by raising one of our errors (a missed gate, a bad option) leaves nothing,
    for it would come again. Anything else (Ctrl-C, a kill, a full memory) leaves the folder, hidden
    beside `out`, to the next run of the same key. A run of another key removes it.

    Args:
        out: where the bundle goes.
        key: 16 hexadecimal digits that stand for all that the files depend on.
        keep: whether to leave anything at all.
    """
    check_replaceable(out)
    stage = Stage(out.parent / f".{out.name}.{key}.part")
    others = re.compile(rf"\.{re.escape(out.name)}\.[0-9a-f]{{16}}\.part")
    try:
        if keep and out.parent.is_dir():
            for folder in sorted(out.parent.iterdir()):
                if not others.fullmatch(folder.name):
                    continue
                if (folder / _OLD).exists() and not out.exists():  # cut off while changing places
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
    """Put a finished bundle in `out`'s place."""
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
