"""One upscaler for many threads, one cache for many processes, and memory that stays flat."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from bundle_factory import make_bundle

from mmsr_edge import Upscaler
from mmsr_edge.runtimes import ov

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

BACKENDS = ["openvino", "onnxruntime"]

UPSCALE = """
import hashlib, sys
import numpy as np
from mmsr_edge import Upscaler
root, cache, seed = sys.argv[1:]
picture = np.random.default_rng(int(seed)).integers(0, 256, (20, 24, 3), np.uint8)
result = Upscaler(root, "openvino", cache_dir=cache).upscale(picture, seed=3)
print(hashlib.sha256(np.asarray(result.image).tobytes()).hexdigest())
"""

MEMORY = """
import sys
from pathlib import Path
import numpy as np
from mmsr_edge import Upscaler

def held():  # resident now, MB
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 1e6

upscaler = Upscaler(sys.argv[1], sys.argv[2])
rng, seen = np.random.default_rng(0), []
for i in range(500):
    size = (16 + i % 7, 16 + i % 5, 3)
    upscaler.upscale(rng.integers(0, 256, size, np.uint8), seed=i)
    if i % 50 == 49:
        seen.append(held())
print(*seen)
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("tiny"))


def picture(seed: int) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (20, 24, 3), np.uint8)


def start(script: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def answer(process: subprocess.Popen[str]) -> str:
    out, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors[-2000:]
    return out.strip()


@pytest.mark.parametrize("backend", BACKENDS)
def test_eight_threads_get_what_one_gets(backend: str, root: Path) -> None:
    pytest.importorskip(backend)
    alone = Upscaler(root, backend)
    expected = [np.asarray(alone.upscale(picture(i), seed=i).image) for i in range(24)]
    shared = Upscaler(root, backend)  # the first thread loads its networks
    with ThreadPoolExecutor(8) as pool:
        got = list(
            pool.map(lambda i: np.asarray(shared.upscale(picture(i), seed=i).image), range(24))
        )
    for one, other in zip(expected, got, strict=True):
        assert np.array_equal(one, other)
    assert not np.array_equal(got[0], got[1])


def test_processes_share_an_empty_cache(root: Path, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    cache = tmp_path / "cache"
    together = [start(UPSCALE, root, cache, 5) for _ in range(3)]
    digests = {answer(process) for process in together}
    assert any(cache.rglob("*.blob")), "nothing was cached, so nothing was shared"
    digests.add(answer(start(UPSCALE, root, cache, 5)))  # from the cache left by the others
    result = Upscaler(root, "openvino").upscale(picture(5), seed=3)
    digests.add(hashlib.sha256(np.asarray(result.image).tobytes()).hexdigest())
    assert len(digests) == 1
    assert answer(start(UPSCALE, root, cache, 6)) not in digests


def test_a_compiled_model_appears_when_it_is_whole(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openvino")
    original, used = ov._compile, []

    def compile_and_note(*arguments: Any) -> Any:
        used.append(arguments[-1])
        return original(*arguments)

    monkeypatch.setattr(ov, "_compile", compile_and_note)
    first = Upscaler(root, "openvino", cache_dir=tmp_path).upscale(picture(0))
    published = sorted((tmp_path / "openvino").iterdir())
    assert len(published) == len(used) and all(any(p.glob("*.blob")) for p in published)
    # Each was written to another folder, and then moved.
    assert not {*used} & {*published}
    used.clear()
    again = Upscaler(root, "openvino", cache_dir=tmp_path).upscale(picture(0))
    assert {*used} == {*published} == {*(tmp_path / "openvino").iterdir()}
    assert np.array_equal(np.asarray(first.image), np.asarray(again.image))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("backend", BACKENDS)
def test_five_hundred_pictures_leave_memory_flat(backend: str, root: Path) -> None:
    pytest.importorskip(backend)
    held = [float(value) for value in answer(start(MEMORY, root, backend)).split()]
    # The first fifty warm up allocators. The other results would add 7 MB if they were kept.
    assert max(held[1:]) - held[1] < 2, held
