"""Published depth and segmentation networks in the contract's form, with pre- and postprocessing.

image [1, 3, s, s] in [-1, 1]  ->  depth [1, 1, s, s] in [0, 1], near = 1
                               ->  classes [1, s, s], int64
"""

from __future__ import annotations

from typing import Any, Literal, cast

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from mmsr_edge.converters.published import Preprocessing, Published
from mmsr_edge.errors import BundleError, OptionError

DepthIs = Literal["inverse", "metric"]
MOST_CLASSES = 256
"""Number of colours of a segmentation map."""
SMALLEST_RANGE = 1e-6
"""Depth with a smaller range counts as flat. The range is clamped to it, because the exporter's
optimizer drops tiny addends."""


class PictureInput(nn.Module):
    """Input layer: resizes and normalizes the picture as in the network's training.

    Resizing is two products with constant matrices, R·image·Rᵀ. The matrices hold Pillow's filters,
    including antialiasing, so that every runtime resizes equally.
    """

    def __init__(self, given: Preprocessing, side: int, to: int) -> None:
        super().__init__()
        rows = None if side == to else pillow_matrix(side, to, given.resample)
        self.register_buffer("rows", rows)
        for name, values in (("scale", given.scale), ("shift", given.shift)):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        """Convert images [1, 3, s, s] in [-1, 1] to normalized pixels [1, 3, n, n]."""
        if self.rows is not None:
            image = self.rows @ image @ self.rows.T
        return image * self.scale + self.shift


def pillow_matrix(side: int, to: int, resample: Image.Resampling) -> Tensor:
    """Matrix [to, side] that resizes a column as Pillow does."""
    eye = Image.fromarray(np.eye(side, dtype=np.float32))
    return torch.from_numpy(np.array(eye.resize((side, to), resample)))


def torch_matrix(side: int, to: int, mode: str) -> Tensor:
    """Matrix [to, side] that resizes a column as `F.interpolate` does."""
    eye = torch.eye(side)[None, None]
    return F.interpolate(eye, size=(to, side), mode=mode, align_corners=False)[0, 0]


class DepthNetwork(nn.Module):
    """Depth network: resized by its own postprocessing (bicubic) and stretched to [0, 1]."""

    def __init__(self, checkpoint: Published, side: int, inner: int, metric: bool) -> None:
        super().__init__()
        self.input = PictureInput(checkpoint.preprocessing, side, inner)
        self.model, self.metric = checkpoint.model, metric
        image = torch.zeros(1, 3, side, side)
        fold_positions(self.model, self.input(image))
        with torch.inference_mode():
            found = self._predict(image).shape[-1]
        self.register_buffer("rows", torch_matrix(found, side, "bicubic"))

    def _predict(self, image: Tensor) -> Tensor:
        return cast(Tensor, self.model(pixel_values=self.input(image)).predicted_depth)

    def forward(self, image: Tensor) -> Tensor:
        depth = self._predict(image)
        near = 1 / depth.clamp_min(1e-3) if self.metric else depth  # metres; a millimetre at least
        near = self.rows @ near @ self.rows.T
        low, high = near.amin((1, 2), keepdim=True), near.amax((1, 2), keepdim=True)
        return ((near - low) / (high - low).clamp_min(SMALLEST_RANGE))[:, None]


class SegmentationNetwork(nn.Module):
    """Segmentation network that scores every class at every pixel (SegFormer)."""

    def __init__(self, checkpoint: Published, side: int, inner: int) -> None:
        super().__init__()
        self.input = PictureInput(checkpoint.preprocessing, side, inner)
        self.model, self.side, self.inner = checkpoint.model, side, inner
        fold_positions(self.model, self.input(torch.zeros(1, 3, side, side)))

    def _scores(self, pixels: Tensor) -> Tensor:
        """Scores of the classes [1, classes, h, w], at the network's own size."""
        return cast(Tensor, self.model(pixel_values=pixels).logits)

    def forward(self, image: Tensor) -> Tensor:
        return _resized(self._scores(self.input(image)), self.side).argmax(1)


class QuerySegmentationNetwork(SegmentationNetwork):
    """Segmentation network that finds masks and classifies each (Mask2Former)."""

    def _scores(self, pixels: Tensor) -> Tensor:
        found = self.model(pixel_values=pixels)
        classes = found.class_queries_logits.softmax(-1)[..., :-1]  # the last class is "no object"
        masks = _resized(found.masks_queries_logits, self.inner).sigmoid()
        return torch.einsum("bqc,bqhw->bchw", classes, masks)


def _resized(values: Tensor, side: int) -> Tensor:
    if values.shape[-1] == side:
        return values
    return F.interpolate(values, size=(side, side), mode="bilinear", align_corners=False)


def depth_network(
    checkpoint: Published, side: int, inner: int, depth_is: DepthIs | None
) -> DepthNetwork:
    """A depth network in the contract's form.

    Args:
        checkpoint: a checkpoint opened for "depth".
        side: side of the picture and of the map in pixels.
        inner: side of the network's own input in pixels.
        depth_is: predicted quantity; needed where the config does not state it.

    Raises:
        OptionError: the predicted quantity is unknown, or `depth_is` contradicts the config.
    """
    config = checkpoint.model.config
    known: DepthIs | None = None
    if checkpoint.kind == "depth_anything":
        metric = getattr(config, "depth_estimation_type", "relative") == "metric"
        known = "metric" if metric else "inverse"
    elif getattr(getattr(config, "backbone_config", None), "model_type", "") != "dinov2":
        known = "inverse"  # MiDaS; DPTs on DINOv2 are published for both
    if known and depth_is and known != depth_is:
        raise OptionError(f"depth is {depth_is!r}, but by its config this network's is {known!r}")
    kind = known or depth_is
    if kind is None:
        raise OptionError(
            "the config does not state whether large values are near (inverse depth) or far "
            "(metric depth); look it up where the checkpoint was published and give --depth-is"
        )
    return DepthNetwork(checkpoint, side, inner, kind == "metric")


def segmentation_network(checkpoint: Published, side: int, inner: int) -> SegmentationNetwork:
    """A segmentation network in the contract's form.

    Raises:
        BundleError: the network has more classes than a map has colours.
    """
    classes = checkpoint.model.config.num_labels
    if classes > MOST_CLASSES:
        raise BundleError(
            f"the network has {classes} classes; a segmentation map has {MOST_CLASSES} colours"
        )
    if checkpoint.kind == "mask2former":
        return QuerySegmentationNetwork(checkpoint, side, inner)
    return SegmentationNetwork(checkpoint, side, inner)


_POSITIONS = ("interpolate_pos_encoding", "_resize_pos_embed")


def fold_positions(model: nn.Module, pixels: Tensor) -> None:
    """Replace the resizing of position embeddings, done in every call, by its constant result.

    The resizing is bicubic, which some formats lack, and its result is fixed for a static input.
    """
    for module in model.modules():
        for name in _POSITIONS:
            if hasattr(module, name):
                _fold(module, name)
    with torch.no_grad():
        model(pixel_values=pixels)


def _fold(module: nn.Module, name: str) -> None:
    original = getattr(module, name)

    def record(*arguments: Any, **options: Any) -> Tensor:
        result = original(*arguments, **options).detach().clone()
        setattr(module, name, lambda *_, **__: result)
        return cast(Tensor, result)

    setattr(module, name, record)
