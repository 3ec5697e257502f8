"""Bundles: intact ones open and read back equal; damage is named."""

from __future__ import annotations

import hashlib
import json
import math
import os
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import mmsr_edge.bundle.folder as bundle_module
from mmsr_edge.bundle import (
    Artifact,
    Bundle,
    FileSpec,
    LatentSpec,
    Manifest,
    SamplerSpec,
    describe_file,
    load_manifest,
    open_bundle,
    shipped_bundles,
    write_manifest,
)
from mmsr_edge.bundle.records import decode, encode
from mmsr_edge.errors import BundleError, MMSRError, OptionError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

DIGEST = hashlib.sha256(b"").hexdigest()


def spoil(bundle: Bundle, change: Callable[[dict[str, Any]], object]) -> str:
    """Change the manifest's JSON, and return the message of the error on reading it."""
    data = json.loads(bundle.manifest.to_json())
    change(data)
    with pytest.raises(BundleError) as caught:
        Manifest.from_json(json.dumps(data))
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, MMSRError)
    return str(caught.value)


def test_a_manifest_reads_back_equal(bundle: Bundle) -> None:
    text = bundle.manifest.to_json()
    assert Manifest.from_json(text) == bundle.manifest
    assert load_manifest(bundle.root) == bundle.manifest
    assert json.loads(text)["components"]["unet"]["artifacts"][0]["parity"] == {"psnr_db": 61.5}


def test_fields_with_a_default_may_be_left_out(bundle: Bundle) -> None:
    data = json.loads(bundle.manifest.to_json())
    for section, key in (("latent", "factor"), ("sampler", "baked_guidance"), ("text", "negative")):
        del data[section][key]
    assert Manifest.from_json(json.dumps(data)) == bundle.manifest


@pytest.mark.parametrize("section", [None, "tile", "sampler", "text", "provenance"])
def test_unknown_and_missing_keys_are_named(bundle: Bundle, section: str | None) -> None:
    def inside(data: dict[str, Any]) -> Any:
        return data if section is None else data[section]

    assert "surplus: unknown key" in spoil(bundle, lambda d: inside(d).update(surplus=1))
    required = {None: "scale", "tile": "overlap", "sampler": "steps", "text": "vocab_size"}
    key = required.get(section, "licence")
    place = key if section is None else f"{section}.{key}"
    assert f"{place}: missing" in spoil(bundle, lambda d: inside(d).pop(key))


def test_a_misspelt_key_is_corrected(bundle: Bundle) -> None:
    def misspell(data: dict[str, Any]) -> None:
        data["components"]["unet"]["artifacts"][0]["precison"] = "int8"

    message = spoil(bundle, misspell)
    assert (
        "components.unet.artifacts[0].precison: unknown key; did you mean 'precision'?" in message
    )


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        ("scale", "4", "scale: got '4', expected a value of type int"),
        ("scale", True, "scale: got True"),
        ("scale", 4.0, "scale: got 4.0"),
        ("name", 7, "name: got 7"),
        ("tile", [], "tile: got [], expected an object"),
        ("sampler.prediction_type", "x0", "sampler.prediction_type: got 'x0', expected one of"),
        ("sampler.guidance", "full", "sampler.guidance: got 'full'"),
        ("sampler.rescale_zero_snr", 1, "sampler.rescale_zero_snr: got 1"),
        ("latent.residual_scale", "no", "latent.residual_scale: got 'no', expected an array"),
        ("components.unet.artifacts", {}, "components.unet.artifacts: got {}, expected an array"),
        ("components.decoder.artifacts.0.files", [], "onnx fp32 artifact has no files"),
        ("provenance.sources", [1], "provenance.sources[0]: got 1, expected an object"),
        ("sampler.steps", 0, "sampler: sampler steps 0 must lie in 1..1000"),
        ("sampler.few_steps", 1001, "sampler: sampler few_steps 1001 must lie in 0..1000"),
        ("sampler.beta_end", 1.5, "0 < beta_start <= beta_end < 1"),
        ("sampler.guidance_scale", -1, "guidance_scale -1"),
        ("tile.overlap", 9, "tile overlap 9 must lie in 0..8"),
        ("tile.multiple_of", 3, "tile size 16 must be a multiple of multiple_of 3"),
        ("latent.residual_scale", [1.0], "must be 2 positive numbers"),
        ("latent.residual_scale", [1.0, 0.0], "must be 2 positive numbers"),
        ("text.vocab_size", 3, "vocab_size 3"),
        ("allow_failing", ["uent"], "allow_failing names 'uent'"),
        ("untrained", ["uent"], "untrained names 'uent'"),
        ("sampler.diffusion", "other", "sampler.diffusion: got 'other', expected one of"),
        ("sampler.diffusion", "separate", "'separate' with few_steps 0"),
        ("schema", 4, "schema: 4 is unknown; this mmsr-edge reads 1, 2, 3"),
        ("schema", True, "schema: True is unknown"),
        ("schema", [1], "schema: [1] is unknown"),
        ("schema", None, "schema: missing"),
    ],
)
def test_a_wrong_value_is_quoted_with_its_place(
    bundle: Bundle, path: str, value: object, expected: str
) -> None:
    def change(data: Any) -> None:
        *parents, last = path.split(".")
        for key in parents:
            data = data[int(key)] if key.isdecimal() else data[key]
        data[last] = value

    assert expected in spoil(bundle, change)


@pytest.mark.parametrize(
    ("component", "kind", "index", "change", "expected"),
    [
        ("unet", "inputs", 0, {"name": "sample"}, "component 'unet' has inputs"),
        ("unet", "inputs", 0, {"shape": [1, 2, 8, 8]}, "expected float32 [1, 4, 8, 8]"),
        ("unet", "inputs", 2, {"shape": [1, 3, 5]}, "'context' is float32 [1, 3, 5]"),
        ("decoder", "outputs", 0, {"shape": [1, 3, 32, 32]}, "expected float32 [1, 3, 64, 64]"),
        (
            "text_encoder",
            "inputs",
            0,
            {"dtype": "float32"},
            "'ids' is float32 [1, 7], expected int64",
        ),
        ("tokenizer", "outputs", 1, {"shape": [1, 4, 1]}, "expected int64 [1, 4]"),
        ("connector", "inputs", 4, {"shape": [1, 3]}, "'present' is float32 [1, 3]"),
        ("lr_encoder", "inputs", 0, {"shape": [2, 3, 16, 16]}, "with a batch of 1"),
        ("lr_encoder", "inputs", 0, {"dtype": "float16"}, "got 'float16', expected one of"),
    ],
)
def test_components_that_do_not_fit_are_refused(
    bundle: Bundle, component: str, kind: str, index: int, change: dict[str, Any], expected: str
) -> None:
    message = spoil(bundle, lambda d: d["components"][component][kind][index].update(change))
    assert expected in message


def test_roles_are_known_and_complete(bundle: Bundle) -> None:
    assert "components lack decoder" in spoil(bundle, lambda d: d["components"].pop("decoder"))
    assert "component 'vae' is unknown" in spoil(
        bundle, lambda d: d["components"].update(vae=d["components"]["decoder"])
    )
    assert "component 'depth' has the name 'decoder'" in spoil(
        bundle, lambda d: d["components"].update(depth=d["components"]["decoder"])
    )


def test_a_manifest_of_schema_1_is_read(bundle: Bundle) -> None:
    """It lacks the keys of schema 2, whose defaults say what it meant."""
    data = json.loads(bundle.manifest.to_json())
    data["schema"] = 1
    del data["sampler"]["diffusion"]
    read = Manifest.from_json(json.dumps(data))
    assert read == bundle.manifest
    assert json.loads(read.to_json())["schema"] == 3  # what is written is written anew
    shipped = load_manifest(bundle_module._SHIPPED / "nano")
    assert list(shipped.unets) == ["unet"]


def test_a_unet_may_take_guidance(bundle: Bundle) -> None:
    data = json.loads(bundle.manifest.to_json())
    tensor = {"name": "guidance", "shape": [1], "dtype": "float32"}
    data["components"]["unet"]["inputs"].append(tensor)
    assert len(Manifest.from_json(json.dumps(data)).components["unet"].inputs) == 4


def test_a_decoder_may_take_the_lr_picture_at_its_size(bundle: Bundle) -> None:
    data = json.loads(bundle.manifest.to_json())
    shape = data["components"]["lr_encoder"]["inputs"][0]["shape"]
    tensor = {"name": "lr", "shape": shape, "dtype": "float32"}
    data["components"]["decoder"]["inputs"].append(tensor)
    assert len(Manifest.from_json(json.dumps(data)).components["decoder"].inputs) == 2
    tensor["shape"] = [*shape[:2], 2 * shape[2], 2 * shape[3]]
    with pytest.raises(BundleError, match="component 'decoder': input 'lr'"):
        Manifest.from_json(json.dumps(data))


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"manifest"'])
def test_text_that_is_no_manifest_is_refused(text: str) -> None:
    with pytest.raises(BundleError):
        Manifest.from_json(text)


def test_infinity_is_refused_on_writing(bundle: Bundle) -> None:
    unet = bundle.component("unet")
    card = replace(unet.artifacts[0], parity={"psnr_db": math.inf})
    manifest = replace(
        bundle.manifest,
        components={**bundle.manifest.components, "unet": replace(unet, artifacts=(card,))},
    )
    with pytest.raises(BundleError, match="infinite PSNR"):
        manifest.to_json()


@pytest.mark.parametrize(
    "path", ["", ".", "/etc/passwd", "../a", "a/../b", "a//b", "./a", "a/", "a\\b", "C:a", "a\0"]
)
def test_a_file_lies_inside_its_bundle(path: str) -> None:
    with pytest.raises(BundleError, match="relative, inside the bundle"):
        FileSpec(path, DIGEST, 0)


@pytest.mark.parametrize("digest", ["", DIGEST[:-1], DIGEST.upper(), DIGEST[:-1] + "g"])
def test_a_digest_is_well_formed(digest: str) -> None:
    with pytest.raises(BundleError, match="64 lower-case hex digits"):
        FileSpec("a", digest, 0)


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)


@given(
    scale=st.none() | st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=4),
    card=st.dictionaries(st.text(), json_values),
    tools=st.dictionaries(st.text(), st.text()),
)
def test_any_record_reads_back_equal(
    scale: list[float] | None, card: dict[str, Any], tools: dict[str, str]
) -> None:
    latent = LatentSpec(len(scale or "1"), residual_scale=None if scale is None else tuple(scale))
    file = FileSpec("weights/é.bin", DIGEST, 0)
    artifact = Artifact("torch", "fp16", (file,), parity=card, tools=tools)
    for record in (latent, artifact):
        assert decode(type(record), json.loads(json.dumps(encode(record)))) == record


def test_missing_altered_and_resized_files_are_named(bundle: Bundle) -> None:
    path = bundle.root / "decoder.fp32.onnx"
    content = path.read_bytes()

    path.write_bytes(content[::-1])
    os.utime(path, ns=(1, 1))  # not the time that the hash was stored with
    with pytest.raises(BundleError, match=r"decoder\.fp32\.onnx.*altered.*again"):
        open_bundle(bundle.root)
    path.write_bytes(content + b"!")
    with pytest.raises(BundleError, match="has 13 bytes instead of 12"):
        open_bundle(bundle.root)
    path.unlink()
    with pytest.raises(BundleError, match=r"decoder\.fp32\.onnx.*missing"):
        open_bundle(bundle.root)
    path.mkdir()
    with pytest.raises(BundleError, match=r"decoder\.fp32\.onnx.*missing"):
        open_bundle(bundle.root)
    path.rmdir()
    path.write_bytes(content)
    assert open_bundle(bundle.root).manifest == bundle.manifest


def test_a_file_is_hashed_once_until_it_changes(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[Path] = []
    digest = bundle_module._digest

    def counting(path: Path) -> str:
        hashed.append(path)
        return digest(path)

    monkeypatch.setattr(bundle_module, "_digest", counting)
    open_bundle(bundle.root)
    assert hashed == []
    path = bundle.root / "unet.int8.onnx"
    os.utime(path, ns=(1, 1))
    open_bundle(bundle.root)
    assert hashed == [path]


def test_missing_and_unreadable_bundles(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"no bundle .*nowhere.*shipped model"):
        open_bundle(tmp_path / "nowhere")
    (tmp_path / "manifest.json").write_bytes(b"\xff\xfe")
    with pytest.raises(BundleError, match="cannot be read"):
        open_bundle(tmp_path)
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(BundleError, match=r"manifest\.json: schema: missing"):
        open_bundle(tmp_path)


def test_a_shipped_name_wins_over_a_folder(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundle_module, "_SHIPPED", bundle.root.parent)
    monkeypatch.chdir(tmp_path)
    other = replace(bundle.manifest, version="2")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    (tmp_path / "here" / "bundle").mkdir()
    for file in bundle.root.iterdir():
        (tmp_path / "here" / "bundle" / file.name).write_bytes(file.read_bytes())
    write_manifest(tmp_path / "here" / "bundle", other)
    assert "bundle" in shipped_bundles()
    assert open_bundle("bundle").manifest.version == "1"
    assert open_bundle("./bundle").manifest.version == "2"
    (bundle.root / "unet.int8.onnx").unlink()
    with pytest.raises(BundleError, match="pip install --force-reinstall"):
        open_bundle("bundle")


@pytest.mark.parametrize("name", shipped_bundles())
def test_shipped_bundles_are_intact(name: str) -> None:
    assert open_bundle(name).manifest.name == name


def test_describe_file_has_digest_and_size(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b.bin").write_bytes(b"abc")
    assert describe_file(tmp_path, "a/b.bin") == FileSpec(
        "a/b.bin", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad", 3
    )


def with_forms(bundle: Bundle, *forms: tuple[str, str]) -> Bundle:
    """The bundle with artifacts of these (format, precision) for its UNet."""
    unet = bundle.component("unet")
    file = unet.artifacts[0].files
    artifacts = tuple(Artifact(f, p, file) for f, p in forms)  # type: ignore[arg-type]
    unet = replace(unet, artifacts=artifacts)
    components = {**bundle.manifest.components, "unet": unet}
    return replace(bundle, manifest=replace(bundle.manifest, components=components))


@pytest.mark.parametrize(
    ("formats", "precision", "expected"),
    [
        (["onnx"], "auto", ("onnx", "int8")),
        (["openvino", "onnx"], "auto", ("onnx", "int8")),
        (["openvino"], "auto", ("openvino", "fp16")),
        (["openvino", "onnx"], "int8", ("onnx", "int8")),
        (["openvino"], "int8", ("openvino", "fp16")),
        (["openvino", "onnx"], "fp16", ("openvino", "fp16")),
        (["onnx"], "fp16", ("onnx", "fp32")),
        (["onnx", "openvino"], "fp32", ("onnx", "fp32")),
        (["openvino", "onnx"], "fp32", ("openvino", "fp32")),
    ],
)
def test_choice_of_an_artifact(
    bundle: Bundle, formats: list[str], precision: str, expected: tuple[str, str]
) -> None:
    forms = ("onnx", "fp32"), ("openvino", "fp32"), ("openvino", "fp16"), ("onnx", "int8")
    chosen = with_forms(bundle, *forms).artifact("unet", formats, precision)
    assert (chosen.format, chosen.precision) == expected


def test_an_artifact_made_for_a_backend_is_chosen_for_it_alone(bundle: Bundle) -> None:
    forms = ("onnx", "int8"), ("onnx", "fp32"), ("onnx", "fp16")
    several = with_forms(bundle, *forms)
    unet = several.component("unet")
    first, exact, own = unet.artifacts
    own = replace(own, backends=("onnxruntime",))
    components = {**several.manifest.components}
    components["unet"] = replace(unet, artifacts=(first, exact, own))
    opened = replace(several, manifest=replace(several.manifest, components=components))
    assert Manifest.from_json(opened.manifest.to_json()) == opened.manifest
    order = ("fp32", "fp16", "int8")
    assert opened.artifact("unet", ["onnx"], "auto", order, "onnxruntime") == own
    assert opened.artifact("unet", ["onnx"], "int8", order, "onnxruntime") == first
    assert opened.artifact("unet", ["onnx"], "fp16", order, "onnxruntime") == own
    assert opened.artifact("unet", ["onnx"], "auto", backend="openvino") == first
    assert opened.artifact("unet", ["onnx"], "fp16", backend="openvino") == exact
    components["unet"] = replace(unet, artifacts=(own,))
    alone = replace(opened, manifest=replace(opened.manifest, components=components))
    with pytest.raises(BundleError, match=r"as onnx fp16 \(for onnxruntime\); needed: onnx"):
        alone.artifact("unet", ["onnx"], backend="openvino")


def test_no_suitable_artifact(bundle: Bundle) -> None:
    with pytest.raises(BundleError, match="'unet' as onnx int8, onnx fp32; needed: coreml"):
        bundle.artifact("unet", ["coreml"])
    with pytest.raises(BundleError, match="as onnx int8; needed: onnx at fp16 or better"):
        with_forms(bundle, ("onnx", "int8")).artifact("unet", ["onnx"], "fp16")
    with pytest.raises(OptionError, match=r"precision 'int2' is unknown; choose auto, int4"):
        bundle.artifact("unet", ["onnx"], "int2")
    with pytest.raises(BundleError, match="has no component 'depth'; it has lr_encoder"):
        bundle.component("depth")


def test_every_field_is_documented() -> None:
    # A docstring below a field exists in the source only.
    import ast
    import inspect

    from mmsr_edge.bundle import manifest, specs

    documented = 0
    for module in (manifest, specs):
        for node in ast.parse(inspect.getsource(module)).body:
            if not isinstance(node, ast.ClassDef):
                continue
            for statement, following in zip(node.body, node.body[1:], strict=False):
                if isinstance(statement, ast.AnnAssign):
                    text = isinstance(following, ast.Expr) and ast.unparse(following)
                    assert text, f"{node.name}: {ast.unparse(statement)} has no docstring"
                    documented += 1
    assert documented >= len(fields(Manifest)) + len(fields(SamplerSpec))
