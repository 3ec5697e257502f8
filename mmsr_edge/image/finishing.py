"""Finishing: from the networks' rows to the rows of the file.

The order is: the picture's own colour space, colour fix, fidelity, grey, transparency, target size,
quantization. The work is done strip by strip, in floats until the end.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mmsr_edge.image.color import HALO, Fidelity, match_low_frequencies, restore_low_pass
from mmsr_edge.image.icc import Profile, parse_profile
from mmsr_edge.image.pixels import quantize
from mmsr_edge.image.strips import BicubicUpsampler, resize_strips, windowed

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt

    from mmsr_edge.image import Picture
    from mmsr_edge.image.target import Target

    Array = npt.NDArray[Any]
    Floats = npt.NDArray[np.float32]
    Strips = Iterator[Floats]

__all__ = ["Finishing", "shown_colours"]

_LUMA = np.array([[0.299], [0.587], [0.114]], np.float32)  # ITU-R BT.601
_FAINT = 1 / 512  # opacities below this are 0 in eight bits


@dataclass(frozen=True, eq=False)
class Finishing:
    """The steps from the networks' rows to the result of one picture."""

    picture: Picture
    """The input."""
    scale: int
    """Factor of the networks."""
    target: Target
    """Size of the result."""
    color_fix: bool
    """Whether low frequencies are taken from the input."""
    fidelity: bool
    """Whether block means are made equal to the input."""
    grey: bool
    """Whether the result has one colour channel."""
    keep_profile: bool
    """Whether colours are converted back to the input's own space; otherwise they stay sRGB."""
    bits: int
    """Bits per channel of the result: 8 or 16."""

    @property
    def channels(self) -> int:
        """Number of channels of the result, opacity included."""
        return (1 if self.grey else 3) + (self.picture.alpha is not None)

    def rows(
        self, strips: Strips, srgb: Floats, profile: Profile | None, measure: Fidelity | None
    ) -> Iterator[Array]:
        """Strips of the result, uint8 or uint16 [n, W, channels].

        Args:
            strips: output of the networks, RGB in [−1, 1], `scale` times the picture's size.
            srgb: the input as the networks took it, from `shown_colours`.
            profile: the input's profile, from `shown_colours`.
            measure: gets the rows once they have the input's colours; None: nothing is measured.
        """
        picture, scale = self.picture, self.scale
        height = picture.size[1] * scale
        reference = picture.rgb
        if profile is not None and self.keep_profile:
            strips = _to_profile(strips, picture.rgb, srgb, profile, scale)
        elif profile is not None:
            reference = srgb
        if self.color_fix and not self.fidelity:
            strips = _by_window(strips, reference, scale, match_low_frequencies)
        if self.fidelity:
            strips = _by_window(strips, reference, scale, restore_low_pass)
        if measure is not None:
            strips = _measured(strips, measure)
        if self.grey:
            strips = (strip @ _LUMA for strip in strips)
        if picture.alpha is not None:
            colours = reference[..., :1] if self.grey else reference
            strips = _with_opacity(strips, colours, picture.alpha, scale)
        if not self.target.is_whole(scale):
            box = tuple(edge * scale for edge in self.target.box)
            strips = resize_strips(strips, height, self.target.size, box)  # type: ignore[arg-type]
        for strip in strips:
            yield self._quantized(strip)

    def _quantized(self, strip: Floats) -> Array:
        """Rows as uint8 or uint16, with colours no longer multiplied by their weight."""
        if self.picture.alpha is None:
            return quantize(strip * 0.5 + 0.5, self.bits)
        opacity = strip[..., -1:].clip(0, 1)
        colours = strip[..., :-2] / np.maximum(strip[..., -2:-1], _FAINT / 2)
        return quantize(np.concatenate([colours * 0.5 + 0.5, opacity], axis=2), self.bits)


def shown_colours(picture: Picture) -> tuple[Floats, Profile | None]:
    """The picture in sRGB, as the networks take it, and the profile that converts it back."""
    profile = parse_profile(picture.icc)
    return (picture.rgb if profile is None else profile.to_srgb(picture.rgb)), profile


def _to_profile(strips: Strips, own: Floats, srgb: Floats, profile: Profile, scale: int) -> Strips:
    """Convert rows to the picture's own space, and restore the colours that sRGB lacks."""
    lost = own - profile.from_srgb(srgb)
    shape = (own.shape[0] * scale, own.shape[1] * scale)
    beyond = BicubicUpsampler(lost, shape) if np.abs(lost).max() > 1e-3 else None
    row = 0
    for strip in strips:
        result = profile.from_srgb(strip)
        if beyond is not None:
            result += beyond.rows(row, row + len(strip))
        yield result
        row += len(strip)


def _by_window(strips: Strips, reference: Floats, scale: int, fix: Any) -> Strips:
    def work(window: Floats, first: int, stop: int) -> Floats:
        result: Floats = fix(window, reference[first // scale : stop // scale])
        return result

    return windowed(strips, len(reference) * scale, HALO * scale, work)


def _measured(strips: Strips, measure: Fidelity) -> Strips:
    for strip in strips:
        measure.add(strip)
        yield strip


def _with_opacity(strips: Strips, colours: Floats, alpha: Floats, scale: int) -> Strips:
    """Colours multiplied by a weight, the weight, and opacity: [n, W, C + 2].

    The networks enlarge colours without regard to opacity. So that no colour shows more than its
    opacity allows, the smooth part of the colours is replaced by that of the enlarged product:
    α↑ · (c + (α c)↑ / α↑ − c↑), with ↑ bicubic. The weight is the opacity, but never 0, so that
    invisible pixels have a colour too.
    """
    shape = (alpha.shape[0] * scale, alpha.shape[1] * scale)
    smooth = BicubicUpsampler(np.dstack([colours * alpha[..., None], alpha, colours]), shape)
    count = colours.shape[2]
    row = 0
    for strip in strips:
        fine = smooth.rows(row, row + len(strip))
        opacity = fine[..., count : count + 1].clip(0, 1)
        product = fine[..., :count] + opacity * (strip - fine[..., count + 1 :])
        # Within the range of colours, also where bicubic overshoots.
        product = product.clip(-opacity, opacity)
        weight = np.maximum(opacity, _FAINT)
        product += (weight - opacity) * strip
        yield np.concatenate([product, weight, opacity], axis=2)
        row += len(strip)
