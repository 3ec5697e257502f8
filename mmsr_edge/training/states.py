"""State dicts of training runs and checkpoints: reading, writing, and loading into networks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmsr_edge.bundle import MANIFEST_NAME, open_bundle
from mmsr_edge.errors import OptionError
from mmsr_edge.files import replacing
from mmsr_edge.models.checkpoint import component_state

DENOISER = ("text_encoder", "connector", "unet")
"""Components that `denoiser.Denoiser` joins."""


def load_state(folder: Path) -> dict[str, Any]:
    """Read the state that `Run.save` or `write_run` wrote.

    Raises:
        OptionError: `folder` has no `state.pt`.
    """
    path = folder / "state.pt"
    if not path.exists():
        raise OptionError(f"no training run in {str(folder)!r}: {path.name} is missing")
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state


def averaged(state: dict[str, Any]) -> dict[tuple[str, str], Tensor]:
    """The averaged weights of the trained parameters, by network and key, from `load_state`."""
    names = [(n, k) for n, ks in state["parameters"].items() for k in ks]
    return dict(zip(names, state["ema"]["shadow_params"], strict=True))


def load_run(folder: Path, *, ema: bool = True) -> dict[str, dict[str, Tensor]]:
    """State dicts of a run's networks, by name.

    Args:
        folder: folder of the run.
        ema: whether to take the averaged weights; otherwise the last ones.

    Raises:
        OptionError: `folder` has no `state.pt`.
    """
    state = load_state(folder)
    networks: dict[str, dict[str, Tensor]] = state["networks"]
    if ema:
        for (name, key), value in averaged(state).items():
            networks[name][key] = value
    return networks


def write_run(folder: Path, networks: dict[str, dict[str, Tensor]]) -> None:
    """Write state dicts as a finished run, for `load_run`; it cannot be resumed."""
    state = {"networks": networks, "parameters": {}, "ema": {"shadow_params": []}}
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / "state.pt") as file:
        torch.save(state, file)


def start_from(networks: dict[str, nn.Module], states: dict[str, dict[str, Tensor]]) -> list[str]:
    """Load into `networks` the tensors of `states` with the same network, name and shape.

    Returns:
        Names of the tensors that keep their fresh weights. Their modules are printed.
    """
    fresh = []
    for name, network in networks.items():
        own, given = network.state_dict(), states.get(name, {})
        fit = {k: v for k, v in given.items() if k in own and own[k].shape == v.shape}
        network.load_state_dict(fit, strict=False)
        fresh += [f"{name}.{key}" for key in own if key not in fit]
    if fresh:
        print("fresh weights in", *dict.fromkeys(".".join(n.split(".")[:3]) for n in fresh))
    return fresh


def load_states(folder: Path, *, ema: bool = True) -> dict[str, dict[str, Tensor]]:
    """State dicts of the networks of a run or a checkpoint, by name.

    A checkpoint's text encoder, connector and UNet are joined as `denoiser`, as in a run. The
    shapes are not compared with the networks': that is left to `start_from`, because a stage may
    have layers that the run or checkpoint lacks.

    Args:
        folder: folder of a run, or a checkpoint such as `weights/nano`.
        ema: whether to take a run's averaged weights; otherwise the last ones.

    Raises:
        OptionError: `folder` is neither.
        BundleError: the checkpoint is damaged.
    """
    if not (folder / MANIFEST_NAME).exists():
        return load_run(folder, ema=ema)
    bundle = open_bundle(folder)
    states = {name: component_state(bundle, name) for name in bundle.manifest.components}
    denoiser = {f"{n}.{k}": v for n in DENOISER for k, v in states.pop(n).items()}
    scale = bundle.manifest.latent.residual_scale
    if scale is not None:
        denoiser["residual_scale"] = torch.tensor(scale)
    return {**states, "denoiser": denoiser}


def tokenizer_states(folder: Path) -> dict[str, dict[str, Tensor]]:
    """State dict of a tokenizer, by its name, of a run or checkpoint.

    Encoder weights are the averaged ones. Codes are the last ones: the average of a revived code
    lies between its old place and its new one.
    """
    states = load_states(folder, ema=False)
    return {"tokenizer": states["tokenizer"]}
