"""Checks of an option's value: type, range and name. Each raises `OptionError` with the value."""

from __future__ import annotations

import difflib
import math
import operator
from typing import TYPE_CHECKING, Any

import numpy as np

from mmsr_edge.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["check_integer", "check_names", "check_number", "check_text"]


def check_names(what: str, given: Mapping[str, Any], known: tuple[str, ...]) -> None:
    """Raise `OptionError` for a name that is not in `known`, and suggest the nearest."""
    for name in given:
        if name not in known:
            nearest = difflib.get_close_matches(str(name), known, n=1, cutoff=0.0)[0]
            raise OptionError(
                f"unknown {what} {name!r}; did you mean {nearest!r}? Choose from {', '.join(known)}"
            )


def check_text(name: str, value: object) -> None:
    """Raise `OptionError` unless `value` is a string or None."""
    if value is not None and not isinstance(value, str):
        raise OptionError(f"{name} is {value!r}; it must be a string or None")


def check_integer(name: str, value: object, low: int, high: int | None) -> None:
    """Raise `OptionError` unless `value` is an integer from `low` to `high` (None: no limit)."""
    wanted = f"an integer from {low}" + (" up" if high is None else f" to {high}")
    try:
        if isinstance(value, (bool, np.bool_)):
            raise TypeError
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise OptionError(f"{name} is {value!r}; it must be {wanted}") from None
    if number < low or (high is not None and number > high):
        raise OptionError(f"{name} is {number}; it must be {wanted}")


def check_number(name: str, value: object, allowed: tuple[float, float]) -> None:
    """Raise `OptionError` unless `value` is a finite number in the interval `allowed`."""
    low, high = allowed
    wanted = f"a number from {low:g} to {high:g}"
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, float, np.number)):
        raise OptionError(f"{name} is {value!r}; it must be {wanted}")
    if not (math.isfinite(value) and low <= value <= high):
        raise OptionError(f"{name} is {value}; it must be {wanted}")
