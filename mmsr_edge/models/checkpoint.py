"""Checkpoints: bundles of torch weights, with one safetensors file per component."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version as package_version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mmsr_edge.bundle import (
    CONTRACT,
    Artifact,
    Bundle,
    ComponentSpec,
    LatentSpec,
    Manifest,
    Provenance,
    SamplerSpec,
    TensorSpec,
    TileSpec,
    copy_files,
    describe_file,
    open_bundle,
    shared,
    write_manifest,
)
from mmsr_edge.bundle.staging import staged_bundle
from mmsr_edge.errors import BundleError
from mmsr_edge.models.autoencoder import FACTOR, SCALE
from mmsr_edge.models.connector import Connector
from mmsr_edge.models.networks import build_component
from mmsr_edge.models.presets import Preset, preset
from mmsr_edge.models.signatures import draw_inputs, output_names

FloatPrecision = Literal["fp32", "fp16"]
_DTYPES = {"fp32": torch.float32, "fp16": torch.float16}


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint."""

    bundle: Bundle
    """Its folder and manifest. The torch backend runs it directly."""
    networks: dict[str, nn.Module]
    """Networks by component: on the CPU, float32, in evaluation mode."""

    @property
    def preset(self) -> Preset:
        """Preset with the networks' sizes."""
        return preset(self.bundle.manifest.preset)

    def digest(self, name: str) -> str:
        """SHA-256 of a component's weights file."""
        return _weights(self.bundle, name).files[0].sha256


def open_checkpoint(root: Path) -> Checkpoint:
    """Open a checkpoint and load its networks.

    Raises:
        BundleError: `root` is no checkpoint, a file is damaged, or weights do not fit the preset.
    """
    bundle = open_bundle(root)
    return Checkpoint(bundle, {name: _load(bundle, name) for name in bundle.manifest.components})


def load_network(root: Path, name: str) -> tuple[nn.Module, Preset]:
    """Load one network of a checkpoint; return it and its preset.

    Raises:
        BundleError: as in `open_checkpoint`, or the component is missing.
    """
    bundle = open_bundle(root)
    bundle.component(name)
    return _load(bundle, name), preset(bundle.manifest.preset)


def _load(bundle: Bundle, name: str) -> nn.Module:
    path = bundle.path(_weights(bundle, name).files[0])
    network = build_component(name, bundle.manifest.preset)
    try:
        network.load_state_dict(component_state(bundle, name))
    except RuntimeError as error:
        raise BundleError(
            f"{str(path)!r} does not hold the weights of {name!r} of preset "
            f"{bundle.manifest.preset!r}: {error}"
        ) from None
    network.eval().requires_grad_(False)
    if isinstance(network, Connector):
        network.fix_absent()
    return network


def component_state(bundle: Bundle, name: str) -> dict[str, Tensor]:
    """State dict of a component; fp16 weights become float32."""
    state = load_file(bundle.path(_weights(bundle, name).files[0]))
    return {k: v.float() if v.is_floating_point() else v for k, v in state.items()}


def write_checkpoint(
    networks: Mapping[str, nn.Module],
    out: Path,
    *,
    preset_name: str,
    version: str,
    residual_scale: Sequence[float] | None,
    provenance: Provenance,
    diffusion_scale: Sequence[float] | None = None,
    precision: FloatPrecision = "fp16",
    name: str | None = None,
    sampler: SamplerSpec | None = None,
    labels: Mapping[str, tuple[str, ...]] | None = None,
    untrained: tuple[str, ...] = (),
) -> Path:
    """Write networks as a checkpoint. The folder appears complete or not at all.

    Args:
        networks: the preset's networks by component name; they are moved to the CPU.
        out: folder of the checkpoint; an existing checkpoint is replaced.
        preset_name: key of `mmsr_edge.models.PRESETS`.
        version: version of the weights.
        residual_scale: see `LatentSpec`; None if the diffusion models z_hr itself.
        provenance: where the weights come from.
        diffusion_scale: see `LatentSpec`; None unless there is a `diffusion_unet`.
        precision: precision of the files; computation is float32 in both cases.
        name: name of the model; None: the preset's.
        sampler: noise schedule and sampling defaults; None: the preset's.
        labels: names of classes and tags by component; see `ComponentSpec`.
        untrained: components with untrained weights; see `Manifest`.

    Raises:
        BundleError: components are missing, or a weight overflows the precision.
        OutputError: `out` cannot be written.
    """
    p = preset(preset_name)
    with staged_bundle(out) as root:
        components = {}
        for key, network in networks.items():
            inputs, outputs = tensor_specs(network.cpu().eval(), key, p)
            artifact = write_weights(network, root, key, precision)
            components[key] = ComponentSpec(
                key, inputs, outputs, (artifact,), (labels or {}).get(key, ())
            )
        manifest = Manifest(
            name=name or preset_name,
            version=version,
            preset=preset_name,
            scale=SCALE,
            tile=TileSpec(p.tile, p.overlap, multiple_of=FACTOR // SCALE),
            latent=LatentSpec(
                p.autoencoder.channels,
                FACTOR,
                None if residual_scale is None else tuple(map(float, residual_scale)),
                None if diffusion_scale is None else tuple(map(float, diffusion_scale)),
            ),
            sampler=sampler or p.sampler,
            text=p.text_spec(),
            components=components,
            provenance=provenance,
            untrained=untrained,
        )
        write_manifest(root, manifest)
    return out


def write_variant(
    base: Bundle,
    networks: Mapping[str, nn.Module],
    out: Path,
    *,
    preset_name: str,
    version: str,
    provenance: Provenance,
) -> Path:
    """Write a checkpoint that has some networks of its own and takes the others from `base`.

    Args:
        base: the checkpoint that lies beside `out`, or at `out`: then its networks are replaced,
            and its other files stay.
        networks: its own networks by component name.
        out: folder of the checkpoint; an existing checkpoint is replaced.
        preset_name, version, provenance: see `write_checkpoint`.

    Raises:
        BundleError: a weight overflows, or the networks do not fit those of `base`.
        OutputError: `out` cannot be written.
    """
    p = preset(preset_name)
    with staged_bundle(out) as root:
        if out.resolve() == base.root.resolve():
            components = dict(base.manifest.components)
            copy_files(base, root, without=networks)
        else:
            bundle = base.root.resolve().name
            components = {n: shared(c, bundle) for n, c in base.manifest.components.items()}
        for key, network in networks.items():
            inputs, outputs = tensor_specs(network.cpu().eval(), key, p)
            artifact = write_weights(network, root, key, "fp16")
            components[key] = ComponentSpec(key, inputs, outputs, (artifact,))
        manifest = replace(
            base.manifest,
            name=preset_name,
            version=version,
            preset=preset_name,
            components=components,
            provenance=provenance,
        )
        write_manifest(root, manifest)
    return out


def write_weights(network: nn.Module, root: Path, name: str, precision: FloatPrecision) -> Artifact:
    """Write one network's weights below `root` as `name/precision.safetensors`.

    Raises:
        BundleError: a weight is not finite, or overflows the precision.
    """
    state: dict[str, Tensor] = {}
    for key, value in network.state_dict().items():
        narrow = value.to(_DTYPES[precision]) if value.is_floating_point() else value
        if not torch.isfinite(narrow).all():
            raise BundleError(
                f"weight {key!r} of {name!r} is not finite at {precision}"
                + ("; write it at fp32" if torch.isfinite(value).all() else ": training diverged")
            )
        state[key] = narrow.detach().cpu().clone(memory_format=torch.contiguous_format)
    path = root / name / f"{precision}.safetensors"
    path.parent.mkdir(exist_ok=True)
    save_file(state, path)
    tools = {tool: package_version(tool) for tool in ("torch", "safetensors")}
    file = describe_file(root, path.relative_to(root))
    return Artifact("torch", precision, (file,), tools=tools)


def tensor_specs(
    network: nn.Module, name: str, p: Preset
) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Specs of a network's inputs and outputs, from one run on drawn inputs."""
    feeds = draw_inputs(name, p, np.random.default_rng(0))
    return array_specs(feeds), array_specs(run_network(network, name, feeds))


def run_network(
    network: nn.Module, name: str, feeds: Mapping[str, NDArray[Any]]
) -> dict[str, NDArray[Any]]:
    """Run a network as a session does, from arrays by name to arrays by name."""
    given = {key: feeds[key] for key in CONTRACT[name].inputs if key in feeds}
    return run_torch(network, given, output_names(name))


def run_torch(
    network: nn.Module, feeds: Mapping[str, NDArray[Any]], outputs: Sequence[str]
) -> dict[str, NDArray[Any]]:
    """Run a network on `feeds`, in the order of its arguments; return the results by `outputs`."""
    with torch.inference_mode():
        results = network(*(torch.from_numpy(value) for value in feeds.values()))
    results = (results,) if isinstance(results, Tensor) else results
    return {key: result.numpy().copy() for key, result in zip(outputs, results, strict=True)}


def _weights(bundle: Bundle, name: str) -> Artifact:
    """A component's torch artifact: fp32 if there is one, else fp16."""
    return bundle.artifact(name, ("torch",), order=("fp32", "fp16"))


def array_specs(tensors: Mapping[str, NDArray[Any]]) -> tuple[TensorSpec, ...]:
    """Tensor specs of arrays: name, shape and type."""
    return tuple(TensorSpec(key, value.shape, value.dtype.name) for key, value in tensors.items())
