r"""Distil a decoder from another on recorded inputs: D_s(z, y, …) ≈ D(z, y, …).

    python -m mmsr_edge.calib.record --bundle DIR --pictures DIR --count 300 --steps 1 --out FILE
    python -m mmsr_edge.training.train_decoder --decoder CHECKPOINT --calibration-set FILE \
        --lpips DIR --out RUN [--init RUN --quantization-aware]

The student starts from the teacher's weights. Its compact network may have fewer layers: the
teacher's last ones, where they hardly differ from the identity, begin as one (`fold`). With
`--quantization-aware` it computes as on the device, and learns to draw the same picture in int8.
The inputs are those of the device: latents of the UNet, levels, maps and dials.
"""

from __future__ import annotations

import argparse
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mmsr_edge.errors import OptionError
from mmsr_edge.models.autoencoder import build_autoencoder
from mmsr_edge.models.decoder import FACTOR, SCALE, SlimDecoder
from mmsr_edge.models.device import autocast, pick_device
from mmsr_edge.models.presets import preset
from mmsr_edge.training.data.distillation import cut
from mmsr_edge.training.fake_quantization import fake_quantize_layers
from mmsr_edge.training.losses.picture import (
    ContrastConfig,
    PictureLoss,
    PictureLossConfig,
    contrast,
)
from mmsr_edge.training.options import PresetConfig, add_lpips, add_run_options, run_config
from mmsr_edge.training.run import Run
from mmsr_edge.training.states import load_run, load_states, start_from


@dataclass(frozen=True)
class DecoderStage(PresetConfig, PictureLossConfig, ContrastConfig):
    """Settings of this stage."""

    batch: int = 4
    """Pieces per step."""
    window: int = 24
    """Side in latent cells of the pieces, which are cut from the recorded tiles."""
    features_weight: float = 0.5
    """Weight of the difference between the compact networks' features, relative to the teacher's
    mean; degradation that is to stay and detail along edges are drawn from them."""
    fresh_rate: float = 10.0
    """Factor on the learning rate of the convolution that several were folded into."""
    quantization_aware: bool = False
    """Whether to fake-quantize the decoder as the export quantizes it."""
    grid_weight: float = 1.0
    vgg_weight: float = 0.0
    contrast_weight: float = 1.5
    """Weight of the contrast loss, here against the teacher's picture. Without it the student draws
    uncertain detail fainter."""
    contrast_first: int = 0


_NANO_FLOAT = (
    "eighth.0",
    *(f"compact.body.{n}" for n in (0, 2, 4, 64)),
    "compact.out",
    "compact.shown",
    "halved.0",
    "out.0",
)
DECODER_FLOAT = {
    "nano": _NANO_FLOAT,
    "small": (*_NANO_FLOAT, "dense.first", "dense.last", "dense.shown", "gate"),
}
"""Decoder layers that stay in float by preset, as in `weights/PRESET.quantization.json`."""


def read_inputs(path: Path) -> dict[str, NDArray[Any]]:
    """A decoder's inputs in a calibration set, [N, ...] by name; none if it was not recorded.

    Raises:
        OptionError: the file is no calibration set.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            names = [key for key in arrays.files if key.startswith("decoder/")]
            return {name.partition("/")[2]: arrays[name] for name in names}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise OptionError(f"{str(path)!r} cannot be read as a calibration set: {error}") from None


class Recorded:
    """Pieces of recorded decoder inputs.

    Args:
        inputs: arrays [N, ...] by name, from `read_inputs`.
        g: generator of all draws.
        device: device of the pieces.

    Raises:
        OptionError: there are no inputs of a decoder that reads the LR picture.
    """

    def __init__(
        self, inputs: Mapping[str, NDArray[Any]], g: torch.Generator, device: torch.device
    ) -> None:
        names = "latent", "lr", "degradation", "aligned"
        if missing := [name for name in names if name not in inputs]:
            raise OptionError(
                f"the calibration set has no {', '.join(missing)} of a decoder; record one of a "
                "bundle whose decoder reads them"
            )
        self.columns = [torch.as_tensor(inputs[name]) for name in names]
        self.g, self.device = g, device

    def batch(self, count: int, window: int) -> list[Tensor]:
        """Pieces of `window` × `window` latent cells: latent, LR picture, degradation, maps."""
        latent, lr, degradation, aligned = self.columns
        side, ratio = latent.shape[-1], FACTOR // SCALE
        window = min(window, side)
        rows = torch.randint(len(latent), (count,), generator=self.g)
        corner = torch.randint(side - window + 1, (count, 2), generator=self.g)
        still = torch.zeros((count, 3), dtype=torch.bool)
        z, low, maps = (
            cut(plane, rows, corner * k, window * k, still)
            for plane, k in ((latent, 1), (lr, ratio), (aligned, 1))
        )
        return [part.float().to(self.device) for part in (z, low, degradation[rows], maps)]


def load_teacher(states: dict[str, Tensor], preset_name: str) -> SlimDecoder:
    """The decoder with some weights, which may have another number of compact layers than its
    preset."""
    numbers = [int(n[1]) for k in states if (n := re.match(r"compact\.body\.(\d+)\.", k))]
    config = replace(preset(preset_name).autoencoder, compact_layers=max(numbers) // 2)
    teacher = build_autoencoder(config)["decoder"]
    assert isinstance(teacher, SlimDecoder)
    teacher.load_state_dict(states)
    return teacher.eval().requires_grad_(requires_grad=False)


def begin(teacher: SlimDecoder, preset_name: str) -> tuple[SlimDecoder, list[str]]:
    """The student with the teacher's weights, and the names of the layers that were folded."""
    student = build_autoencoder(preset(preset_name).autoencoder)["decoder"]
    assert isinstance(student, SlimDecoder)
    start_from({"decoder": student}, {"decoder": teacher.state_dict()})
    own, whole = student.compact, teacher.compact
    assert own is not None and whole is not None
    if len(own.body) == len(whole.body):
        return student, []
    own.fold(whole)
    return student, [f"compact.body.{len(own.body) - 2 + i}." for i in (0, 1)]


def train(
    recorded: Recorded, picture: PictureLoss, teacher: SlimDecoder, run: Run, stage: DecoderStage
) -> None:
    """Run the stage; `run.trained` holds `decoder`."""
    student = run.trained["decoder"]
    assert isinstance(student, SlimDecoder)
    kept: dict[str, Tensor] = {}
    for name, decoder in (("student", student), ("teacher", teacher)):
        assert decoder.compact is not None
        decoder.compact.out.register_forward_pre_hook(
            lambda _, given, name=name: kept.__setitem__(name, given[0])
        )
    for _ in run:
        inputs = [
            x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x
            for x in recorded.batch(stage.batch, stage.window)
        ]
        with autocast(recorded.device):
            with torch.no_grad():
                target = teacher(*inputs).float()
            image = student(*inputs)
            terms = picture(image, target, recorded.g)
        flatness = contrast(image, target, stage.contrast_first).mean()
        wanted = kept["teacher"].float()
        features = (kept["student"].float() - wanted).abs().mean() / wanted.abs().mean()
        run.update(
            terms.total() + stage.features_weight * features + stage.contrast_weight * flatness,
            l1=terms.l1.mean(),
            perceptual=terms.perceptual.mean(),
            features=features,
            contrast=flatness,
        )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--decoder", type=Path, required=True, help="checkpoint or run with the teacher"
    )
    parser.add_argument(
        "--calibration-set", type=Path, required=True, help="from python -m mmsr_edge.calib.record"
    )
    parser.add_argument(
        "--init", type=Path, help="run of this stage with the student to start from"
    )
    add_lpips(parser)
    add_run_options(
        parser, DecoderStage(), steps=2000, photos=False, learning_rate=1e-4, warmup=20, ema=0.99
    )
    args = parser.parse_args()
    config, stage = run_config(args, DecoderStage)
    device = pick_device(config.device)
    torch.manual_seed(config.seed)
    g = torch.Generator().manual_seed(config.seed)
    recorded = Recorded(read_inputs(args.calibration_set), g, device)
    teacher = load_teacher(load_states(args.decoder)["decoder"], stage.preset)
    student, folded = begin(teacher, stage.preset)
    if args.init:
        start_from({"decoder": student}, load_run(args.init))
    for decoder in (teacher, student):
        decoder.to(device, memory_format=torch.channels_last)
    if stage.quantization_aware:
        fake_quantize_layers(student, DECODER_FLOAT[stage.preset])
    rates = dict.fromkeys(folded, stage.fresh_rate)
    run = Run(args.out, config, stage, {"decoder": student.train()}, rates)
    recorded.g.manual_seed(config.seed + run.step)
    train(recorded, PictureLoss(args.lpips, stage).to(device), teacher, run, stage)


if __name__ == "__main__":
    main()
