"""Command-line options made from the fields of the stages' dataclasses."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import torch

from mmsr_edge.training.data.distillation import (
    DistillationConfig,
    DistillationPool,
    float_teacher,
    read_targets,
)
from mmsr_edge.training.data.photos import HALVINGS, Photos
from mmsr_edge.training.run import RunConfig
from mmsr_edge.training.teachers.real_esrgan import load_real_esrgan

Stage = TypeVar("Stage")


@dataclass(frozen=True)
class PresetConfig:
    """Setting of the stages that build networks of a preset."""

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
    """Add `--out`, `--photos`, and an option for every field of `RunConfig` and of `stage`.

    Args:
        parser: receives the options.
        stage: the stage's settings; their values are the defaults.
        steps: default of `RunConfig.steps`.
        photos: whether to add `--photos`.
        defaults: defaults of other fields of `RunConfig`.
    """
    if photos:
        parser.add_argument(
            "--photos", type=Path, required=True, help="folder of photographs, searched recursively"
        )
    parser.add_argument(
        "--out", type=Path, required=True, help="folder of the run; an existing run is resumed"
    )
    _add(parser.add_argument_group("run"), RunConfig(steps=steps, **defaults))
    _add(parser.add_argument_group("stage"), stage)


def run_config(args: argparse.Namespace, stage: type[Stage]) -> tuple[RunConfig, Stage]:
    """`RunConfig` and the stage's settings from parsed arguments."""
    values = vars(args)

    def read(cls: Any) -> Any:
        return cls(**{f.name: values[f.name] for f in fields(cls)})

    return read(RunConfig), read(stage)


def add_lpips(parser: argparse.ArgumentParser) -> None:
    """Add `--lpips`, the folder with the feature networks of the perceptual losses."""
    parser.add_argument(
        "--lpips", type=Path, required=True, help="folder with alexnet.ckpt, vgg16.ckpt"
    )


def add_teacher(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """Add `--teacher`, the folder with Real-ESRGAN's weights."""
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
        "--targets", type=Path, nargs="+", default=[], help="files from make_targets to start with"
    )


def distillation_pool(
    args: argparse.Namespace, stage: DistillationConfig, seed: int, device: torch.device
) -> DistillationPool:
    """The distillation pool that a stage's command line asks for.

    Raises:
        OptionError: the photographs, the teacher's files or the targets cannot be read.
    """
    photos = Photos(args.photos, device, seed=seed, halvings=HALVINGS)
    network = load_real_esrgan(args.teacher, device)
    held = read_targets(args.targets, stage)
    return DistillationPool(photos, float_teacher(network), stage, seed, held)
