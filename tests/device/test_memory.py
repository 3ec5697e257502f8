"""Memory: bounded by rows, and predicted before a run."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from bundle_factory import make_bundle

from mmsr_edge import OptionError, Upscaler

if TYPE_CHECKING:
    from pathlib import Path

# Runs in its own process and prints, in MB, the predicted memory and the peak above the memory held
# before. The networks are left out: their memory does not depend on the picture.
MEASURE = """
import sys
import numpy as np
from mmsr_edge import Upscaler, upscaler
from mmsr_edge.pipeline import PictureRun, TileStep

def denoise(run, lr, maps, noise, dials):
    yield TileStep(0, 1, noise)

PictureRun.denoise = denoise
PictureRun.decode = lambda run, latent, lr, maps: lr.repeat(4, axis=2).repeat(4, axis=3)
original = upscaler.check_memory

def check(finishing, manifest, limit, *, by_rows):
    from mmsr_edge.memory import needed_mb
    print(needed_mb(finishing, manifest, by_rows=by_rows))
    original(finishing, manifest, limit, by_rows=by_rows)

upscaler.check_memory = check
root, out, height, width, options = sys.argv[1:]
options = eval(options)
made = Upscaler(root, "onnxruntime")
made.upscale(np.zeros((9, 9, 3), np.uint8), output=out)
rows = np.arange(int(height))[:, None, None] + np.arange(int(width))[:, None] * [1, 2, 3]
picture = (127 + 120 * np.sin(rows / 9)).astype(np.uint8)
del rows

def status(name):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) / 1e3 for line in file if line.startswith(name))

with open("/proc/self/clear_refs", "w") as file:
    file.write("5")
before = status("VmRSS")
made.upscale(picture, output=out, **options)
print(status("VmHWM") - before)
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("tiny"))


def measured(root: Path, out: Path, height: int, width: int, **options: Any) -> tuple[float, float]:
    """Predicted and measured memory, in MB, of a picture of height x width pixels."""
    command = [sys.executable, "-c", MEASURE, str(root), str(out), str(height), str(width)]
    done = subprocess.run([*command, repr(options)], capture_output=True, text=True, check=True)
    *_, predicted, used = map(float, done.stdout.split())
    return predicted, used


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_large_picture_takes_little_more_than_a_small_one(root: Path, tmp_path: Path) -> None:
    """12 MP of floats alone would be 144 MB, and four bytes a pixel 48 MB."""
    small, small_used = measured(root, tmp_path / "o.png", 250, 250)
    large, large_used = measured(root, tmp_path / "o.png", 866, 866)
    assert large_used - small_used < 90
    for predicted, used in ((small, small_used), (large, large_used)):
        assert used < predicted * 1.25
    # The prediction adds parts that are not all held at once, within a factor of 2.5.
    assert large < 2.5 * large_used


def test_the_limit_is_obeyed(root: Path, tmp_path: Path) -> None:
    upscaler = Upscaler(root, "onnxruntime")
    picture = np.zeros((300, 400, 3), np.uint8)
    with pytest.raises(OptionError, match=r"max_memory_mb is 20, .* 1600 x 1200 pixels needs \d\d"):
        upscaler(picture, max_memory_mb=20, output=tmp_path / "out.png")
    # JPEG is not written by rows, and needs more.
    with pytest.raises(OptionError, match=r"write a \.png or \.tif"):
        upscaler(picture, max_memory_mb=46, output=tmp_path / "out.jpg")
    assert list(tmp_path.iterdir()) == []
    for wrong in (0, -5, float("nan"), "1 GB", True):
        with pytest.raises(OptionError, match="max_memory_mb is"):
            upscaler(picture, max_memory_mb=wrong)
    upscaler(picture[:32, :32], max_memory_mb=46, output=tmp_path / "out.png", edges=None)
