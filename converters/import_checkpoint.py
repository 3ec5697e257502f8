"""Make a checkpoint from local copies of published weights: Stable Diffusion 2 and a VQGAN.

    python converters/import_checkpoint.py --preset sd2 --unet SD2/unet --vae SD2/vae \\
        --text-encoder SD2/text_encoder --vqgan vqgan_f16_1024.ckpt --licence LICENCE --out OUT

The first three are folders in the format of `diffusers` (config.json and safetensors). The VQGAN is
a state dict of taming-transformers. If SD2/scheduler/ exists beside the UNet, the prediction type
and the noise schedule are read from it.

The result is a starting point for training, not a model. No published weights exist for the
connector, so its weights are random. The UNet's input for the LR latent has zero weights, as in
InstructPix2Pix, and the UNet was not trained with the connector's context. The manifest lists both
as untrained, and `Upscaler` refuses to open the checkpoint.

Two parts are still missing for such a model: the stages of `mmsr_edge.training` support `nano` only
(residuals, v-prediction), and there is no CLIP tokenizer for prompts.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel
from transformers.utils import logging

from mmsr_edge.bundle import Provenance, SamplerSpec
from mmsr_edge.converters.taming import fit, import_vqgan
from mmsr_edge.errors import BundleError, MMSRError, OptionError
from mmsr_edge.models.checkpoint import FloatPrecision, write_checkpoint
from mmsr_edge.models.networks import build_component
from mmsr_edge.models.presets import Preset, preset
from mmsr_edge.models.unet import widen_conv_in

UNTRAINED = ("connector", "unet")
"""Components that must be trained before the checkpoint is a model."""
# Config keys that may differ from the preset: sizes of the training pictures, settings for float32
# computation, and the UNet's input width, which is widened here.
_FREE = {
    "unet": {"sample_size", "in_channels", "upcast_attention"},
    "vae": {"sample_size", "force_upcast"},
}
_TEXT_KEYS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
    "hidden_act",
    "layer_norm_eps",
)


@dataclass(frozen=True)
class ImportConfig:
    """Settings of an import.

    Raises:
        OptionError: the preset or the precision is not supported.
    """

    unet: Path
    """Folder of a `diffusers.UNet2DConditionModel`."""
    vae: Path
    """Folder of a `diffusers.AutoencoderKL`."""
    text_encoder: Path
    """Folder of a `transformers.CLIPTextModel`."""
    vqgan: Path
    """File of a VQGAN: .ckpt or .safetensors."""
    out: Path
    """Folder of the checkpoint; an existing one is replaced."""
    licence: str
    """Licence of the weights together."""
    preset: str = "sd2"
    """Preset that sets the architecture of the weights."""
    precision: FloatPrecision = "fp16"
    """Precision of the files: fp16 or fp32."""
    seed: int = 0
    """Seed of the connector's random weights."""

    def __post_init__(self) -> None:
        p = preset(self.preset)
        if p.autoencoder.kind != "kl" or p.text.tokenizer != "clip-bpe":
            raise OptionError(f"preset {self.preset!r} has networks of our own; import into 'sd2'")
        if self.precision not in get_args(FloatPrecision):
            raise OptionError(f"precision {self.precision!r} is neither fp32 nor fp16")


class _Networks(Mapping[str, nn.Module]):
    """Networks built on access, so that only one is in memory at a time."""

    def __init__(self, makers: Mapping[str, Callable[[], nn.Module]]) -> None:
        self._makers = makers

    def __getitem__(self, name: str) -> nn.Module:
        return self._makers[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._makers)

    def __len__(self) -> int:
        return len(self._makers)


def import_checkpoint(config: ImportConfig) -> Path:
    """Import the weights and write the checkpoint atomically.

    Returns:
        Folder of the checkpoint.

    Raises:
        BundleError: a source cannot be read, or has another architecture than the preset.
        OutputError: `config.out` cannot be written.
    """
    p = preset(config.preset)

    def connector() -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            return build_component("connector", p.name)

    networks = _Networks(
        {
            "hr_encoder": lambda: import_vae(config.vae, "hr_encoder", p),
            "lr_encoder": lambda: import_vae(config.vae, "lr_encoder", p),
            "tokenizer": lambda: import_vqgan(config.vqgan, p.tokenizer),
            "text_encoder": lambda: import_text_encoder(config.text_encoder, p),
            "connector": connector,
            "unet": lambda: import_unet(config.unet, p),
            "decoder": lambda: import_vae(config.vae, "decoder", p),
        }
    )
    used = ("unet", "vae", "text_encoder", "vqgan")
    sources = ({"name": getattr(config, part).name, "used_for": part} for part in used)
    return write_checkpoint(
        networks,
        config.out,
        preset_name=p.name,
        version="0",
        residual_scale=None,
        provenance=Provenance(
            config.licence,
            tuple(sources),
            "imported, not trained: the connector is random and the UNet ignores the LR latent",
        ),
        precision=config.precision,
        sampler=_sampler(config.unet.parent / "scheduler" / "scheduler_config.json", p),
        untrained=UNTRAINED,
    )


def import_unet(folder: Path, p: Preset) -> nn.Module:
    """Load Stable Diffusion's UNet, widened by zero weights for the LR latent.

    Raises:
        BundleError: the folder cannot be read, or holds another architecture.
    """
    model = _from_diffusers(UNet2DConditionModel, folder)
    network = build_component("unet", p.name)
    _compare(folder, network.net.config, model.config, _FREE["unet"])
    fit(network.net, widen_conv_in(model.state_dict(), 2 * p.autoencoder.channels), str(folder))
    return network


def import_vae(folder: Path, name: str, p: Preset) -> nn.Module:
    """Load `hr_encoder`, `lr_encoder` or `decoder`; each contains the whole autoencoder.

    Raises:
        BundleError: the folder cannot be read, or holds another architecture.
    """
    model = _from_diffusers(AutoencoderKL, folder)
    network = build_component(name, p.name)
    _compare(folder, network.vae.config, model.config, _FREE["vae"])
    fit(network.vae, model.state_dict(), str(folder))
    return network


def import_text_encoder(folder: Path, p: Preset) -> nn.Module:
    """Load the text encoder.

    Raises:
        BundleError: the folder cannot be read, or holds another architecture.
    """
    _check_folder(folder)
    logging.disable_progress_bar()
    try:
        model, report = CLIPTextModel.from_pretrained(
            folder, local_files_only=True, dtype=torch.float32, output_loading_info=True
        )
    except Exception as error:  # configs and weights can raise anything
        raise BundleError(f"transformers cannot load {str(folder)!r}: {error}") from error
    _complete(folder, report)
    network = build_component("text_encoder", p.name)
    ours: CLIPTextConfig = network.model.config
    for key in _TEXT_KEYS:
        _same(folder, key, getattr(ours, key), getattr(model.config, key))
    fit(network.model, model.state_dict(), str(folder))
    return network


def _from_diffusers(kind: Any, folder: Path) -> Any:
    _check_folder(folder)
    try:
        model, report = kind.from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=True,
            low_cpu_mem_usage=False,
            torch_dtype=torch.float32,
            output_loading_info=True,
        )
    except Exception as error:  # as above
        raise BundleError(f"diffusers cannot load {str(folder)!r}: {error}") from error
    _complete(folder, report)
    return model


def _check_folder(folder: Path) -> None:
    """Check the files first: for a missing folder, the libraries report an invalid hub name."""
    if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
        raise BundleError(f"{str(folder)!r} must hold config.json and weights as .safetensors")


def _complete(folder: Path, report: Mapping[str, Any]) -> None:
    """Check for missing weights, which both libraries fill at random with only a warning."""
    missing = sorted(report["missing_keys"]) + sorted(map(str, report["mismatched_keys"]))
    if missing:
        raise BundleError(
            f"{str(folder)!r} lacks {len(missing)} of the network's weights, such as {missing[0]!r}"
        )


def _compare(
    folder: Path, ours: Mapping[str, Any], theirs: Mapping[str, Any], free: set[str]
) -> None:
    """Compare configs key by key, because several architectures have the same weight shapes."""
    for key, value in ours.items():
        if not key.startswith("_") and key not in free:
            _same(folder, key, value, theirs.get(key))


def _same(folder: Path, key: str, ours: Any, theirs: Any) -> None:
    def plain(value: Any) -> Any:
        return list(value) if isinstance(value, (list, tuple)) else value

    if plain(ours) != plain(theirs):
        raise BundleError(f"{str(folder)!r} has {key} = {theirs!r}; the preset has {ours!r}")


def _sampler(path: Path, p: Preset) -> SamplerSpec:
    """The preset's sampler with the UNet's own prediction type and noise schedule."""
    if not path.is_file():
        return p.sampler
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        kinds = {
            key: data.get(key, getattr(p.sampler, key))
            for key in (
                "prediction_type",
                "num_train_timesteps",
                "beta_schedule",
                "beta_start",
                "beta_end",
            )
        }
        kinds["rescale_zero_snr"] = data.get("rescale_betas_zero_snr", False)
    except (OSError, ValueError, AttributeError) as error:
        raise BundleError(f"{str(path)!r} cannot be read as a scheduler: {error}") from None
    if not isinstance(kinds["rescale_zero_snr"], bool):
        raise BundleError(
            f"{str(path)!r} has rescale_betas_zero_snr = {kinds['rescale_zero_snr']!r}; "
            "it must be true or false"
        )
    return replace(p.sampler, **kinds)


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--preset", default=ImportConfig.preset)
    add("--unet", type=Path, required=True, help="folder of the UNet")
    add("--vae", type=Path, required=True, help="folder of the autoencoder")
    add("--text-encoder", type=Path, required=True, help="folder of the text encoder")
    add("--vqgan", type=Path, required=True, help="file of the VQGAN (.ckpt or .safetensors)")
    add("--licence", required=True, help="licence of the weights, for the manifest")
    add("--precision", default=ImportConfig.precision, help="precision of the files: fp16 or fp32")
    add("--seed", type=int, default=ImportConfig.seed, help="seed of the connector's weights")
    add("--out", type=Path, required=True, help="folder of the checkpoint")
    args = parser.parse_args(arguments)
    try:
        out = import_checkpoint(ImportConfig(**vars(args)))
    except MMSRError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{out}: a starting point for training, not a model; untrained: {', '.join(UNTRAINED)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
