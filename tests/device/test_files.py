"""Atomic writes: complete or not at all, with two writers and after failures."""

from __future__ import annotations

import csv
import os
import threading
from pathlib import Path

import pytest

from mmsr_edge.errors import Cancelled, OutputError
from mmsr_edge.files import replacing, write_csv, write_text


def test_two_writers_do_not_mix(tmp_path: Path) -> None:
    """Both write at the same time, each first in every other round; one complete file is left."""
    path, errors = tmp_path / "out.bin", list[BaseException]()
    both = threading.Barrier(2)

    def write(number: int, byte: bytes) -> None:
        try:
            with replacing(path) as file:
                for turn in range(128):
                    both.wait(timeout=30)
                    if (turn // 2 + turn) % 2 == number:
                        file.write(byte * 4096)
                        file.flush()
        except BaseException as error:  # must reach the main thread
            both.abort()
            errors.append(error)

    threads = [threading.Thread(target=write, args=args) for args in enumerate((b"a", b"b"))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert path.read_bytes() in (b"a" * 64 * 4096, b"b" * 64 * 4096)
    assert [entry.name for entry in tmp_path.iterdir()] == ["out.bin"]


def test_the_draft_is_synced_before_it_replaces_the_target(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    happened: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def synced(descriptor: int) -> None:
        happened.append("fsync")
        fsync(descriptor)

    def replaced(draft: Path, target: Path) -> Path:
        happened.append("replace")
        return replace(draft, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", replaced)
    write_text(tmp_path / "a.txt", "grün\n")
    assert happened == ["fsync", "replace"]
    assert (tmp_path / "a.txt").read_bytes() == "grün\n".encode()


@pytest.mark.parametrize("error", [Cancelled("stop"), MemoryError(), KeyboardInterrupt()])
def test_a_failure_leaves_the_old_file(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "a.txt"
    path.write_text("before")

    def fail() -> None:
        with replacing(path) as file:
            file.write(b"half")
            raise error

    with pytest.raises(type(error)):
        fail()
    assert path.read_text() == "before"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.txt"]


def test_other_failures_name_the_file(tmp_path: Path) -> None:
    with (
        pytest.raises(OutputError, match=r"a\.txt cannot be written: too odd"),
        replacing(tmp_path / "a.txt"),
    ):
        raise ValueError("too odd")
    with pytest.raises(OutputError, match="cannot be written"):
        write_text(tmp_path / "missing" / "a.txt", "")
    assert list(tmp_path.iterdir()) == []


def test_a_table_has_every_column_once(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    write_csv(path, [{"a": 1, "b": "x,y"}, {"b": 'say "z"', "c": 3}])
    with path.open(newline="") as file:
        assert list(csv.DictReader(file)) == [
            {"a": "1", "b": "x,y", "c": ""},
            {"a": "", "b": 'say "z"', "c": "3"},
        ]
