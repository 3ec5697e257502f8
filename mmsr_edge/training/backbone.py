"""Pretrained convolutions out of a file that OpenVINO reads: TFLite, ONNX or its own.

A quantized file's integers are brought back to numbers by running the part of the graph that makes
the weight. Norms are folded into such files' convolutions, so a weight and a bias are all there is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from mmsr_edge.errors import OptionError

Array = NDArray[np.float32]


def read_convolutions(path: Path) -> list[tuple[Array, Array]]:
    """Weight [out, in/groups, k, k] and bias [out] of every 2-D convolution, in graph order.

    Raises:
        OptionError: when OpenVINO cannot read the file, or a convolution has no constant weight
            and bias.
    """
    import openvino as ov

    core = ov.Core()
    try:
        model = core.read_model(path)
    except RuntimeError as error:
        raise OptionError(f"cannot read a network from {str(path)!r}: {error}") from error
    outputs = []
    for node in model.get_ordered_ops():
        if node.get_type_name() not in ("Convolution", "GroupConvolution"):
            continue
        users = [i.get_node() for i in node.output(0).get_target_inputs()]
        adds = [u for u in users if u.get_type_name() == "Add"]
        if len(adds) != 1:
            raise OptionError(f"convolution {node.get_friendly_name()!r} of {path.name} has no bias")
        bias = [v for v in adds[0].input_values() if v.get_node() is not node]
        outputs += [node.input_value(1), bias[0]]
    try:
        constants = core.compile_model(ov.Model(outputs, []), "CPU")([])
    except RuntimeError as error:
        raise OptionError(f"{path.name} has weights that are not constant: {error}") from error
    arrays: list[Any] = [np.array(constants[i], np.float32) for i in range(len(outputs))]
    pairs = []
    for weight, bias_ in zip(arrays[::2], arrays[1::2], strict=True):
        # Grouped weights are [groups, out/groups, in/groups, k, k] in OpenVINO.
        w = weight.reshape(-1, *weight.shape[2:]) if weight.ndim == 5 else weight
        pairs.append((w, bias_.reshape(-1)))
    return pairs


@torch.no_grad()
def load_backbone(convolutions: list[nn.Conv2d], path: Path) -> None:
    """Start `convolutions` from the first ones of the network in `path`, which must fit.

    Raises:
        OptionError: when a shape differs or the file has fewer.
    """
    pairs = read_convolutions(path)
    if len(pairs) < len(convolutions):
        raise OptionError(
            f"{path.name} has {len(pairs)} convolutions; the network needs {len(convolutions)}"
        )
    for i, (conv, (weight, bias)) in enumerate(zip(convolutions, pairs, strict=False)):
        if tuple(conv.weight.shape) != weight.shape:
            raise OptionError(
                f"convolution {i} of {path.name} is {weight.shape}; "
                f"the network's is {tuple(conv.weight.shape)}"
            )
        assert conv.bias is not None
        conv.weight.copy_(torch.from_numpy(weight))
        conv.bias.copy_(torch.from_numpy(bias))
