"""The command line: exit codes, messages, and output files that are complete or absent."""

from __future__ import annotations

import functools
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from bundle_factory import make_bundle
from PIL import Image
from tqdm import tqdm

import mmsr_edge
from mmsr_edge import Upscaler
from mmsr_edge.cli.main import main
from mmsr_edge.pipeline import MultimodalPipeline

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Run = Callable[..., tuple[int, str, str]]

PICTURE = np.random.default_rng(0).integers(0, 256, (20, 24, 3), np.uint8)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "in.jpg"
    Image.fromarray(PICTURE).save(path.with_suffix(".png"))
    return path.with_suffix(".png")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], root: Path) -> Run:
    """Exit code, stdout and stderr of a command on the tiny bundle."""

    def call(*arguments: object) -> tuple[int, str, str]:
        command, *rest = map(str, arguments)
        extra = ["--model", str(root)] if "--model" not in rest else []
        if command == "upscale":
            extra += ["--backend", "onnxruntime"] if "--backend" not in rest else []
        code = main([command, *rest, *extra])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return code, captured.out, captured.err

    return call


def test_a_picture_goes_beside_its_source(run: Run, source: Path, root: Path) -> None:
    code, out, err = run("upscale", source)
    assert (code, err) == (0, "")
    target = source.with_name("in_x4.png")
    assert out.startswith(f"{target}: 96x80, onnxruntime, ")
    with Image.open(target) as written:
        expected = Upscaler(root, "onnxruntime")(PICTURE).image
        np.testing.assert_array_equal(np.asarray(written), np.asarray(expected))
    assert sorted(path.name for path in source.parent.iterdir()) == ["in.png", "in_x4.png"]


def test_every_option_is_passed_on(run: Run, source: Path, root: Path, tmp_path: Path) -> None:
    depth, classes, edges = (tmp_path / f"{name}.png" for name in ("depth", "classes", "edges"))
    grey = np.arange(480, dtype=np.uint8).reshape(20, 24)
    Image.fromarray(grey).save(depth)
    Image.fromarray(grey % 5).save(classes)
    Image.fromarray((grey % 7 == 0).astype(np.uint8) * 255).save(edges)
    target, maps = tmp_path / "out.tif", tmp_path / "made" / "here"
    # fmt: off
    code, _, err = run(
        "upscale", source, "-o", target, "--steps", 3, "--guidance", "m-cfg",
        "--guidance-scale", 1.5, "--prompt", "a dog", "--negative-prompt", "fog",
        "--temperature", 2, "--temperature", "edges=0.5", "--depth", depth,
        "--segmentation", classes, "--edges", edges, "--seed", 7, "--precision", "fp32",
        "--threads", 1, "--no-color-fix", "--save-maps", maps,
    )
    # fmt: on
    assert (code, err) == (0, "")
    expected = Upscaler(root, "onnxruntime").upscale(
        PICTURE,
        steps=3,
        guidance="m-cfg",
        guidance_scale=1.5,
        prompt="a dog",
        negative_prompt="fog",
        temperature={"text": 2, "depth": 2, "segmentation": 2, "edges": 0.5},
        depth=depth,
        segmentation=classes,
        edges=edges,
        seed=7,
        color_fix=False,
    )
    with Image.open(target) as written:
        np.testing.assert_array_equal(np.asarray(written), np.asarray(expected.image))
    for name, picture in expected.maps.items():
        assert picture is not None
        with Image.open(maps / f"in_{name}.png") as written:
            np.testing.assert_array_equal(np.asarray(written), np.asarray(picture))
    saved = json.loads((maps / "in_tags.json").read_text())
    assert saved == {"caption": "a dog, sharp", "tags": {}, "degradation": {}}


def test_none_switches_a_modality_off(run: Run, source: Path, tmp_path: Path) -> None:
    maps = tmp_path / "maps"
    off = ("--depth", "none", "--segmentation", "none", "--edges", "none", "--prompt", "none")
    assert run("upscale", source, "--save-maps", maps, *off, "--guidance", "none")[0] == 0
    assert [path.name for path in maps.iterdir()] == ["in_tags.json"]
    saved = json.loads((maps / "in_tags.json").read_text())
    assert saved == {"caption": "", "tags": {}, "degradation": {}}


def test_warnings_are_printed_unless_quiet(run: Run, tmp_path: Path) -> None:
    flat = tmp_path / "flat.png"
    Image.new("RGB", (20, 20), "teal").save(flat)
    code, _, err = run("upscale", flat)
    assert code == 0
    assert err == "mmsr-edge: warning: edges is left out: Canny finds no edges in this picture\n"
    assert run("upscale", flat, "--overwrite", "-q") == (0, "", "")


def test_an_existing_file_is_replaced_on_request_only(run: Run, source: Path) -> None:
    target = source.with_name("in_x4.png")
    target.write_bytes(b"of before")
    code, out, err = run("upscale", source)
    assert (code, out) == (1, "")
    assert str(target) in err
    assert "exists" in err
    assert target.read_bytes() == b"of before"
    assert run("upscale", source, "--overwrite")[0] == 0
    assert target.read_bytes() != b"of before"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("nowhere.png",), 1, "nowhere.png"),
        (("IN", "-o", "out.xyz"), 1, ".xyz"),
        (("IN", "--model", "no-such-model"), 1, "no-such-model"),
        (("IN", "--depth", "nowhere.png"), 1, "nowhere.png"),
        (("IN", "--save-maps", "IN"), 1, "cannot be created"),
        (("IN", "--steps", "0"), 2, "steps is 0; it must be an integer from 1"),
        (("IN", "--guidance", "strong"), 2, "guidance is 'strong'; it must be one of"),
        (("IN", "--temperature", "11"), 2, "temperature is 11.0; it must be a number from 0.4"),
        (("IN", "--temperature", "edge=1"), 2, "did you mean 'edges'?"),
        (("IN", "--temperature", "edges=hot"), 2, "--temperature is 'edges=hot'"),
        (("IN", "--backend", "tflite"), 2, "'tflite'"),
    ],
)
def test_failures_have_an_exit_code_and_a_message(
    run: Run, source: Path, arguments: tuple[str, ...], code: int, message: str
) -> None:
    before = sorted(source.parent.iterdir())
    arguments = tuple(str(source) if argument == "IN" else argument for argument in arguments)
    got, out, err = run("upscale", *arguments)
    assert (got, out) == (code, "")
    assert err.startswith("mmsr-edge: ")
    assert message in err
    assert sorted(source.parent.iterdir()) == before


@pytest.mark.parametrize("arguments", [[], ["upscale"], ["upscale", "x", "--steps", "many"]])
def test_wrong_usage_exits_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: mmsr-edge" in capsys.readouterr().err


def test_ctrl_c_leaves_no_file_and_exits_with_130(
    run: Run, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = MultimodalPipeline.run
    called: list[str] = []

    def call(pipeline: Any, component: str, *rest: Any) -> Any:
        called.append(component)
        if component == "unet":
            signal.raise_signal(signal.SIGINT)
        return original(pipeline, component, *rest)

    monkeypatch.setattr(MultimodalPipeline, "run", call)
    handler = signal.getsignal(signal.SIGINT)
    code, out, err = run("upscale", source)
    assert (code, out, err) == (130, "", "mmsr-edge: cancelled\n")
    assert called.count("unet") == 1
    assert [path.name for path in source.parent.iterdir()] == ["in.png"]
    assert signal.getsignal(signal.SIGINT) is handler


# --- Sizes, and many pictures -------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.png", "b.png", "sub/c.png"):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(PICTURE).save(path)
    return tmp_path / "in"


@pytest.mark.parametrize(
    ("options", "size", "name"),
    [
        (("--scale", 2.5), (60, 50), "in_x2.5.png"),
        (("--width", 48), (48, 40), "in_x4.png"),
        (("--width", 48, "--height", 48, "--fit", "cover"), (48, 48), "in_x4.png"),
        (("--scale", 2, "--format", ".webp"), (48, 40), "in_x2.webp"),
    ],
)
def test_sizes(
    run: Run, source: Path, options: tuple[object, ...], size: tuple[int, int], name: str
) -> None:
    assert run("upscale", source, *options)[0] == 0
    with Image.open(source.with_name(name)) as written:
        assert written.size == size


def test_fidelity_bits_and_first_frame_are_passed_on(
    run: Run, source: Path, root: Path, tmp_path: Path
) -> None:
    target = tmp_path / "out.png"
    assert run("upscale", source, "-o", target, "--fidelity", "--bits", 16)[0] == 0
    expected = Upscaler(root, "onnxruntime")(PICTURE, fidelity=True).image
    with Image.open(target) as written:
        difference = np.asarray(written, int) - np.asarray(expected, int)  # of the upper bytes
    assert np.abs(difference).max() <= 1
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "in.gif", save_all=True, append_images=frames[1:])
    assert "2 frames" in run("upscale", tmp_path / "in.gif")[2]
    assert run("upscale", tmp_path / "in.gif", "--first-frame")[0] == 0


def test_a_folder_is_upscaled_into_a_folder_and_resumed(
    run: Run, folder: Path, tmp_path: Path
) -> None:
    out, report = tmp_path / "out", tmp_path / "report.json"
    (folder / "bad.png").write_bytes(b"no picture")
    command = ("upscale", folder, "-o", out, "-r", "-j", 2, "--report", report)
    code, printed, err = run(*command)
    assert code == 1
    assert err.startswith(f"mmsr-edge: {folder / 'bad.png'}: ")
    lines = printed.splitlines()
    assert sorted(line.split(":")[0] for line in lines[:-1]) == [
        str(out / name) for name in ("a.png", "b.png", "sub/c.png")
    ]
    assert lines[-1].startswith("3 done, 1 failed; ")
    saved = json.loads(report.read_text())
    assert [file["status"] for file in saved["files"]] == ["done", "done", "failed", "done"]
    (folder / "bad.png").unlink()
    code, printed, err = run(*command)
    assert (code, err) == (0, "")
    assert printed.splitlines()[-1].startswith("3 skipped; ")
    assert run(*command, "-q") == (0, "", "")


def test_a_dry_run(run: Run, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    code, printed, err = run("upscale", f"{folder}/*.png", "-o", out, "--dry-run", "--scale", 3)
    assert (code, err) == (0, "")
    assert printed.splitlines()[0] == f"{folder / 'a.png'} -> {out / 'a.png'}: 24x20 -> 72x60"
    assert printed.splitlines()[-1].startswith("2 planned; ")
    assert not out.exists()
    code, printed, _ = run("upscale", folder / "a.png", "--dry-run")
    assert printed.splitlines()[0].endswith("a_x4.png: 24x20 -> 96x80")


def test_a_job_ended_by_ctrl_c_can_be_resumed(
    run: Run, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = MultimodalPipeline.run
    called: list[str] = []

    def call(pipeline: Any, component: str, *rest: Any) -> Any:
        called.append(component)
        if called.count("decoder") == 1 and component == "unet":
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.1)
        return original(pipeline, component, *rest)

    monkeypatch.setattr(MultimodalPipeline, "run", call)
    command = ("upscale", folder, "-o", tmp_path / "out", "-r")
    code, out, err = run(*command)
    assert code == 130
    assert out.splitlines()[-1].startswith("1 done, 2 cancelled; ")
    assert "run the same command again to resume" in err
    assert [path.name for path in (tmp_path / "out").rglob("*.png")] == ["a.png"]
    monkeypatch.undo()
    assert run(*command)[1].splitlines()[-1].startswith("2 done, 1 skipped; ")


def test_bars_show_the_time_left_for_each_file_and_for_all(
    run: Run, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = io.StringIO()
    shown.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stderr", shown)
    # Every step is drawn, even on machines that finish between two refreshes.
    drawn = functools.partialmethod(tqdm.__init__, mininterval=0)
    monkeypatch.setattr(tqdm, "__init__", drawn)
    assert run("upscale", folder, "-o", tmp_path / "out", "-r")[0] == 0
    text = shown.getvalue()
    assert re.search(r"a\.png: \w+ +\d+%\|.*\| \d\d:\d\d<(\d\d:\d\d|\?)", text)
    assert "3/3 files 100%|" in text
    assert re.search(r"1/3 files +\d+%\|.*\| \d\d:\d\d<(\d\d:\d\d|\?)", text)


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("IN",), 2, "several pictures need a folder for the results: -o DIR"),
        (("IN", "-o", "FILE"), 1, "is a file; several pictures need a folder"),
        (("IN", "-o", "OUT", "--save-maps", "OUT"), 2, "--save-maps is for one picture"),
        (("IN", "-o", "OUT", "--format", ".bmp"), 2, "'.bmp' is unknown"),
        (("IN", "-o", "OUT", "--edges", "FILE"), 2, "edges is one picture's map"),
        (("IN", "-o", "OUT", "--jobs", "0"), 2, "workers is 0"),
        (("IN", "-o", "OUT", "--report", "OUT/no/report.json"), 1, "does not exist; make it first"),
        (("nothing/*.png", "-o", "OUT"), 2, "no picture found"),
        (("FILE", "--scale", "2", "--width", "50"), 2, "give one of the two"),
        (("FILE", "--scale", "9"), 2, "scale is 9"),
    ],
)
def test_invalid_jobs_are_refused(
    run: Run, folder: Path, tmp_path: Path, options: tuple[str, ...], code: int, message: str
) -> None:
    places = {"IN": folder, "FILE": folder / "a.png", "OUT": tmp_path / "out"}
    given = [str(places.get(option, option)) for option in options]
    got, out, err = run("upscale", *(g.replace("OUT/", f"{tmp_path}/out/") for g in given))
    assert (got, out) == (code, "")
    assert message in err
    assert not (tmp_path / "out").exists()


def test_info_lists_the_model_and_the_backends(run: Run, root: Path) -> None:
    code, out, err = run("info")
    assert (code, err) == (0, "")
    assert f"mmsr-edge {mmsr_edge.__version__}" in out
    assert "tiny 1 (CC0-1.0)" in out
    assert f"folder    {root}" in out
    assert "SHA-256 verified" in out
    assert "tile      32x32 -> 128x128" in out
    for line in ("unet", "chosen by auto", "coreml", "steps     1 to 1000: unet\n"):
        assert line in out


def test_info_as_json(run: Run, root: Path) -> None:
    code, out, _ = run("info", "--json")
    report = json.loads(out)
    assert code == 0
    assert report["errors"] == []
    model = report["model"]
    files = list(root.rglob("*.onnx"))
    assert model["files"] == len(files) == 6
    assert model["bytes"] == sum(path.stat().st_size for path in files)
    assert list(model["components"]["unet"][0]["files"]) == ["unet/model.onnx"]
    assert list(report["backends"]) == ["openvino", "onnxruntime", "coreml", "torch"]
    assert [name for name, backend in report["backends"].items() if backend["chosen"]] == [
        Upscaler(root).backend
    ]
    for backend in report["backends"].values():
        assert backend["usable"] == (backend["reason"] is None)
    assert not report["backends"]["torch"]["usable"]  # this bundle has no torch weights


def test_info_on_a_damaged_bundle_still_shows_the_backends(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for library in ("torch", "coremltools"):
        monkeypatch.setitem(sys.modules, library, None)
    damaged = make_bundle(tmp_path)
    file = damaged / "unet" / "model.onnx"
    file.write_bytes(file.read_bytes()[:-1] + b"!")
    code, out, err = run("info", "--model", damaged)
    assert code == 1
    assert "unet" in err
    assert "SHA-256" in err
    assert "onnxruntime" in out
    assert 'pip install "mmsr-edge[torch]"' in out
    code, out, _ = run("info", "--model", damaged, "--json")
    assert code == 1
    assert json.loads(out)["model"] is None


def test_help_documents_the_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--help"], ["upscale", "--help"], ["info", "--help"]):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 0
        shown = capsys.readouterr().out
        for line in ("0    done", "1    failed, or one of", "2    wrong usage", "130  cancelled"):
            assert line in shown


def test_the_version_needs_no_array_library() -> None:
    """`--version` imports neither numpy nor Pillow nor a runtime."""
    code = (
        "import sys; from mmsr_edge.cli.main import main\n"
        "try: main(['--version'])\n"
        "except SystemExit as end: print(end.code, {'numpy', 'PIL', 'tqdm'} & set(sys.modules))"
    )
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout.splitlines() == [f"mmsr-edge {mmsr_edge.__version__}", "0 set()"]


@pytest.mark.parametrize("module", ["mmsr_edge", "mmsr_edge.cli"])
def test_the_command_is_a_module_too(module: str) -> None:
    command = [sys.executable, "-W", "error", "-m", module, "--version"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout == f"mmsr-edge {mmsr_edge.__version__}\n"
