"""Colour: transfer of the input's colours to the output, and colour differences of pictures.

Diffusion models drift in colour and brightness over large areas. As in StableSR, the output's
detail is kept and everything coarser is taken from the input. This is done once, on the whole
stitched picture, so that drift between tiles is evened out too.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from mmsr_edge.image.blur import gaussian_blur

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt

    Array = npt.NDArray[Any]

__all__ = [
    "FIDELITY_PSNR",
    "HALO",
    "SIGMA",
    "Fidelity",
    "block_means",
    "ciede2000",
    "delta_e00",
    "match_low_frequencies",
    "restore_low_pass",
    "srgb_to_lab",
]

SIGMA = 4.5
"""Standard deviation of the colour fix's low-pass, in LR pixels. StableSR's five-level wavelet has
one of √(½ Σ 4^i, i = 0 … 4) = 13 output pixels, or 3.25 LR pixels at 4x. That brings back some of
a noisy input's noise, which the networks removed (DISTS +.001 to +.002)."""
HALO = int(4 * SIGMA + 0.5) + 3
"""Rows of the reference, above and below a row, that the functions here use at most: the support of
the Gaussian and of bicubic; in `restore_low_pass`, that of bicubic times the rounds."""

FIDELITY_PSNR = 50.0
"""Least PSNR, in dB, peak 1, of the result's block means against the input in fidelity mode.
Quantization to eight bits alone gives 59 dB."""

_BAND_PIXELS = 1 << 18
"""Pixels processed at a time where a temporary of the whole picture would be large."""


def _bands(height: int, width: int, unit: int = 1) -> Iterator[slice]:
    rows = max(_BAND_PIXELS // width // unit, 1) * unit
    return (slice(top, min(top + rows, height)) for top in range(0, height, rows))


def match_low_frequencies(
    output: Array, reference: Array, sigma: float = SIGMA, *, out: Array | None = None
) -> npt.NDArray[np.float32]:
    """Replace the low frequencies of `output` by those of `reference`.

    result = output + up(lowpass(reference − down(output))), where `down` is the mean over each
    pixel's block and `up` is bicubic. The low-pass acts on the reference's own grid, which can
    represent all frequencies of the low-passed difference.

    Args:
        output: RGB [sH, sW, 3] in [−1, 1], s a whole number.
        reference: RGB [H, W, 3] in [−1, 1], the picture that `output` was made from.
        sigma: standard deviation of the Gaussian low-pass in pixels of `reference`.
        out: array for the result. It may be `output` itself, which saves the memory of a second
            picture of that size.

    Returns:
        float32 [sH, sW, 3]; may exceed [−1, 1] slightly where detail meets the end of the range.
    """
    height, width = reference.shape[:2]
    scale = output.shape[0] // height
    if scale < 1 or output.shape != (height * scale, width * scale, 3):
        raise ValueError(
            f"the output {output.shape} is not a whole multiple of the reference {reference.shape}"
        )
    difference = np.empty(reference.shape, np.float32)
    for band in _bands(output.shape[0], output.shape[1], scale):
        rows = slice(band.start // scale, band.stop // scale)
        np.subtract(reference[rows], block_means(output[band], scale), out=difference[rows])
    difference = gaussian_blur(difference, sigma)

    result = np.empty(output.shape, np.float32) if out is None else out
    planes = [Image.fromarray(np.ascontiguousarray(difference[..., c])) for c in range(3)]
    for band in _bands(output.shape[0], output.shape[1]):
        box = (0.0, band.start / scale, float(width), band.stop / scale)
        size = (output.shape[1], band.stop - band.start)
        for channel, plane in enumerate(planes):
            fine = np.asarray(plane.resize(size, Image.Resampling.BICUBIC, box))
            np.add(output[band, :, channel], fine, out=result[band, :, channel])
    return result


def block_means(output: Array, scale: int) -> npt.NDArray[np.float32]:
    """Means over blocks of s x s: [s·H, s·W, C] -> [H, W, C]."""
    # Whole rows, then whole columns: numpy's mean over two short axes takes six times as long.
    rows = output[::scale].astype(np.float32)
    for first in range(1, scale):
        rows += output[first::scale]
    means: npt.NDArray[np.float32] = rows[:, ::scale].copy()
    for first in range(1, scale):
        means += rows[:, first::scale]
    means /= scale**2
    return means


def restore_low_pass(output: Array, reference: Array, rounds: int = 4) -> npt.NDArray[np.float32]:
    """Change `output` so that its block means are `reference`: iterated back-projection.

    Irani & Peleg, *Improving resolution by image registration* (1991), Eq. 4, with the block mean
    as the imaging process and bicubic as the back-projection. The difference that remains after the
    rounds is added evenly to each block; where that exceeds the range, the block's detail is
    reduced.

    Args:
        output: RGB [sH, sW, 3] in [−1, 1], s a whole number.
        reference: RGB [H, W, 3] in [−1, 1].
        rounds: number of back-projections; more of them leave a smaller difference.

    Returns:
        float32 [sH, sW, 3] in [−1, 1].
    """
    scale = output.shape[0] // reference.shape[0]
    size = (output.shape[1], output.shape[0])
    result = output.clip(-1, 1)
    for _ in range(rounds):
        missing = reference - block_means(result, scale)
        for channel in range(3):
            plane = Image.fromarray(np.ascontiguousarray(missing[..., channel]))
            result[..., channel] += np.asarray(plane.resize(size, Image.Resampling.BICUBIC))
        np.clip(result, -1, 1, out=result)
    height, width = reference.shape[:2]
    blocks = result.reshape(height, scale, width, scale, 3)
    blocks -= block_means(result, scale)[:, None, :, None]
    mean = reference[:, None, :, None]
    room = np.minimum(
        (1 - mean) / blocks.max(axis=(1, 3), keepdims=True).clip(1e-6),
        (1 + mean) / (-blocks.min(axis=(1, 3), keepdims=True)).clip(1e-6),
    )
    blocks *= room.clip(0, 1)
    blocks += mean
    return result


class Fidelity:
    """Measures, strip by strip, the PSNR of a result's block means against its input."""

    def __init__(self, reference: Array, scale: int) -> None:
        self._reference, self._scale = reference, scale
        self._row, self._squares = 0, 0.0

    def add(self, strip: Array) -> None:
        """Add rows [n, sW, 3] in [−1, 1], n a multiple of the scale."""
        means = block_means(strip.clip(-1, 1), self._scale)
        rows = slice(self._row, self._row + len(means))
        self._squares += float(((means - self._reference[rows]) ** 2).sum(dtype=np.float64))
        self._row += len(means)

    @property
    def psnr(self) -> float:
        """PSNR of the rows added, in dB, peak 1."""
        count = self._row * self._reference.shape[1] * 3
        return 10 * math.log10(4 / max(self._squares / max(count, 1), 1e-12))


def delta_e00(a: Array, b: Array) -> float:
    """Mean CIEDE2000 colour difference of two pictures of equal size, RGB [H, W, 3] in [−1, 1].

    A difference of about 1 is just visible. Values outside the range are clipped, as they are when
    a picture is saved.
    """
    if a.shape != b.shape:
        raise ValueError(f"pictures of {a.shape} and {b.shape} cannot be compared")
    total = 0.0
    for band in _bands(*a.shape[:2]):
        total += float(ciede2000(srgb_to_lab(a[band]), srgb_to_lab(b[band])).sum())
    return total / float(a.shape[0] * a.shape[1])


# IEC 61966-2-1: linear sRGB to XYZ, and the XYZ of its white, D65 for the 2° observer.
_XYZ = np.array(
    [
        [0.412453, 0.357580, 0.180423],
        [0.212671, 0.715160, 0.072169],
        [0.019334, 0.119193, 0.950227],
    ]
)
_WHITE = np.array([0.95047, 1.0, 1.08883])


def srgb_to_lab(picture: Array) -> npt.NDArray[np.float64]:
    """CIE L*a*b* (D65) [..., 3] of sRGB colours [..., 3] in [−1, 1]."""
    rgb = np.clip(np.asarray(picture, np.float64) * 0.5 + 0.5, 0, 1)
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    xyz = linear @ _XYZ.T / _WHITE
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    x, y, z = f[..., 0], f[..., 1], f[..., 2]
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def ciede2000(lab_1: Array, lab_2: Array) -> npt.NDArray[np.float64]:
    """ΔE00 [...] between two arrays of L*a*b* colours [..., 3].

    Source: Sharma, Wu & Dalal, *The CIEDE2000 Color-Difference Formula: Implementation Notes*
    (2005). The numbers in the comments are those of its equations.
    """
    L_1, a_1, b_1 = np.moveaxis(np.asarray(lab_1, np.float64), -1, 0)
    L_2, a_2, b_2 = np.moveaxis(np.asarray(lab_2, np.float64), -1, 0)

    # (2)-(7): chroma and hue, with a* stretched for colours near grey
    mean = (np.hypot(a_1, b_1) + np.hypot(a_2, b_2)) / 2
    G = 0.5 * (1 - np.sqrt(mean**7 / (mean**7 + 25.0**7)))
    a_1, a_2 = (1 + G) * a_1, (1 + G) * a_2
    C_1, C_2 = np.hypot(a_1, b_1), np.hypot(a_2, b_2)
    h_1, h_2 = np.degrees(np.arctan2(b_1, a_1)) % 360, np.degrees(np.arctan2(b_2, a_2)) % 360

    # (8)-(11): differences; grey has no hue, and hues are compared the short way round
    coloured = C_1 * C_2 != 0
    dh = np.where(coloured, (h_2 - h_1 + 180) % 360 - 180, 0)
    dL, dC = L_2 - L_1, C_2 - C_1
    dH = 2 * np.sqrt(C_1 * C_2) * np.sin(np.radians(dh / 2))

    # (12)-(14): means; that of two hues is on the shorter arc (and has no effect where dH is 0)
    L, C, h = (L_1 + L_2) / 2, (C_1 + C_2) / 2, h_1 + h_2
    h = np.where(np.abs(h_1 - h_2) > 180, h + np.where(h < 360, 360, -360), h) / 2

    # (15)-(21): weights, and the rotation that joins chroma and hue in the blues
    T = (
        1
        - 0.17 * np.cos(np.radians(h - 30))
        + 0.24 * np.cos(np.radians(2 * h))
        + 0.32 * np.cos(np.radians(3 * h + 6))
        - 0.20 * np.cos(np.radians(4 * h - 63))
    )
    S_L = 1 + 0.015 * (L - 50) ** 2 / np.sqrt(20 + (L - 50) ** 2)
    S_C = 1 + 0.045 * C
    S_H = 1 + 0.015 * C * T
    turn = 30 * np.exp(-(((h - 275) / 25) ** 2))
    R_T = -2 * np.sqrt(C**7 / (C**7 + 25.0**7)) * np.sin(np.radians(2 * turn))

    # (22)
    l_term, c_term, h_term = dL / S_L, dC / S_C, dH / S_H
    squared: Array = l_term**2 + c_term**2 + h_term**2 + R_T * c_term * h_term
    return np.sqrt(np.maximum(squared, 0))
