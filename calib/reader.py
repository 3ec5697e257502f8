"""Calibration sets: recorded inputs of components, in one .npz file."""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmsr_edge.errors import OptionError, OutputError
from mmsr_edge.files import replacing

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Iterator, Mapping

    from numpy.typing import NDArray

    Array = NDArray[Any]
    Feeds = dict[str, Array]

_NOTES = "notes"
HELD_OUT = 8
"""Maximum number of a component's inputs held out of calibration, to measure parity on."""


@dataclass(frozen=True, eq=False)
class CalibrationSet:
    """Recorded inputs, in the order of the pipeline's calls."""

    inputs: Mapping[str, Mapping[str, Array]]
    """Arrays [N, ...] of N calls by component and input; float16 or int64."""
    notes: Mapping[str, Any]
    """Settings of the recording, as a JSON object."""

    @classmethod
    def stack(
        cls, calls: Mapping[str, Iterable[Feeds]], notes: Mapping[str, Any]
    ) -> CalibrationSet:
        """Build a set from each component's calls, which have a batch of 1.

        Floats are stored as float16, which halves the file and is finer than any int8 step.

        Raises:
            OptionError: a recorded number is not finite, or too large for float16.
        """
        inputs: dict[str, dict[str, Array]] = {}
        for component, feeds in calls.items():
            columns = list(feeds)
            inputs[component] = {
                name: _narrow(f"{component}/{name}", np.concatenate([c[name] for c in columns]))
                for name in (columns[0] if columns else ())
            }
        return cls(inputs, dict(notes))

    def count(self, component: str) -> int:
        """Number of recorded calls of a component."""
        columns = self.inputs.get(component, {})
        return min((len(column) for column in columns.values()), default=0)

    def calls(self, component: str, rows: Iterable[int] | None = None) -> Iterator[Feeds]:
        """A component's calls as feeds with a batch of 1, floats as float32.

        Args:
            component: name of the component; one that was not recorded has no calls.
            rows: indices of the calls; None: all.
        """
        for row in range(self.count(component)) if rows is None else rows:
            yield {
                name: column[row : row + 1].astype(
                    np.float32 if column.dtype == np.float16 else column.dtype
                )
                for name, column in self.inputs[component].items()
            }

    def calibration(self, component: str) -> list[Feeds]:
        """Calls to calibrate on: all but those held out."""
        count = self.count(component)
        return list(self.calls(component, range(max(count - _held_out(count), min(count, 1)))))

    def held_out(self, component: str) -> list[Feeds]:
        """Calls to measure on: the last quarter, at least 1 and at most `HELD_OUT`."""
        count = self.count(component)
        return list(self.calls(component, range(count - _held_out(count), count)))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the set atomically.

        Raises:
            OutputError: the file cannot be written.
        """
        path = Path(path)
        arrays: dict[str, Any] = {
            f"{component}/{name}": column
            for component, columns in self.inputs.items()
            for name, column in columns.items()
        }
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"cannot write {str(path)!r}: {error}") from error
        with replacing(path) as file:
            np.savez_compressed(file, **{_NOTES: np.array(json.dumps(self.notes)), **arrays})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> CalibrationSet:
        """Read a set.

        Raises:
            OptionError: the file does not exist, or is no calibration set.
        """
        inputs: dict[str, dict[str, Array]] = {}
        try:
            with np.load(path, allow_pickle=False) as arrays:
                notes = json.loads(str(arrays[_NOTES]))
                for key in arrays.files:
                    if key != _NOTES:
                        component, name = key.split("/")
                        inputs.setdefault(component, {})[name] = arrays[key]
        except FileNotFoundError:
            raise OptionError(f"calibration set {str(path)!r} does not exist") from None
        except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
            raise OptionError(
                f"{str(path)!r} is no calibration set ({error}); record one with "
                "python -m mmsr_edge.calib.record"
            ) from None
        return cls(inputs, notes)


def _held_out(count: int) -> int:
    return min(HELD_OUT, max(count // 4, min(count, 1)))


def _narrow(name: str, values: Array) -> Array:
    if values.dtype.kind != "f":
        return values
    with np.errstate(over="ignore"):
        narrow = values.astype(np.float16)
    if not np.isfinite(narrow).all():
        raise OptionError(f"recorded {name} reaches {np.abs(values).max()}, beyond float16's range")
    return narrow
