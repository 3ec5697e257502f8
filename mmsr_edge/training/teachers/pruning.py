"""Which of the teacher's blocks matter, and a smaller network of those that do.

A block adds a small residual to what the blocks before it made, so that any of them can be left out
and the rest still gives a picture. How much a block matters is the LPIPS between the pictures with
and without it.
"""

from __future__ import annotations

import time

import torch
from torch import Tensor, nn
from tqdm import tqdm

from mmsr_edge.models.residual_dense import BETA, ResidualDenseNetwork
from mmsr_edge.training.data.distillation import DistillationPool


@torch.no_grad()
def rank_blocks(teacher: ResidualDenseNetwork, lr: Tensor, lpips: nn.Module) -> list[int]:
    """Numbers of the teacher's blocks, those that matter most first.

    Args:
        teacher: the whole network.
        lr: LR pictures [B, 3, h, w] in [-1, 1].
        lpips: distance of two batches of pictures.
    """
    first = teacher.first((lr + 1) / 2)
    states = [first]
    for block in teacher.blocks:
        states.append(states[-1] + BETA * block(states[-1]))

    def picture(x: Tensor, blocks: nn.ModuleList) -> Tensor:
        for block in blocks:
            x = x + BETA * block(x)
        return teacher.picture(first + teacher.body(x), lr).clamp(-1, 1)

    whole = picture(states[-1], nn.ModuleList())
    distances = [
        float(lpips(picture(states[i], teacher.blocks[i + 1 :]), whole).mean())
        for i in tqdm(range(len(teacher.blocks)), desc="blocks")
    ]
    return sorted(range(len(distances)), key=lambda i: -distances[i])


@torch.no_grad()
def begin_pruned(
    student: ResidualDenseNetwork, teacher: ResidualDenseNetwork, order: list[int]
) -> None:
    """Load the teacher's most important blocks, in their order, and all other layers that fit.

    A tail at half of the HR size takes the teacher's convolutions as far as it has them; its last
    one begins with the teacher's centre weights in all four pixels.
    """
    kept = sorted(order[: len(student.blocks)])
    for mine, number in zip(student.blocks, kept, strict=True):
        mine.load_state_dict(teacher.blocks[number].state_dict())
    for name in ("first", "body"):
        getattr(student, name).load_state_dict(getattr(teacher, name).state_dict())
    for mine, whole in zip(student.tail, teacher.tail, strict=False):
        mine.load_state_dict(whole.state_dict())
    if student.full:
        student.last.load_state_dict(teacher.last.state_dict())
        return
    for own, given in zip(student.last.parameters(), teacher.last.parameters(), strict=True):
        own.copy_(given.repeat_interleave(4, 0))


def fit_tail(
    student: ResidualDenseNetwork, pool: DistillationPool, seconds: float, batch: int = 8
) -> float:
    """Train another tail than the teacher's alone, from the teacher's features to its pictures.

    Args:
        student: network whose tail begins anew.
        pool: pool whose targets hold the teacher's features.
        seconds: time that it may take; the learning rate falls to 0 in it.
        batch: pieces per step.

    Returns:
        The mean absolute difference from the teacher's pictures at the end, for [-1, 1].
    """
    layers = [*student.tail, student.last]
    parameters = [p for layer in layers for p in layer.parameters()]
    optimizer = torch.optim.Adam(parameters, betas=(0.9, 0.98))
    started, error = time.monotonic(), 0.0
    while (passed := (time.monotonic() - started) / seconds) < 1:
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * (1 - passed)
        lr, _, target, features = pool.batch(batch)
        loss = (student.picture(features, lr) - target).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        value = float(loss.detach())
        error += 0.02 * (value - error) if error else value
    return error
