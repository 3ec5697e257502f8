"""The layout's guards: what must hold of the tree as a whole.

Each guard is a function that lists violations. One test asks it of the tree, others plant
violations and see that they are found: a guard that cannot fail guards nothing.
"""

from __future__ import annotations

import json
import os
import pkgutil
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

MAPPED = ("calib", "converters", "runtimes")
"""Top-level folders that are installed inside mmsr_edge."""

TORCH_SIDE = ("mmsr_edge.models", "mmsr_edge.training", "mmsr_edge.converters", "mmsr_edge.calib.record")
"""Packages and modules that may import torch."""

HEAVY = ("torch", "diffusers", "transformers", "safetensors", "onnx", "onnxruntime", "openvino",
         "coremltools", "nncf", "optimum")  # fmt: skip
"""Libraries that importing the device side must not need."""


def python_files(root: Path) -> list[Path]:
    """The files of all packages, relative to `root`."""
    folders = [root / name for name in ("mmsr_edge", *MAPPED)]
    return sorted(path.relative_to(root) for folder in folders for path in folder.rglob("*.py"))


def import_name(path: Path) -> str:
    """What a file of the tree is imported as."""
    parts = path.with_suffix("").parts
    parts = parts if parts[0] == "mmsr_edge" else ("mmsr_edge", *parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


# --- The wheel ----------------------------------------------------------------------------------


def build_wheel(root: Path, out: Path) -> list[str]:
    """Build the tree at `root` and return the names in its wheel."""
    out.mkdir()
    code = f"from setuptools import build_meta; build_meta.build_wheel({str(out)!r})"
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True, capture_output=True)
    (wheel,) = out.glob("*.whl")
    return zipfile.ZipFile(wheel).namelist()


def missing_from_wheel(root: Path, names: list[str]) -> set[str]:
    """Files of the tree that a wheel of it lacks."""
    expected = {f"{import_name(path).replace('.', '/')}.py" for path in python_files(root)}
    expected = {
        name if Path(name).stem in {p.stem for p in python_files(root)} else name
        for name in expected
    }
    return expected - set(names)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of all that goes into the wheel, to build in and to spoil."""
    copy = tmp_path / "tree"
    copy.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, copy)
    for name in ("mmsr_edge", *MAPPED):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    return copy
