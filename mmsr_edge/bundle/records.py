"""Records: strict conversion of frozen dataclasses to and from JSON.

Unknown keys, missing keys and values of the wrong type are errors that name the place, such as
`components.unet.artifacts[0].precision`. Supported field types are dataclasses, `tuple[X, ...]`,
`dict[str, X]`, `Literal[...]`, `X | None`, `str`, `int`, `float`, `bool` and `Any` (plain JSON).
"""

from __future__ import annotations

import dataclasses
import difflib
import types
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from mmsr_edge.errors import BundleError

T = TypeVar("T")


def decode(cls: type[T], data: object, where: str = "") -> T:
    """Build the dataclass `cls` from parsed JSON.

    Args:
        cls: a dataclass. `data` may lack a field that has a default.
        data: a value from `json.loads`.
        where: place of `data` in the document, for messages.

    Raises:
        BundleError: `data` does not have the form of `cls`.
    """
    if not isinstance(data, dict):
        raise _mismatch(where, data, "an object")
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in data:
        if key not in fields:
            near = difflib.get_close_matches(str(key), fields, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(fields)}"
            raise BundleError(f"{_join(where, key)}: unknown key; {hint}")
    hints = get_type_hints(cls)
    values: dict[str, Any] = {}
    for name, field in fields.items():
        if name in data:
            values[name] = _decode_value(hints[name], data[name], _join(where, name))
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise BundleError(f"{_join(where, name)}: missing; {cls.__name__} needs it")
    try:
        return cls(**values)
    except BundleError as error:
        raise BundleError(f"{where}: {error}" if where else str(error)) from None


def encode(value: object) -> Any:
    """The JSON form of a dataclass, recursively: objects, arrays and scalars."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: encode(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): encode(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [encode(item) for item in value]
    return value


def _decode_value(hint: Any, value: Any, where: str) -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        (inner,) = (argument for argument in arguments if argument is not type(None))
        return _decode_value(inner, value, where)
    if origin is Literal:
        if value not in arguments:
            raise _mismatch(where, value, "one of " + ", ".join(map(repr, arguments)))
        return value
    if origin is tuple:
        if not isinstance(value, list):
            raise _mismatch(where, value, "an array")
        return tuple(_decode_value(arguments[0], v, f"{where}[{i}]") for i, v in enumerate(value))
    if origin is dict:
        if not isinstance(value, dict):
            raise _mismatch(where, value, "an object")
        return {k: _decode_value(arguments[1], v, _join(where, k)) for k, v in value.items()}
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return decode(hint, value, where)
    # bool is an int in Python, but not in JSON; an int is accepted as a float.
    accepted = {float: (int, float), int: (int,), str: (str,), bool: (bool,)}[hint]
    if not isinstance(value, accepted) or (isinstance(value, bool) and hint is not bool):
        raise _mismatch(where, value, f"a value of type {hint.__name__}")
    try:
        return hint(value)
    except OverflowError:  # an integer beyond every float
        raise _mismatch(where, value, "a smaller number") from None


def _mismatch(where: str, value: object, expected: str) -> BundleError:
    shown = repr(value)
    shown = shown if len(shown) <= 80 else shown[:77] + "..."
    return BundleError(f"{where or 'document'}: got {shown}, expected {expected}")


def _join(where: str, key: object) -> str:
    return f"{where}.{key}" if where else str(key)
