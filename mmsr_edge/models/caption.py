"""The tagger: probabilities of the things that a picture may show.

Its tags become a prompt, as in SeeSR; `modalities/tags.py` does this on the device.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor, nn

from mmsr_edge.models.trunk import Trunk, TrunkConfig, conv_norm


@dataclass(frozen=True)
class TaggerConfig:
    """Sizes of the tagger."""

    tags: int
    """T, number of tags."""
    trunk: TrunkConfig = field(default_factory=TrunkConfig)
    """Sizes of its trunk."""
    width: int = 640
    """Channels before pooling."""


class Tagger(nn.Module):
    """A small classifier with one softmax over T tags and "something else"."""

    def __init__(self, config: TaggerConfig) -> None:
        super().__init__()
        self.trunk = Trunk(config.trunk)
        self.widen = conv_norm(config.trunk.widths[-1], config.width)
        self.head = nn.Linear(config.width, config.tags + 1)

    def features(self, image: Tensor) -> Tensor:
        """Pooled features of `image`, [B, width], from which the tags are classified."""
        return self.widen(self.trunk(image)[-1]).mean((2, 3))

    def forward(self, image: Tensor) -> Tensor:
        """Probabilities of the tags.

        Args:
            image: [B, 3, 256, 256], RGB in [-1, 1], the whole picture squeezed to a square.

        Returns:
            scores [B, T] in [0, 1]; 1 minus their sum is the probability of "something else".
        """
        return self.head(self.features(image)).softmax(1)[:, :-1]


def build_tagger(config: TaggerConfig) -> Tagger:
    """Build the network with fresh weights."""
    return Tagger(config)
