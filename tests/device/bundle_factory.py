"""A bundle of tiny ONNX graphs with the contract's names and shapes, made without torch.

Each graph is simple enough to be written again in numpy, as `reference`: tests compare the pipeline
with that, not with itself.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from mmsr_edge.bundle import (
    Artifact,
    ComponentSpec,
    LatentSpec,
    Manifest,
    Provenance,
    SamplerSpec,
    TensorSpec,
    TextSpec,
    TileSpec,
    describe_file,
    write_manifest,
)

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    import numpy.typing as npt

    Array = npt.NDArray[Any]

TILE, SCALE, FACTOR, CHANNELS = 32, 4, 8, 4
LATENT, OUTPUT = TILE * SCALE // FACTOR, TILE * SCALE
MAP, TOKENS, WIDTH = 32, 16, 8
LENGTH, DIM, VOCABULARY = 77, 8, 64
LATENT_TOKENS = 8
RESIDUAL_SCALE = (0.1, 0.2, 0.3, 0.4)

_rng = np.random.default_rng(7)


def _weights(*shape: int, scale: float) -> Array:
    return (_rng.standard_normal(shape) * scale).astype(np.float32)


W = {
    "encode": np.vstack([np.eye(3), np.full((1, 3), 1 / 3)]).astype(np.float32),  # [C, 3]
    "tokenize": _weights(WIDTH, 3, scale=1.0),
    "embedding": _weights(VOCABULARY, DIM, scale=1.0),
    "unet": _weights(CHANNELS, 2 * CHANNELS, scale=0.4),
    "condition": _weights(DIM, CHANNELS, scale=3.0),
    "clock": _weights(CHANNELS, scale=0.2),
    "decode": np.eye(3, CHANNELS).astype(np.float32),
    "told": np.tile(np.diag([1, 3, 5]), (3, 1))[:8].astype(np.float32) / 40,  # [8, 3]
}

TENSORS: dict[str, tuple[dict[str, tuple[int, ...]], dict[str, tuple[int, ...]]]] = {
    "lr_encoder": ({"lr": (1, 3, TILE, TILE)}, {"lr_latent": (1, CHANNELS, LATENT, LATENT)}),
    "tokenizer": (
        {"map": (1, 3, MAP, MAP)},
        {"tokens": (1, TOKENS, WIDTH), "indices": (1, TOKENS)},
    ),
    "text_encoder": ({"ids": (1, LENGTH)}, {"text": (1, LENGTH, DIM)}),
    "connector": (
        {
            "text": (1, LENGTH, DIM),
            "depth_tokens": (1, TOKENS, WIDTH),
            "segmentation_tokens": (1, TOKENS, WIDTH),
            "edge_tokens": (1, TOKENS, WIDTH),
            "present": (1, 4),
            "temperature": (1, 4),
        },
        {"context": (1, LATENT_TOKENS, DIM)},
    ),
    "unet": (
        {
            "latent": (1, 2 * CHANNELS, LATENT, LATENT),
            "timestep": (1,),
            "context": (1, LATENT_TOKENS, DIM),
        },
        {"prediction": (1, CHANNELS, LATENT, LATENT)},
    ),
    "decoder": (
        {"latent": (1, CHANNELS, LATENT, LATENT)},
        {"image": (1, 3, OUTPUT, OUTPUT)},
    ),
}
OPTIONAL: dict[str, tuple[dict[str, tuple[int, ...]], dict[str, tuple[int, ...]]]] = {
    "depth": ({"image": (1, 3, MAP, MAP)}, {"depth": (1, 1, MAP, MAP)}),
    "segmentation": ({"image": (1, 3, MAP, MAP)}, {"classes": (1, MAP, MAP)}),
    "captioner": ({"image": (1, 3, MAP, MAP)}, {"scores": (1, 3)}),
}
TOLD: dict[str, tuple[dict[str, tuple[int, ...]], dict[str, tuple[int, ...]]]] = {
    "decoder": (
        {"latent": (1, CHANNELS, LATENT, LATENT), "degradation": (1, 8)},
        {"image": (1, 3, OUTPUT, OUTPUT)},
    ),
    "degradation": ({"image": (1, 3, TILE, TILE)}, {"levels": (1, 3)}),
}
LABELS = {
    "segmentation": ("tomatoes", "grass", "sky"),
    "captioner": ("tomato", "meadow", "sea"),
}
INTEGERS = {"ids", "indices", "classes"}

SAMPLER = SamplerSpec(
    prediction_type="v_prediction",
    num_train_timesteps=1000,
    beta_schedule="scaled_linear",
    beta_start=0.00085,
    beta_end=0.012,
    rescale_zero_snr=True,
    timestep_spacing="trailing",
    steps=2,
    guidance=None,
    guidance_scale=4.0,
)


class _Graph:
    """Nodes and constants of a graph; each method returns the name of its result."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def constant(self, array: Any) -> str:
        name = f"k{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def op(self, kind: str, *inputs: str, to: str | None = None, **attributes: Any) -> str:
        name = to or f"n{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def conv(self, x: str, weight: Array, to: str | None = None) -> str:
        return self.op("Conv", x, self.constant(weight[..., None, None]), to=to)


def _lr_encoder(g: _Graph) -> None:
    pooled = g.op("AveragePool", "lr", kernel_shape=[2, 2], strides=[2, 2])
    g.conv(pooled, W["encode"], to="lr_latent")


def _tokenizer(g: _Graph) -> None:
    side = MAP // 4
    pooled = g.op("AveragePool", "map", kernel_shape=[side, side], strides=[side, side])
    rows = g.op("Reshape", g.conv(pooled, W["tokenize"]), g.constant([1, WIDTH, TOKENS]))
    tokens = g.op("Transpose", rows, to="tokens", perm=[0, 2, 1])
    g.op("ArgMax", tokens, to="indices", axis=2, keepdims=0)


def _text_encoder(g: _Graph) -> None:
    g.op("Gather", g.constant(W["embedding"]), "ids", to="text")


def _connector(g: _Graph) -> None:
    strength = g.op("Div", "present", "temperature")
    means = []
    for i, name in enumerate(("text", "depth_tokens", "segmentation_tokens", "edge_tokens")):
        mean = g.op("ReduceMean", name, g.constant([1]), keepdims=1)
        one = g.op("Slice", strength, g.constant([i]), g.constant([i + 1]), g.constant([1]))
        # Each modality has two rows of its own, so that swapped modalities change the result.
        means += [g.op("Mul", mean, g.op("Unsqueeze", one, g.constant([2])))] * 2
    g.op("Concat", *means, to="context", axis=1)


def _unet(g: _Graph) -> None:
    ramp = g.constant(np.linspace(1, 2, LATENT_TOKENS, dtype=np.float32)[:, None])
    mean = g.op("ReduceMean", g.op("Mul", "context", ramp), g.constant([1]), keepdims=0)
    shift = g.op("MatMul", mean, g.constant(W["condition"]))
    noise_level = g.op("Div", "timestep", g.constant(np.array([1000], np.float32)))
    shift = g.op("Add", shift, g.op("Mul", noise_level, g.constant(W["clock"])))
    shift = g.op("Reshape", shift, g.constant([1, CHANNELS, 1, 1]))
    g.op("Add", g.conv("latent", W["unet"]), shift, to="prediction")


def _decoder(g: _Graph) -> None:
    scales = g.constant(np.array([1, 1, FACTOR, FACTOR], np.float32))
    rgb = g.conv("latent", W["decode"])
    attributes = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric"}
    g.op("Resize", rgb, "", scales, to="image", nearest_mode="floor", **attributes)


def _told_decoder(g: _Graph) -> None:
    """The decoder's picture, each colour shifted by a level and by whether it is known."""
    scales = g.constant(np.array([1, 1, FACTOR, FACTOR], np.float32))
    shift = g.op("MatMul", "degradation", g.constant(W["told"]))
    shift = g.op("Reshape", shift, g.constant([1, 3, 1, 1]))
    rgb = g.op("Add", g.conv("latent", W["decode"]), shift)
    attributes = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric"}
    g.op("Resize", rgb, "", scales, to="image", nearest_mode="floor", **attributes)


def _degradation(g: _Graph) -> None:
    """Levels by colour: red is noise, green blur, blue JPEG."""
    mean = g.op("ReduceMean", "image", g.constant([2, 3]), keepdims=0)
    half = g.constant(np.array([0.5], np.float32))
    g.op("Add", g.op("Mul", mean, half), half, to="levels")


def _depth(g: _Graph) -> None:
    """Depth by brightness: bright is near."""
    grey = g.op("ReduceMean", "image", g.constant([1]), keepdims=1)
    half = g.constant(np.array([0.5], np.float32))
    g.op("Add", g.op("Mul", grey, half), half, to="depth")


def _segmentation(g: _Graph) -> None:
    """Class of a pixel: the strongest of red, green and blue."""
    g.op("ArgMax", "image", to="classes", axis=1, keepdims=0)


def _captioner(g: _Graph) -> None:
    """Score of a tag: largest for the strongest of red, green and blue."""
    mean = g.op("ReduceMean", "image", g.constant([2, 3]), keepdims=0)
    g.op("Softmax", g.op("Mul", mean, g.constant(np.array([4], np.float32))), to="scores", axis=1)


_BUILD = {
    "lr_encoder": _lr_encoder,
    "tokenizer": _tokenizer,
    "text_encoder": _text_encoder,
    "connector": _connector,
    "unet": _unet,
    "decoder": _decoder,
    "depth": _depth,
    "segmentation": _segmentation,
    "captioner": _captioner,
    "degradation": _degradation,
}


def _dtype(name: str) -> str:
    return "int64" if name in INTEGERS else "float32"


def _specs(tensors: dict[str, tuple[int, ...]]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(name, shape, _dtype(name)) for name, shape in tensors.items())  # type: ignore[arg-type]


def make_manifest(
    components: dict[str, ComponentSpec], sampler: SamplerSpec, text: TextSpec
) -> Manifest:
    """Manifest of a bundle with these components."""
    return Manifest(
        name="tiny",
        version="1",
        preset="micro",
        scale=SCALE,
        tile=TileSpec(size=TILE, overlap=8, multiple_of=2),
        latent=LatentSpec(CHANNELS, FACTOR, RESIDUAL_SCALE),
        sampler=sampler,
        text=text,
        components=components,
        provenance=Provenance("CC0-1.0", ({"name": "fixed numbers"},), "For tests."),
    )


def make_bundle(
    root: Path, *, optional: bool = False, told: Collection[str] = (), **sampler: Any
) -> Path:
    """Write the bundle into folder `root`.

    Args:
        root: folder of the bundle.
        optional: whether it has the modality networks.
        told: how the model is told the degradation: "words", "decoder", or both; such a bundle has
            a degradation estimator.
        sampler: replaces fields of `SAMPLER`.
    """
    components = {}
    parts = {**TENSORS, **(OPTIONAL if optional else {})}
    parts |= {name: TOLD[name] for name in ("degradation", *told) if told and name in TOLD}
    for name, tensors in parts.items():
        graph = _Graph()
        (_told_decoder if tensors is TOLD["decoder"] else _BUILD[name])(graph)
        sides = [
            [
                helper.make_tensor_value_info(
                    key, TensorProto.INT64 if key in INTEGERS else TensorProto.FLOAT, shape
                )
                for key, shape in side.items()
            ]
            for side in tensors
        ]
        model = helper.make_model(
            helper.make_graph(graph.nodes, name, *sides, initializer=graph.constants),
            opset_imports=[helper.make_opsetid("", 18)],
            ir_version=9,
        )
        onnx.checker.check_model(model, full_check=True)
        folder = root / name
        folder.mkdir(parents=True)
        onnx.save(model, str(folder / "model.onnx"))
        inputs, outputs = tensors
        artifact = Artifact("onnx", "fp32", (describe_file(root, f"{name}/model.onnx"),))
        components[name] = ComponentSpec(
            name, _specs(inputs), _specs(outputs), (artifact,), LABELS.get(name, ())
        )
    text = TextSpec("hashed-words", VOCABULARY, LENGTH, positive="sharp", negative="blurry, noisy")
    text = replace(text, degradation="words" in told)
    write_manifest(root, make_manifest(components, replace(SAMPLER, **sampler), text))
    return root


class reference:  # noqa: N801 - a namespace
    """The same networks in numpy, computed in float64."""

    @staticmethod
    def lr_encoder(lr: Array) -> Array:
        pooled = lr.reshape(1, 3, LATENT, 2, LATENT, 2).mean(axis=(3, 5))
        encoded: Array = np.einsum("oi,bihw->bohw", W["encode"], pooled)
        return encoded

    @staticmethod
    def tokenizer(given: Array) -> Array:
        side = given.shape[-1] // 4
        pooled = given.reshape(1, 3, 4, side, 4, side).mean(axis=(3, 5))
        tokens: Array = np.einsum("oi,bihw->bhwo", W["tokenize"], pooled)
        return tokens.reshape(1, TOKENS, WIDTH)

    @staticmethod
    def text_encoder(ids: Array) -> Array:
        return W["embedding"][ids]

    @staticmethod
    def connector(modalities: list[Array | None], temperature: tuple[float, ...]) -> Array:
        rows = [
            np.zeros((1, DIM)) if tokens is None else tokens.mean(axis=1) / delta
            for tokens, delta in zip(modalities, temperature, strict=True)
        ]
        return np.repeat(np.stack(rows, axis=1), 2, axis=1)

    @staticmethod
    def unet(latent: Array, timestep: Array | float, context: Array) -> Array:
        mean = (context * np.linspace(1, 2, LATENT_TOKENS)[:, None]).mean(axis=1)
        shift = mean @ W["condition"] + timestep / 1000 * W["clock"]
        mixed = np.einsum("oi,bihw->bohw", W["unet"], latent)
        prediction: Array = mixed + shift[..., None, None]
        return prediction

    @staticmethod
    def decoder(latent: Array, lr: Array | None = None) -> Array:
        return latent[:, :3].repeat(FACTOR, axis=2).repeat(FACTOR, axis=3)
