"""Command-line options made from the stages' dataclasses, so that each setting is named once."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import torch

from mmsr_edge.training.data.distillation import (
    DistillationConfig,
    DistillationPool,
    read_targets,
)
from mmsr_edge.training.data.photos import HALVINGS, Photos
from mmsr_edge.training.run import RunConfig
from mmsr_edge.training.teachers.real_esrgan import load_real_esrgan

Stage = TypeVar("Stage")


@dataclass(frozen=True)
class PresetConfig:
    """Setting of stages that train networks of a preset."""

    preset: str = "nano"
    """Preset of the networks, a key of `mmsr_edge.models.PRESETS`."""


def _add(parser: argparse._ArgumentGroup, config: Any) -> None:
    for field in fields(config):
        default = getattr(config, field.name)
        flag = f"--{field.name.replace('_', '-')}"
        if isinstance(default, bool):
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=default)
            continue
        kind = float if default is None else type(default)
        parser.add_argument(flag, type=kind, default=default, help=f"default {default}")


def add_run_options(
    parser: argparse.ArgumentParser,
    stage: Any,
    *,
    steps: int,
    photos: bool = True,
    **defaults: Any,
) -> None:
    """Add `--photos` (unless false), `--out`, every field of `RunConfig` and of `stage`."""
    if photos:
        parser.add_argument(
            "--photos", type=Path, required=True, help="folder of photographs, searched recursively"
        )
    parser.add_argument(
        "--out", type=Path, required=True, help="the run's folder; an existing run is resumed"
    )
    _add(parser.add_argument_group("run"), RunConfig(steps=steps, **defaults))
    _add(parser.add_argument_group("stage"), stage)


def run_config(args: argparse.Namespace, stage: type[Stage]) -> tuple[RunConfig, Stage]:
    """Read both dataclasses back from parsed arguments."""
    values = vars(args)

    def read(cls: Any) -> Any:
        return cls(**{f.name: values[f.name] for f in fields(cls)})

    return read(RunConfig), read(stage)


def add_teacher(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """Add `--teacher`, the folder of Real-ESRGAN's weights."""
    parser.add_argument(
        "--teacher",
        type=Path,
        required=required,
        help="folder with realesrgan-x4plus.param and .bin",
    )


def add_distillation(parser: argparse.ArgumentParser) -> None:
    """Add the options that `distillation_pool` reads."""
    add_teacher(parser)
    parser.add_argument(
        "--targets", type=Path, nargs="+", default=[], help="files of make_targets to start with"
    )


def distillation_pool(
    args: argparse.Namespace, stage: DistillationConfig, seed: int, device: torch.device
) -> DistillationPool:
    """The pool of a stage's command line."""
    photos = Photos(args.photos, device, seed=seed, halvings=HALVINGS)
    teacher = load_real_esrgan(args.teacher, device)
    return DistillationPool(photos, teacher, stage, seed, read_targets(args.targets, stage))
