"""The compact super-resolution network: from LR to HR pixels, with a small receptive field.

It is Real-ESRGAN's small network (Wang et al. 2021, `SRVGGNetCompact`): convolutions and PReLUs at
the LR picture's size and one pixel shuffle, added to the nearest-neighbour upsampled picture. Its
receptive field is 37 pixels wide. The decoder has one beside its latent path: the latent adds wider
context and the detail from the diffusion (see `autoencoder.SlimDecoder`).

Detail that the LR picture shows passes through it, whatever the latent says. What is known beside
the picture, the degradation and the maps with their dials, is therefore given to it too: a shift of
its first features and a gate on its last ones,

    f = body(conv(y) + shift) · (1 + gate),
    (shift, gate) = W₂·relu(W₁·degradation) + conv(aligned maps).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmsr_edge.models.phases import repeated

TOLD_WIDTH = 32
"""Hidden channels between the degradation and what it changes: what is right for a clean picture
and for a noisy one do not lie on a line."""


class EdgeDetail(nn.Module):
    """Detail along edges, which a map of edges shows finer than the LR picture does:

        U(K·f ⊙ G·e),

    the features f of the LR picture by the edges e; nothing where there are none. U is zero at
    first.

    Args:
        width: channels of the features, and of those in between.
        parts: numbers that a map has at half the size of the LR picture.
        scale: HR pixels per LR pixel, along a side.
    """

    def __init__(self, width: int, parts: int, scale: int = 4) -> None:
        super().__init__()
        self.of_features = nn.Conv2d(width, width, 1)
        self.of_edges = nn.Conv2d(parts, 4 * width, 3, padding=1, bias=False)
        self.out = nn.Conv2d(width, 3 * scale**2, 3, padding=1, bias=False)
        nn.init.zeros_(self.out.weight)

    def forward(self, features: Tensor, edges: Tensor) -> Tensor:
        """Detail in RGB, as phases [B, 3·scale², h, w].

        Args:
            features: of the LR picture, [B, width, h, w].
            edges: [B, parts, h/2, w/2].
        """
        along = self.of_features(features) * F.pixel_shuffle(self.of_edges(edges), 2)
        detail: Tensor = self.out(along)
        return detail


class SuperResolution(nn.Module):
    """A network from LR to HR pixels that can be told and shown what is known beside the picture.

    Args:
        width: channels of its features.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.told: nn.Sequential | None = None
        self.shown: nn.Conv2d | None = None

    def tell(self, numbers: int) -> None:
        """Add an input of `numbers` that describe the picture.

        The last weights are zero, so it has no effect yet; without biases, zeros never have one.
        """
        last = nn.Linear(TOLD_WIDTH, 2 * self.width, bias=False)
        nn.init.zeros_(last.weight)
        self.told = nn.Sequential(nn.Linear(numbers, TOLD_WIDTH, bias=False), nn.ReLU(), last)

    def show(self, channels: int) -> None:
        """Add an input of `channels` that describe places, at half the size of the LR picture.

        The weights are zero, so it has no effect yet.
        """
        self.shown = nn.Conv2d(channels, 8 * self.width, 3, padding=1, bias=False)
        nn.init.zeros_(self.shown.weight)

    def given(self, told: Tensor | None, shown: Tensor | None) -> tuple[Tensor, Tensor] | None:
        """(shift, gate) of what is given, [B, width, ·, ·] each; None if nothing is."""
        given = []
        if self.told is not None and told is not None:
            given.append(self.told(told)[..., None, None])
        if self.shown is not None and shown is not None:
            given.append(F.pixel_shuffle(self.shown(shown), 2))
        if not given:
            return None
        shift, gate = sum(given[1:], given[0]).chunk(2, dim=1)
        return shift, gate

    def features(
        self, lr: Tensor, told: Tensor | None = None, shown: Tensor | None = None
    ) -> Tensor:
        """`lr` [B, 3, h, w], RGB in [-1, 1], to features [B, width, h, w].

        Args:
            lr: the LR picture.
            told: numbers that describe it, [B, numbers], for networks with `tell`.
            shown: numbers that describe its places, [B, channels, h/2, w/2], for those with `show`.
        """
        raise NotImplementedError

    def picture(self, features: Tensor, lr: Tensor) -> Tensor:
        """Features of `lr` to RGB [B, 3, 4h, 4w], about [-1, 1]."""
        raise NotImplementedError

    def forward(self, lr: Tensor) -> Tensor:
        """Upscale `lr` [B, 3, h, w], RGB in [-1, 1], to [B, 3, 4h, 4w], about [-1, 1]."""
        return self.picture(self.features(lr), lr)


class CompactSuperResolution(SuperResolution):
    """1 + `layers` convolutions, each with a PReLU, and a last one with a pixel shuffle.

    Args:
        layers: number of convolutions between the first and the last.
        width: channels.
        scale: HR pixels per LR pixel, along a side.
    """

    def __init__(self, layers: int, width: int = 64, scale: int = 4) -> None:
        super().__init__(width)
        self.scale = scale
        convs = [nn.Conv2d(3 if i == 0 else width, width, 3, padding=1) for i in range(layers + 1)]
        self.body = nn.Sequential(*(m for c in convs for m in (c, nn.PReLU(width))))
        self.out = nn.Conv2d(width, 3 * scale**2, 3, padding=1)

    def pass_on(self, first: int) -> None:
        """Set the convolutions from number `first` on, and their PReLUs, to the identity.

        A network initialized from one with fewer layers then gives the same output (Net2Net, Chen
        et al. 2016, Sec. 2.3).
        """
        for conv, prelu in zip(
            self.body[2 * first :: 2], self.body[2 * first + 1 :: 2], strict=True
        ):
            assert isinstance(conv, nn.Conv2d) and isinstance(prelu, nn.PReLU)
            nn.init.dirac_(conv.weight)
            nn.init.zeros_(conv.bias)
            nn.init.ones_(prelu.weight)

    @torch.no_grad()
    def fold(self, longer: CompactSuperResolution) -> None:
        """Set the last convolution to those of a longer network from its number on.

        Where layers hardly differ from the identity I, what they add in turn is close to the sum of
        what each adds, and the slopes multiply:

            W = I + Σ (W_i − I),   b = Σ b_i,   slope = Π slope_i

        Args:
            longer: a network of the same width and with more layers.
        """
        last = len(self.body) - 2
        conv, prelu = self.body[last], self.body[last + 1]
        assert isinstance(conv, nn.Conv2d) and isinstance(prelu, nn.PReLU)
        assert conv.bias is not None
        identity = nn.init.dirac_(torch.empty_like(conv.weight))
        conv.weight.copy_(identity + sum(c.weight - identity for c in longer.body[last::2]))
        conv.bias.copy_(sum(c.bias for c in longer.body[last::2]))
        prelu.weight.copy_(torch.stack([p.weight for p in longer.body[last + 1 :: 2]]).prod(0))

    def features(
        self, lr: Tensor, told: Tensor | None = None, shown: Tensor | None = None
    ) -> Tensor:
        """See `SuperResolution`."""
        features: Tensor = self.body[0](lr)
        given = self.given(told, shown)
        if given is None:
            plain: Tensor = self.body[1:](features)
            return plain
        rest: Tensor = self.body[1:](features + given[0]) * (1 + given[1])
        return rest

    def phases(self, features: Tensor, lr: Tensor) -> Tensor:
        """Features of `lr` to the picture's phases, [B, 3·scale², h, w]."""
        own: Tensor = self.out(features)
        return own + repeated(lr, self.scale)

    def picture(self, features: Tensor, lr: Tensor) -> Tensor:
        """See `SuperResolution`."""
        return F.pixel_shuffle(self.phases(features, lr), self.scale)
