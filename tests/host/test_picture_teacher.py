"""The teacher of pictures: ncnn's files, its network, and what becomes of its answers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mmsr_edge.errors import OptionError
from mmsr_edge.training.picture_loss import PictureLoss
from mmsr_edge.training.picture_teacher import (
    PictureTeacher,
    load_picture_teacher,
    read_convolutions,
)
from mmsr_edge.training.train_finish import FinishStage


def write_ncnn(folder: Path, convs: list[nn.Conv2d], half: bool) -> None:
    """ncnn's layout: a tag, the weights padded to four bytes, the biases in single precision."""
    lines, data = ["7767517", f"{len(convs) + 1} {len(convs) + 1}", "Input data 0 1 data"], b""
    for i, conv in enumerate(convs):
        count = conv.weight.numel()
        lines.append(f"Convolution Conv_{i} 1 1 a b 0={conv.out_channels} 1=3 4=1 5=1 6={count}")
        assert conv.bias is not None
        kernel, bias = conv.weight.detach().numpy(), conv.bias.detach().numpy()
        if half:
            stored = kernel.astype(np.float16).tobytes()
            data += b"\x47\x6b\x30\x01" + stored + bytes(-len(stored) % 4)
        else:
            data += bytes(4) + kernel.tobytes()
        data += bias.tobytes()
    (folder / "realesrgan-x4plus.param").write_text("\n".join(lines))
    (folder / "realesrgan-x4plus.bin").write_bytes(data)


def some_convs() -> list[nn.Conv2d]:
    torch.manual_seed(0)
    return [nn.Conv2d(3, 5, 3), nn.Conv2d(5, 3, 3)]  # 135 weights: an odd number of halves


@pytest.mark.parametrize("half", [True, False])
def test_ncnn_files_are_read(tmp_path: Path, half: bool) -> None:
    convs = some_convs()
    write_ncnn(tmp_path, convs, half)
    for conv, (weight, bias) in zip(convs, read_convolutions(tmp_path), strict=True):
        expected = conv.weight.half().float() if half else conv.weight
        assert torch.equal(weight, expected)
        assert conv.bias is not None and torch.equal(bias, conv.bias)


def test_broken_ncnn_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="cannot read the teacher"):
        read_convolutions(tmp_path)
    write_ncnn(tmp_path, some_convs(), half=True)
    with pytest.raises(OptionError, match=r"not Real-ESRGAN x4plus's"):
        load_picture_teacher(tmp_path, torch.device("cpu"))
    path = tmp_path / "realesrgan-x4plus.bin"
    whole = path.read_bytes()
    path.write_bytes(whole[:-8])
    with pytest.raises(OptionError, match="ends before 'Conv_1'"):
        read_convolutions(tmp_path)
    path.write_bytes(whole + bytes(4))
    with pytest.raises(OptionError, match="4 bytes too many"):
        read_convolutions(tmp_path)


def test_the_teacher_without_its_blocks_is_its_ends() -> None:
    torch.manual_seed(0)
    teacher = PictureTeacher(triples=2, width=8, growth=4)
    lr = torch.rand(1, 3, 6, 5) * 2 - 1
    with torch.no_grad():
        full = teacher(lr)
        for triple in teacher.triples:
            for dense in triple:
                dense.convs[4].weight.zero_()
                dense.convs[4].bias.zero_()
        # A triple adds β·itself, so two blocks that add nothing multiply by (1 + β)².
        first = teacher.first((lr + 1) / 2)
        x = first + teacher.body(1.2**2 * first)
        for conv in teacher.tail[:2]:
            wide = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
            x = F.leaky_relu(conv(wide), 0.2)
        expected = teacher.last(F.leaky_relu(teacher.tail[2](x), 0.2)).clamp(0, 1) * 2 - 1
        torch.testing.assert_close(teacher(lr), expected)
    assert full.shape == (1, 3, 24, 20) and not torch.allclose(full, expected)


def test_vgg_listens_to_the_teacher_and_alexnet_to_the_picture(lpips_weights: Path) -> None:
    stage = FinishStage(critic_weight=0.0, grid_weight=0.0, vgg_crop=48, vgg_taps=3)
    loss = PictureLoss(lpips_weights, stage)
    g = torch.Generator().manual_seed(0)
    target, taught = (torch.rand(1, 3, 64, 64, generator=g) * 2 - 1 for _ in range(2))

    def terms(image: torch.Tensor) -> tuple[float, float]:
        out = loss(image, target, torch.Generator().manual_seed(1), taught)
        return out.l1.item(), out.perceptual.item()

    g = torch.Generator().manual_seed(1)
    apart = loss(target, taught, g)
    half = stage.l1_weight * (target - taught).abs().mean().item() / 2
    assert terms(target)[0] == pytest.approx(half) == pytest.approx(terms(taught)[0])
    assert loss.alex is not None and loss.vgg is not None
    # Each network is content with its own, so that both together are what one picture costs.
    assert terms(target)[1] + terms(taught)[1] == pytest.approx(apart.perceptual.item(), rel=1e-4)
