"""Finishing: from the networks' rows to the rows of the file.

In this order: the picture's own colour space, the colour fix, fidelity, grey, transparency, the
size asked for, whole numbers. All of it goes strip by strip, in floats until the end.
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
_FAINT = 1 / 512  # opacity below which eight bits show nothing


@dataclass(frozen=True, eq=False)
class Finishing:
    """What is to be done to the rows of one picture."""

    picture: Picture
    """The input."""
    scale: int
    """Of the networks."""
    target: Target
    """The size asked for."""
    color_fix: bool
    """Take what is coarse from the input."""
    fidelity: bool
    """Take all that the input shows from the input."""
    grey: bool
    """Whether the result has one colour channel."""
    keep_profile: bool
    """Whether colours go back to the input's own space; else they stay sRGB."""
    bits: int
    """Of a channel of the result: 8 or 16."""

    @property
    def channels(self) -> int:
        """Of the result, opacity included."""
        return (1 if self.grey else 3) + (self.picture.alpha is not None)

    def rows(
        self, strips: Strips, seen: Floats, profile: Profile | None, measure: Fidelity | None
    ) -> Iterator[Array]:
        """Strips of the result, uint8 or uint16.

        Args:
            strips: what the networks made, RGB in [−1, 1], of `scale` times the picture's size.
            seen: what they were shown, as `seen` gives it.
            profile: likewise.
            measure: counts the rows once they have the input's colours.
        """
        picture, scale = self.picture, self.scale
        height = picture.size[1] * scale
        reference = picture.rgb
        if profile is not None and self.keep_profile:
            strips = _to_profile(strips, picture.rgb, seen, profile, scale)
        elif profile is not None:
            reference = seen
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
            yield self._numbers(strip)

    def _numbers(self, strip: Floats) -> Array:
        """Colours no longer multiplied by opacity, as whole numbers."""
        if self.picture.alpha is None:
            return quantize(strip * 0.5 + 0.5, self.bits)
        opacity = strip[..., -1:].clip(0, 1)
        colours = strip[..., :-2] / np.maximum(strip[..., -2:-1], _FAINT / 2)
        return quantize(np.concatenate([colours * 0.5 + 0.5, opacity], axis=2), self.bits)


def shown_colours(picture: Picture) -> tuple[Floats, Profile | None]:
    """What the networks are shown, in sRGB, and the profile that leads back from it."""
    profile = parse_profile(picture.icc)
    return (picture.rgb if profile is None else profile.to_srgb(picture.rgb)), profile


def _to_profile(strips: Strips, own: Floats, seen: Floats, profile: Profile, scale: int) -> Strips:
    """Back to the picture's own space, with those colours that sRGB lacks put back."""
    lost = own - profile.from_srgb(seen)
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

    The networks enlarge colours without knowing which of them are seen. So that no colour shows
    more than its opacity allows, what is smooth about them is that of the enlarged product:
    α↑ · (c + (α c)↑ / α↑ − c↑), with ↑ bicubic. The weight is opacity, but never nothing, so that
    pixels which nobody sees have a colour too.
    """
    shape = (alpha.shape[0] * scale, alpha.shape[1] * scale)
    smooth = BicubicUpsampler(np.dstack([colours * alpha[..., None], alpha, colours]), shape)
    count = colours.shape[2]
    row = 0
    for strip in strips:
        fine = smooth.rows(row, row + len(strip))
        opacity = fine[..., count : count + 1].clip(0, 1)
        product = fine[..., :count] + opacity * (strip - fine[..., count + 1 :])
        # Within the range of colours, also where bicubic swings over.
        product = product.clip(-opacity, opacity)
        weight = np.maximum(opacity, _FAINT)
        product += (weight - opacity) * strip
        yield np.concatenate([product, weight, opacity], axis=2)
        row += len(strip)
