"""Operations of layers: convolutions, pools, norms, resizing."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from mmsr_edge.converters.mil.table import Ints, operation
from mmsr_edge.errors import BackendError

_CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
_AVERAGES = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
_MAXIMA = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}


# --- Convolutions -------------------------------------------------------------------------------


def _padding(
    pad_type: str, pad: Ints | None, sizes: Ints, kernel: Ints, strides: Ints
) -> list[tuple[int, int]]:
    """Padding (before, after) along each spatial axis; `kernel` includes the dilation."""
    if pad_type == "valid":
        return [(0, 0)] * len(sizes)
    if pad_type == "custom":
        pad = pad or [0, 0] * len(sizes)
        return list(zip(pad[::2], pad[1::2], strict=True))
    if pad_type not in ("same", "same_lower"):
        raise BackendError(f"pad_type {pad_type!r} is not supported by the interpreter")
    pairs = []
    for size, k, s in zip(sizes, kernel, strides, strict=True):
        # The output gets ⌈size/stride⌉ elements; "same_lower" puts an odd element before.
        total = max(0, (math.ceil(size / s) - 1) * s + k - size)
        less, more = total // 2, total - total // 2
        pairs.append((less, more) if pad_type == "same" else (more, less))
    return pairs


def _pad(x: Tensor, pairs: list[tuple[int, int]], value: float = 0.0) -> Tensor:
    flat = [side for pair in reversed(pairs) for side in pair]
    return F.pad(x, flat, value=value) if any(flat) else x


def _per_channel(vector: Tensor, rank: int) -> Tensor:
    return vector.reshape(-1, *[1] * (rank - 2))


@operation()
def conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    strides: Ints | None = None,
    pad_type: str = "valid",
    pad: Ints | None = None,
    dilations: Ints | None = None,
    groups: int = 1,
) -> Tensor:
    n = x.ndim - 2
    strides, dilations = strides or [1] * n, dilations or [1] * n
    kernel = [(k - 1) * d + 1 for k, d in zip(weight.shape[2:], dilations, strict=True)]
    pairs = _padding(pad_type, pad, list(x.shape[2:]), kernel, strides)
    if all(before == after for before, after in pairs):
        symmetric = [before for before, _ in pairs]
        return _CONVOLUTIONS[n](x, weight, bias, strides, symmetric, dilations, groups)
    return _CONVOLUTIONS[n](_pad(x, pairs), weight, bias, strides, 0, dilations, groups)


@operation()
def conv_transpose(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    pad: Ints | None = None,
    output_shape: Ints | None = None,
    pad_type: str = "valid",
    strides: Ints | None = None,
    dilations: Ints | None = None,
    groups: int = 1,
) -> Tensor:
    """Compute the full transposed convolution and crop it by `pad`."""
    n = x.ndim - 2
    strides, dilations = strides or [1] * n, dilations or [1] * n
    whole = _TRANSPOSED[n](x, weight, None, strides, 0, 0, groups, dilations)
    if pad_type == "custom":
        pairs = list(zip((pad or [0] * 2 * n)[::2], (pad or [0] * 2 * n)[1::2], strict=True))
    elif pad_type == "valid":
        pairs = [(0, 0)] * n
    else:
        raise BackendError(f"pad_type {pad_type!r} is not supported by the interpreter")
    for i, (before, after) in enumerate(pairs):
        axis = 2 + i
        size = whole.shape[axis] - before - after
        size = size if output_shape is None else output_shape[axis]
        kept = whole.narrow(axis, before, min(size, whole.shape[axis] - before))
        # Beyond the reach of the kernel, the output is filled with zeros.
        lacking = size - kept.shape[axis]
        whole = _pad(kept, [(0, lacking if j == i else 0) for j in range(n)])
    return whole if bias is None else whole + _per_channel(bias, x.ndim)


# --- Pools --------------------------------------------------------------------------------------


def _pool_padding(
    x: Tensor, kernel: Ints, strides: Ints, pad_type: str, pad: Ints | None, ceil_mode: bool
) -> tuple[list[tuple[int, int]], list[int]]:
    """Padding, and how far the last window extends beyond it (ceil_mode), by axis."""
    sizes = list(x.shape[2:])
    pairs = _padding(pad_type, pad, sizes, kernel, strides)
    beyond = []
    for size, (before, after), k, s in zip(sizes, pairs, kernel, strides, strict=True):
        room = size + before + after - k
        count = math.ceil(room / s) + 1
        if (count - 1) * s >= size + before and (before or after):
            count -= 1
        beyond.append(max(0, (count - 1) * s - room) if ceil_mode else 0)
    return pairs, beyond


@operation()
def avg_pool(
    x: Tensor,
    kernel_sizes: Ints,
    strides: Ints | None = None,
    pad_type: str = "valid",
    pad: Ints | None = None,
    exclude_padding_from_average: bool = False,
    ceil_mode: bool = False,
) -> Tensor:
    """Average each window over the elements that count."""
    n = x.ndim - 2
    strides = strides or [1] * n
    pairs, beyond = _pool_padding(x, kernel_sizes, strides, pad_type, pad, ceil_mode)
    reach = [(0, extra) for extra in beyond]
    counted = torch.ones_like(x[:1, :1])
    counted = _pad(_pad(counted, pairs, 0.0 if exclude_padding_from_average else 1.0), reach)
    mean, share = (
        _AVERAGES[n](t, kernel_sizes, strides) for t in (_pad(_pad(x, pairs), reach), counted)
    )
    return mean / share


@operation()
def max_pool(
    x: Tensor,
    kernel_sizes: Ints,
    strides: Ints | None = None,
    pad_type: str = "valid",
    pad: Ints | None = None,
    ceil_mode: bool = False,
) -> Tensor:
    n = x.ndim - 2
    strides = strides or [1] * n
    pairs, beyond = _pool_padding(x, kernel_sizes, strides, pad_type, pad, ceil_mode)
    pairs = [(before, after + extra) for (before, after), extra in zip(pairs, beyond, strict=True)]
    return _MAXIMA[n](_pad(x, pairs, -math.inf), kernel_sizes, strides)


# --- Norms --------------------------------------------------------------------------------------


@operation()
def batch_norm(
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    epsilon: float = 1e-5,
) -> Tensor:
    def spread(vector: Tensor) -> Tensor:
        return _per_channel(vector, x.ndim)

    y = (x - spread(mean)) / torch.sqrt(spread(variance) + epsilon)
    y = y if gamma is None else y * spread(gamma)
    return y if beta is None else y + spread(beta)


@operation()
def instance_norm(
    x: Tensor, gamma: Tensor | None = None, beta: Tensor | None = None, epsilon: float = 1e-5
) -> Tensor:
    y = _standardize(x, list(range(2, x.ndim)), epsilon)
    y = y if gamma is None else y * _per_channel(gamma, x.ndim)
    return y if beta is None else y + _per_channel(beta, x.ndim)


@operation()
def layer_norm(
    x: Tensor,
    axes: Ints | None = None,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    epsilon: float = 1e-5,
) -> Tensor:
    """Normalize over `axes`; γ and β have the shape of these axes."""
    normalized = sorted(axis % x.ndim for axis in (axes or range(x.ndim)))
    broadcast = [x.shape[axis] if axis in normalized else 1 for axis in range(x.ndim)]
    y = _standardize(x, normalized, epsilon)
    y = y if gamma is None else y * gamma.reshape(broadcast)
    return y if beta is None else y + beta.reshape(broadcast)


def _standardize(x: Tensor, axes: Ints, epsilon: float) -> Tensor:
    variance, mean = torch.var_mean(x, axes, correction=0, keepdim=True)
    return (x - mean) / torch.sqrt(variance + epsilon)


@operation()
def l2_norm(x: Tensor, epsilon: float = 1e-6) -> Tensor:
    """Normalize by the L2 norm over the last three axes together."""
    return x / torch.sqrt(x.square().sum((-3, -2, -1), keepdim=True) + epsilon)


# --- Resizing -----------------------------------------------------------------------------------


def _grid(size: int, target: int, mode: str) -> Tensor:
    """Positions [target] of the samples along an axis of `size` points."""
    i = torch.arange(target, dtype=torch.float64)
    if mode in ("STRICT_ALIGN_CORNERS", "ALIGN_CORNERS"):
        points = i * (size - 1) / max(target - 1, 1)
        if target == 1 and mode == "ALIGN_CORNERS":
            points = points + (size - 1) / 2
    elif mode == "DEFAULT":
        points = i * size / target
    elif mode == "OFFSET_CORNERS":
        points = (i + 0.5) * max(1, size - 1) / target
    elif mode == "UNALIGN_CORNERS":
        points = (i + 0.5) * size / target - 0.5
    else:
        raise BackendError(f"sampling_mode {mode!r} is not supported by the interpreter")
    return points.clamp(0, size - 1)


def _interpolate(x: Tensor, axis: int, target: int, mode: str) -> Tensor:
    points = _grid(x.shape[axis], target, mode)
    low = points.floor().long()
    high = (low + 1).clamp(max=x.shape[axis] - 1)
    share = (points - low).to(x.dtype).reshape(-1, *[1] * (-axis - 1))
    return torch.lerp(x.index_select(axis, low), x.index_select(axis, high), share)


def _nearest(x: Tensor, axis: int, target: int) -> Tensor:
    index = torch.arange(target) * x.shape[axis] // target
    return x.index_select(axis, index)


@operation()
def upsample_nearest_neighbor(
    x: Tensor, scale_factor_height: float = 1, scale_factor_width: float = 1
) -> Tensor:
    height = math.floor(x.shape[-2] * scale_factor_height)
    return _nearest(_nearest(x, -2, height), -1, math.floor(x.shape[-1] * scale_factor_width))


@operation()
def resize_nearest_neighbor(x: Tensor, target_size_height: int, target_size_width: int) -> Tensor:
    return _nearest(_nearest(x, -2, target_size_height), -1, target_size_width)


@operation()
def upsample_bilinear(
    x: Tensor,
    scale_factor_height: float = 1,
    scale_factor_width: float = 1,
    align_corners: bool = True,
) -> Tensor:
    height = math.floor(x.shape[-2] * scale_factor_height)
    width = math.floor(x.shape[-1] * scale_factor_width)
    mode = "STRICT_ALIGN_CORNERS" if align_corners else "UNALIGN_CORNERS"
    return _interpolate(_interpolate(x, -2, height, mode), -1, width, mode)


@operation()
def resize_bilinear(
    x: Tensor,
    target_size_height: int = 1,
    target_size_width: int = 1,
    sampling_mode: str = "DEFAULT",
) -> Tensor:
    rows = _interpolate(x, -2, target_size_height, sampling_mode)
    return _interpolate(rows, -1, target_size_width, sampling_mode)


@operation()
def resize(
    x: Tensor,
    shape: Ints,
    resized_dims: int,
    interpolation_mode: str = "LINEAR",
    sampling_mode: str = "DEFAULT",
) -> Tensor:
    for axis in range(-resized_dims, 0):
        target = shape[axis] or x.shape[axis]
        if interpolation_mode == "LINEAR":
            x = _interpolate(x, axis, target, sampling_mode)
        elif interpolation_mode == "NEAREST_NEIGHBOR" and sampling_mode == "DEFAULT":
            x = _nearest(x, axis, target)
        else:
            how = f"{interpolation_mode} at {sampling_mode}"
            raise BackendError(f"resizing by {how} is not supported by the interpreter")
    return x


@operation()
def crop(x: Tensor, crop_height: Ints, crop_width: Ints) -> Tensor:
    """Remove rows (top, bottom) and columns (left, right)."""
    (top, bottom), (left, right) = crop_height, crop_width
    return x[..., top : x.shape[-2] - bottom, left : x.shape[-1] - right]


_EDGES = {"constant": "zeros", "border": "border", "reflection": "reflection"}


@operation()
def resample(
    x: Tensor,
    coordinates: Tensor,
    sampling_mode: str,
    padding_mode: str,
    padding_value: float,
    coordinates_mode: str,
    align_corners: bool,
) -> Tensor:
    """Sample at (x, y) `coordinates` [B, H, W, 2]."""
    if padding_mode not in _EDGES or sampling_mode not in ("bilinear", "nearest"):
        how = f"{sampling_mode!r} with {padding_mode!r} edges"
        raise BackendError(f"resampling by {how} is not supported by the interpreter")
    size = torch.tensor([x.shape[-1], x.shape[-2]])
    grid = coordinates.float()
    if coordinates_mode == "unnormalized":  # pixel indices to the range of grid_sample
        grid = (
            (2 * grid / (size - 1).clamp(min=1) - 1) if align_corners else (2 * grid + 1) / size - 1
        )
    elif coordinates_mode == "normalized_zero_to_one":
        grid = 2 * grid - 1
    elif coordinates_mode != "normalized_minus_one_to_one":
        raise BackendError(
            f"coordinates_mode {coordinates_mode!r} is not supported by the interpreter"
        )
    offset = padding_value if padding_mode == "constant" else 0.0
    sampled = F.grid_sample(
        x - offset, grid, sampling_mode, _EDGES[padding_mode], align_corners=align_corners
    )
    return sampled + offset
