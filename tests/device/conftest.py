"""A complete, consistent bundle to damage; its model files are placeholders."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from mmsr_edge.bundle import (
    Artifact,
    Bundle,
    ComponentSpec,
    LatentSpec,
    Manifest,
    Provenance,
    SamplerSpec,
    TensorSpec,
    TextSpec,
    TileSpec,
    describe_file,
    open_bundle,
    write_manifest,
)

if TYPE_CHECKING:
    from pathlib import Path

# No deadline: a slow example on a busy machine is not a failure.
settings.register_profile("busy", deadline=None, max_examples=50)
settings.load_profile("busy")

TENSORS = {
    "lr_encoder": ("lr 1x3x16x16", "lr_latent 1x2x8x8"),
    "tokenizer": ("map 1x3x32x32", "tokens 1x4x5, indices 1x4i"),
    "text_encoder": ("ids 1x7i", "text 1x7x6"),
    "connector": (
        (
            "text 1x7x6, depth_tokens 1x4x5, segmentation_tokens 1x4x5, edge_tokens 1x4x5, "
            "present 1x4, temperature 1x4"
        ),
        "context 1x3x6",
    ),
    "unet": ("latent 1x4x8x8, timestep 1, context 1x3x6", "prediction 1x2x8x8"),
    "decoder": ("latent 1x2x8x8", "image 1x3x64x64"),
}


def tensors(text: str) -> tuple[TensorSpec, ...]:
    """Parse "name 1x2x3, other 1x4i"; the i stands for int64."""
    specs = []
    for part in text.split(", "):
        name, shape = part.split()
        sizes = tuple(map(int, shape.rstrip("i").split("x")))
        specs.append(TensorSpec(name, sizes, "int64" if shape.endswith("i") else "float32"))
    return tuple(specs)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """Tile 16, scale 4, two latent channels; every component as ONNX, the UNet also as int8."""
    root = tmp_path / "bundle"
    root.mkdir()
    components = {}
    for name, (inputs, outputs) in TENSORS.items():
        artifacts = []
        for precision in ("int8", "fp32") if name == "unet" else ("fp32",):
            (root / f"{name}.{precision}.onnx").write_bytes(f"{name} {precision}".encode())
            file = describe_file(root, f"{name}.{precision}.onnx")
            artifacts.append(Artifact("onnx", precision, (file,), parity={"psnr_db": 61.5}))
        components[name] = ComponentSpec(name, tensors(inputs), tensors(outputs), tuple(artifacts))
    manifest = Manifest(
        name="toy",
        version="1",
        preset="micro",
        scale=4,
        tile=TileSpec(size=16, overlap=4, multiple_of=2),
        latent=LatentSpec(channels=2, factor=8, residual_scale=(0.5, 2.0)),
        sampler=SamplerSpec(
            prediction_type="v_prediction",
            num_train_timesteps=1000,
            beta_schedule="scaled_linear",
            beta_start=0.00085,
            beta_end=0.012,
            rescale_zero_snr=True,
            timestep_spacing="trailing",
            steps=4,
            guidance="m-cfg",
            guidance_scale=1.0,
        ),
        text=TextSpec(tokenizer="hashed-words", vocab_size=99, length=7),
        components=components,
        provenance=Provenance(licence="Apache-2.0", sources=({"name": "none", "pages": 3},)),
    )
    write_manifest(root, manifest)
    return open_bundle(root)
