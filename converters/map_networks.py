"""Published depth and segmentation networks in the contract's form, pre- and postprocessing inside.

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
"""Colours of a segmentation map."""
SMALLEST_RANGE = 1e-6
"""A depth whose range is below this is flat. Not added but clamped to: the exporter's optimizer
takes tiny addends for nothing."""


class PictureInput(nn.Module):
    """What a network is fed: the picture resized and normalized as in its training.

    Resizing is two products with constant matrices, R·image·Rᵀ. They are Pillow's own filters,
    antialiasing included, which every runtime then applies alike.
    """

    def __init__(self, given: Preprocessing, side: int, to: int) -> None:
        super().__init__()
        rows = None if side == to else pillow_matrix(side, to, given.resample)
        self.register_buffer("rows", rows)
        for name, values in (("scale", given.scale), ("shift", given.shift)):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        """[1, 3, s, s] in [-1, 1] to [1, 3, n, n]."""
        if self.rows is not None:
            image = self.rows @ image @ self.rows.T
        return image * self.scale + self.shift


def pillow_matrix(side: int, to: int, resample: Image.Resampling) -> Tensor:
    """[to, side]: resizes a column as Pillow does."""
    eye = Image.fromarray(np.eye(side, dtype=np.float32))
    return torch.from_numpy(np.array(eye.resize((side, to), resample)))


def torch_matrix(side: int, to: int, mode: str) -> Tensor:
    """[to, side]: resizes a column as `F.interpolate` does."""
    eye = torch.eye(side)[None, None]
    return F.interpolate(eye, size=(to, side), mode=mode, align_corners=False)[0, 0]


class DepthNetwork(nn.Module):
    """Depth, as the network's own postprocessing resizes it (bicubic), spread over [0, 1]."""

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
    """Classes of a network that scores every pixel for every class (SegFormer)."""

    def __init__(self, checkpoint: Published, side: int, inner: int) -> None:
        super().__init__()
        self.input = PictureInput(checkpoint.preprocessing, side, inner)
        self.model, self.side, self.inner = checkpoint.model, side, inner
        fold_positions(self.model, self.input(torch.zeros(1, 3, side, side)))

    def _scores(self, pixels: Tensor) -> Tensor:
        """[1, classes, ·, ·]."""
        return cast(Tensor, self.model(pixel_values=pixels).logits)

    def forward(self, image: Tensor) -> Tensor:
        return _resized(self._scores(self.input(image)), self.side).argmax(1)


class QuerySegmentationNetwork(SegmentationNetwork):
    """Classes of a network that finds masks, and classifies each (Mask2Former)."""

    def _scores(self, pixels: Tensor) -> Tensor:
        found = self.model(pixel_values=pixels)
        classes = found.class_queries_logits.softmax(-1)[..., :-1]  # the last is "nothing"
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
        checkpoint: opened for "depth".
        side: of the picture and the map.
        inner: side of the network's own picture.
        depth_is: what it predicts, where its config does not say.

    Raises:
        OptionError: what it predicts is not known, or `depth_is` contradicts its config.
    """
    config = checkpoint.model.config
    known: DepthIs | None = None
    if checkpoint.kind == "depth_anything":
        metric = getattr(config, "depth_estimation_type", "relative") == "metric"
        known = "metric" if metric else "inverse"
    elif getattr(getattr(config, "backbone_config", None), "model_type", "") != "dinov2":
        known = "inverse"  # MiDaS; DPTs on DINOv2 are published for either
    if known and depth_is and known != depth_is:
        raise OptionError(f"depth is {depth_is!r}, but by its config this network's is {known!r}")
    kind = known or depth_is
    if kind is None:
        raise OptionError(
            "the config does not say whether large is near (inverse depth) or far (metric); "
            "look it up where the checkpoint was published and give --depth-is"
        )
    return DepthNetwork(checkpoint, side, inner, kind == "metric")


def segmentation_network(checkpoint: Published, side: int, inner: int) -> SegmentationNetwork:
    """A segmentation network in the contract's form.

    Raises:
        BundleError: it has more classes than a map has colours.
    """
    classes = checkpoint.model.config.num_labels
    if classes > MOST_CLASSES:
        raise BundleError(
            f"the network tells {classes} classes apart; a map has colours for {MOST_CLASSES}"
        )
    if checkpoint.kind == "mask2former":
        return QuerySegmentationNetwork(checkpoint, side, inner)
    return SegmentationNetwork(checkpoint, side, inner)


_POSITIONS = ("interpolate_pos_encoding", "_resize_pos_embed")


def fold_positions(model: nn.Module, pixels: Tensor) -> None:
    """Turn position embeddings, which are resized to the picture in every call, into constants.

    Resizing them is bicubic, which not every format has, and its result never changes here.
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
