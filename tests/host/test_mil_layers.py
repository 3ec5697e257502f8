"""The interpreter's layers and compressed constants, against torch and coremltools."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from mil_factory import assert_close, run, tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    pass


# --- Layers -------------------------------------------------------------------------------------


def test_convolutions() -> None:
    x, weight, bias = tensor(1, 4, 9, 8), tensor(6, 2, 3, 3, seed=1), tensor(6, seed=2)
    got = run("conv", x=x, weight=weight, bias=bias, strides=[2, 1], pad_type="custom",
              pad=[1, 1, 2, 2], dilations=[1, 2], groups=2)  # fmt: skip
    assert_close(got, F.conv2d(x, weight, bias, (2, 1), (1, 2), (1, 2), 2))
    uneven = run("conv", x=x, weight=weight, pad_type="custom", pad=[0, 1, 2, 0], groups=2)
    assert_close(uneven, F.conv2d(F.pad(x, (2, 0, 0, 1)), weight, groups=2))
    # The output has ⌈size/stride⌉ elements; an odd element of padding goes after, or before.
    same = {"x": x, "weight": weight, "groups": 2, "strides": [2, 2]}
    after = run("conv", **same, pad_type="same")
    assert after.shape[2:] == (5, 4)
    assert_close(after, F.conv2d(F.pad(x, (0, 1, 1, 1)), weight, None, 2, groups=2))
    before = run("conv", **same, pad_type="same_lower")
    assert_close(before, F.conv2d(F.pad(x, (1, 0, 1, 1)), weight, None, 2, groups=2))
    line, kernel = tensor(2, 3, 7), tensor(5, 3, 2, seed=3)
    assert_close(run("conv", x=line, weight=kernel), F.conv1d(line, kernel))


def test_transposed_convolutions() -> None:
    x, weight, bias = tensor(1, 4, 5, 6), tensor(4, 3, 4, 3, seed=1), tensor(6, seed=2)
    common = {"x": x, "weight": weight, "bias": bias, "strides": [2, 3], "groups": 2}
    got = run("conv_transpose", **common, pad_type="custom", pad=[1, 1, 0, 0])
    assert_close(got, F.conv_transpose2d(x, weight, bias, (2, 3), (1, 0), 0, 2))
    longer = F.conv_transpose2d(x, weight, bias, (2, 3), (1, 0), (1, 2), 2)
    got = run("conv_transpose", **common, pad_type="custom", pad=[1, 1, 0, 0],
              output_shape=list(longer.shape))  # fmt: skip
    assert_close(got, longer)


@pytest.mark.parametrize("ceil_mode", [True, False])
def test_pools(ceil_mode: bool) -> None:
    x = tensor(1, 2, 8, 9)
    common = {"x": x, "kernel_sizes": [3, 3], "strides": [2, 2], "pad_type": "custom",
              "pad": [1, 1, 1, 1], "ceil_mode": ceil_mode}  # fmt: skip
    assert_close(run("max_pool", **common), F.max_pool2d(x, 3, 2, 1, 1, ceil_mode))
    for counted in (True, False):
        got = run("avg_pool", **common, exclude_padding_from_average=not counted)
        assert_close(got, F.avg_pool2d(x, 3, 2, 1, ceil_mode, counted))


def test_norms() -> None:
    x, gamma, beta = tensor(2, 3, 4, 5), tensor(3, seed=1), tensor(3, seed=2)
    mean, variance = tensor(3, seed=3), tensor(3, seed=4).abs()
    got = run("batch_norm", x=x, mean=mean, variance=variance, gamma=gamma, beta=beta, epsilon=0.1)
    assert_close(got, F.batch_norm(x, mean, variance, gamma, beta, eps=0.1))
    got = run("instance_norm", x=x, gamma=gamma, beta=beta, epsilon=0.1)
    assert_close(got, F.instance_norm(x, weight=gamma, bias=beta, eps=0.1))
    weight, bias = tensor(4, 5, seed=1), tensor(4, 5, seed=2)
    got = run("layer_norm", x=x, axes=[-2, -1], gamma=weight, beta=bias, epsilon=0.1)
    assert_close(got, F.layer_norm(x, (4, 5), weight, bias, 0.1))
    # Over the channels, with γ and β per channel.
    got = run("layer_norm", x=x, axes=[1], gamma=gamma, beta=beta)
    assert_close(got, F.layer_norm(x.movedim(1, -1), (3,), gamma, beta).movedim(-1, 1))
    norm = x.square().sum((1, 2, 3), keepdim=True).add(1e-6).sqrt()
    assert_close(run("l2_norm", x=x), x / norm)


@pytest.mark.parametrize(
    ("mode", "points"),
    [  # coremltools' own examples, of two points 0 and 1
        ("UNALIGN_CORNERS", [0, 0.1, 0.5, 0.9, 1]),
        ("STRICT_ALIGN_CORNERS", [0, 0.25, 0.5, 0.75, 1]),
        ("ALIGN_CORNERS", [0, 0.25, 0.5, 0.75, 1]),
        ("DEFAULT", [0, 0.4, 0.8, 1, 1]),
        ("OFFSET_CORNERS", [0.1, 0.3, 0.5, 0.7, 0.9]),
    ],
)
def test_sampling_modes(mode: str, points: list[float]) -> None:
    x = torch.tensor([[[[0.0, 1.0]]]])
    got = run("resize_bilinear", x=x, target_size_height=1, target_size_width=5, sampling_mode=mode)
    assert_close(got[0, 0, 0], points)
    got = run("resize", x=x, shape=[1, 5], resized_dims=2, sampling_mode=mode)
    assert_close(got[0, 0, 0], points)


def test_resizing_is_that_of_torch() -> None:
    x = tensor(1, 2, 5, 7)
    size = {"target_size_height": 8, "target_size_width": 3}
    for align, mode in ((True, "STRICT_ALIGN_CORNERS"), (False, "UNALIGN_CORNERS")):
        expected = F.interpolate(x, (8, 3), mode="bilinear", align_corners=align)
        assert_close(run("resize_bilinear", x=x, **size, sampling_mode=mode), expected)
        twice = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=align)
        scales = {"scale_factor_height": 2.0, "scale_factor_width": 2.0}
        assert_close(run("upsample_bilinear", x=x, **scales, align_corners=align), twice)
    assert_close(run("resize_nearest_neighbor", x=x, **size), F.interpolate(x, (8, 3)))
    got = run("upsample_nearest_neighbor", x=x, scale_factor_height=2, scale_factor_width=3)
    assert_close(got, x.repeat_interleave(2, 2).repeat_interleave(3, 3))


@pytest.mark.parametrize("align", [True, False])
@pytest.mark.parametrize(("edges", "name"), [("constant", "zeros"), ("border", "border")])
def test_resampling_is_that_of_torch(align: bool, edges: str, name: str) -> None:
    x, grid = tensor(2, 3, 5, 6), 1.3 * tensor(2, 4, 4, 2, seed=1).clamp(-1, 1)
    common = {"x": x, "padding_mode": edges, "padding_value": 0.0, "align_corners": align,
              "sampling_mode": "bilinear"}  # fmt: skip
    expected = F.grid_sample(x, grid, "bilinear", name, align)
    got = run(
        "resample", **common, coordinates=grid, coordinates_mode="normalized_minus_one_to_one"
    )
    assert_close(got, expected)
    half = (grid + 1) / 2
    got = run("resample", **common, coordinates=half, coordinates_mode="normalized_zero_to_one")
    assert_close(got, expected)
    size = torch.tensor([6, 5])
    pixels = half * (size - 1) if align else half * size - 0.5
    got = run("resample", **common, coordinates=pixels, coordinates_mode="unnormalized")
    assert_close(got, expected)


# --- Compressed constants, against coremltools' own decompression -------------------------------


def test_compressed_constants_are_those_of_coremltools() -> None:
    pytest.importorskip("coremltools")
    from coremltools.converters.mil.mil.ops.defs.iOS16 import constexpr_ops as old
    from coremltools.converters.mil.mil.ops.defs.iOS18 import compression as new
    from coremltools.optimize import _utils as packing

    rng = np.random.default_rng(0)
    codes, scale = rng.integers(-127, 128, (4, 6)).astype(np.int8), rng.random(4, np.float32)
    zero = rng.integers(-5, 5, 4).astype(np.int8)
    affine = {"quantized_data": codes, "zero_point": zero, "scale": scale, "axis": np.int32(0)}
    expected = old.constexpr_affine_dequantize.decompress(*affine.values())
    got = run("constexpr_affine_dequantize", **{k: torch.tensor(v) for k, v in affine.items()})
    assert_close(got, expected)
    for bits in (1, 2, 4, 6, 8):
        lut = rng.random(2**bits, np.float32)
        indices = rng.integers(0, 2**bits, (3, 5)).astype(np.uint8)
        packed = packing.pack_elements_into_bits(indices.flatten(), bits)
        got = run("constexpr_lut_to_dense", indices=torch.tensor(packed), lut=torch.tensor(lut),
                  shape=[3, 5])  # fmt: skip
        assert_close(got, lut[indices])
    groups = rng.random((2, 1, 4, 1), np.float32)
    indices = rng.integers(0, 4, (6, 2)).astype(np.uint8)
    expected = new.constexpr_lut_to_dense.decompress(indices, groups, None)
    got = run("constexpr_lut_to_dense", indices=torch.tensor(indices), lut=torch.tensor(groups))
    assert_close(got, expected)
    blocks, offset = rng.random((2, 3), np.float32), rng.integers(-3, 3, (2, 3)).astype(np.int8)
    expected = new.constexpr_blockwise_shift_scale.decompress(codes, blocks, offset)
    got = run("constexpr_blockwise_shift_scale", data=torch.tensor(codes),
              scale=torch.tensor(blocks), offset=torch.tensor(offset))  # fmt: skip
    assert_close(got, expected)
    mask = np.packbits([1, 0, 0, 1, 1, 0], bitorder="little")
    got = run("constexpr_sparse_to_dense", nonzero_data=torch.tensor([1.0, 2.0, 3.0]),
              mask=torch.tensor(mask), shape=[2, 3])  # fmt: skip
    assert got.tolist() == [[1, 0, 0], [2, 3, 0]]


def test_quantization_rounds_and_saturates() -> None:
    x = torch.tensor([[-100.0, 0.26], [0.74, 100.0]])
    settings = {"scale": torch.tensor([0.5, 0.25]), "axis": 1,
                "zero_point": torch.tensor([1, -1], dtype=torch.int8)}  # fmt: skip
    codes = run("quantize", input=x, output_dtype="int8", **settings)
    assert codes.tolist() == [[-128, 0], [2, 127]]
    assert run("dequantize", input=codes, **settings).tolist() == [[-64.5, 0.25], [0.5, 32.0]]
