"""Make teacher targets: LR pictures, HR pictures and outputs of Real-ESRGAN x4plus, in one file.

    python -m mmsr_edge.training.make_targets --photos DIR --teacher DIR --out FILE --count N

`train_distillation` and `train_super_resolution` start with them when given `--targets FILE`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from tqdm import tqdm

from mmsr_edge.models.device import pick_device
from mmsr_edge.training.data.degradation import NOISY, DegradeConfig, degrade
from mmsr_edge.training.data.distillation import (
    GROUP,
    float_teacher,
    join,
    make_targets,
    write_targets,
)
from mmsr_edge.training.data.photos import HALVINGS, Photos
from mmsr_edge.training.options import add_teacher
from mmsr_edge.training.teachers.int8 import CALIBRATION, QuantizedTeacher, quantize_teacher
from mmsr_edge.training.teachers.real_esrgan import load_real_esrgan


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photos", type=Path, required=True, help="folder of photographs")
    add_teacher(parser)
    parser.add_argument("--out", type=Path, required=True, help="file to write")
    parser.add_argument(
        "--count",
        type=int,
        default=1024,
        help="least number of pictures; default 1024",
    )
    parser.add_argument(
        "--side", type=int, default=192, help="side of the HR pictures in pixels; default 192"
    )
    parser.add_argument(
        "--clean",
        type=float,
        default=0.2,
        help="share of pictures that are only downscaled, in [0, 1]; default 0.2",
    )
    parser.add_argument(
        "--halvings",
        type=int,
        default=HALVINGS,
        help=f"downscaled copies of each photo, each half the last; default {HALVINGS}",
    )
    parser.add_argument(
        "--noisy", action="store_true", help="make all pictures strongly noisy, none clean"
    )
    parser.add_argument(
        "--int8",
        action="store_true",
        help="run the teacher in OpenVINO at int8, which takes a quarter of the time; the targets "
        "include its features",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of all random draws; default 0")
    args = parser.parse_args()
    device = pick_device("auto")
    g = torch.Generator(device).manual_seed(args.seed)
    photos = Photos(args.photos, device, seed=args.seed, halvings=args.halvings)
    degradation = NOISY if args.noisy else DegradeConfig(clean=args.clean)
    network = load_real_esrgan(args.teacher, device)
    teacher = float_teacher(network)
    if args.int8:
        hr, _ = photos.batch(CALIBRATION, args.side)
        teacher = QuantizedTeacher(quantize_teacher(network.cpu(), degrade(hr, degradation, g)))
    groups = tqdm(range(-(-args.count // GROUP)), desc="targets", unit_scale=GROUP)
    made = [make_targets(photos, teacher, args.side, degradation, g) for _ in groups]
    write_targets(args.out, join(made))


if __name__ == "__main__":
    main()
