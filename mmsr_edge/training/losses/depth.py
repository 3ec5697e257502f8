"""Losses for relative depth, after MiDaS (Ranftl et al. 2020) and its ranking forerunners.

A single picture determines inverse depth only up to scale and shift, so the main terms compare maps
after shifting and scaling both to a common range.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class DepthWeights:
    """Weights of the terms of `depth_loss`."""

    invariant: float = 0.3
    """Weight of the scale- and shift-invariant distance; see `invariant_loss`."""
    gradient: float = 0.3
    """Weight of the gradients of the aligned difference; see `gradient_loss`."""
    rank: float = 0.6
    """Weight of the order of random pairs; see `rank_loss`."""
    plain: float = 2.0
    """Weight of the distance without alignment, which fixes the range of the output."""


def nearness(inverse: Tensor) -> Tensor:
    """Target of the network: nearness in [0, 1] from inverse depth (0 = sky), both [B, 1, H, W].

    Inverse depth is scaled so that the picture's 2nd and 98th percentiles become 0 and 1. The
    square root follows, because most of a wide scene lies in the lowest tenth of its inverse depth.
    """
    flat = inverse.flatten(1)
    low, high = torch.quantile(flat, torch.tensor([0.02, 0.98], device=flat.device), dim=1)
    low, high = low[:, None, None, None], high[:, None, None, None]
    return ((inverse - low) / (high - low).clamp_min(1e-4)).clamp(0, 1).sqrt()


LEAST_SPREAD = 0.12
"""Smallest divisor in `aligned`. Without it, a picture that is nearly all sky would weigh as much
as a hundred others."""


def aligned(depth: Tensor) -> Tensor:
    """(d − median) / mean |d − median| of each picture (MiDaS, Eqs. 5 and 6)."""
    flat = depth.flatten(1)
    centre = flat - flat.median(1, keepdim=True).values
    spread = centre.abs().mean(1, keepdim=True).clamp_min(LEAST_SPREAD)
    return (centre / spread).view_as(depth)


def invariant_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """Mean distance of the aligned maps: quadratic below 0.1, linear above (smooth L1)."""
    return F.smooth_l1_loss(aligned(predicted), aligned(target), beta=0.1)


def gradient_loss(predicted: Tensor, target: Tensor, scales: int = 4) -> Tensor:
    """Mean absolute gradients of R = aligned(d) − aligned(d*) at `scales` sizes (MiDaS, Eq. 11)."""
    r = aligned(predicted) - aligned(target)
    total = r.new_zeros(())
    for i in range(scales):
        s = F.avg_pool2d(r, 2**i) if i else r
        total = total + s.diff(dim=2).abs().mean() + s.diff(dim=3).abs().mean()
    return total / scales


def rank_loss(
    predicted: Tensor, inverse: Tensor, pairs: int = 3000, ratio: float = 1.05, width: float = 0.1
) -> Tensor:
    """Ranking loss of random pairs of points: softplus of the difference in the wrong direction.

    Args:
        predicted: nearness, [B, 1, H, W]; larger is nearer.
        inverse: inverse depth, [B, 1, H, W]; 0 = sky.
        pairs: number of pairs per picture.
        ratio: smallest ratio of the depths of a pair that counts.
        width: difference in prediction from which a pair is clearly ordered.
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
    """The weighted loss and its unweighted terms; `predicted` and `inverse` are [B, 1, H, W]."""
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
