"""Types and constants of a program, from protobuf to torch tensors.

Integers that torch lacks or computes little with are held wider: what a program does with them
(counting, indexing) is the same there.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mmsr_edge.errors import BundleError

Value: TypeAlias = "Tensor | str"
"""What an operation takes or gives."""
Load: TypeAlias = "Callable[[str, int, str, int], NDArray[Any]]"
"""Reads a blob: file name, offset, element type, element count."""

DTYPES: dict[str, torch.dtype] = {
    "BOOL": torch.bool,
    "FLOAT16": torch.float16,
    "FLOAT32": torch.float32,
    "INT4": torch.int8,
    "INT8": torch.int8,
    "INT16": torch.int16,
    "INT32": torch.int32,
    "UINT1": torch.uint8,
    "UINT2": torch.uint8,
    "UINT3": torch.uint8,
    "UINT4": torch.uint8,
    "UINT6": torch.uint8,
    "UINT8": torch.uint8,
    "UINT16": torch.int32,
    "UINT32": torch.int64,
}
"""How each element type is held."""

_PACKED = {
    "FLOAT16": "<f2",
    "INT8": "<i1",
    "UINT8": "<u1",
    "INT16": "<i2",
    "UINT16": "<u2",
    "UINT32": "<u4",
}
"""Types that an immediate value gives as bytes, where there are any."""


@dataclass(frozen=True)
class ValueType:
    """Element type and shape, as a program declares them."""

    element: str
    """MIL's name; STRING has no shape."""
    shape: tuple[int, ...] = ()

    @property
    def dtype(self) -> torch.dtype:
        """How its elements are held."""
        return DTYPES[self.element]

    def __str__(self) -> str:
        return f"{self.element.lower()} {list(self.shape)}"


def value_type(proto: Any) -> ValueType:
    """Decode a `ValueType` message.

    Raises:
        BundleError: it is no tensor of a known element type and fixed shape.
    """
    from coremltools.proto import MIL_pb2

    kind = proto.WhichOneof("type")
    if kind != "tensorType":
        raise BundleError(f"a value is a {kind}; only tensors are interpreted")
    element = MIL_pb2.DataType.Name(proto.tensorType.dataType)
    if element not in DTYPES and element != "STRING":
        raise BundleError(f"a tensor has elements of type {element}, which are not interpreted")
    dimensions = proto.tensorType.dimensions
    if any(d.WhichOneof("dimension") != "constant" for d in dimensions):
        raise BundleError("a tensor has a flexible shape; only static shapes are interpreted")
    return ValueType(element, tuple(d.constant.size for d in dimensions))


def constant(proto: Any, load: Load) -> Value:
    """Decode a `Value` message, with its elements from the weights file where they are there.

    Raises:
        BundleError: its elements are not what its type says.
    """
    declared = value_type(proto.type)
    count = math.prod(declared.shape)
    if proto.WhichOneof("value") == "blobFileValue":
        blob = proto.blobFileValue
        array = load(blob.fileName, blob.offset, declared.element, count)
    else:
        tensor = proto.immediateValue.tensor
        field = tensor.WhichOneof("value")
        if declared.element == "STRING":
            return str(tensor.strings.values[0])
        values: Any = getattr(tensor, field).values if field else []
        packed = _PACKED.get(declared.element, "<u1")
        array = np.frombuffer(values, packed) if field == "bytes" else np.array(values)
    if array.size != count:
        raise BundleError(f"a constant has {array.size} elements, its type says {declared}")
    return torch.tensor(array.reshape(declared.shape)).to(declared.dtype)
