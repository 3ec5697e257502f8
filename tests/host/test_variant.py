"""A variant of a model: a decoder of its own, and all else shared with its base."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from mmsr_edge import Upscaler
from mmsr_edge.bundle import open_bundle
from mmsr_edge.converters.export_all import main as export
from mmsr_edge.errors import BundleError
from mmsr_edge.models.checkpoint import open_checkpoint
from mmsr_edge.models.networks import build_component
from mmsr_edge.training import release_variant
from mmsr_edge.training.states import write_run

ANCESTOR = ("--initialized-from", "a published network", "MIT", "the decoder")


@pytest.fixture(scope="module")
def folders(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`base` and `variant`, checkpoints, and their bundles in `out`."""
    root = tmp_path_factory.mktemp("variants")
    shutil.copytree(checkpoint, root / "base")
    torch.manual_seed(5)
    write_run(root / "run", {"decoder": build_component("decoder", "micro").state_dict()})
    with pytest.MonkeyPatch.context() as patch:
        command = ["release_variant", "--base", str(root / "base"), "--preset", "micro"]
        command += ["--decoder", str(root / "run"), "--version", "7", *ANCESTOR]
        patch.setattr("sys.argv", [*command, "--out", str(root / "variant")])
        release_variant.main()
    float32 = ["--precisions", "fp32"]
    for name, more in (("base", []), ("variant", ["--share", str(root / "out" / "base")])):
        given = ["--checkpoint", str(root / name), "--out", str(root / "out" / name)]
        assert export([*given, *float32, *more]) == 0
    return root


def test_a_variant_has_its_own_decoder_and_its_bases_other_networks(folders: Path) -> None:
    base, variant = open_checkpoint(folders / "base"), open_checkpoint(folders / "variant")
    assert set(variant.networks) == set(base.networks)
    for name, network in variant.networks.items():
        same = [
            torch.equal(mine, other)
            for mine, other in zip(
                network.state_dict().values(),
                base.networks[name].state_dict().values(),
                strict=True,
            )
        ]
        assert all(same) == (name != "decoder"), name
    written = {p.name for p in (folders / "variant").iterdir()}
    assert written == {"manifest.json", "decoder"}
    manifest = variant.bundle.manifest
    assert manifest.version == "7" and manifest.sampler == base.bundle.manifest.sampler
    assert manifest.provenance.licence == "CC0-1.0 AND MIT"
    assert manifest.provenance.sources[-1]["used_for"] == "initial weights of the decoder"


def test_its_bundle_shares_files_and_draws_its_own_picture(folders: Path) -> None:
    shared = open_bundle(folders / "out" / "variant")
    for name, spec in shared.manifest.components.items():
        lenders = {f.bundle for a in spec.artifacts for f in a.files}
        assert lenders == ({""} if name == "decoder" else {"base"}), name
    assert {p.name for p in (folders / "out" / "variant").iterdir()} == {"manifest.json", "decoder"}
    picture = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    made = [
        np.asarray(Upscaler(folders / "out" / name, "onnxruntime").upscale(picture, seed=1).image)
        for name in ("base", "variant")
    ]
    own = Upscaler(folders / "variant", "torch").upscale(picture, seed=1).image
    assert np.abs(made[1].astype(int) - np.asarray(own)).max() <= 1
    assert np.abs(made[1].astype(int) - made[0]).mean() > 1


def test_a_bundle_of_other_weights_lends_nothing(folders: Path, tmp_path: Path) -> None:
    """Components of other weights are exported, as without --share."""
    shutil.copytree(folders / "out" / "base", tmp_path / "other")
    manifest = (tmp_path / "other" / "manifest.json").read_text()
    digest = open_checkpoint(folders / "base").digest("connector")
    assert digest in manifest
    (tmp_path / "other" / "manifest.json").write_text(manifest.replace(digest, "0" * 64))
    given = ["--checkpoint", str(folders / "variant"), "--out", str(tmp_path / "new")]
    assert export([*given, "--precisions", "fp32", "--share", str(tmp_path / "other")]) == 0
    assert (tmp_path / "new" / "connector").is_dir()
    assert not (tmp_path / "new" / "unet").exists()


def test_bundles_that_share_lie_side_by_side(
    folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--checkpoint", str(folders / "variant"), "--out", str(tmp_path / "new")]
    assert export([*given, "--precisions", "fp32", "--share", str(folders / "out" / "base")]) == 1
    assert "must lie beside" in capsys.readouterr().err
    shutil.copytree(folders / "out" / "variant", tmp_path / "variant")
    with pytest.raises(BundleError, match="put the bundle 'base'"):
        Upscaler(tmp_path / "variant", "onnxruntime")


def test_a_decoder_is_replaced_in_place(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(folders / "base", folders / "again")
    before = open_checkpoint(folders / "again")
    command = ["release_variant", "--base", str(folders / "again"), "--preset", "micro"]
    command += ["--decoder", str(folders / "run"), "--version", "8"]
    monkeypatch.setattr("sys.argv", [*command, "--out", str(folders / "again")])
    release_variant.main()
    after = open_checkpoint(folders / "again")
    assert after.bundle.manifest.version == "8"
    for name, spec in after.bundle.manifest.components.items():
        assert not any(f.bundle for a in spec.artifacts for f in a.files)
        same = [a.files for a in spec.artifacts] == [
            a.files for a in before.bundle.manifest.components[name].artifacts
        ]
        assert same == (name != "decoder"), name
