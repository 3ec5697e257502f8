"""Published checkpoints: local folders as Hugging Face's libraries write them, opened and checked.

`transformers` builds the network from `config.json`. All else is read here: what its pictures must
look like, under which licence it is, and which bytes it was.
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
    """An architecture that is known to convert."""

    loader: str
    """Class of `transformers` that builds it."""
    multiple: Callable[[Any], int]
    """Of its config: what the side of its picture must be a multiple of."""
    any_side: bool = True
    """Whether its picture may have another side than in training."""
    coreml: bool = True
    """Whether coremltools converts it."""


def _patch(config: Any) -> int:
    """Side of a patch, of the network or of its backbone."""
    return int(getattr(getattr(config, "backbone_config", None) or config, "patch_size", 32))


_DEPTH = "AutoModelForDepthEstimation"
FAMILIES: dict[Task, dict[str, Family]] = {
    "depth": {
        "depth_anything": Family(_DEPTH, _patch),
        "dpt": Family(_DEPTH, lambda config: max(_patch(config), 16)),
    },
    "segmentation": {
        "segformer": Family("AutoModelForSemanticSegmentation", lambda _: 32),
        # coremltools 9 takes its padding masks, constants of bool, for doubles.
        "mask2former": Family("AutoModelForUniversalSegmentation", lambda _: 32, coreml=False),
    },
    "caption": {
        "vision-encoder-decoder": Family("AutoModelForImageTextToText", lambda _: 1, False),
        "blip": Family("BlipForConditionalGeneration", lambda _: 1, False),
    },
}
"""By task and `model_type` of config.json. Each is tested against `transformers`' own output."""


@dataclass(frozen=True)
class Preprocessing:
    """What a network's pictures must look like: pixel = image·scale + shift, of [-1, 1]."""

    side: int | None
    """Side of the square; None: the folder names none."""
    resample: Image.Resampling
    """How pictures were resized in training."""
    scale: tuple[float, ...]
    """By channel."""
    shift: tuple[float, ...]
    """By channel."""

    @classmethod
    def read(cls, folder: Path) -> Preprocessing:
        """From preprocessor_config.json, or the processor_config.json of newer folders.

        Raises:
            BundleError: neither is there, or it asks for what is not supported.
        """
        given = _json(folder / "preprocessor_config.json", needed=False)
        if given is None:
            combined = _json(folder / "processor_config.json", needed=False) or {}
            given = combined.get("image_processor")
        if given is None:
            raise BundleError(
                f"{str(folder)!r} has no preprocessor_config.json, which says what pictures the "
                "network was trained on; copy it from where the checkpoint was published"
            )
        if given.get("do_center_crop"):
            raise BundleError(
                f"{str(folder)!r}: do_center_crop is not supported; networks here see the whole "
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
        raise BundleError(f"{str(folder)!r}: pictures of {height}x{width}; they must be square")
    return height and int(height)


@dataclass(frozen=True)
class Published:
    """An opened checkpoint."""

    folder: Path
    """Where it is."""
    task: Task
    """What it is wanted for."""
    family: Family
    """Its architecture."""
    model: nn.Module
    """In evaluation mode, float32."""
    preprocessing: Preprocessing
    """What its pictures must look like."""
    weights: tuple[FileSpec, ...]
    """The files its weights are in, relative to the folder."""
    licence: str | None
    """As its README.md declares it."""

    @property
    def kind(self) -> str:
        """`model_type` of its config."""
        return cast(str, self.model.config.model_type)

    def side(self, wanted: int | None) -> int:
        """Side of the network's picture.

        Args:
            wanted: by the user; None: that of training, brought to the nearest it can have.

        Raises:
            OptionError: the network cannot have it.
        """
        step, trained = self.family.multiple(self.model.config), self.preprocessing.side
        if wanted is None:
            if trained is None:
                raise OptionError(f"{str(self.folder)!r} names no size of picture; give --side")
            return max(round(trained / step), 1) * step
        if not self.family.any_side and wanted != trained:
            raise OptionError(f"side {wanted}: {self.kind} takes pictures of {trained} only")
        if wanted < step or wanted % step:
            raise OptionError(f"side {wanted}: {self.kind} takes multiples of {step}")
        return wanted


def open_published(folder: Path, task: Task) -> Published:
    """Open a checkpoint.

    Raises:
        BundleError: the folder is no checkpoint, of an architecture that is not supported for this
            task, or lacks some of its weights.
    """
    config = _json(folder / "config.json")
    kind = config.get("model_type")
    families = FAMILIES[task]
    if kind not in families:
        other = [name for name, kinds in FAMILIES.items() if kind in kinds]
        hint = f"; it is one for --task {other[0]}" if other else ""
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
    except Exception as error:  # whatever a config or a file of weights can provoke
        raise BundleError(f"transformers cannot load {str(folder)!r}: {error}") from error
    finally:
        transformers.logging.set_verbosity(level)
        if bars:
            transformers.logging.enable_progress_bar()
    # transformers draws what it does not find, and only warns.
    missing = sorted(report["missing_keys"]) + sorted(map(str, report["mismatched_keys"]))
    if missing:
        raise BundleError(
            f"{str(folder)!r} lacks {len(missing)} of the network's weights, such as "
            f"{missing[0]!r}; the download is incomplete, or the checkpoint is for another task"
        )
    return cast(nn.Module, model.eval().requires_grad_(False))


def _licence(folder: Path) -> str | None:
    """The licence in the header of README.md."""
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
        raise BundleError(f"{str(path)!r} must hold an object")
    return data
