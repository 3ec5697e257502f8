"""The compact enlarger: what can be said of a picture by looking at it closely.

Real-ESRGAN's small network (Wang et al. 2021, `SRVGGNetCompact`): convolutions and PReLUs at the
LR picture's size and one pixel shuffle, added to the picture enlarged by repeating its pixels. Its
field of view is 37 pixels wide. Our decoder has one beside its latent: the latent says what was
seen from farther away and what the diffusion made of it (see `autoencoder.SlimDecoder`).
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class CompactSuperResolution(nn.Module):
    """`layers` convolutions of `width` feature maps after the first, each with a PReLU.

    Args:
        layers: between the first convolution and the last.
        width: feature maps.
        scale: HR pixels per LR pixel, along a side.
    """

    def __init__(self, layers: int, width: int = 64, scale: int = 4) -> None:
        super().__init__()
        self.scale = scale
        convs = [nn.Conv2d(3 if i == 0 else width, width, 3, padding=1) for i in range(layers + 1)]
        self.body = nn.Sequential(*(m for c in convs for m in (c, nn.PReLU(width))))
        self.out = nn.Conv2d(width, 3 * scale**2, 3, padding=1)

    def pass_on(self, first: int) -> None:
        """Make the convolutions from number `first` on give what they take.

        A network that begins with the weights of one with fewer layers then begins where that ended
        (Net2Net, Chen et al. 2016, Sec. 2.3).
        """
        for conv, bend in zip(
            self.body[2 * first :: 2], self.body[2 * first + 1 :: 2], strict=True
        ):
            assert isinstance(conv, nn.Conv2d) and isinstance(bend, nn.PReLU)
            nn.init.dirac_(conv.weight)
            nn.init.zeros_(conv.bias)
            nn.init.ones_(bend.weight)

    def features(self, lr: Tensor) -> Tensor:
        """`lr` [B, 3, h, w], RGB in [-1, 1], to features [B, width, h, w]."""
        seen: Tensor = self.body(lr)
        return seen

    def picture(self, seen: Tensor, lr: Tensor) -> Tensor:
        """What `features` saw of `lr` to RGB [B, 3, scale·h, scale·w], about [-1, 1]."""
        repeated = F.interpolate(lr, scale_factor=float(self.scale), mode="nearest")
        return F.pixel_shuffle(self.out(seen), self.scale) + repeated

    def forward(self, lr: Tensor) -> Tensor:
        """Enlarge `lr` [B, 3, h, w] to [B, 3, scale·h, scale·w], both RGB in [-1, 1]."""
        return self.picture(self.features(lr), lr)
