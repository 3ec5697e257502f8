"""Compressed constants and quantized values: affine, palettes, sparse; forms of iOS 16 and 18."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from mmsr_edge.converters.mil.arithmetic import cast_type
from mmsr_edge.converters.mil.blobs import unpack_bits
from mmsr_edge.converters.mil.table import Ints, operation
from mmsr_edge.errors import BackendError


def _along(vector: Tensor | None, rank: int, axis: int | None) -> Tensor | float:
    """Broadcast a scale or zero point along `axis`; a scalar stays, None becomes 0."""
    if vector is None:
        return 0.0
    if vector.ndim == 0 or axis is None:
        return vector.float()
    axis %= rank
    return vector.float().reshape([-1 if i == axis else 1 for i in range(rank)])


@operation()
def constexpr_affine_dequantize(
    quantized_data: Tensor, zero_point: Tensor, scale: Tensor, axis: int
) -> Tensor:
    """Compute scale·(q − zero point)."""
    return dequantize(quantized_data, scale, zero_point, axis)


@operation()
def constexpr_blockwise_shift_scale(
    data: Tensor, scale: Tensor, offset: Tensor | None = None
) -> Tensor:
    """Compute scale·(q − offset), with one scale and one offset per block."""
    blocks = [d // s for d, s in zip(data.shape, scale.shape, strict=True)]

    def spread(t: Tensor) -> Tensor:
        for axis, block in enumerate(blocks):
            t = t.repeat_interleave(block, axis)
        return t.float()

    return spread(scale) * (data.float() - (0.0 if offset is None else spread(offset)))


@operation("constexpr_lut_to_dense")
def constexpr_lut_to_dense(
    indices: Tensor, lut: Tensor, shape: Ints | None = None, vector_axis: int | None = None
) -> Tensor:
    """Look up palettes. iOS 16: one palette, packed indices and `shape`. iOS 18: one per block."""
    if shape is not None:
        bits = int(math.log2(lut.numel()))
        packed = indices.numpy()
        if packed.size != math.ceil(bits * math.prod(shape) / 8):
            raise BackendError(f"{packed.size} bytes do not hold {shape} indices of {bits} bits")
        return lut[torch.from_numpy(unpack_bits(packed, bits, math.prod(shape))).long()].reshape(
            shape
        )
    if lut.shape[-1] != 1 or vector_axis is not None:
        raise BackendError("palettes of vectors are not supported by the interpreter")
    table = lut[..., 0]
    for axis, size in enumerate(indices.shape):
        table = table.repeat_interleave(size // table.shape[axis], axis)
    return table.gather(-1, indices.long()[..., None])[..., 0]


@operation("constexpr_sparse_to_dense")
def constexpr_sparse_to_dense(
    nonzero_data: Tensor, mask: Tensor, shape: Ints | None = None
) -> Tensor:
    """Place values where a mask is set. iOS 16: mask of bits, with `shape`. iOS 18: of elements."""
    bits = mask.numpy()
    if shape is not None:
        bits = np.unpackbits(bits, count=math.prod(shape), bitorder="little").reshape(shape)
    here = torch.from_numpy(bits.astype(bool))
    if int(here.sum()) != nonzero_data.numel():
        raise BackendError(f"{nonzero_data.numel()} values for a mask of {int(here.sum())}")
    dense = torch.zeros(here.shape, dtype=nonzero_data.dtype)
    dense[here] = nonzero_data
    return dense


@operation()
def constexpr_cast(source_val: Tensor, output_dtype: str) -> Tensor:
    return source_val.to(cast_type(output_dtype))


@operation()
def dequantize(
    input: Tensor,  # noqa: A002 - MIL's name
    scale: Tensor,
    zero_point: Tensor | None = None,
    axis: int | None = None,
) -> Tensor:
    rank = input.ndim
    return _along(scale, rank, axis) * (input.float() - _along(zero_point, rank, axis))


@operation()
def quantize(
    input: Tensor,  # noqa: A002 - MIL's name
    scale: Tensor,
    output_dtype: str,
    zero_point: Tensor | None = None,
    axis: int | None = None,
) -> Tensor:
    rank, dtype = input.ndim, cast_type(output_dtype)
    steps = torch.round(input / _along(scale, rank, axis)) + _along(zero_point, rank, axis)
    limits = torch.iinfo(dtype)
    return steps.clamp(limits.min, limits.max).to(dtype)
