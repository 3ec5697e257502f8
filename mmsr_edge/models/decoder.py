"""The slim decoder: from a latent and the LR picture to the HR picture."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmsr_edge.bundle import EDGE_PARTS, MAPS
from mmsr_edge.errors import OptionError
from mmsr_edge.models.phases import Bilinear, repeated, weighed
from mmsr_edge.models.presets import AutoencoderConfig
from mmsr_edge.models.residual_dense import ResidualDenseNetwork
from mmsr_edge.models.slim import residual_blocks, upscaled
from mmsr_edge.models.super_resolution import CompactSuperResolution, EdgeDetail

FACTOR = 8
"""HR pixels per latent cell, along a side."""
SCALE = 4
"""HR pixels per LR pixel, along a side."""
DEGRADATION = 8
"""Numbers that tell the decoder the degradation; see `SlimDecoder.forward`. The last two are the
shares of noise and of blur that are to stay."""


class SlimDecoder(nn.Module):
    """Latent to pixels, through an eighth, a quarter and a half of the HR size.

    No convolution runs at full size, where it costs most. Without blocks at a half, one ×4 pixel
    shuffle follows the quarter. A latent cell has 16 numbers, for the 12 of its four LR pixels and
    for the HR detail. With `compact_layers`, the decoder also reads the LR picture y, through a
    compact super-resolution network c, which leaves the latent's 16 numbers to the detail:

        D(z, y) = c(y) + T(eighth(z) + join(features of c)),

    where T is the rest of the decoder. With `aligned` maps (`modalities.aligned`), c is shown their
    edges e, and detail along them is added (`EdgeDetail`); shown depth and segmentation too, it
    made worse pictures (see the journal). There are dials too. They move the picture between a
    softer and a crisper one, by two convolutions R that learnt what softening changes, beside the
    LR picture upsampled; a = 1 − Π(1 − dial) is 0 at τ = 1:

        D(z, y, maps, dials) = D(z, y) + (1 − a) · U(features of c, e)
                               + a · (R(features of c) + R(features of T) + up(y)).

    Here up(y) is bilinear less nearest-neighbour interpolation; the latter is part of c(y).

    Whoever says that there is less noise or blur than there is wants the rest of it kept. With
    `degradation`, the shares ν and β of it are added back, as a convolution learnt to find it:

        D(z, y, …, ν, β) = D(z, y, …) + ν · N(y, features of c) + β · B(y, features of c).

    More noise than there is (ν < 0) softens the picture, as a dial of −ν does.

    With `dense_blocks`, a residual dense network d draws a picture too, from its own features of y,
    which is told and shown the same, and from the latent. It replaces c(y) + T(…) as far as g says,
    a convolution of those features, which is near 1 for noise and near 0 for clean pictures:

        D(z, y, …) = … + (1 − a) · g · (tail(f) − c(y) − T(…)),
        f = features of d + join(eighth(z) + join(features of c)),   g = sigmoid(gate(f)).
    """

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        width, (eighth, quarter, half) = config.width, config.decoder_blocks
        self.eighth = nn.Sequential(
            nn.Conv2d(config.channels, width, 3, padding=1),
            residual_blocks(eighth, width),
            *upscaled(width, width // 2, 2),
        )
        self.compact: CompactSuperResolution | None = None
        if config.compact_layers:
            self.compact = CompactSuperResolution(
                config.compact_layers, config.compact_width, SCALE
            )
            self.join = nn.Conv2d(config.compact_width, width // 2, 1)
            if config.degradation:
                self.compact.tell(DEGRADATION - 2)
                self.kept = nn.Conv2d(config.compact_width + 3, 2 * 3 * SCALE**2, 3, padding=1)
                nn.init.zeros_(self.kept.weight)
                nn.init.zeros_(self.kept.bias)
            if config.aligned:
                self.compact.show(EDGE_PARTS**2)
                self.detail = EdgeDetail(config.compact_width, EDGE_PARTS**2, SCALE)
        self.quarter = residual_blocks(quarter, width // 2)
        self.halved = nn.Sequential()
        if half:
            self.halved = nn.Sequential(
                *upscaled(width // 2, width // 4, 2), residual_blocks(half, width // 4)
            )
        self.out = upscaled(width // 4, 3, 2) if half else upscaled(width // 2, 3, 4)
        self.dense: ResidualDenseNetwork | None = None
        if self.compact is not None and config.dense_blocks:
            sizes = config.dense_width, config.dense_width // 2
            self.dense = ResidualDenseNetwork(config.dense_blocks, config.dense_tail, *sizes)
            assert half, "the dense network's phases are those at a half of the HR size"
            self.join_dense = nn.Conv2d(width // 2, self.dense.width, 1)
            self.gate = nn.Conv2d(self.dense.width, 1, 3, padding=1)
            self.share_coarse = Bilinear(1, SCALE)
            self.share_fine = Bilinear(1, SCALE, SCALE // 2)
            if config.degradation:
                self.dense.tell(DEGRADATION - 2)
            if config.aligned:
                self.dense.show(EDGE_PARTS**2)
            self.begin_dense({})
        if self.compact is not None and config.aligned:
            shuffle = 2 if half else SCALE
            self.enlarged = Bilinear(3, SCALE)
            self.spread_coarse = Bilinear(1, FACTOR, FACTOR // SCALE)
            self.spread_fine = Bilinear(1, FACTOR, FACTOR // shuffle)
            self.refocus = nn.ModuleList([copy.deepcopy(conv) for conv in self._last()])
            self.begin_soft()

    def forward(
        self,
        latent: Tensor,
        lr: Tensor | None = None,
        degradation: Tensor | None = None,
        aligned: Tensor | None = None,
    ) -> Tensor:
        """Decode `latent` [B, C, h, w] to RGB [B, 3, 8h, 8w], about [-1, 1], not clipped.

        Args:
            latent: [B, C, h, w].
            lr: the LR picture [B, 3, 2h, 2w], RGB in [-1, 1]; required with `compact_layers`.
            degradation: [B, 8], levels of noise, blur and JPEG in [0, 1], 0 where unknown; 1 or 0
                for each that is known or not; and ν and β in [-1, 1]. None: nothing is known.
            aligned: maps and dials on the latent's grid, [B, a, h, w] (`modalities.aligned`);
                None: none is given.
        """
        x = self.eighth(latent)
        if self.compact is None:
            plain: Tensor = self.out(self.halved(self.quarter(x)))
            return plain
        assert lr is not None, "this decoder requires the LR picture"
        edges = dials = None
        if aligned is not None:
            _, edges, dials = aligned.split([4, EDGE_PARTS**2, len(MAPS)], dim=1)
        told = stay = None
        if degradation is not None:
            told, stay = degradation.split([DEGRADATION - 2, 2], dim=1)
            stay = stay[..., None, None]
        features = self.compact.features(lr, told, edges)
        x = x + self.join(features)
        hidden = self.halved(self.quarter(x))
        coarse = self.compact.phases(features, lr)
        fine = self.out[0](hidden)
        drawn: tuple[Tensor, Tensor] | None = None
        if self.dense is not None:
            seen = self.dense.features(lr, told, edges) + self.join_dense(x)
            share = self.gate(seen).sigmoid()
            shares = [self.share_coarse(share), self.share_fine(share)]
            drawn = -coarse, self.dense.phases(seen) * 2 - 1 - fine
        if stay is not None:
            noise, blur = self.kept(torch.cat([features, lr], dim=1)).chunk(2, dim=1)
            noise_share, blur_share = stay.split(1, dim=1)
            coarse = coarse + F.relu(noise_share) * noise + blur_share * blur
        if edges is not None and dials is not None:
            a = self._softness(dials, stay)
            soft_coarse, soft_fine = self.spread_coarse(a), self.spread_fine(a)
            of_compact, of_tail = self.refocus
            of_coarse = of_compact(features) + self.enlarged(lr) - repeated(lr, SCALE)
            along = self.detail(features, edges)
            coarse = coarse + along + weighed(of_coarse - along, soft_coarse)
            fine = fine + weighed(of_tail(hidden), soft_fine)
            if drawn is not None:
                shares = [shares[0] * (1 - soft_coarse), shares[1] * (1 - soft_fine)]
        if drawn is not None:
            coarse = coarse + weighed(drawn[0], shares[0])
            fine = fine + weighed(drawn[1], shares[1])
        image: Tensor = F.pixel_shuffle(coarse, SCALE) + self.out[1](fine)
        return image

    def _softness(self, dials: Tensor, stay: Tensor | None) -> Tensor:
        """a, [B, 1, h, w], of dials [B, 3, h, w] and, as far as ν < 0, of `stay` [B, 2, 1, 1]."""
        of_depth, of_segmentation, of_edges = (1 - dials).split(1, dim=1)
        crisp = of_depth * of_segmentation * of_edges
        if stay is not None:
            crisp = crisp * (1 - F.relu(-stay[:, :1]))
        return 1 - crisp

    def _last(self) -> tuple[nn.Conv2d, nn.Conv2d]:
        """The last convolutions, whose results make up the picture."""
        assert self.compact is not None and isinstance(self.out[0], nn.Conv2d)
        return self.compact.out, self.out[0]

    @torch.no_grad()
    def begin_soft(self) -> None:
        """Take the LR picture, upsampled, for the soft picture: all other detail goes."""
        for soft, conv in zip(self.refocus, self._last(), strict=True):
            assert isinstance(soft, nn.Conv2d) and soft.bias is not None and conv.bias is not None
            soft.weight.copy_(-conv.weight)
            soft.bias.copy_(-conv.bias)

    def begin_at(self, compact: dict[str, Tensor]) -> None:
        """Load a compact super-resolution network's weights; the latent then contributes zero.

        Args:
            compact: state dict of a `CompactSuperResolution`.

        Raises:
            OptionError: this decoder has no such network, or one of another size.
        """
        if self.compact is None:
            raise OptionError("this preset's decoder has no super-resolution network")
        _load(self.compact, compact)
        nn.init.zeros_(self.join.weight)
        for parameter in self.out[0].parameters():
            nn.init.zeros_(parameter)
        if hasattr(self, "refocus"):
            self.begin_soft()

    @torch.no_grad()
    def begin_dense(self, network: dict[str, Tensor]) -> None:
        """Load a residual dense network's weights; half of the picture is then its picture.

        Args:
            network: state dict of a `ResidualDenseNetwork`; empty: it keeps its own.

        Raises:
            OptionError: this decoder has no such network, or one of another size.
        """
        if self.dense is None:
            raise OptionError("this preset's decoder has no residual dense network")
        if network:
            _load(self.dense, network)
        for layer in (self.join_dense, self.gate):
            for parameter in layer.parameters():
                nn.init.zeros_(parameter)


def _load(network: nn.Module, weights: dict[str, Tensor]) -> None:
    """Load the weights of a network that is told and shown nothing."""
    own = network.state_dict()
    extra = {k: v for k, v in own.items() if k.startswith(("told.", "shown."))}
    try:
        network.load_state_dict({**extra, **weights})
    except RuntimeError as error:
        raise OptionError(
            f"the super-resolution network does not fit this preset: {error}"
        ) from None
