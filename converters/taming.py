"""Import of VQGANs of taming-transformers (Esser et al. 2021) as tokenizers in `diffusers` form."""

from __future__ import annotations

import pickle
import re
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from mmsr_edge.errors import BundleError
from mmsr_edge.models.presets import TokenizerConfig
from mmsr_edge.models.tokenizer import Tokenizer

_USED = ("encoder.", "decoder.", "quantize.", "quant_conv.", "post_quant_conv.")
"""Prefixes of the tokenizer's weights; other weights (`loss.`) only served the training."""
_RENAMES = (
    (r"^(encoder|decoder)\.mid\.block_1\.", r"\1.mid_block.resnets.0."),
    (r"^(encoder|decoder)\.mid\.block_2\.", r"\1.mid_block.resnets.1."),
    (r"^(encoder|decoder)\.mid\.attn_1\.", r"\1.mid_block.attentions.0."),
    (r"^encoder\.down\.", "encoder.down_blocks."),
    (r"^decoder\.up\.", "decoder.up_blocks."),
    (r"\.block\.(\d+)\.", r".resnets.\1."),
    (r"\.attn\.(\d+)\.", r".attentions.\1."),
    (r"\.nin_shortcut\.", ".conv_shortcut."),
    (r"\.downsample\.conv\.", ".downsamplers.0.conv."),
    (r"\.upsample\.conv\.", ".upsamplers.0.conv."),
    (r"\.norm_out\.", ".conv_norm_out."),
    (r"(\.attentions\.\d+)\.norm\.", r"\1.group_norm."),
    (r"(\.attentions\.\d+)\.([qkv])\.", r"\1.to_\2."),
    (r"(\.attentions\.\d+)\.proj_out\.", r"\1.to_out.0."),
)


def import_vqgan(path: Path, config: TokenizerConfig) -> nn.Module:
    """Build a tokenizer with the weights of a VQGAN.

    Args:
        path: a .safetensors file or a torch pickle (.ckpt, .pt, .pth); a pickle may hold tensors
            and plain containers only.
        config: sizes of the tokenizer.

    Raises:
        BundleError: the file cannot be read, or holds another network.
    """
    network = Tokenizer(config)
    fit(network.vq, rename(read_state(path), len(config.block_out_channels)), str(path))
    return network.eval()


def read_state(path: Path) -> dict[str, Tensor]:
    """Read the state dict in a file, or the one under its key `state_dict`.

    Raises:
        BundleError: the file cannot be read, or only by running code of a pickle.
    """
    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise BundleError(
            f"{str(path)!r} holds more than weights, or is damaged, and is not unpickled: {error}; "
            "save its state_dict alone, as .safetensors"
        ) from None
    except (OSError, RuntimeError, EOFError, SafetensorError) as error:
        raise BundleError(f"{str(path)!r} cannot be read as weights: {error}") from None
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict):
        raise BundleError(f"{str(path)!r} holds no state dict but a {type(state).__name__}")
    return {key: value for key, value in state.items() if isinstance(value, Tensor)}


def rename(state: dict[str, Tensor], levels: int) -> dict[str, Tensor]:
    """Convert a VQGAN's weights to the names and shapes of `diffusers.VQModel`.

    Args:
        state: weights of the VQGAN; not changed.
        levels: number of resolutions of the network. taming-transformers numbers the decoder's
            levels from the full size down, diffusers in the order in which they run.
    """
    renamed = {}
    for key, value in state.items():
        if not key.startswith(_USED):
            continue
        for pattern, replacement in _RENAMES:
            key = re.sub(pattern, replacement, key)
        key = re.sub(
            r"(?<=^decoder\.up_blocks\.)\d+", lambda level: str(levels - 1 - int(level[0])), key
        )
        # Attention's 1×1 convolutions become linear layers over the pixels.
        linear = re.search(r"\.to_(?:[qkv]|out\.0)\.weight$", key)
        renamed[key] = value[..., 0, 0] if linear and value.ndim == 4 else value
    return renamed


def fit(network: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """Load a state dict; its keys and shapes must match exactly.

    Raises:
        BundleError: a weight is missing, superfluous or of another shape; the message names
            `source` and the weights.
    """
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        lines = str(error).splitlines()
        raise BundleError(
            f"{source!r} does not fit the preset: " + " ".join(line.strip() for line in lines[1:4])
        ) from None
