"""The teacher's blocks: which matter, a network of those that do, another tail, and int8."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mmsr_edge.models.residual_dense import BETA, TAILS, ResidualDenseNetwork, Tail
from mmsr_edge.training.teachers.int8 import QuantizedTeacher, quantize_teacher
from mmsr_edge.training.teachers.pruning import begin_pruned, fit_tail, rank_blocks


class Distance(nn.Module):
    """Mean absolute difference, in place of LPIPS."""

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (a - b).abs().mean((1, 2, 3))


@pytest.fixture
def teacher() -> ResidualDenseNetwork:
    """Four blocks; what they add differs by an order of magnitude each: 2, 0, 3, 1."""
    torch.manual_seed(0)
    network = ResidualDenseNetwork(4, "full", width=8, growth=4)
    with torch.no_grad():
        for block, size in zip(network.blocks, (1.0, 0.01, 10.0, 0.1), strict=True):
            assert isinstance(block, nn.Sequential)
            for dense in block:
                dense.convs[4].weight.mul_(size)
                dense.convs[4].bias.mul_(size)
    # A block adds β times its output, which holds its input; without that part the sizes count.
    return network.requires_grad_(False)


def pictures(count: int = 2, side: int = 12) -> torch.Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_blocks_are_ranked_by_what_the_picture_loses(teacher: ResidualDenseNetwork) -> None:
    lr = pictures()
    whole, losses = teacher(lr).clamp(-1, 1), []
    for i in range(4):
        rest = copy.deepcopy(teacher)
        del rest.blocks[i]
        losses.append(float((rest(lr).clamp(-1, 1) - whole).abs().mean()))
    wanted = sorted(range(4), key=lambda i: -losses[i])
    assert rank_blocks(teacher, lr, Distance()) == wanted
    assert wanted != list(range(4))


def test_a_pruned_network_is_the_teacher_without_the_other_blocks(
    teacher: ResidualDenseNetwork,
) -> None:
    student = ResidualDenseNetwork(2, "full", width=8, growth=4).requires_grad_(False)
    begin_pruned(student, teacher, [3, 0, 2, 1])
    lr = pictures()
    x = first = teacher.first((lr + 1) / 2)
    for i in (0, 3):  # in the teacher's order
        x = x + BETA * teacher.blocks[i](x)
    features = first + teacher.body(x)
    torch.testing.assert_close(student.features(lr), features)
    torch.testing.assert_close(student(lr), teacher.picture(features, lr))


@pytest.mark.parametrize("tail", TAILS)
def test_tails_enlarge_fourfold_in_place(tail: Tail) -> None:
    """A shift of the LR picture shifts the picture by four times as much."""
    torch.manual_seed(0)
    network = ResidualDenseNetwork(1, tail, width=8, growth=4).requires_grad_(False)
    lr = pictures(1, 40)
    moved = lr.roll(1, dims=3)
    image, shifted = network(lr), network(moved)
    assert image.shape == (1, 3, 160, 160)
    inner = (..., slice(72, 88), slice(72, 88))
    torch.testing.assert_close(shifted[inner], image.roll(4, dims=3)[inner], atol=1e-5, rtol=0)


class Held:
    """A pool that always gives the same pieces."""

    def __init__(self, batch: list[torch.Tensor]) -> None:
        self.pieces = batch

    def batch(self, count: int) -> list[torch.Tensor]:
        return self.pieces


def test_another_tail_is_fitted_to_the_teachers_pictures(teacher: ResidualDenseNetwork) -> None:
    lr = pictures(4)
    features = teacher.features(lr)
    target = teacher.picture(features, lr)
    student = ResidualDenseNetwork(2, "half", width=8, growth=4)
    begin_pruned(student, teacher, [0, 1, 2, 3])
    blocks = copy.deepcopy(student.blocks.state_dict())
    before = float((student.picture(features, lr) - target).abs().mean())
    after = fit_tail(student, Held([lr, target, target, features]), 2.0)  # type: ignore[arg-type]
    assert after < 0.5 * before, (before, after)
    for key, value in student.blocks.state_dict().items():
        assert torch.equal(value, blocks[key]), key


def test_the_quantized_teacher_is_the_teacher_rounded() -> None:
    pytest.importorskip("nncf")
    torch.manual_seed(0)
    network = ResidualDenseNetwork(2, "full", width=16, growth=8).requires_grad_(False)
    smooth = F.interpolate(pictures(8, 6), (24, 24), mode="bicubic").clamp(-1, 1)
    teacher = QuantizedTeacher(quantize_teacher(network, smooth), threads=1)
    image, features = teacher(smooth[:2])
    for made, wanted in (
        (image, network(smooth[:2]).clamp(-1, 1)),
        (features, network.features(smooth[:2])),
    ):
        assert made.shape == wanted.shape
        error = (made - wanted).abs().mean() / wanted.std()
        assert 0 < error < 0.05, error
