"""What temperatures do to the residual: the targets that temperature is trained on.

Eq. 5 lets temperature change how a modality is attended to. What the picture then does is up to the
training; without a target it learns to do nothing. Each map therefore has an effect, by
self-distillation: the target is the network's own residual at τ = 1, times a gain

    g = 1 − p(τ) · area,    p(τ) = −ln τ / ln 2.5  below 1,   −½ · ln τ / ln 10  above,

so p falls from 1 at τ = 0.4 over 0 at τ = 1 to −½ at τ = 10. The areas, 1 where a dial acts:

    depth          what is far (Fig. 9's bokeh at low temperatures)
    segmentation   all but the subject and the cells around it
    edges          all but edges and the cells around them

The decoder passes on detail of the LR picture whatever the residual, so that a gain alone moves a
clean picture little. `refocus` gives the picture that a dial asks for: blurred where p · area is
above 0, sharpened where it is below.

Text acts on the whole picture: words move the residual 1 + p(τ) times as far from that without
text. `modalities.aligned` computes the same areas on the device.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from mmsr_edge.modalities.aligned import FAR, NEAR
from mmsr_edge.modalities.segmentation import SUBJECT

LOWEST, HIGHEST = 0.4, 10.0
"""Range of temperatures (Sec. 3.2)."""


def draw_temperatures(
    count: int, g: torch.Generator, *, one: float = 0.15, second: float = 0.6, text: bool = True
) -> Tensor:
    """Temperatures [count, 4]: those of one modality, and with the chance `second` of a second.

    They are log-uniform below 1 or, with the chance 0.35, above; all are 1 with the chance `one`.
    Without `text`, that of text is always 1.
    If both sides were as likely, neither a map nor a temperature would tell anything of the gain
    without the other, and learning would not begin.
    """
    below = torch.rand((count, 4), generator=g) * math.log(LOWEST)
    above = torch.rand((count, 4), generator=g) * math.log(HIGHEST)
    drawn = torch.where(torch.rand((count, 4), generator=g) < 0.35, above, below).exp()
    score = torch.rand((count, 4), generator=g)
    if not text:
        score[:, 0] = 2.0
    order = score.argsort(1).argsort(1)
    twice = torch.rand((count, 1), generator=g) < second
    turned = (order == 0) | ((order == 1) & twice)
    turned &= torch.rand((count, 1), generator=g) >= one
    return torch.where(turned, drawn, torch.ones(()))


def pull(temperature: Tensor) -> Tensor:
    """p(τ): 1 at 0.4, 0 at 1, −½ at 10."""
    log = temperature.log()
    return torch.where(log < 0, -log / math.log(2.5), -0.5 * log / math.log(10))


def areas(depth: Tensor, classes: Tensor, edges: Tensor, size: int) -> Tensor:
    """Where the dials act, [B, 3, size, size] in [0, 1].

    Args:
        depth: [B, s, s], 0 (far) to 255.
        classes: [B, s, s], with `SUBJECT` added where the subject is.
        edges: [B, s, s], 0 to 255.
        size: side of the latent.
    """
    k = depth.shape[-1] // size
    near = F.avg_pool2d(depth.float()[:, None] / 255, k)
    far = ((NEAR - near) / (NEAR - FAR)).clamp(0, 1)
    marks = torch.stack([classes >= SUBJECT, edges > 0.25 * 255], dim=1).float()
    apart = 1 - F.max_pool2d(F.max_pool2d(marks, k), 3, stride=1, padding=1)
    return torch.cat([far, apart], dim=1)


def gain(area: Tensor, present: Tensor, temperature: Tensor) -> Tensor:
    """g, the product over the maps that are present, [B, 1, size, size].

    Args:
        area: from `areas`.
        present: [B, 4], 1 for each modality given and 0 for each absent.
        temperature: [B, 4].
    """
    strength = (pull(temperature) * present)[:, 1:, None, None]
    return (1 - strength * area).prod(dim=1, keepdim=True)


def refocus(picture: Tensor, softness: Tensor) -> Tensor:
    """The picture that dials ask for, [B, 3, 8h, 8w].

    Args:
        picture: the picture at τ = 1, [B, 3, 8h, 8w].
        softness: 1 − g by latent cell, [B, 1, h, w]. At 1 the picture is blurred (two box filters
            of 5 × 5 pixels), between 0 and 1 mixed with that; at −1 it is sharpened by what
            blurring takes away.
    """
    soft = picture
    for _ in range(2):
        soft = F.avg_pool2d(F.pad(soft, (2,) * 4, mode="reflect"), 5, stride=1)
    amount = F.interpolate(softness, scale_factor=8, mode="bilinear").clamp(-1, 1)
    return picture + amount * (soft - picture)
