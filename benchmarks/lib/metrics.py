"""Full-reference metrics of two pictures: PSNR-Y, SSIM-Y, LPIPS and DISTS; and the colour shift.

LPIPS and DISTS are networks in ONNX files outside of this repository, in one folder:

    lpips_alex.onnx        a, b -> distance
    vgg_dists_lpips.onnx   a, b -> dists, lpips (VGG)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from skimage.metrics import structural_similarity

from lib.iqa import PREFIX, load_metrics
from mmsr_edge.image.color import block_means, delta_e00

Picture = NDArray[np.uint8]
"""RGB picture, uint8 [H, W, 3]."""

COLUMNS = ("mse_y", "psnr_y", "ssim_y", "lpips", "lpips_vgg", "dists", "niqe", "shift_e00")
"""Columns of measurements, in table order; of PSNR and SSIM, higher is better."""


def measured(row: Mapping[str, object]) -> list[str]:
    """Columns of a row that are measurements, in table order."""
    return [*(c for c in COLUMNS if c in row), *(c for c in row if c.startswith(PREFIX))]


def luma(picture: Picture) -> NDArray[np.float64]:
    """Y of ITU-R BT.601 in the studio range [16, 235], as in super-resolution papers."""
    return 16 + picture.astype(np.float64) @ np.array([65.481, 128.553, 24.966]) / 255


def mse_y(a: Picture, b: Picture, border: int = 4) -> float:
    """Mean square difference of luma, without `border` pixels on each side."""
    inner = np.s_[border:-border, border:-border]
    return float(np.mean((luma(a)[inner] - luma(b)[inner]) ** 2))


def psnr_y(a: Picture, b: Picture, border: int = 4) -> float:
    """10·log10(255² / MSE) of luma in dB, without `border` pixels on each side."""
    error = mse_y(a, b, border)
    return float("inf") if error == 0 else float(10 * np.log10(255**2 / error))


def ssim_y(a: Picture, b: Picture, border: int = 4) -> float:
    """SSIM of luma with an 11×11 Gaussian window of σ = 1.5 (Wang et al. 2004)."""
    inner = np.s_[border:-border, border:-border]
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    return float(structural_similarity(luma(a)[inner], luma(b)[inner], data_range=255, **options))


def shift_e00(picture: Picture, lr: Picture, side: int = 8) -> float:
    """Colour shift: mean ΔE00 between a result and its input, both averaged over squares.

    Without the averages, the noise removed from the input would count as a shift.

    Args:
        picture: result [s·H, s·W, 3].
        lr: input [H, W, 3].
        side: side of a square in input pixels; incomplete squares at the ends are ignored.
    """
    scale = len(picture) // len(lr)
    side = min(side, *lr.shape[:2])
    height, width = (n // side * side for n in lr.shape[:2])
    small = block_means(lr[:height, :width] / 127.5 - 1, side)
    large = block_means(picture[: height * scale, : width * scale] / 127.5 - 1, side * scale)
    return delta_e00(large, small)


def _network(path: Path) -> Callable[[Picture, Picture], list[float]]:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def run(a: Picture, b: Picture) -> list[float]:
        def feed(p: Picture) -> NDArray[np.float32]:
            return (p.astype(np.float32) / 127.5 - 1).transpose(2, 0, 1)[None]

        return [float(v[0]) for v in session.run(None, {"a": feed(a), "b": feed(b)})]

    return run


class Metrics:
    """Full-reference metrics, by column name.

    Args:
        folder: folder of the metric networks; None: PSNR and SSIM only.
        vgg: whether to run the VGG network (DISTS, LPIPS-VGG), which takes ten times as long.
        others: names of further metrics of the package `pyiqa`.
    """

    def __init__(
        self, folder: Path | None, *, vgg: bool = True, others: Sequence[str] = ()
    ) -> None:
        self.others = load_metrics(others)
        self.alex = _network(folder / "lpips_alex.onnx") if folder else None
        self.vgg = _network(folder / "vgg_dists_lpips.onnx") if folder and vgg else None

    def __call__(self, picture: Picture, reference: Picture) -> dict[str, float]:
        """Measure `picture` against `reference`, both uint8 [H, W, 3] of one size."""
        values = {"psnr_y": psnr_y(picture, reference), "ssim_y": ssim_y(picture, reference)}
        if self.alex:
            (values["lpips"],) = self.alex(picture, reference)
        if self.vgg:
            values["dists"], values["lpips_vgg"] = self.vgg(picture, reference)
        for column, measure in self.others.items():
            values[column] = measure(picture, reference)
        return values
