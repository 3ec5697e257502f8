"""Colour: give the output the input's colours, and measure how far apart two pictures are.

Diffusion models drift in colour and brightness over large areas. The remedy that StableSR found is
to keep the output's detail and take everything coarser from the input. It is done once, on the
whole stitched picture, so that it also evens out what drift there is between tiles.
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
"""Cut-off in low-resolution pixels. StableSR's five-level wavelet has a low-pass of standard
deviation √(½ Σ 4^i, i = 0 … 4) = 13 output pixels, 3.25 of these at 4x; that lets some of a noisy
input's noise through again, which the networks took out (DISTS +.001 to +.002)."""
HALO = int(4 * SIGMA + 0.5) + 3
"""Rows of the reference, above and below a row of it, that the functions here look at at most:
the Gaussian's and bicubic's; of `restore_low_pass`, bicubic's times its rounds."""

FIDELITY_PSNR = 50.0
"""In dB, peak 1: how near in fidelity mode the result, averaged over the block of each pixel of
the input, comes to the input at least. A rounding to eight bits is 59."""

_BAND_PIXELS = 1 << 18
"""Pixels worked on at a time where a whole-picture temporary would be large."""


def _bands(height: int, width: int, unit: int = 1) -> Iterator[slice]:
    rows = max(_BAND_PIXELS // width // unit, 1) * unit
    return (slice(top, min(top + rows, height)) for top in range(0, height, rows))


def match_low_frequencies(
    output: Array, reference: Array, sigma: float = SIGMA, *, out: Array | None = None
) -> npt.NDArray[np.float32]:
    """Replace the low frequencies of `output` by those of `reference`.

    result = output + up(lowpass(reference − down(output))): the low-pass acts on the reference's
    own grid, where `down` is the mean over each pixel's block and `up` is bicubic; the low-passed
    difference has nothing that this grid cannot hold.

    Args:
        output: RGB [sH, sW, 3] in [−1, 1], s a whole number.
        reference: RGB [H, W, 3] in [−1, 1], the picture that `output` was made from.
        sigma: standard deviation of the Gaussian low-pass in pixels of `reference`.
        out: where to put the result; may be `output` itself, and then no second picture of that
            size is ever held.

    Returns:
        float32 [sH, sW, 3]; may leave [−1, 1] slightly where detail meets the end of the range.
    """
    height, width = reference.shape[:2]
    scale = output.shape[0] // height
    if scale < 1 or output.shape != (height * scale, width * scale, 3):
        raise ValueError(
            f"an output of {output.shape} is no whole multiple of the reference {reference.shape}"
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
    """[s·H, s·W, C] averaged over blocks of s x s: [H, W, C]."""
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
    """Change `output` so that averaged over blocks it is `reference`: iterated back-projection.

    Irani & Peleg, *Improving resolution by image registration* (1991), Eq. 4, with the block mean
    as the imaging process and bicubic as the back-projection. What is left after the rounds is
    added evenly to each block, and where that leaves the range, the detail within it is reduced.

    Args:
        output: RGB [sH, sW, 3] in [−1, 1], s a whole number.
        reference: RGB [H, W, 3] in [−1, 1].
        rounds: of back-projection; more leave less to be added evenly.

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
    """Measures, strip by strip, how near the block means of a result come to its input."""

    def __init__(self, reference: Array, scale: int) -> None:
        self._reference, self._scale = reference, scale
        self._row, self._squares = 0, 0.0

    def add(self, strip: Array) -> None:
        """Count rows [n, sW, 3] in [−1, 1], n a multiple of the scale."""
        means = block_means(strip.clip(-1, 1), self._scale)
        rows = slice(self._row, self._row + len(means))
        self._squares += float(((means - self._reference[rows]) ** 2).sum(dtype=np.float64))
        self._row += len(means)

    @property
    def psnr(self) -> float:
        """In dB, peak 1, of what was counted."""
        count = self._row * self._reference.shape[1] * 3
        return 10 * math.log10(4 / max(self._squares / max(count, 1), 1e-12))


def delta_e00(a: Array, b: Array) -> float:
    """Mean CIEDE2000 colour difference of two pictures of one size, RGB [H, W, 3] in [−1, 1].

    About 1 is the least difference an eye can see. Values outside the range are clipped, as they
    are when a picture is saved.
    """
    if a.shape != b.shape:
        raise ValueError(f"pictures of {a.shape} and {b.shape} cannot be compared")
    total = 0.0
    for band in _bands(*a.shape[:2]):
        total += float(ciede2000(srgb_to_lab(a[band]), srgb_to_lab(b[band])).sum())
    return total / float(a.shape[0] * a.shape[1])


# IEC 61966-2-1: linear sRGB to XYZ, and the XYZ of its white, D65 seen by the 2° observer.
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

    Written after Sharma, Wu & Dalal, *The CIEDE2000 Color-Difference Formula: Implementation
    Notes* (2005); the numbers are its equations.
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

    # (12)-(14): means; that of two hues lies on the shorter arc (and matters not where dH is 0)
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
