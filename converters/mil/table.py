"""Table of operations, and the call of an operation.

An operation is a function whose parameters have MIL's names. Their annotations set the form of the
arguments. A parameter that the function lacks is an error, because its effect would be missing from
the result.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias, get_type_hints

from torch import Tensor

from mmsr_edge.converters.mil.values import Value
from mmsr_edge.errors import BackendError

Ints: TypeAlias = list[int]
Bools: TypeAlias = list[bool]
Tensors: TypeAlias = list[Tensor]
Kernel: TypeAlias = "Callable[..., Tensor | tuple[Tensor, ...]]"

OPERATIONS: dict[str, Kernel] = {}
"""Operations, by MIL's name."""
_FORMS: dict[str, dict[str, Any]] = {}


def operation(*names: str) -> Callable[[Kernel], Kernel]:
    """Decorator that adds a function to the table, under its own name or under `names`."""

    def enter(kernel: Kernel) -> Kernel:
        for name in names or (kernel.__name__.removesuffix("_"),):
            OPERATIONS[name] = kernel
            hints = get_type_hints(kernel)
            parameters = inspect.signature(kernel).parameters
            _FORMS[name] = {key: hints[key] for key in parameters}
        return kernel

    return enter


def call(name: str, inputs: Mapping[str, Sequence[Value]]) -> tuple[Tensor, ...]:
    """Run an operation.

    Args:
        name: key of `OPERATIONS`.
        inputs: values by parameter; several values where MIL takes a tuple.

    Returns:
        The results, with floats as float32 and indices as int32 or int64.

    Raises:
        BackendError: the program passes a parameter that is not supported.
    """
    forms = _FORMS[name]
    unknown = sorted(set(inputs) - set(forms))
    if unknown:
        raise BackendError(f"its inputs {unknown} are not supported by the interpreter")
    arguments = {key: _convert(forms[key], values) for key, values in inputs.items()}
    result = OPERATIONS[name](**arguments)
    return result if isinstance(result, tuple) else (result,)


def _convert(form: Any, values: Sequence[Value]) -> Any:
    if form == list[Tensor]:
        return [_widen(value) for value in values]
    (value,) = values
    if isinstance(value, str):
        return value
    for wanted, convert in (
        (bool, lambda t: bool(t.item())),
        (int, lambda t: int(t.item())),
        (float, lambda t: float(t.item())),
        (list[int], lambda t: [int(v) for v in t.flatten().tolist()]),
        (list[bool], lambda t: [bool(v) for v in t.flatten().tolist()]),
    ):
        if form in (wanted, wanted | None):
            return convert(value)
    return _widen(value)


def _widen(value: Value) -> Value:
    """Convert float16 to float32: operations compute at float32, and only results are rounded."""
    half = isinstance(value, Tensor) and value.dtype.itemsize == 2 and value.is_floating_point()
    return value.float() if half else value  # type: ignore[union-attr]
