"""Losses for relative depth, after MiDaS (Ranftl et al. 2020) and its ranking forerunners.

A single picture tells depth up to scale and shift of its inverse, so the main terms compare maps
that were shifted and scaled to a common frame first.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class DepthWeights:
    """Shares of the terms."""

    invariant: float = 0.3
    """Scale- and shift-invariant distance."""
    gradient: float = 0.3
    """Gradients of the aligned difference, at four sizes."""
    rank: float = 0.6
    """Order of random pairs."""
    plain: float = 2.0
    """Distance without alignment: it fixes the output's range."""


def nearness(inverse: Tensor) -> Tensor:
    """The target: inverse depth [B, 1, H, W] (0 = sky) → [B, 1, H, W] in [0, 1].

    Scaled to the picture's 2nd and 98th percentile; then the square root, since most of a wide
    scene lies in the lowest tenth of its inverse depth.
    """
    flat = inverse.flatten(1)
    low, high = torch.quantile(flat, torch.tensor([0.02, 0.98], device=flat.device), dim=1)
    low, high = low[:, None, None, None], high[:, None, None, None]
    return ((inverse - low) / (high - low).clamp_min(1e-4)).clamp(0, 1).sqrt()


LEAST_SPREAD = 0.12
"""Smallest mean |d − median| that is divided by: where most is sky, the little else would count for
a hundred other pictures."""


def aligned(depth: Tensor) -> Tensor:
    """(d − median) / mean |d − median| of each picture: MiDaS, Eqs. 5 and 6."""
    flat = depth.flatten(1)
    centre = flat - flat.median(1, keepdim=True).values
    spread = centre.abs().mean(1, keepdim=True).clamp_min(LEAST_SPREAD)
    return (centre / spread).view_as(depth)


def invariant_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """Mean distance of the aligned maps; the far tail counts little (Charbonnier, capped slope)."""
    return F.smooth_l1_loss(aligned(predicted), aligned(target), beta=0.1)


def gradient_loss(predicted: Tensor, target: Tensor, scales: int = 4) -> Tensor:
    """Gradients of R = aligned(d) − aligned(d*): MiDaS, Eq. 11, at `scales` sizes."""
    r = aligned(predicted) - aligned(target)
    total = r.new_zeros(())
    for i in range(scales):
        s = F.avg_pool2d(r, 2**i) if i else r
        total = total + s.diff(dim=2).abs().mean() + s.diff(dim=3).abs().mean()
    return total / scales


def rank_loss(
    predicted: Tensor, inverse: Tensor, pairs: int = 3000, ratio: float = 1.05, width: float = 0.1
) -> Tensor:
    """Softplus of how wrongly random pairs are ordered.

    Args:
        predicted: [B, 1, H, W], larger is nearer.
        inverse: [B, 1, H, W] inverse depth, 0 = sky.
        pairs: drawn for each picture.
        ratio: pairs whose depths differ by less do not count.
        width: the difference in prediction that is clearly in order.
    """
    p, t = predicted.flatten(1), inverse.flatten(1)
    i, j = torch.randint(p.shape[1], (2, pairs), device=p.device)
    a, b = t[:, i].clamp_min(1e-4), t[:, j].clamp_min(1e-4)
    sign = torch.where(a > ratio * b, 1.0, torch.where(b > ratio * a, -1.0, 0.0))
    wrong = F.softplus(-sign * (p[:, i] - p[:, j]) / width) * sign.abs()
    return wrong.sum() / sign.abs().sum().clamp_min(1)


def depth_loss(
    predicted: Tensor, inverse: Tensor, weights: DepthWeights
) -> tuple[Tensor, dict[str, Tensor]]:
    """The whole loss and its terms; `predicted` and `inverse` [B, 1, H, W]."""
    target = nearness(inverse)
    terms = {
        "invariant": invariant_loss(predicted, target),
        "gradient": gradient_loss(predicted, target),
        "rank": rank_loss(predicted, inverse),
        "plain": (predicted - target).abs().mean(),
    }
    total = sum(getattr(weights, name) * term for name, term in terms.items())
    assert isinstance(total, Tensor)
    return total, terms
