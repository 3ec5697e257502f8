"""Bundles that take files from one beside them."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from mmsr_edge.bundle import (
    Bundle,
    FileSpec,
    describe_file,
    open_bundle,
    shared,
    write_manifest,
)
from mmsr_edge.errors import BundleError

if TYPE_CHECKING:
    from pathlib import Path

DIGEST = hashlib.sha256(b"").hexdigest()


@pytest.fixture
def variant(bundle: Bundle) -> Path:
    """A bundle beside `bundle` with a decoder of its own; all else is in `bundle`."""
    root = bundle.root.parent / "variant"
    root.mkdir()
    (root / "own.onnx").write_bytes(b"another decoder")
    components = {n: shared(s, "bundle") for n, s in bundle.manifest.components.items()}
    own = replace(components["decoder"].artifacts[0], files=(describe_file(root, "own.onnx"),))
    components["decoder"] = replace(components["decoder"], artifacts=(own,))
    write_manifest(root, replace(bundle.manifest, name="variant", components=components))
    return root


def test_a_bundle_takes_files_from_one_beside_it(bundle: Bundle, variant: Path) -> None:
    opened = open_bundle(variant)
    for name, spec in opened.manifest.components.items():
        for artifact in spec.artifacts:
            path = opened.path(artifact.files[0])
            assert path.parent == (variant if name == "decoder" else bundle.root), name
            assert path.is_file()
    # A bundle that takes files from `variant` finds those of `bundle` too.
    twice = shared(opened.component("unet"), "variant")
    assert {f.bundle for a in twice.artifacts for f in a.files} == {"bundle"}


def test_a_bundle_opens_through_a_link(variant: Path, tmp_path: Path) -> None:
    link = tmp_path / "elsewhere" / "link"
    link.parent.mkdir()
    link.symlink_to(variant)
    assert open_bundle(link).manifest.name == "variant"


@pytest.mark.parametrize("damage", ["missing", "altered"])
def test_a_damaged_bundle_beside_it_is_named(bundle: Bundle, variant: Path, damage: str) -> None:
    if damage == "missing":
        bundle.root.rename(bundle.root.with_name("gone"))
    else:
        (bundle.root / "connector.fp32.onnx").write_bytes(b"CONNECTOR fp32")
    with pytest.raises(BundleError, match="put the bundle 'bundle' that it was made with beside"):
        open_bundle(variant)


def test_its_files_may_lie_elsewhere(bundle: Bundle, variant: Path, tmp_path: Path) -> None:
    moved = tmp_path / "deep" / "variant"
    moved.parent.mkdir()
    variant.rename(moved)
    with pytest.raises(BundleError, match="is listed but missing"):
        open_bundle(moved)
    assert open_bundle(moved, beside=bundle.root.parent).component("unet")


@pytest.mark.parametrize("name", ["..", ".", "a/b", "/abs", "a\\b", ".hidden", "a b", "é"])
def test_a_shared_file_stays_beside_the_bundle(name: str) -> None:
    with pytest.raises(BundleError, match="must be the name of a folder beside this bundle"):
        FileSpec("model.onnx", DIGEST, 1, name)
