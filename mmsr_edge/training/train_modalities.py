r"""Teach the one-step student to read its modalities and to obey its dials.

    python -m mmsr_edge.training.train_modalities --tiles FILE … --checkpoint DIR --tokenizer RUN \
        --lpips DIR --out RUN

Tiles have the device's size and geometry. There are two kinds of samples:

*Dials*. The target is the residual of the network itself at τ = 1, times the gain of the drawn
temperatures, and for some samples the picture that it asks for (`data.dials`). Neither can be met
without reading the maps, which is what makes the network read them. In the first `warm` steps the
residual is that of the checkpoint, and there is nothing else: cross-attention begins anew there,
where the checkpoint's had become a constant (`student.fold_context`).

*Pictures*: decoded, and compared with the HR picture. A part has maps of the HR picture; all but a
part have words for noise, blur and JPEG, of which the LR tile alone tells less. Some are told of
less degradation than there is; their target keeps the rest, so that words are obeyed:

    x* = x_hr + up(β·blur(y) + ν·rest(y)),   y − down(x_hr) = blur(y) + rest(y)

    x̂ = D(E_lr(y) + s·r̂, y, degradation, aligned maps)
    r̂ = −UNet(0 ⊕ E_lr(y), T, context, aligned maps)
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmsr_edge.models.device import autocast
from mmsr_edge.sampler import timesteps
from mmsr_edge.training.data.degradation import bicubic_down, split_error
from mmsr_edge.training.data.dials import draw_temperatures, gain, pull, refocus
from mmsr_edge.training.data.photos import to_picture
from mmsr_edge.training.data.tile_samples import Conditions, ConditionsConfig, TileSamples
from mmsr_edge.training.denoiser import Denoiser
from mmsr_edge.training.losses.picture import (
    ContrastConfig,
    PictureLoss,
    PictureLossConfig,
    PictureTerms,
    contrast,
)
from mmsr_edge.training.options import PresetConfig, add_lpips, add_run_options, run_config
from mmsr_edge.training.run import Run
from mmsr_edge.training.stage_networks import freeze_but_dense
from mmsr_edge.training.student import (
    RATES,
    Place,
    Student,
    draw_place,
)
from mmsr_edge.training.tile_stage import add_tile_stage, open_tile_stage

PATHS = ("told.", "shown.", "detail.", "refocus.", "kept.")
"""Layers of the decoder that read degradation, maps and dials."""


@dataclass(frozen=True)
class ModalitiesStage(PresetConfig, ConditionsConfig, PictureLossConfig, ContrastConfig):
    """Settings of this stage."""

    pictures: int = 5
    """Samples per step with losses on pictures, after the `warm` steps; before, they are dials."""
    dials: int = 3
    """Samples per step of the dials. Of whole tiles there are a quarter as many of both."""
    shown: int = 2
    """Of the dials, samples that are decoded too, and compared with the picture asked for."""
    warm: int = 300
    """Number of first steps with dials alone."""
    window: int = 32
    """Side in latent cells of the part of the tiles that a step sees."""
    whole: float = 0.15
    """Share of the steps with whole tiles."""
    later: float = 0.2
    """Share of the samples that are a later step of a trajectory of four."""
    dial_weight: float = 1.0
    """Weight of the dials' mean square error, relative to the residual's mean square."""
    shown_weight: float = 4.0
    """Weight of the picture loss of the dials, relative to that of the pictures."""
    context_alone: bool = False
    """Whether text encoder and connector are frozen, to be shared with the diffusion."""
    paths_alone: bool = False
    """Whether the decoder's layers are frozen but those that read degradation and maps, so that its
    pictures without these stay as they are."""
    dense_alone: bool = False
    """Whether all is frozen but the decoder's residual dense network, for a model that shares the
    rest with another."""
    anchor_weight: float = 0.1
    """Weight of the mean square difference from the checkpoint's residual, likewise."""
    soft: float = 0.55
    """Gain of the residual under the negative prompt."""
    negative_weight: float = 1.0
    """`anchor_weight` of samples with the negative prompt."""
    l1_weight: float = 2.0
    alex_weight: float = 0.6
    vgg_weight: float = 0.5
    vgg_taps: int = 5
    grid_weight: float = 5.0


def dial_targets(
    student: Student, z_lr: Tensor, given: Conditions, temperature: Tensor, place: Place,
    base: Tensor | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """What the dials' targets are made of: the residual at τ = 1, moved by text, and its gain.

    Args:
        student: the network.
        z_lr, given, temperature, place: the batch.
        base: residuals to start from in place of the student's own; then text moves nothing.
    """
    if base is None:
        base = student.residual(z_lr, given, place=place)
        silent = student.residual(z_lr, given, absent_text=True, place=place)
        reach = (pull(temperature[:, 0]) * given.present[:, 0])[:, None, None, None]
        # Detached at the end, not under no_grad: the FLOP counter hooks into the gradients.
        base = (base + reach * (base - silent)).detach()
    return base, gain(place.of(given.areas), given.present, temperature)


def train(
    samples: TileSamples, picture: PictureLoss, reference: Tensor, run: Run, stage: ModalitiesStage
) -> None:
    """Run the stage; `run.trained` holds `denoiser` and `decoder`.

    `reference` has the checkpoint's residuals of all tiles, [N, C, l, l].
    """
    net, decoder = run.trained["denoiser"], run.trained["decoder"]
    assert isinstance(net, Denoiser)
    student, g = Student(net, stage.preset), samples.g
    scale = net.residual_scale[:, None, None]
    trajectory = torch.from_numpy(timesteps(student.last + 1, 4, "trailing").copy())
    # One number, not each sample's own: smooth places have next to no residual to weaken.
    power = reference[:400].float().square().mean().to(samples.device)
    for step in run:
        place = draw_place(samples.size, min(stage.window, samples.size), stage.whole, g)
        fewer = 4 if place.side > stage.window else 1
        n, dials = (max(1, k // fewer) for k in (stage.pictures, stage.dials))
        count = n + dials
        n = 0 if step < stage.warm else n
        rows = samples.rows(count, stage.clean)
        given = samples.conditions(rows, stage)
        z_lr, base = (place.of(samples.take(x, rows)) for x in (samples.z_lr, reference))
        temperature = draw_temperatures(count, g, text=step >= stage.warm).to(samples.device)
        temperature[:n] = 1.0
        base[given.negative] *= stage.soft
        turned = slice(n, None)
        own = base[turned] if step < stage.warm else None
        still, gains = dial_targets(
            student, z_lr[turned], part(given, turned), temperature[turned], place, own
        )
        target = gains * still
        late = torch.rand(count, generator=g) < stage.later
        t = torch.where(late, trajectory[torch.randint(1, 4, (count,), generator=g)], student.last)
        t = t.to(samples.device)
        estimate = torch.cat([base[:n], target])
        residual = student.residual(z_lr, given, temperature, t, estimate, place=place)
        error = (residual[turned] - target).square().mean() / power
        loss = stage.dial_weight * error
        logged: dict[str, Tensor | float] = {"dials": error}
        logged |= dict.fromkeys(("l1", "grid", "perceptual", "contrast", "shown", "anchor"), 0.0)
        if n:
            weight = torch.where(given.negative[:n], stage.negative_weight, stage.anchor_weight)
            anchor = weight * (residual[:n] - base[:n]).square().mean((1, 2, 3)) / power
            latent = z_lr[:n] + scale * residual[:n]
            aligned = place.of(given.with_dials(temperature))
            terms, flatness = judge(
                samples, picture, decoder, latent, rows[:n], part(given, slice(n)), aligned[:n],
                place, stage.contrast_first,
            )  # fmt: skip
            loss = loss + terms.total() + anchor.mean() + stage.contrast_weight * flatness
            logged["contrast"] = flatness
            logged["anchor"] = anchor.mean()
            if (shown := min(stage.shown, count - n)) > 0:
                some = slice(n, n + shown)
                latents = [z_lr[some] + scale * r for r in (still[:shown], residual[some])]
                terms_of_dials = show(
                    samples, picture, decoder, latents, rows[some], part(given, some),
                    aligned[some], 1 - gains[:shown], place,
                )  # fmt: skip
                loss = loss + stage.shown_weight * terms_of_dials.total()
                logged["shown"] = terms_of_dials.total()
            for name in ("l1", "grid", "perceptual"):
                logged[name] = getattr(terms, name).mean()
        run.update(loss, **logged)


def part(given: Conditions, rows: slice) -> Conditions:
    """Some of a batch's conditions."""
    return Conditions(**{name: value[rows] for name, value in vars(given).items()})


def show(
    samples: TileSamples, picture: PictureLoss, decoder: nn.Module, latents: list[Tensor],
    rows: Tensor, given: Conditions, aligned: Tensor, softness: Tensor, place: Place,
) -> PictureTerms:  # fmt: skip
    """Terms of the picture loss of dials, against the pictures that they ask for.

    Args:
        samples, picture, decoder: of the stage.
        latents: at τ = 1, and at the drawn temperatures.
        rows, given, place: the batch.
        aligned: maps and dials at the drawn temperatures.
        softness: see `refocus`.
    """
    lr = to_picture(place.of(samples.tiles.lr[rows].to(samples.device), 2))
    still, turned = (z.contiguous(memory_format=torch.channels_last) for z in latents)
    with autocast(lr.device):
        image = decoder(still, lr, given.degradation, place.of(given.with_dials(None)))
        target = refocus(image.float().detach(), softness)
        return picture(decoder(turned, lr, given.degradation, aligned), target, samples.pieces)


def judge(
    samples: TileSamples, picture: PictureLoss, decoder: nn.Module, latent: Tensor, rows: Tensor,
    given: Conditions, aligned: Tensor, place: Place, first: int,
) -> tuple[PictureTerms, Tensor]:  # fmt: skip
    """Terms of the picture loss, and the mean of `contrast` from the band `first` on.

    The target of the negative prompt is the HR picture, blurred.
    """
    lr, hr = (
        to_picture(place.of(x[rows].to(samples.device), k))
        for x, k in ((samples.tiles.lr, 2), (samples.tiles.hr, 8))
    )
    blurred = F.avg_pool2d(F.pad(hr, (2,) * 4, mode="reflect"), 5, stride=1)
    hr = torch.where(given.negative[:, None, None, None], blurred, hr)
    hr = keep_untold(hr, lr, given.untold)
    with autocast(latent.device):
        latent = latent.contiguous(memory_format=torch.channels_last)
        image = decoder(latent, lr, given.degradation, aligned)
        terms = picture(image, hr, samples.pieces)
    return terms, contrast(image, hr, first).mean()


def keep_untold(hr: Tensor, lr: Tensor, untold: Tensor) -> Tensor:
    """The target with the degradation that the words keep back, [B, 3, 4h, 4w].

    Args:
        hr, lr: the pictures, [B, 3, 4h, 4w] and [B, 3, h, w] in [-1, 1].
        untold: shares of blur and of the rest, [B, 2].
    """
    rows = untold.gt(0).any(1)
    if not rows.any():
        return hr
    clean = bicubic_down((hr[rows] + 1) / 2, 4) * 2 - 1
    parts = torch.stack(split_error(lr[rows], clean), dim=1)
    error = (untold[rows, :, None, None, None] * parts).sum(1)
    kept = hr.clone()
    kept[rows] += F.interpolate(error, scale_factor=4, mode="bicubic")
    return kept.clamp(-1, 1)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_lpips(parser)
    add_tile_stage(parser)
    add_run_options(
        parser, ModalitiesStage(), steps=4000, photos=False, learning_rate=1e-4, warmup=50,
        ema=0.998, epsilon=1e-10,
    )  # fmt: skip
    args = parser.parse_args()
    config, stage = run_config(args, ModalitiesStage)
    opened = open_tile_stage(args, config, stage.preset)
    samples = opened.samples
    opened.denoiser.freeze_context(stage.context_alone)
    trained = {"denoiser": opened.denoiser.train(), "decoder": opened.decoder.train()}
    if stage.dense_alone:
        opened.denoiser.requires_grad_(False)
        freeze_but_dense(opened.decoder)
    if stage.paths_alone:
        for name, parameter in opened.decoder.named_parameters():
            if not any(path in name for path in PATHS):
                parameter.requires_grad_(False)
    run = Run(args.out, config, stage, trained, RATES)
    samples.g.manual_seed(config.seed + run.step)
    picture = PictureLoss(args.lpips, stage).to(samples.device)
    train(samples, picture, opened.reference, run, stage)


if __name__ == "__main__":
    main()
