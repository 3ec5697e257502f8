"""The teacher Real-ESRGAN: ncnn's files, its network, and losses against its targets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mmsr_edge.errors import OptionError
from mmsr_edge.models.residual_dense import ResidualDenseNetwork
from mmsr_edge.models.super_resolution import CompactSuperResolution
from mmsr_edge.training.losses.picture import PictureLoss, PictureLossConfig
from mmsr_edge.training.teachers import real_esrgan
from mmsr_edge.training.teachers.ncnn_weights import load_weights, read_weights
from mmsr_edge.training.teachers.real_esrgan import (
    load_anime,
    load_real_esrgan,
    load_realesr_animevideo,
)

Layer = nn.Conv2d | nn.PReLU
NAME = "realesrgan-x4plus"


def write_ncnn(folder: Path, layers: list[Layer], half: bool, name: str = NAME) -> None:
    """ncnn's layout: a tag, the weights padded to four bytes, the biases in single precision."""
    lines, data = ["7767517", f"{len(layers) + 1} {len(layers) + 1}", "Input data 0 1 data"], b""
    for i, layer in enumerate(layers):
        kernel = layer.weight.detach().numpy()
        if isinstance(layer, nn.PReLU):
            lines.append(f"PReLU PRelu_{i} 1 1 a b 0={kernel.size}")
            data += kernel.tobytes()
            continue
        count = kernel.size
        lines.append(f"Convolution Conv_{i} 1 1 a b 0={layer.out_channels} 1=3 4=1 5=1 6={count}")
        assert layer.bias is not None
        if half:
            stored = kernel.astype(np.float16).tobytes()
            data += b"\x47\x6b\x30\x01" + stored + bytes(-len(stored) % 4)
        else:
            data += bytes(4) + kernel.tobytes()
        data += layer.bias.detach().numpy().tobytes()
    (folder / f"{name}.param").write_text("\n".join(lines))
    (folder / f"{name}.bin").write_bytes(data)


def some_layers() -> list[Layer]:
    torch.manual_seed(0)
    slopes = nn.PReLU(5)
    nn.init.uniform_(slopes.weight)
    return [
        nn.Conv2d(3, 5, 3),
        slopes,
        nn.Conv2d(5, 3, 3),
    ]  # 135 weights: odd


@pytest.mark.parametrize("half", [True, False])
def test_ncnn_files_are_read(tmp_path: Path, half: bool) -> None:
    layers = some_layers()
    write_ncnn(tmp_path, layers, half)
    for layer, (weight, *bias) in zip(layers, read_weights(tmp_path, NAME), strict=True):
        rounded = half and isinstance(layer, nn.Conv2d)
        assert torch.equal(weight, layer.weight.half().float() if rounded else layer.weight)
        if isinstance(layer, nn.Conv2d):
            assert layer.bias is not None and torch.equal(bias[0], layer.bias)
        else:
            assert not bias


def test_broken_ncnn_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="cannot read the model 'realesrgan-x4plus'"):
        read_weights(tmp_path, NAME)
    write_ncnn(tmp_path, some_layers(), half=True)
    with pytest.raises(OptionError, match=r"'realesrgan-x4plus' in .* do not fit this network"):
        load_real_esrgan(tmp_path, torch.device("cpu"))
    path = tmp_path / "realesrgan-x4plus.bin"
    whole = path.read_bytes()
    path.write_bytes(whole[:-8])
    with pytest.raises(OptionError, match="ends before 'Conv_2'"):
        read_weights(tmp_path, NAME)
    path.write_bytes(whole + bytes(4))
    with pytest.raises(OptionError, match="4 bytes too many"):
        read_weights(tmp_path, NAME)


class Published(nn.Module):
    """SRVGGNetCompact as its authors run it: on pictures in [0, 1]."""

    def __init__(self) -> None:
        super().__init__()
        inputs = (3, *(64,) * 17)
        outputs = (*(64,) * 17, 48)
        layers: list[Layer] = []
        for i, (c_in, c_out) in enumerate(zip(inputs, outputs, strict=True)):
            layers += [nn.Conv2d(c_in, c_out, 3, padding=1)]
            layers += [nn.PReLU(c_out)] if i < 17 else []
        self.body = nn.Sequential(*layers)

    def forward(self, lr: torch.Tensor) -> torch.Tensor:
        repeated = lr.repeat_interleave(4, 2).repeat_interleave(4, 3)
        return F.pixel_shuffle(self.body(lr), 4) + repeated


def test_the_compact_super_resolution_network_is_the_published_one(tmp_path: Path) -> None:
    torch.manual_seed(0)
    published = Published()
    layers = [m for m in published.modules() if isinstance(m, Layer)]
    for layer in layers:
        nn.init.normal_(layer.weight, std=0.05)
    write_ncnn(tmp_path, layers, half=False, name="realesr-animevideov3-x4")
    ours = load_realesr_animevideo(tmp_path)
    lr = torch.rand(1, 3, 48, 40)
    with torch.no_grad():
        theirs = published(lr) * 2 - 1
        given = ours(lr * 2 - 1)
    # Ours pads with grey and theirs with black, which reaches as far as 18 convolutions.
    inner = (..., slice(72, -72), slice(72, -72))
    torch.testing.assert_close(given[inner], theirs[inner], atol=2e-5, rtol=0)
    assert (given - theirs).abs().max() > 5e-4


def test_the_network_for_drawings_is_the_published_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    published = ResidualDenseNetwork(1)
    layers = [m for m in published.modules() if isinstance(m, Layer)]
    write_ncnn(tmp_path, layers, half=False, name="realesrgan-x4plus-anime")
    with pytest.raises(OptionError, match="do not fit this network"):  # it has six blocks
        load_anime(tmp_path)
    monkeypatch.setattr(real_esrgan, "ANIME_BLOCKS", 1)
    lr = torch.rand(1, 3, 12, 12) * 2 - 1
    with torch.no_grad():
        torch.testing.assert_close(load_anime(tmp_path)(lr), published(lr))


def test_weights_go_to_the_layers_in_their_order(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network, other = CompactSuperResolution(2, 4), CompactSuperResolution(2, 4)
    write_ncnn(tmp_path, [m for m in network.modules() if isinstance(m, Layer)], half=False)
    load_weights(other, tmp_path, NAME)
    for mine, theirs in zip(network.parameters(), other.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_the_teacher_with_zero_blocks_in_closed_form() -> None:
    torch.manual_seed(0)
    teacher = ResidualDenseNetwork(2, "full", width=8, growth=4)
    lr = torch.rand(1, 3, 6, 5) * 2 - 1
    with torch.no_grad():
        full = teacher(lr)
        for block in teacher.blocks:
            for dense in block:
                dense.convs[4].weight.zero_()
                dense.convs[4].bias.zero_()
        # A block adds β times its input, so that two zero blocks multiply by (1 + β)².
        first = teacher.first((lr + 1) / 2)
        x = first + teacher.body(1.2**2 * first)
        for conv in teacher.tail[:2]:
            wide = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
            x = F.leaky_relu(conv(wide), 0.2)
        expected = teacher.last(F.leaky_relu(teacher.tail[2](x), 0.2)) * 2 - 1
        torch.testing.assert_close(teacher(lr), expected)
    assert full.shape == (1, 3, 24, 20) and not torch.allclose(full, expected)


def test_vgg_compares_with_the_teacher_target_and_alexnet_with_the_picture(
    lpips_weights: Path,
) -> None:
    stage = PictureLossConfig(grid_weight=0.0, vgg_crop=48, vgg_taps=3)
    loss = PictureLoss(lpips_weights, stage)
    g = torch.Generator().manual_seed(0)
    target, teacher_target = (torch.rand(1, 3, 64, 64, generator=g) * 2 - 1 for _ in range(2))

    def terms(image: torch.Tensor) -> tuple[float, float]:
        out = loss(image, target, torch.Generator().manual_seed(1), teacher_target)
        return out.l1.item(), out.perceptual.item()

    g = torch.Generator().manual_seed(1)
    apart = loss(target, teacher_target, g)
    half = stage.l1_weight * (target - teacher_target).abs().mean().item() / 2
    assert terms(target)[0] == pytest.approx(half) == pytest.approx(terms(teacher_target)[0])
    assert loss.alex is not None and loss.vgg is not None
    # Each network has no loss at its own target, so that both sums equal that between the two.
    assert terms(target)[1] + terms(teacher_target)[1] == pytest.approx(
        apart.perceptual.item(), rel=1e-4
    )
