"""Operations that move elements: shapes, slices, joins, padding, look-ups, sorting."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mmsr_edge.converters.mil.arithmetic import cast_type
from mmsr_edge.converters.mil.table import Bools, Ints, Tensors, operation
from mmsr_edge.errors import BackendError

# --- Shapes -------------------------------------------------------------------------------------


@operation()
def shape(x: Tensor) -> Tensor:
    return torch.tensor(x.shape, dtype=torch.int32)


@operation("reshape")
def reshape(x: Tensor, shape: Ints) -> Tensor:
    return x.reshape([x.shape[i] if size == 0 else size for i, size in enumerate(shape)])


@operation()
def transpose(x: Tensor, perm: Ints) -> Tensor:
    return x.permute(perm)


@operation()
def expand_dims(x: Tensor, axes: Ints) -> Tensor:
    rank = x.ndim + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        x = x.unsqueeze(axis)
    return x


@operation()
def squeeze(x: Tensor, axes: Ints | None = None) -> Tensor:
    if axes is None:
        return x.squeeze()
    if any(x.shape[axis] != 1 for axis in axes):
        raise BackendError(f"axes {axes} of shape {list(x.shape)} are not all 1")
    return x.squeeze(tuple(axes))


@operation()
def flatten2d(x: Tensor, axis: int = 1) -> Tensor:
    axis = axis + x.ndim if axis < 0 else axis
    return x.reshape(math.prod(x.shape[:axis]), -1)


@operation()
def tile(x: Tensor, reps: Ints) -> Tensor:
    return x.tile(reps)


@operation()
def reverse(x: Tensor, axes: Ints | None = None) -> Tensor:
    return x.flip(list(range(x.ndim)) if axes is None else axes)


@operation()
def pixel_shuffle(x: Tensor, upscale_factor: int) -> Tensor:
    return F.pixel_shuffle(x, upscale_factor)


@operation()
def pixel_unshuffle(x: Tensor, downscale_factor: int) -> Tensor:
    return F.pixel_unshuffle(x, downscale_factor)


@operation()
def sliding_windows(x: Tensor, axis: int, size: int, stride: int = 1) -> Tensor:
    axis %= x.ndim
    return x.unfold(axis, size, stride).movedim(-1, axis + 1)


# --- Joins and parts ----------------------------------------------------------------------------


@operation()
def concat(values: Tensors, axis: int, interleave: bool = False) -> Tensor:
    if not interleave:
        return torch.cat(values, axis)
    axis %= values[0].ndim
    return torch.stack(values, axis + 1).flatten(axis, axis + 1)


@operation()
def stack(values: Tensors, axis: int) -> Tensor:
    return torch.stack(values, axis)


@operation()
def split(
    x: Tensor, axis: int, num_splits: int | None = None, split_sizes: Ints | None = None
) -> tuple[Tensor, ...]:
    if split_sizes is None:
        split_sizes = [x.shape[axis] // (num_splits or 1)] * (num_splits or 1)
    return tuple(x.split(split_sizes, axis))


@operation()
def slice_by_index(
    x: Tensor,
    begin: Ints,
    end: Ints,
    stride: Ints | None = None,
    begin_mask: Bools | None = None,
    end_mask: Bools | None = None,
    squeeze_mask: Bools | None = None,
) -> Tensor:
    no = [False] * x.ndim
    begin_mask, end_mask, squeeze_mask = begin_mask or no, end_mask or no, squeeze_mask or no
    single = []
    for axis, step in enumerate(stride or [1] * x.ndim):
        if squeeze_mask[axis]:
            index = [begin[axis] % x.shape[axis]]
            single.append(axis)
        else:
            first = None if begin_mask[axis] else begin[axis]
            last = None if end_mask[axis] else end[axis]
            index = list(range(x.shape[axis]))[first:last:step]
        x = x.index_select(axis, torch.tensor(index, dtype=torch.int64))
    return x.squeeze(tuple(single)) if single else x


@operation()
def slice_by_size(x: Tensor, begin: Ints, size: Ints) -> Tensor:
    for axis, (first, count) in enumerate(zip(begin, size, strict=True)):
        first = first + x.shape[axis] if first < 0 else first
        x = x.narrow(axis, first, x.shape[axis] - first if count == -1 else count)
    return x


@operation("pad")
def pad(x: Tensor, pad: Ints, mode: str = "constant", constant_val: float = 0.0) -> Tensor:
    """Pad the last axes; `pad` has (before, after) for each, outermost axis first."""
    modes: dict[str, Any] = {"reflect": "reflect", "replicate": "edge"}
    for i in range(len(pad) // 2):
        axis = x.ndim - len(pad) // 2 + i
        before, after = pad[2 * i : 2 * i + 2]
        if mode == "constant":
            x = F.pad(x, [0, 0] * (x.ndim - 1 - axis) + [before, after], value=constant_val)
        elif mode in modes:
            index = np.pad(np.arange(x.shape[axis]), (before, after), mode=modes[mode])
            x = x.index_select(axis, torch.from_numpy(index))
        else:
            raise BackendError(f"mode {mode!r} is not supported by the interpreter")
    return x


# --- Look-ups -----------------------------------------------------------------------------------


def _wrap(indices: Tensor, size: int) -> Tensor:
    """Convert negative indices, which count from the end, and check the range."""
    indices = indices.long()
    if indices.numel() and (int(indices.min()) < -size or int(indices.max()) >= size):
        raise BackendError(
            f"an index in [{int(indices.min())}, {int(indices.max())}] is outside of {size}"
        )
    return torch.where(indices < 0, indices + size, indices)


@operation()
def gather(
    x: Tensor, indices: Tensor, axis: int = 0, batch_dims: int = 0, validate_indices: bool = False
) -> Tensor:
    del validate_indices  # indices are always validated
    axis %= x.ndim
    indices = _wrap(indices, x.shape[axis])
    if batch_dims == 0:
        picked = x.index_select(axis, indices.flatten())
        return picked.reshape(*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])
    batch = x.shape[:batch_dims]
    pairs = zip(x.flatten(0, batch_dims - 1), indices.flatten(0, batch_dims - 1), strict=True)
    rows = [gather(part, index, axis - batch_dims) for part, index in pairs]
    return torch.stack(rows).unflatten(0, batch)


@operation()
def gather_along_axis(
    x: Tensor, indices: Tensor, axis: int = 0, validate_indices: bool = False
) -> Tensor:
    del validate_indices
    return x.gather(axis, _wrap(indices, x.shape[axis]))


@operation()
def gather_nd(
    x: Tensor, indices: Tensor, batch_dims: int = 0, validate_indices: bool = False
) -> Tensor:
    del validate_indices
    if batch_dims:
        batch = x.shape[:batch_dims]
        pairs = zip(x.flatten(0, batch_dims - 1), indices.flatten(0, batch_dims - 1), strict=True)
        return torch.stack([gather_nd(part, index) for part, index in pairs]).unflatten(0, batch)
    return x[_along_axes(x, indices)]


def _along_axes(x: Tensor, indices: Tensor) -> tuple[Tensor, ...]:
    return tuple(_wrap(index, x.shape[axis]) for axis, index in enumerate(indices.unbind(-1)))


_UPDATES: dict[str, Callable[..., None]] = {
    "add": np.add.at,
    "sub": np.subtract.at,
    "mul": np.multiply.at,
    "div": np.divide.at,
    "max": np.maximum.at,
    "min": np.minimum.at,
}


def _update(data: Tensor, where: tuple[Tensor | slice, ...], updates: Tensor, mode: str) -> Tensor:
    result = data.numpy().copy()
    place = tuple(w.numpy() if isinstance(w, Tensor) else w for w in where)
    if mode == "update":
        result[place] = updates.numpy()
    elif mode in _UPDATES:
        _UPDATES[mode](result, place, updates.numpy())
    else:
        raise BackendError(f"mode {mode!r} is not supported by the interpreter")
    return torch.from_numpy(result)


@operation()
def scatter(
    data: Tensor,
    indices: Tensor,
    updates: Tensor,
    axis: int = 0,
    mode: str = "add",
    validate_indices: bool = False,
) -> Tensor:
    del validate_indices
    axis %= data.ndim
    place = (*[slice(None)] * axis, _wrap(indices, data.shape[axis]))
    return _update(data, place, updates, mode)


@operation()
def scatter_along_axis(
    data: Tensor,
    indices: Tensor,
    updates: Tensor,
    axis: int = 0,
    mode: str = "add",
    validate_indices: bool = False,
) -> Tensor:
    del validate_indices
    axis %= data.ndim
    place = list(torch.meshgrid(*map(torch.arange, indices.shape), indexing="ij"))
    place[axis] = _wrap(indices, data.shape[axis])
    return _update(data, tuple(place), updates, mode)


@operation()
def scatter_nd(
    data: Tensor,
    indices: Tensor,
    updates: Tensor,
    mode: str = "add",
    validate_indices: bool = False,
) -> Tensor:
    del validate_indices
    return _update(data, _along_axes(data, indices), updates, mode)


# --- Constructed arrays -------------------------------------------------------------------------


@operation("fill")
def fill(shape: Ints, value: Tensor | None = None) -> Tensor:
    return torch.zeros(shape) if value is None else value.expand(shape)


@operation()
def fill_like(ref_tensor: Tensor, value: Tensor | None = None) -> Tensor:
    return fill(list(ref_tensor.shape), value)


@operation()
def range_1d(end: Tensor, start: Tensor, step: Tensor) -> Tensor:
    return torch.arange(start.item(), end.item(), step.item(), dtype=end.dtype)


@operation()
def one_hot(
    indices: Tensor,
    one_hot_vector_size: int,
    axis: int = -1,
    on_value: Tensor | None = None,
    off_value: Tensor | None = None,
) -> Tensor:
    hot = F.one_hot(indices.long(), one_hot_vector_size).movedim(-1, axis).bool()
    on = torch.tensor(1, dtype=torch.int32) if on_value is None else on_value
    off = torch.tensor(0, dtype=on.dtype) if off_value is None else off_value
    return torch.where(hot, on, off)


@operation()
def non_zero(x: Tensor) -> Tensor:
    return x.nonzero().int()


@operation()
def band_part(x: Tensor, lower: int = -1, upper: int = -1) -> Tensor:
    """Keep a band of each matrix: `lower` diagonals below the main one, `upper` above; -1: all."""
    rows, columns = x.shape[-2:]
    above = torch.arange(columns) - torch.arange(rows)[:, None]
    inside = torch.ones(rows, columns, dtype=torch.bool)
    if lower >= 0:
        inside &= above >= -lower
    if upper >= 0:
        inside &= above <= upper
    return torch.where(inside, x, torch.zeros((), dtype=x.dtype))


@operation()
def topk(
    x: Tensor,
    k: int = 1,
    axis: int = -1,
    ascending: bool = False,
    sort: bool = True,
    return_indices: bool = True,
    output_indices_dtype: str = "int32",
) -> tuple[Tensor, ...]:
    """The `k` largest (`ascending`: smallest) elements; equal ones keep their order."""
    del sort  # without it any order is allowed, sorted as well
    k = x.shape[axis] if k == -1 else k
    values, indices = x.sort(dim=axis, descending=not ascending, stable=True)
    parts = (
        values.narrow(axis, 0, k),
        indices.narrow(axis, 0, k).to(cast_type(output_indices_dtype)),
    )
    return parts if return_indices else parts[:1]


@operation()
def argsort(x: Tensor, axis: int = -1, ascending: bool = False) -> Tensor:
    return x.argsort(dim=axis, descending=not ascending, stable=True).int()
