"""Bundles: folders with a manifest and the files that it lists, opened only if all are intact."""

from __future__ import annotations

from mmsr_edge.bundle.contract import (
    CONTRACT,
    MAP_SIDE,
    MAP_TOKENS,
    MAPS,
    MODALITIES,
    OPTIONAL,
    REQUIRED,
    TOKEN_INPUTS,
    Signature,
)
from mmsr_edge.bundle.folder import (
    MANIFEST_NAME,
    Bundle,
    describe_file,
    load_manifest,
    open_bundle,
    shipped_bundles,
    write_manifest,
)
from mmsr_edge.bundle.manifest import (
    SCHEMA,
    Manifest,
)
from mmsr_edge.bundle.specs import (
    FASTEST,
    MAX_TIMESTEPS,
    PRECISIONS,
    Artifact,
    ComponentSpec,
    FileSpec,
    Format,
    LatentSpec,
    Precision,
    Provenance,
    SamplerSpec,
    TensorSpec,
    TextSpec,
    TileSpec,
)

__all__ = [
    "CONTRACT",
    "FASTEST",
    "MANIFEST_NAME",
    "MAPS",
    "MAP_SIDE",
    "MAP_TOKENS",
    "MAX_TIMESTEPS",
    "MODALITIES",
    "OPTIONAL",
    "PRECISIONS",
    "REQUIRED",
    "SCHEMA",
    "TOKEN_INPUTS",
    "Artifact",
    "Bundle",
    "ComponentSpec",
    "FileSpec",
    "Format",
    "LatentSpec",
    "Manifest",
    "Precision",
    "Provenance",
    "SamplerSpec",
    "Signature",
    "TensorSpec",
    "TextSpec",
    "TileSpec",
    "describe_file",
    "load_manifest",
    "open_bundle",
    "shipped_bundles",
    "write_manifest",
]
