"""Fuzzing: damaged pictures and bundles give a result or one of the package's own errors.

A few hundred seeded cases run in the suite; `MMSR_FUZZ=5000` runs that many of each kind.
"""

from __future__ import annotations

import copy
import io
import json
import os
import shutil
import struct
import time
import tracemalloc
import warnings
from collections import Counter
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from bundle_factory import make_bundle
from PIL import Image

from mmsr_edge import Upscaler
from mmsr_edge.bundle import MANIFEST_NAME, open_bundle
from mmsr_edge.errors import BundleError, MMSRError
from mmsr_edge.image import load as image_module
from mmsr_edge.image import load_image, picture_size
from mmsr_edge.image.finishing import shown_colours
from mmsr_edge.image.writers import open_writer

if TYPE_CHECKING:
    from collections.abc import Callable

CASES = int(os.environ.get("MMSR_FUZZ", "240"))
SECONDS = 10
"""Longest time of a case, in seconds."""
MEGABYTES = 64e6
"""Most memory of a case, in bytes; pictures of more than a million pixels are refused."""

FORMATS = ("PNG", "JPEG", "TIFF", "WEBP", "GIF", "BMP")


# --- Pictures -----------------------------------------------------------------------------------


def originals() -> list[bytes]:
    """Small pictures in every format and several modes, with EXIF and a profile where they go."""
    values = np.random.default_rng(0).integers(0, 256, (12, 17, 4), np.uint8)
    exif = Image.Exif()
    exif[0x0112], exif[0x8298] = 6, "someone"
    exif[0x8769] = {0xA002: 17, 0xA003: 12, 0xA434: "50 mm"}
    found = []
    for form in FORMATS:
        before = len(found)
        for mode in ("RGB", "L", "RGBA", "P", "CMYK", "I;16", "F"):
            if mode == "I;16":
                image = Image.fromarray(values[..., 0].astype(np.uint16) * 257)
            elif mode == "F":
                image = Image.fromarray(values[..., 0].astype(np.float32) / 255)
            else:
                image = Image.fromarray(values).convert(mode)
            file = io.BytesIO()
            extra = {} if form in {"GIF", "BMP"} else {"exif": exif.tobytes()}
            try:
                image.save(file, form, **extra)
            except (OSError, ValueError):  # not in this format
                continue
            found.append(file.getvalue())
        assert len(found) > before, form
    return found


def spoil_bytes(data: bytes, random: Random, others: list[bytes]) -> bytes:
    """Damage in one to three places, half of them in the first 64 bytes."""
    changed = bytearray(data)
    for _ in range(random.randint(1, 3)):
        end = max(len(changed) if random.random() < 0.5 else min(64, len(changed)), 1)
        at = random.randrange(end)
        kind = random.randrange(6)
        if kind == 0 and changed:
            changed[at % len(changed)] ^= 1 << random.randrange(8)
        elif kind == 1:
            del changed[at:]
        elif kind == 2:
            changed[at:at] = random.randbytes(random.randint(1, 40))
        elif kind == 3:  # lengths, sizes, offsets
            order = random.choice("<>")
            number = random.choice([0, 1, 255, 65535, 2**31 - 1, 2**31, 2**32 - 1, 70000])
            changed[at : at + 4] = struct.pack(f"{order}I", number)
        elif kind == 4:
            head = random.randint(1, 48)
            changed[:head] = random.choice(others)[:head]
        else:
            del changed[at : at + random.randint(1, 30)]
    return bytes(changed)


def read_and_write(path: Path) -> None:
    """What `mmsr-edge upscale` does with a picture, around the networks."""
    picture_size(path, max_pixels=1_000_000)
    picture = load_image(path, first_frame=True, max_pixels=1_000_000)
    shown_colours(picture)
    assert np.isfinite(picture.rgb).all() and np.abs(picture.rgb).max() <= 1
    for suffix in (".png", ".tif", ".jpg"):
        metadata = picture.metadata((8, 8))
        with open_writer(path.with_name(f"out{suffix}"), (8, 8), 3, 8, metadata) as writer:
            writer.write(np.zeros((8, 8, 3), np.uint8))


def offence(work: Callable[[], object]) -> tuple[str, str | None]:
    """Run a case: its outcome, and what is wrong with it, or None."""
    began, outcome, wrong = time.perf_counter(), "result", None
    tracemalloc.reset_peak()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # those of libraries are not under test
        warnings.filterwarnings("error", module="mmsr_edge")
        try:
            work()
        except MMSRError as error:
            outcome = type(error).__name__
        except Exception as error:
            outcome = wrong = f"{type(error).__name__}: {error}"
    seconds, peak = time.perf_counter() - began, tracemalloc.get_traced_memory()[1]
    if seconds > SECONDS:
        wrong = f"took {seconds:.0f} s"
    if peak > MEGABYTES:
        wrong = f"took {peak / 1e6:.0f} MB"
    return outcome, wrong


def fuzz_pictures(folder: Path, cases: int, seed: int) -> tuple[Counter[str], list[str]]:
    """Counts by outcome, and the offences."""
    random, files = Random(seed), originals()
    counts: Counter[str] = Counter()
    offences = []
    path = folder / "in.bin"
    tracemalloc.start()
    try:
        for case in range(cases):
            path.write_bytes(spoil_bytes(random.choice(files), random, files))
            outcome, wrong = offence(lambda: read_and_write(path))
            counts[outcome] += 1
            if wrong:
                offences.append(f"picture {case} of seed {seed}: {wrong}")
                shutil.copy(path, folder / f"offence{case}.bin")
    finally:
        tracemalloc.stop()
    return counts, offences


def test_damaged_pictures(tmp_path: Path) -> None:
    counts, offences = fuzz_pictures(tmp_path, CASES, seed=1)
    print(dict(counts))
    assert offences == []
    assert counts["ImageError"] > CASES / 10 and counts["result"] > CASES / 50


def test_an_unexpected_error_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise struct.error("by the test")

    monkeypatch.setattr(image_module, "from_pil", broken)
    _, offences = fuzz_pictures(tmp_path, 60, seed=1)
    assert offences and all("error: by the test" in line for line in offences)


# --- Bundles ------------------------------------------------------------------------------------

VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, 10**30, 10**400, 0.5, 1e308, float("nan"),
    float("inf"), "", "x", "\ud800", "../../etc/passwd", "/etc/passwd", "a" * 5000, [], {}, [[]],
    [None], {"x": 1}, [0] * 9,
)  # fmt: skip


def places(data: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) of a JSON document."""
    if isinstance(data, dict):
        keys: list[Any] = list(data)
    elif isinstance(data, list):
        keys = list(range(len(data)))
    else:
        return []
    return [(data, key) for key in keys] + [place for key in keys for place in places(data[key])]


def spoil_bundle(root: Path, random: Random) -> None:
    """Damage the manifest, its text, or a file."""
    manifest = root / MANIFEST_NAME
    kind = random.randrange(8)
    data = json.loads(manifest.read_text())
    if kind <= 4:
        for _ in range(random.randint(1, 2)):
            container, key = random.choice(places(data))
            action = random.randrange(4)
            if action == 0:
                del container[key]
            elif action == 1 and isinstance(container, dict):
                container[f"{key}_"] = container[key]
            elif action == 2:
                there, name = random.choice(places(data))
                container[key] = copy.deepcopy(there[name])
            else:
                container[key] = random.choice(VALUES)
        manifest.write_text(json.dumps(data))
    elif kind == 5:
        manifest.write_bytes(spoil_bytes(manifest.read_bytes(), random, [b"\xff\xfe", b"[" * 99]))
    else:
        file = random.choice(sorted(root.rglob("*.onnx")))
        if random.random() < 0.5:
            file.write_bytes(spoil_bytes(file.read_bytes(), random, [b"PK\3\4"]))
        else:
            file.unlink()
            file.symlink_to(random.choice(["/dev/zero", "/dev/null", "/", str(file), "nowhere"]))


def test_damaged_bundles(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    whole, root = make_bundle(tmp_path / "whole", optional=True), tmp_path / "spoilt"
    cases = CASES if "MMSR_FUZZ" in os.environ else CASES // 5  # a case takes 0.1 s
    random, picture = Random(2), np.full((8, 8, 3), 90, np.uint8)
    picture[:4] = 10
    counts: Counter[str] = Counter()
    offences = []
    tracemalloc.start()
    try:
        for case in range(cases):
            shutil.rmtree(root, ignore_errors=True)
            shutil.copytree(whole, root)
            spoil_bundle(root, random)
            outcome, wrong = offence(lambda: Upscaler(root, "onnxruntime", threads=1)(picture))
            counts[outcome] += 1
            if wrong:
                offences.append(f"bundle {case}: {wrong}")
    finally:
        tracemalloc.stop()
    print(dict(counts))
    assert offences == []
    assert counts["BundleError"] > cases / 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace('"scale": 4', '"scale": 4, "scale": 4', 1), "'scale' twice"),
        (lambda text: text.replace('"scale": 4', '"scale": ' + "4" * 5000, 1), "not JSON"),
        (lambda text: "[" * 100_000, "not JSON"),
        (
            lambda text: text.replace('"guidance_scale": 4.0', f'"guidance_scale": {10**400}', 1),
            "guidance_scale: got 1000.*expected a smaller number",
        ),
        (lambda text: text.replace("unet/model", "unet/\\ud800", 1), "cannot be read"),
        (
            lambda text: text.replace(
                '"num_train_timesteps": 1000', f'"num_train_timesteps": {10**12}', 1
            ),
            "num_train_timesteps 1000000000000 must be at most",
        ),
    ],
    ids=["twice", "digits", "deep", "float", "surrogate", "timesteps"],
)
def test_faults_found_in_code_review(
    change: Callable[[str], str], message: str, tmp_path: Path
) -> None:
    root = make_bundle(tmp_path / "bundle")
    text = (root / MANIFEST_NAME).read_text()
    assert change(text) != text
    (root / MANIFEST_NAME).write_text(change(text))
    with pytest.raises(BundleError, match=message):
        open_bundle(root)
