"""The teacher in OpenVINO at int8: a quarter of the time, and pictures that are as good.

LPIPS of its pictures of Set14 `lr_real` is .348, and that of the float teacher's .346.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from mmsr_edge.errors import missing_extra
from mmsr_edge.models.residual_dense import ResidualDenseNetwork

if TYPE_CHECKING:
    from openvino import CompiledModel, Model

CALIBRATION = 32
"""LR pictures that the ranges of the activations are taken from."""


class _Both(nn.Module):
    """The picture and the features that it is made of."""

    def __init__(self, network: ResidualDenseNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, lr: Tensor) -> tuple[Tensor, Tensor]:
        features = self.network.features(lr)
        return self.network.picture(features, lr).clamp(-1, 1), features


def convert_teacher(network: ResidualDenseNetwork, example: Tensor) -> Model:
    """An OpenVINO model from a picture like `example` [1, 3, h, w] to its picture and features.

    Raises:
        MissingExtraError: OpenVINO is not installed.
    """
    try:
        import openvino
    except ImportError as error:
        raise missing_extra(str(error.name), "convert") from None
    example = example.contiguous()
    with torch.no_grad():
        converted = openvino.convert_model(
            _Both(network.eval()), example_input=example, input=list(example.shape)
        )
    return cast("Model", converted)


def quantize_teacher(network: ResidualDenseNetwork, pictures: Tensor) -> Model:
    """Quantize a residual dense network with the ranges of activations on `pictures`.

    The first and the last convolution stay in float: one reads pixels and the other writes them.

    Args:
        network: the network, on the CPU.
        pictures: LR pictures [N, 3, h, w] in [-1, 1]; the result takes pictures of this size.

    Returns:
        An OpenVINO model from one picture to its picture and its features.

    Raises:
        MissingExtraError: OpenVINO or NNCF is not installed.
    """
    try:
        import nncf
    except ImportError as error:
        raise missing_extra(str(error.name), "convert") from None
    model = convert_teacher(network, pictures[:1])
    edges = [
        node.get_friendly_name()
        for node in model.get_ordered_ops()
        if node.get_type_name() == "Convolution" and 3 in _channels(node)
    ]
    quantized = nncf.quantize(
        model,
        nncf.Dataset([x[None].numpy() for x in pictures[:CALIBRATION]]),
        subset_size=CALIBRATION,
        preset=nncf.QuantizationPreset.MIXED,
        ignored_scope=nncf.IgnoredScope(names=edges),
    )
    return cast("Model", quantized)


def _channels(convolution: object) -> tuple[int, int]:
    """Channels of a convolution's output and input."""
    out, given, *_ = convolution.input(1).get_partial_shape().to_shape()  # type: ignore[attr-defined]
    return out, given


class QuantizedTeacher:
    """A quantized teacher: pictures and features of LR pictures.

    Args:
        model: from `quantize_teacher`.
        threads: threads of a call; 0: all cores.
    """

    def __init__(self, model: Model, threads: int = 0) -> None:
        import openvino

        self._compiled: CompiledModel = openvino.compile_model(
            model, "CPU", {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
        )

    def __call__(self, lr: Tensor) -> tuple[Tensor, Tensor]:
        """Pictures [B, 3, 4h, 4w] and features [B, 64, h, w] of `lr` [B, 3, h, w]."""
        results = [
            [torch.from_numpy(x.copy()) for x in self._compiled(picture[None].copy()).values()]
            for picture in lr.float().cpu().numpy()
        ]
        pictures, features = (torch.cat(x).to(lr.device) for x in zip(*results, strict=True))
        return pictures, features
