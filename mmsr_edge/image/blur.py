"""Blur: a separable Gaussian in numpy, for edges and for the colour fix."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["gaussian_blur"]


def gaussian_blur(picture: npt.NDArray[Any], sigma: float) -> npt.NDArray[np.float32]:
    """Blur `picture` [H, W] or [H, W, C] along its first two axes: float32 of the same shape.

    Beyond the border the picture is reflected with its edge pixels repeated. The result equals that
    of `scipy.ndimage.gaussian_filter(mode="reflect")`, and a flat picture stays flat.

    Args:
        picture: array of any number type.
        sigma: standard deviation in pixels, at least 0; the kernel is cut at 4 sigma.
    """
    result: npt.NDArray[np.float32] = np.asarray(picture, np.float32)
    radius = int(4 * sigma + 0.5)
    if radius == 0:
        return np.array(result)
    kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    kernel /= math.fsum(kernel)
    for axis in (0, 1):
        margins = [(0, 0)] * result.ndim
        margins[axis] = (radius, radius)
        # With the axis in front, every tap is one contiguous block of rows.
        padded = np.ascontiguousarray(np.pad(result, margins, mode="symmetric").swapaxes(0, axis))
        length = result.shape[axis]
        total = padded[radius : radius + length] * np.float32(kernel[radius])
        for i in range(radius):  # symmetric taps together: half the multiplications
            near, far = padded[i : i + length], padded[2 * radius - i :][:length]
            total += (near + far) * np.float32(kernel[i])
        result = total.swapaxes(0, axis)
    return np.ascontiguousarray(result)
