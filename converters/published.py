"""Published checkpoints: local folders in the format of Hugging Face's libraries.

`transformers` builds the network from `config.json`. The preprocessing, the licence and the hashes
of the weights are read here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
import transformers
from PIL import Image
from torch import nn

from mmsr_edge.bundle import FileSpec, describe_file
from mmsr_edge.errors import BundleError, OptionError

Task = Literal["depth", "segmentation", "caption"]


@dataclass(frozen=True)
class Family:
    """An architecture that converts."""

    loader: str
    """Class of `transformers` that loads the network."""
    multiple: Callable[[Any], int]
    """Step of the input's side in pixels, from the config: sides are multiples of it."""
    any_side: bool = True
    """Whether the input may have another side than in training."""
    coreml: bool = True
    """Whether coremltools converts the network."""


def _patch(config: Any) -> int:
    """Side of a patch in pixels, from the config of the network or of its backbone."""
    return int(getattr(getattr(config, "backbone_config", None) or config, "patch_size", 32))


_DEPTH = "AutoModelForDepthEstimation"
FAMILIES: dict[Task, dict[str, Family]] = {
    "depth": {
        "depth_anything": Family(_DEPTH, _patch),
        "dpt": Family(_DEPTH, lambda config: max(_patch(config), 16)),
    },
    "segmentation": {
        "segformer": Family("AutoModelForSemanticSegmentation", lambda _: 32),
        # coremltools 9 reads its padding masks, which are bool constants, as doubles.
        "mask2former": Family("AutoModelForUniversalSegmentation", lambda _: 32, coreml=False),
    },
    "caption": {
        "vision-encoder-decoder": Family("AutoModelForImageTextToText", lambda _: 1, False),
        "blip": Family("BlipForConditionalGeneration", lambda _: 1, False),
    },
}
"""Architectures by task and `model_type`; each is tested against the output of `transformers`."""


@dataclass(frozen=True)
class Preprocessing:
    """Preprocessing of a network's input: pixel = image·scale + shift, for images in [-1, 1]."""

    side: int | None
    """Side of the square input in pixels; None: not in the folder."""
    resample: Image.Resampling
    """Filter of the resizing in training."""
    scale: tuple[float, ...]
    """Factor by channel."""
    shift: tuple[float, ...]
    """Offset by channel, added after the factor."""

    @classmethod
    def read(cls, folder: Path) -> Preprocessing:
        """Read preprocessor_config.json, or the processor_config.json of newer folders.

        Raises:
            BundleError: both files are missing, or a setting is not supported.
        """
        given = _json(folder / "preprocessor_config.json", needed=False)
        if given is None:
            combined = _json(folder / "processor_config.json", needed=False) or {}
            given = combined.get("image_processor")
        if given is None:
            raise BundleError(
                f"{str(folder)!r} has no preprocessor_config.json, which describes the network's "
                "input; copy it from where the checkpoint was published"
            )
        if given.get("do_center_crop"):
            raise BundleError(
                f"{str(folder)!r}: do_center_crop is not supported; networks run on the whole "
                "picture"
            )
        factor = given.get("rescale_factor", 1 / 255) if given.get("do_rescale", True) else 1.0
        mean, std = [0.0] * 3, [1.0] * 3
        if given.get("do_normalize", True):
            for key in ("image_mean", "image_std"):
                if len(given.get(key) or ()) != 3:
                    raise BundleError(
                        f"{str(folder)!r}: {key} {given.get(key)!r} must be three numbers"
                    )
            mean, std = given["image_mean"], given["image_std"]
        half = 127.5 * factor  # pixels are (image + 1)·127.5
        return cls(
            _side(given.get("size"), folder) if given.get("do_resize", True) else None,
            Image.Resampling(given.get("resample", Image.Resampling.BILINEAR)),
            tuple(half / s for s in std),
            tuple((half - m) / s for m, s in zip(mean, std, strict=True)),
        )


def _side(size: Any, folder: Path) -> int | None:
    if isinstance(size, int):
        return size
    size = size or {}
    if "shortest_edge" in size:
        return int(size["shortest_edge"])
    height, width = size.get("height"), size.get("width")
    if height != width:
        raise BundleError(f"{str(folder)!r}: inputs are {height}x{width}; they must be square")
    return height and int(height)


@dataclass(frozen=True)
class Published:
    """An opened checkpoint."""

    folder: Path
    """Folder of the checkpoint."""
    task: Task
    """Task that the network is converted for."""
    family: Family
    """Architecture of the network."""
    model: nn.Module
    """The network in evaluation mode, float32."""
    preprocessing: Preprocessing
    """Preprocessing of the network's input."""
    weights: tuple[FileSpec, ...]
    """Files of the weights, relative to the folder."""
    licence: str | None
    """Licence declared in README.md; None: not declared."""

    @property
    def kind(self) -> str:
        """`model_type` of the config."""
        return cast(str, self.model.config.model_type)

    def side(self, wanted: int | None) -> int:
        """Side of the network's input in pixels.

        Args:
            wanted: requested side; None: the supported side that is nearest to training's.

        Raises:
            OptionError: the network does not support the side.
        """
        step, trained = self.family.multiple(self.model.config), self.preprocessing.side
        if wanted is None:
            if trained is None:
                raise OptionError(f"{str(self.folder)!r} states no input size; give --side")
            return max(round(trained / step), 1) * step
        if not self.family.any_side and wanted != trained:
            raise OptionError(f"side {wanted}: {self.kind} takes pictures of {trained} only")
        if wanted < step or wanted % step:
            raise OptionError(f"side {wanted}: {self.kind} takes multiples of {step}")
        return wanted


def open_published(folder: Path, task: Task) -> Published:
    """Open a checkpoint.

    Raises:
        BundleError: the folder is no checkpoint, its architecture is not supported for `task`, or
            some of its weights are missing.
    """
    config = _json(folder / "config.json")
    kind = config.get("model_type")
    families = FAMILIES[task]
    if kind not in families:
        other = [name for name, kinds in FAMILIES.items() if kind in kinds]
        hint = f"; use --task {other[0]}" if other else ""
        raise BundleError(
            f"{str(folder)!r} is of type {kind!r}; --task {task} converts {', '.join(families)}"
            + hint
        )
    weights = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))
    if not weights:
        raise BundleError(f"{str(folder)!r} has no weights: *.safetensors or pytorch_model*.bin")
    return Published(
        folder,
        task,
        families[kind],
        _load(folder, families[kind].loader),
        Preprocessing.read(folder),
        tuple(describe_file(folder, path.name) for path in weights),
        _licence(folder),
    )


def _load(folder: Path, loader: str) -> nn.Module:
    level = transformers.logging.get_verbosity()
    bars = transformers.logging.is_progress_bar_enabled()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        model, report = getattr(transformers, loader).from_pretrained(
            folder,
            local_files_only=True,
            dtype=torch.float32,
            attn_implementation="eager",
            output_loading_info=True,
        )
    except Exception as error:  # configs and weights can raise anything
        raise BundleError(f"transformers cannot load {str(folder)!r}: {error}") from error
    finally:
        transformers.logging.set_verbosity(level)
        if bars:
            transformers.logging.enable_progress_bar()
    # transformers initializes missing weights at random and only warns.
    missing = sorted(report["missing_keys"]) + sorted(map(str, report["mismatched_keys"]))
    if missing:
        raise BundleError(
            f"{str(folder)!r} lacks {len(missing)} of the network's weights, such as "
            f"{missing[0]!r}; the download is incomplete, or the checkpoint is for another task"
        )
    return cast(nn.Module, model.eval().requires_grad_(False))


def _licence(folder: Path) -> str | None:
    """Licence in the header of README.md; None: no header or no licence."""
    try:
        text = (folder / "README.md").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    header = re.match(r"---\n(.*?)\n---", text, re.DOTALL)
    found = header and re.search(r"^license:[ \t]*[\"']?([^\s\"']+)", header[1], re.MULTILINE)
    return found[1] if found else None


def _json(path: Path, needed: bool = True) -> Mapping[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if not needed:
            return cast(Any, None)
        raise BundleError(
            f"{str(path.parent)!r} is no Hugging Face checkpoint: {path.name} is missing"
        ) from None
    except (OSError, ValueError) as error:
        raise BundleError(f"{str(path)!r} cannot be read as JSON: {error}") from None
    if not isinstance(data, dict):
        raise BundleError(f"{str(path)!r} must hold a JSON object")
    return data
