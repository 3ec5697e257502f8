"""The segmentation network: a class per pixel, objects as in PASCAL VOC and materials."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor, nn
from torch.nn import functional as F

from mmsr_edge.bundle import MAP_SIDE
from mmsr_edge.errors import OptionError
from mmsr_edge.models.trunk import Trunk, TrunkConfig, conv_norm


@dataclass(frozen=True)
class SegmentationConfig:
    """Sizes of the segmentation network."""

    classes: int
    """Number of classes, including 0 for none; at most 64."""
    trunk: TrunkConfig = field(default_factory=TrunkConfig)
    """Sizes of its trunk."""
    width: int = 40
    """Channels of the feature pyramid."""


class Segmentation(nn.Module):
    """A feature pyramid (Lin et al. 2017): upsampled coarse features are added to finer ones."""

    def __init__(self, config: SegmentationConfig) -> None:
        super().__init__()
        widths = config.trunk.widths
        self.trunk = Trunk(config.trunk)
        self.lateral = nn.ModuleList(conv_norm(w, config.width, relu=False) for w in widths)
        self.context = nn.Linear(widths[-1], config.width)
        self.smooth = nn.ModuleList(conv_norm(config.width, config.width, 3) for _ in widths)
        self.head = nn.Conv2d(config.width, config.classes, 1)

    def logits(self, image: Tensor) -> Tensor:
        """Logits [B, classes, 64, 64] of `image` [B, 3, 256, 256] in [-1, 1]."""
        features = self.trunk(image)
        # The mean over the whole picture: the global context of ParseNet (Liu et al. 2015).
        x = self.context(features[-1].mean((2, 3)))[:, :, None, None]
        for i in reversed(range(len(features))):
            if i < len(features) - 1:
                x = F.interpolate(x, scale_factor=2.0, mode="bilinear")
            x = self.smooth[i](F.relu(self.lateral[i](features[i]) + x))
        return self.head(x)

    def forward(self, image: Tensor) -> Tensor:
        """The most probable class of each pixel.

        Args:
            image: [B, 3, 256, 256], RGB in [-1, 1], the whole picture squeezed to a square.

        Returns:
            classes [B, 256, 256] int64; 0 stands for none.
        """
        logits = self.logits(image)
        return F.interpolate(logits, (MAP_SIDE, MAP_SIDE), mode="bilinear").argmax(1)


def build_segmentation(config: SegmentationConfig) -> Segmentation:
    """Build the network with fresh weights.

    Raises:
        OptionError: the number of classes is outside 2 … 64.
    """
    if not 2 <= config.classes <= 64:
        raise OptionError(f"classes is {config.classes}; it must be from 2 to 64")
    return Segmentation(config)
