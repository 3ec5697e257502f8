"""Canny's edge detector (1986) in numpy. Edges are the one map that needs no network.

Training makes its edge maps with the same function.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mmsr_edge.image.blur import gaussian_blur
from mmsr_edge.image.strips import BicubicUpsampler

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy.typing as npt

    Array = npt.NDArray[Any]
    Points = tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]
    Mask = npt.NDArray[np.bool_]

__all__ = ["canny", "detect_edges"]

_ROWS = 256  # rows per band; only the connecting of edges covers the whole picture

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601


def canny(image: Array, sigma: float = 1.4, low: float = 0.1, high: float = 0.2) -> Mask:
    """Edges of a picture, one pixel wide: bool [H, W].

    Equals `skimage.feature.canny(mode="reflect")` on the luma scaled to [0, 1].

    Args:
        image: RGB [H, W, 3] or grey [H, W], in [−1, 1].
        sigma: standard deviation of the smoothing, in pixels.
        low: gradient above which a pixel is an edge if it connects to one above `high`.
        high: gradient above which a pixel is an edge. Both are in units of the Sobel response:
            a step of height 1 has a gradient of 4 before smoothing.
    """

    def rows(first: int, stop: int) -> Array:
        part = image[first:stop]
        return part @ _LUMA if image.ndim == 3 else part

    return _canny(rows, (image.shape[0], image.shape[1]), sigma, low, high)


def detect_edges(picture: Array, scale: float = 2.0) -> Mask:
    """Edges of a low-resolution picture at its maps' resolution: bool [scale · H, scale · W].

    The picture is first upsampled (bicubic), then Canny is run, as in training: the network was
    trained on edges that are one map pixel wide.

    Args:
        picture: RGB [H, W, 3] in [−1, 1].
        scale: map pixels per picture pixel; 2 for tiles of 128 and maps of 256.
    """
    size = (max(round(picture.shape[0] * scale), 1), max(round(picture.shape[1] * scale), 1))
    upsampler = BicubicUpsampler(picture, size)
    return _canny(lambda first, stop: upsampler.rows(first, stop).clip(-1, 1) @ _LUMA, size)


def _canny(
    rows: Callable[[int, int], Array],
    shape: tuple[int, int],
    sigma: float = 1.4,
    low: float = 0.1,
    high: float = 0.2,
) -> Mask:
    """`canny` of a grey picture of `shape`; `rows(first, stop)` gives its rows, in [−1, 1]."""
    height = shape[0]
    stride = shape[1] + 2  # a frame of one pixel: neighbours of flat indices never wrap around
    halo = int(4 * sigma + 0.5) + 2  # rows that a pixel's edge depends on, above and below it
    found = []
    for top in range(0, height, _ROWS):
        bottom = min(top + _ROWS, height)
        first, stop = max(top - halo, 0), min(bottom + halo, height)
        grey = gaussian_blur(np.asarray(rows(first, stop), np.float32) * 0.5 + 0.5, sigma)
        down, right = _sobel(grey), _sobel(grey.T).T
        strength = np.hypot(down, right)
        y, x = _local_maxima(down, right, strength, low)
        kept = (y >= top - first) & (y < bottom - first)
        y, x = y[kept], x[kept]
        found.append(((y + first + 1) * stride + x + 1, strength[y, x] >= high))
    return _connected(shape, found)


def _sobel(grey: Array) -> Array:
    """Derivative along the rows' axis, smoothed [1, 2, 1] across it."""
    padded = np.pad(grey, 1, mode="edge")
    across = padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]
    slope: Array = across[2:] - across[:-2]
    return slope


def _local_maxima(down: Array, right: Array, strength: Array, low: float) -> Points:
    """Rows and columns of pixels above `low` and not below either neighbour along the gradient.

    A neighbour's strength is interpolated between the two pixels that the gradient passes
    between. The outermost pixels of the picture lack neighbours and are never edges.
    """
    y, x = np.nonzero(strength[1:-1, 1:-1] >= low)
    y, x = y + 1, x + 1
    dy, dx, here = down[y, x], right[y, x], strength[y, x]
    steep = np.abs(dy) > np.abs(dx)
    larger = np.maximum(np.maximum(np.abs(dy), np.abs(dx)), np.finfo(np.float32).tiny)
    slant = np.minimum(np.abs(dy), np.abs(dx)) / larger
    # One step along the larger component of the gradient, and one along both.
    sy, sx = np.sign(dy).astype(np.intp), np.sign(dx).astype(np.intp)
    near_y, near_x = np.where(steep, sy, 0), np.where(steep, 0, sx)
    keep = np.ones(len(y), bool)
    for way in (1, -1):
        near = strength[y + way * near_y, x + way * near_x]
        diagonal = strength[y + way * sy, x + way * sx]
        keep &= diagonal * slant + near * (1 - slant) <= here
    return y[keep], x[keep]


def _connected(shape: tuple[int, int], thin: Sequence[tuple[Array, Mask]]) -> Mask:
    """Mask of the `thin` pixels that are connected to a strong one, through 8 neighbours.

    Args:
        shape: height and width of the picture.
        thin: per band, flat indices into the framed picture, and whether each pixel is strong.
    """
    height, stride = shape[0], shape[1] + 2
    waiting = np.zeros((height + 2) * stride, bool)
    for indices, _ in thin:
        waiting[indices] = True
    edges = np.zeros_like(waiting)
    around = np.array([-stride - 1, -stride, -stride + 1, -1, 1, stride - 1, stride, stride + 1])
    for indices, strong in thin:  # by bands, so that the front stays small
        front = indices[strong]
        front = front[waiting[front]]
        while front.size:
            edges[front] = True
            waiting[front] = False
            reached = (front[:, None] + around).ravel()
            front = np.unique(reached[waiting[reached]])
    inner: Mask = edges.reshape(height + 2, stride)[1:-1, 1:-1].copy()
    return inner
