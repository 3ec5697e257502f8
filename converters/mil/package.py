"""The `.mlpackage` folder: location of the model and of its weights, from the manifest."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from mmsr_edge.converters.to_coreml import import_coremltools
from mmsr_edge.errors import BundleError

WEIGHTS_PREFIX = "@model_path/"
"""Prefix in a program for the folder of the model file."""


@dataclass(frozen=True)
class Package:
    """An opened package."""

    root: Path
    """The `.mlpackage` folder."""
    model: Path
    """The model file, a serialized `CoreML.Specification.Model`."""
    spec: Any
    """The parsed model file."""

    @property
    def name(self) -> str:
        """The folder's name, for messages."""
        return self.root.name

    def weights(self, name: str) -> Path:
        """Path of a file that the program refers to, such as `@model_path/weights/weight.bin`.

        Raises:
            BundleError: the file is missing, or outside of the package.
        """
        relative = PurePosixPath(name.removeprefix(WEIGHTS_PREFIX))
        path = self.model.parent / relative
        if not name.startswith(WEIGHTS_PREFIX) or ".." in relative.parts:
            raise BundleError(f"{self.name!r} refers to {name!r}, which is outside of the package")
        if not path.is_file():
            raise BundleError(f"{str(path)!r} is missing; export the package again")
        return path


def open_package(root: Path) -> Package:
    """Read a package's manifest and parse its model file.

    Raises:
        BundleError: the folder, its manifest or its model file is missing or malformed.
        MissingExtraError: coremltools, which has the protobuf schema, is not installed.
    """
    path = root / "Manifest.json"
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        entry = manifest["itemInfoEntries"][manifest["rootModelIdentifier"]]
        relative = PurePosixPath(entry["path"])
    except OSError as error:
        raise BundleError(f"{str(root)!r} is no .mlpackage: {error}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise BundleError(f"{str(path)!r} is no package manifest: {error!r}") from None
    model = root / "Data" / relative
    if relative.is_absolute() or ".." in relative.parts or not model.is_file():
        raise BundleError(f"{str(path)!r} names {str(relative)!r}, which is not in the package")
    return Package(root, model, _parse(model))


def _parse(path: Path) -> Any:
    import_coremltools()
    from coremltools.proto import Model_pb2
    from google.protobuf.message import DecodeError

    spec = Model_pb2.Model()
    try:
        spec.ParseFromString(path.read_bytes())
    except DecodeError as error:
        raise BundleError(f"{str(path)!r} is no Core ML model: {error}") from None
    if spec.WhichOneof("Type") != "mlProgram":
        kind = spec.WhichOneof("Type")
        raise BundleError(f"{str(path)!r} holds {kind!r}; only ML Programs are interpreted")
    return spec
