"""Command-line options made from the stages' dataclasses, so that each setting is named once."""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from mmsr_edge.training.run import RunConfig

Stage = TypeVar("Stage")


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
