"""What a token should tell of its map: heads and losses of the tokenizer's training.

A token covers 16×16 map pixels, 8×8 LR pixels. Three heads read it; each kind of map trains one:

    depth          4×4 means                  L1
    segmentation   2×2 classes, and whether   cross-entropy
                   they are the subject
    edges          4×4 densities              mean square

The mean over the RGB pixels of a reconstructed map, on which VQGANs are trained, asks for none of
these: thin lines hardly count in it, and a wrong class costs as much as its colour differs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmsr_edge.modalities.segmentation import SUBJECT
from mmsr_edge.models.tokenizer import ResidualBlock

DEPTHS, CLASSES, EDGES = 16, 4, 16
"""Numbers of parts that a token tells of, for each kind of map."""
WEIGHTS = (4.0, 1.0, 20.0)
"""Weights of the three losses."""


class TokenHeads(nn.Module):
    """Reads tokens [B, width, 16, 16] twice: each alone, and with its neighbours.

    Args:
        width: width of a token.
        classes: number of segmentation classes. The head has twice as many: those of the subject
            come after the others.
    """

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.classes = classes = 2 * classes
        told = DEPTHS + CLASSES * classes + EDGES
        self.alone = nn.Conv2d(width, told, 1)
        self.beside = nn.Sequential(
            nn.Conv2d(width, 128, 1), ResidualBlock(128), ResidualBlock(128), nn.SiLU(),
            nn.Conv2d(128, told, 1),
        )  # fmt: skip

    def loss(self, tokens: Tensor, told: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Losses [2, 3] of tokens read alone and beside their neighbours, by kind of map.

        Args:
            tokens: of depth, segmentation and edge maps one after another, [3·B, width, 16, 16].
            told: results of `what_maps_tell` for the B maps of each kind.
        """
        rows = []
        for read in (self.alone, self.beside):
            depth, classes, edges = read(tokens).float().chunk(3)
            first, last = DEPTHS, DEPTHS + CLASSES * self.classes
            logits = classes[:, first:last].unflatten(1, (self.classes, CLASSES))
            rows.append(
                torch.stack(
                    [
                        F.l1_loss(depth[:, :first], told[0]),
                        F.cross_entropy(logits, self.numbered(told[1])),
                        F.mse_loss(edges[:, last:], told[2]),
                    ]
                )
            )
        return torch.stack(rows), torch.tensor(WEIGHTS, device=tokens.device)

    def numbered(self, classes: Tensor) -> Tensor:
        """Numbers of the head's classes: those of the subject follow the others."""
        half = self.classes // 2
        return classes % SUBJECT % half + half * (classes >= SUBJECT)


def what_maps_tell(depth: Tensor, classes: Tensor, edges: Tensor) -> list[Tensor]:
    """Targets of the heads.

    Args:
        depth: [B, 256, 256], 0 to 255.
        classes: [B, 256, 256], with `SUBJECT` added where the subject is; the middle pixel of a
            part stands for it.
        edges: [B, 256, 256], 0 to 255.

    Returns:
        Depths [B, 16, 16, 16] in [0, 1], classes [B, 4, 16, 16], edge densities [B, 16, 16, 16].
    """
    near = F.avg_pool2d(depth.float()[:, None] / 255, 4)
    lines = F.avg_pool2d(edges.float()[:, None] / 255, 4)
    middle = classes[:, None, 4::8, 4::8].float()
    return [
        F.pixel_unshuffle(near, 4),
        F.pixel_unshuffle(middle, 2).long(),
        F.pixel_unshuffle(lines, 4),
    ]
