r"""Make a checkpoint, a bundle of torch weights, from training runs.

    python -m mmsr_edge.training.release --preset nano --autoencoder RUN --tokenizer RUN \
        --diffusion RUN --student RUN --modalities RUN RUN RUN RUN --photos DIR --tiles FILE \
        --version 0.1.0 --out weights/nano

With a student, the checkpoint has two UNets: the student's, for up to `--few-steps` steps, and the
diffusion's, for more. They share the student's text encoder and connector; train the diffusion with
`--init` and `--context-alone` to that end.

The release gates (`gates.py`) are measured first, on tiles that `data/tiles.py` made, best of
photographs that were held out. A model that fails one is not released. Only `micro`, whose weights
are random, needs none.

The weights are the runs' moving averages (the tokenizer's are the last ones), in fp16. The
provenance in the manifest comes from `sources.json` in the photographs' folder, which is required.
Add each published network that was distilled with `--teacher-source NAME LICENCE WHAT`, and each
whose weights ours were initialized from with `--initialized-from NAME LICENCE WHAT`, which adds its
licence to ours.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from mmsr_edge.bundle import Provenance
from mmsr_edge.errors import OptionError
from mmsr_edge.models.checkpoint import write_checkpoint
from mmsr_edge.models.networks import build_component, preset_components
from mmsr_edge.models.presets import preset
from mmsr_edge.sampler import GUIDANCE
from mmsr_edge.training.data.tiles import Tiles, load_tiles
from mmsr_edge.training.gate_runs import measure
from mmsr_edge.training.gates import gate_table, require
from mmsr_edge.training.modality_networks import add_modality_networks, read_modality_networks
from mmsr_edge.training.states import DENOISER, load_states


def provenance(
    photos: Path, notes: str, teachers: Sequence[Sequence[str]] = (),
    ancestors: Sequence[Sequence[str]] = (),
) -> Provenance:  # fmt: skip
    """Provenance of the weights: photographs by source and licence, teachers and initial weights.

    Args:
        photos: folder of the photographs, with `sources.json`.
        notes: notes for users of the weights.
        teachers: name, licence and what was distilled from it, for each teacher.
        ancestors: name, licence and what was initialized from it, for each network.

    Raises:
        OptionError: `sources.json` is missing; weights of unknown origin are not released.
    """
    path = photos / "sources.json"
    if not path.exists():
        raise OptionError(
            f"{str(path)!r} is missing; it lists source and licence of each photograph: write it"
        )
    entries: list[dict[str, Any]] = json.loads(path.read_text())
    counts = Counter((e["source"], e["licence"]) for e in entries)
    sources = [
        {"name": source, "licence": licence, "photographs": count, "used_for": "training"}
        for (source, licence), count in sorted(counts.items())
    ]
    sources += [
        {"name": name, "licence": licence, "used_for": f"distillation of {what}"}
        for name, licence, what in teachers
    ]
    return with_ancestors(Provenance("Apache-2.0", tuple(sources), notes), ancestors)


def with_ancestors(base: Provenance, ancestors: Sequence[Sequence[str]]) -> Provenance:
    """The provenance of weights that were initialized from other networks too.

    Args:
        base: provenance without them.
        ancestors: name, licence and what was initialized from it, for each network.
    """
    sources = tuple(
        {"name": name, "licence": licence, "used_for": f"initial weights of {what}"}
        for name, licence, what in ancestors
    )
    licences = [*base.licence.split(" AND "), *(licence for _, licence, _ in ancestors)]
    return replace(
        base, licence=" AND ".join(dict.fromkeys(licences)), sources=base.sources + sources
    )


def split_denoiser(state: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """State dicts of the networks in `denoiser.Denoiser`, by component."""
    return {
        n: {k[len(n) + 1 :]: v for k, v in state.items() if k.startswith(n + ".")} for n in DENOISER
    }


def gather(preset_name: str, states: dict[str, dict[str, Tensor]]) -> dict[str, nn.Module]:
    """Build the components of a preset with their weights.

    Raises:
        OptionError: `states` lacks a component.
    """
    names = preset_components(preset(preset_name))
    names += tuple(n for n in ("diffusion_unet",) if n in states)
    missing = [n for n in names if n not in states]
    if missing:
        raise OptionError(f"no weights for {', '.join(missing)}: give runs that trained them")
    networks = {n: build_component(n, preset_name) for n in names}
    for name, module in networks.items():
        module.load_state_dict(states[name])
    return networks


def join(
    student: dict[str, dict[str, Tensor]], diffusion: dict[str, Tensor]
) -> dict[str, dict[str, Tensor]]:
    """State dicts of a student and its diffusion, by component.

    Args:
        student: those of a run of train_modalities.
        diffusion: that of the denoiser of a run of train_diffusion.

    Raises:
        OptionError: text encoder and connector are not the same in both.
    """
    last = dict(student)
    components = split_denoiser(last.pop("denoiser"))
    other = split_denoiser(diffusion)
    for name in ("text_encoder", "connector"):
        for key, value in components[name].items():
            if not torch.equal(value, other[name][key]):
                raise OptionError(
                    f"student and diffusion differ in {name}.{key}, and a bundle has one {name}; "
                    "train the diffusion with --init STUDENT --context-alone"
                )
    return {**last, **components, "diffusion_unet": other["unet"]}


UNGATED = ("micro",)
"""Presets that may be released without gates: those for tests."""


def require_tiles(tiles: Path | None, preset_name: str) -> None:
    """Check that there are tiles for the gates, if the preset needs them.

    Raises:
        OptionError: there are none.
    """
    if tiles is None and preset_name not in UNGATED:
        raise OptionError(
            f"--tiles is missing; {preset_name!r} is released only if it passes the gates: give a "
            "file of tiles"
        )


def release(write: Callable[[Path], Path], out: Path, tiles: Tiles | None) -> None:
    """Write a checkpoint to `out` if it passes the release gates.

    The gates run on a copy, so that nothing appears at `out`, and nothing there is replaced, unless
    they pass.

    Args:
        write: writes the checkpoint to a folder.
        out: folder of the release.
        tiles: tiles for the gates; None: there are none to pass.

    Raises:
        ReleaseError: a gate fails.
    """
    if tiles is not None:
        # Beside `out`, where a variant finds the files that it shares.
        out.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as folder:
            gates = measure(write(Path(folder)), tiles)
        require(gates)
        print(gate_table(gates))
    write(out)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", default="nano")
    for name in ("autoencoder", "tokenizer", "diffusion", "photos", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument(
        "--student", type=Path, help="run of train_modalities; the diffusion is then separate"
    )
    add_modality_networks(parser)
    parser.add_argument(
        "--tiles", type=Path, help=f"tiles for the gates; may be left out for {', '.join(UNGATED)}"
    )
    parser.add_argument("--version", required=True, help="version of the weights")
    parser.add_argument("--notes", default="", help="notes for users of the weights")
    parser.add_argument(
        "--steps", type=int, help="default steps of the bundle; the preset's if left out"
    )
    parser.add_argument(
        "--few-steps",
        type=int,
        default=0,
        help="largest number of steps that start without noise; default 0",
    )
    parser.add_argument(
        "--few-guidance", choices=GUIDANCE, help="guidance of few steps when w is given"
    )
    parser.add_argument(
        "--guidance-scale", type=float, help="default guidance scale w; 0 turns guidance off"
    )
    for flag, text in (
        ("--teacher-source", "published network that was distilled; repeatable"),
        ("--initialized-from", "published network that ours was initialized from; repeatable"),
    ):
        parser.add_argument(
            flag, nargs=3, action="append", default=[], metavar=("NAME", "LICENCE", "WHAT"),
            help=text,
        )  # fmt: skip
    args = parser.parse_args()
    require_tiles(args.tiles, args.preset)
    states, labels = read_modality_networks(args.modalities)
    states |= load_states(args.autoencoder)
    # The last weights, not the averaged ones: the average of a revived code lies between its old
    # place and its new one.
    states |= load_states(args.tokenizer, ema=False)
    last = load_states(args.diffusion)
    denoiser = last.pop("denoiser")
    scale = torch.as_tensor(denoiser["residual_scale"]).tolist()
    sampler = replace(
        preset(args.preset).sampler, few_steps=args.few_steps, few_guidance=args.few_guidance
    )
    sigma = None
    if args.student is None:
        states |= last | split_denoiser(denoiser)  # a run after the diffusion has a decoder too
    else:
        states |= join(load_states(args.student), denoiser)
        sigma = tuple(torch.as_tensor(denoiser["latent_scale"]).tolist())
        sampler = replace(sampler, diffusion="separate")
    if args.steps is not None:
        sampler = replace(sampler, steps=args.steps)
    if args.guidance_scale is not None:
        guidance = sampler.guidance if args.guidance_scale else None
        sampler = replace(sampler, guidance=guidance, guidance_scale=args.guidance_scale)
    write = partial(
        write_checkpoint,
        gather(args.preset, states),
        preset_name=args.preset,
        version=args.version,
        residual_scale=tuple(scale),
        diffusion_scale=sigma,
        provenance=provenance(args.photos, args.notes, args.teacher_source, args.initialized_from),
        precision="fp16",
        sampler=sampler,
        labels=labels,
    )
    release(write, args.out, None if args.tiles is None else load_tiles(args.tiles))


if __name__ == "__main__":
    main()
