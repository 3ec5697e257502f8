"""What tokens tell of their map: by one code alone, and by features before and after quantization.

A token covers 16×16 map pixels. What it can tell is measured as prediction on held-out maps: of
4×4 mean depths, of the class of 2×2 parts and whether it is the subject, of 4×4 densities of edges.
A code tells the mean (or the most frequent class) of the tokens that have it in other maps.
Features, which have no code, are read by a linear probe; so are the codes' vectors, to compare the
two (Fig. 4).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from lib.comparison import Row
from mmsr_edge.bundle import MANIFEST_NAME, MAPS, open_bundle
from mmsr_edge.modalities.segmentation import PALETTE, SUBJECT
from mmsr_edge.models.networks import build_component
from mmsr_edge.models.tokenizer import Tokenizer, nearest_codes
from mmsr_edge.training.data.tiles import Tiles
from mmsr_edge.training.losses.tokens import what_maps_tell
from mmsr_edge.training.states import load_states

QUALITIES = ("LR", "HR")
"""Pictures that maps are made of, in the order of `Tiles`."""
RIDGE = 1e-4
"""Weight decay of the linear probes, relative to the mean variance of a feature."""
SHOWN = 6
"""Maps that the picture shows."""


def load_tokenizer(folder: Path, preset: str | None = None) -> Tokenizer:
    """The tokenizer of a checkpoint, or of a run, whose last weights are taken, as in a release.

    Args:
        folder: the checkpoint or run.
        preset: preset of a run; None: nano. A checkpoint's is in its manifest.
    """
    if (folder / MANIFEST_NAME).exists():
        preset = open_bundle(folder).manifest.preset
    tokenizer = build_component("tokenizer", preset or "nano")
    tokenizer.load_state_dict(load_states(folder, ema=False)["tokenizer"])
    assert isinstance(tokenizer, Tokenizer)
    return tokenizer.eval()


@dataclass(frozen=True)
class Tokens:
    """Tokens of the maps of one kind, of LR or HR pictures; M = maps · 256."""

    features: Tensor
    """[M, D], before quantization."""
    codes: Tensor
    """[M], indices of the codes."""
    told: Tensor
    """[M, parts]: depths or densities, or classes."""


def read_tokens(
    tokenizer: Tokenizer, tiles: Tiles, rows: Tensor, kind: int, quality: int, batch: int = 16
) -> Tokens:
    """Tokens of one kind of map of some tiles.

    Args:
        tokenizer: the tokenizer.
        tiles: the tiles.
        rows: rows of the tiles.
        kind: index in `MAPS`.
        quality: index in `QUALITIES`.
        batch: maps per call.
    """
    planes = (tiles.depth, tiles.classes, tiles.edges)
    codebook = tokenizer.vq.quantize.embedding.weight
    features, codes, told = [], [], []
    for some in rows.split(batch):
        maps = tiles.maps(some, torch.full((len(some), 3), quality))[:, kind]
        with torch.inference_mode():
            flat = tokenizer.features(maps.contiguous()).float().flatten(0, 1)
            codes.append(nearest_codes(flat, codebook))
        features.append(flat)
        given = [p[some, quality] if i == kind else p[some, 0] * 0 for i, p in enumerate(planes)]
        told.append(what_maps_tell(*given)[kind].permute(0, 2, 3, 1).flatten(0, 2))
    return Tokens(torch.cat(features), torch.cat(codes), torch.cat(told))


def present(tiles: Tiles, kind: int, most: int) -> Tensor:
    """Rows of up to `most` tiles, spread evenly, whose maps of a kind could be made."""
    plane = (tiles.depth, tiles.classes, tiles.edges)[kind]
    spread = torch.linspace(0, len(tiles) - 1, min(2 * most, len(tiles))).long().unique()
    kept = [row for row in spread.tolist() if plane[row].flatten(1).any(1).all()]
    step = max(1, len(kept) // most)
    return torch.tensor(kept[::step][:most])


def join(parts: Sequence[Tokens]) -> Tokens:
    """Tokens of several sets of maps."""
    columns = (
        torch.cat([getattr(p, name) for p in parts]) for name in ("features", "codes", "told")
    )
    return Tokens(*columns)


class Lookup:
    """What each code tells: the mean over its tokens, or by part the most frequent class."""

    def __init__(self, known: Tokens, codes: int, classes: int | None) -> None:
        told = known.told if classes is None else one_hot(known.told, classes)
        table = torch.zeros(codes, told.shape[1]).index_add_(0, known.codes, told.float())
        count = torch.bincount(known.codes, minlength=codes)[:, None]
        # A code that no known token has tells what all tokens tell on average.
        self.table = torch.where(count > 0, table / count.clamp_min(1), told.float().mean(0))
        self.classes = classes

    def __call__(self, tokens: Tokens) -> Tensor:
        """What the tokens' codes tell, as `Tokens.told`."""
        return decided(self.table[tokens.codes], self.classes)


class Probe:
    """A linear probe of vectors [M, D], by ridge regression."""

    def __init__(self, vectors: Tensor, told: Tensor, classes: int | None) -> None:
        wanted = told.float() if classes is None else one_hot(told, classes)
        self.mean, self.base, self.classes = vectors.mean(0), wanted.mean(0), classes
        x = (vectors - self.mean).double()
        gram = x.T @ x
        gram.diagonal().add_(RIDGE * gram.trace() / len(gram) + 1e-9)
        y = (wanted - self.base).double()
        self.weight = torch.linalg.solve(gram, x.T @ y).float()

    def __call__(self, vectors: Tensor) -> Tensor:
        """What the vectors tell, as `Tokens.told`."""
        return decided((vectors - self.mean) @ self.weight + self.base, self.classes)


def one_hot(told: Tensor, classes: int) -> Tensor:
    """Classes [M, parts] as [M, parts · classes]."""
    return F.one_hot(told, classes).flatten(1).float()


def decided(scores: Tensor, classes: int | None) -> Tensor:
    """Scores as what they tell: themselves, or by part the class with the highest."""
    return scores if classes is None else scores.unflatten(1, (-1, classes)).argmax(-1)


def r2(guess: Tensor, truth: Tensor) -> float:
    """Coefficient of determination over all parts."""
    rest = (truth - guess).square().sum()
    return 1 - (rest / (truth - truth.mean(0)).square().sum().clamp_min(1e-12)).item()


def share_right(guess: Tensor, truth: Tensor) -> float:
    """Share of the parts with the right class."""
    return (guess == truth).float().mean().item()


def bits(codes: Tensor) -> float:
    """Entropy of the codes, in bits."""
    share = torch.bincount(codes).double()
    share = share[share > 0] / share.sum()
    return float(-(share * share.log2()).sum())


@dataclass(frozen=True)
class Report:
    """What the tokens of every kind of map tell."""

    rows: list[Row]
    """One row per kind of map and quality."""
    picture: NDArray[np.uint8]
    """For each kind the maps of held-out tiles, what their codes tell, what features tell."""


def report(tokenizer: Tokenizer, tiles: Tiles, held_out: Tiles, most: int = 256) -> Report:
    """Measure what tokens tell.

    Args:
        tokenizer: the tokenizer, in evaluation mode.
        tiles: tiles from which it is learnt what a code tells.
        held_out: tiles of other photographs, on which it is measured.
        most: most tiles of each.
    """
    codebook = tokenizer.vq.quantize.embedding.weight.detach()
    rows: list[Row] = []
    sheets = []
    for kind, name in enumerate(tqdm(MAPS, desc="maps")):
        parts, at = (present(t, kind, most) for t in (tiles, held_out))
        known = join([read_tokens(tokenizer, tiles, parts, kind, q) for q in range(2)])
        tests = [read_tokens(tokenizer, held_out, at, kind, q) for q in range(2)]
        used = torch.cat([known.told, *(test.told for test in tests)]).unique()
        classes = len(used) if kind == 1 else None
        if kind == 1:  # numbered as they are found
            known, *tests = (
                replace(t, told=torch.searchsorted(used, t.told)) for t in (known, *tests)
            )
        code = Lookup(known, len(codebook), classes)
        discrete = Probe(codebook[known.codes], known.told, classes)
        continuous = Probe(known.features, known.told, classes)
        shared = (tests[0].codes == tests[1].codes).float().mean().item()
        measure = share_right if kind == 1 else r2
        for quality, test in zip(QUALITIES, tests, strict=True):
            guess, truth = code(test), test.told
            row: Row = {"map": name, "of": quality, "maps": len(at)}
            row["measure"] = "share right" if kind == 1 else "R²"
            row["code"] = measure(guess, truth)
            row["code, probed"] = measure(discrete(codebook[test.codes]), truth)
            row["features, probed"] = measure(continuous(test.features), truth)
            if kind == 1:
                row["class without the subject's mark"] = share_right(
                    used[guess] % SUBJECT, used[truth] % SUBJECT
                )
                chance = torch.full_like(truth, int(known.told.flatten().mode().values))
                row["chance"] = share_right(chance, truth)
            else:
                row["mean of the token"] = r2(guess.mean(1, True), truth.mean(1, True))
            row |= {"bits": bits(test.codes), "codes used": test.codes.unique().numel()}
            row |= {"codes": len(codebook), "codes shared by LR and HR": shared}
            rows.append({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()})
        shown = [tests[0].told, code(tests[0]), continuous(tests[0].features)]
        sheets += [drawn(used[told] if kind == 1 else told, kind) for told in shown]
    return Report(rows, np.concatenate(sheets))


def drawn(told: Tensor, kind: int) -> NDArray[np.uint8]:
    """What the tokens of the first maps tell, side by side: [256, SHOWN · 256, 3]."""
    side = 2 if kind == 1 else 4
    first = told[: SHOWN * 256].unflatten(0, (-1, 16, 16)).permute(0, 3, 1, 2)
    plane = F.pixel_shuffle(first.float(), side)[:, 0].numpy()
    if kind == 1:
        pixels = PALETTE[plane.astype(np.int64)]
    else:
        pixels = np.repeat((plane.clip(0, 1) * 255).astype(np.uint8)[..., None], 3, -1)
    wide = np.concatenate(list(pixels), 1)
    return wide.repeat(16 // side, 0).repeat(16 // side, 1)
