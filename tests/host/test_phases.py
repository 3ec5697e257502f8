"""Phases against torch's interpolation, with borders."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from mmsr_edge.models.phases import Bilinear, repeated, weighed


@pytest.mark.parametrize("scale", [2, 4, 8])
def test_bilinear_phases_are_torchs_enlargement(scale: int) -> None:
    x = torch.rand(2, 3, 5, 7)
    wanted = F.interpolate(x, scale_factor=float(scale), mode="bilinear")
    for finer in (n for n in (1, 2, 4, 8) if n <= scale):
        phases = Bilinear(3, scale, finer)(x)
        assert phases.shape == (2, 3 * (scale // finer) ** 2, 5 * finer, 7 * finer)
        made = F.pixel_shuffle(phases, scale // finer)
        torch.testing.assert_close(made, wanted, atol=1e-6, rtol=0)


def test_repeated_phases_are_nearest_neighbours() -> None:
    x = torch.rand(2, 3, 5, 7)
    made = F.pixel_shuffle(repeated(x, 4), 4)
    assert torch.equal(made, F.interpolate(x, scale_factor=4.0, mode="nearest"))


def test_phases_are_weighed_pixel_by_pixel() -> None:
    picture, weights = torch.rand(2, 3, 8, 12), torch.rand(2, 1, 8, 12)
    phases = weighed(F.pixel_unshuffle(picture, 4), F.pixel_unshuffle(weights, 4))
    torch.testing.assert_close(F.pixel_shuffle(phases, 4), picture * weights)


def test_the_fixed_weights_are_in_no_checkpoint() -> None:
    assert not Bilinear(1, 4).state_dict()
