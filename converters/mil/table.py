"""The table of operations, and how one is called.

An operation is a function whose parameters bear MIL's own names; their annotations say in which
form it wants them. One that a program gives and the function lacks is an error: whatever it asks
for would be left out of the result.
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
"""By MIL's name of the operation."""
_FORMS: dict[str, dict[str, Any]] = {}


def operation(*names: str) -> Callable[[Kernel], Kernel]:
    """Enter a function into the table, under its own name or under `names`."""

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
        inputs: by parameter, one value or, where MIL takes a tuple, several.

    Returns:
        Its results, floats as float32 and indices as int32 or int64.

    Raises:
        BackendError: the program gives it an input that is not known here.
    """
    forms = _FORMS[name]
    unknown = sorted(set(inputs) - set(forms))
    if unknown:
        raise BackendError(f"its inputs {unknown} are not known to the interpreter")
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
    """Arithmetic is done at float32; what is rounded to float16 is what an operation gives."""
    half = isinstance(value, Tensor) and value.dtype.itemsize == 2 and value.is_floating_point()
    return value.float() if half else value  # type: ignore[union-attr]
