"""Types and constants of a program, decoded from protobuf to torch tensors.

Integer types that torch lacks, or supports in part, are held in wider types; counting and indexing
give the same results.
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
"""Input or output of an operation."""
Load: TypeAlias = "Callable[[str, int, str, int], NDArray[Any]]"
"""Function that reads a blob, from file name, offset, element type and element count."""

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
"""Torch type that holds each element type, by MIL's name."""

_PACKED = {
    "FLOAT16": "<f2",
    "INT8": "<i1",
    "UINT8": "<u1",
    "INT16": "<i2",
    "UINT16": "<u2",
    "UINT32": "<u4",
}
"""numpy types of immediate values that are stored as bytes."""


@dataclass(frozen=True)
class ValueType:
    """Declared element type and shape of a value."""

    element: str
    """MIL's name of the element type."""
    shape: tuple[int, ...] = ()
    """Static shape; () for STRING."""

    @property
    def dtype(self) -> torch.dtype:
        """Torch type of the elements."""
        return DTYPES[self.element]

    def __str__(self) -> str:
        return f"{self.element.lower()} {list(self.shape)}"


def value_type(proto: Any) -> ValueType:
    """Decode a `ValueType` message.

    Raises:
        BundleError: the value is no tensor, or its element type or shape is not supported.
    """
    from coremltools.proto import MIL_pb2

    kind = proto.WhichOneof("type")
    if kind != "tensorType":
        raise BundleError(f"a value is a {kind}; only tensors are supported")
    element = MIL_pb2.DataType.Name(proto.tensorType.dataType)
    if element not in DTYPES and element != "STRING":
        raise BundleError(f"a tensor has elements of type {element}, which are not supported")
    dimensions = proto.tensorType.dimensions
    if any(d.WhichOneof("dimension") != "constant" for d in dimensions):
        raise BundleError("a tensor has a flexible shape; only static shapes are supported")
    return ValueType(element, tuple(d.constant.size for d in dimensions))


def constant(proto: Any, load: Load) -> Value:
    """Decode a `Value` message; elements may be in the message or in the weights file.

    Raises:
        BundleError: the number of elements does not fit the declared type.
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
        raise BundleError(f"a constant has {array.size} elements, declared is {declared}")
    return torch.tensor(array.reshape(declared.shape)).to(declared.dtype)
