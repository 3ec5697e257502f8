"""Progress and cancellation of a run, and several runs at the same time."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from bundle_factory import make_bundle
from photo_factory import photo, pixels

from mmsr_edge import Cancelled, Result, Upscaler
from mmsr_edge.pipeline import MultimodalPipeline

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

    from mmsr_edge.upscaler import Progress

    Array = npt.NDArray[Any]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module", params=["onnxruntime", "openvino"])
def any_backend(request: pytest.FixtureRequest, root: Path) -> Upscaler:
    pytest.importorskip(request.param)
    return Upscaler(root, request.param, threads=1, cache_dir=root.parent / "cache")


@pytest.fixture(scope="module")
def upscaler(root: Path) -> Upscaler:
    return Upscaler(root, "onnxruntime", threads=1)


def test_progress_rises_to_one_once(upscaler: Upscaler) -> None:
    seen: list[Progress] = []
    upscaler(photo(40, 100), steps=3, progress=seen.append)
    fractions = [progress.fraction for progress in seen]
    assert fractions == sorted(fractions)
    assert fractions[0] == 0
    assert fractions[-1] == 1
    assert fractions.count(1) == 1
    assert [p.stage for p in seen if p.stage not in {"sampling", "decoding"}] == [
        "maps",
        "finishing",
        "done",
    ]
    tiles = seen[0].tiles
    assert tiles == 8
    steps = [(p.tile, p.step) for p in seen if p.stage == "sampling"]
    assert steps == [(tile, step) for tile in range(1, tiles + 1) for step in range(4)]


def test_an_error_of_the_progress_callback_ends_the_call(upscaler: Upscaler) -> None:
    def complain(progress: Progress) -> None:
        if progress.step == 1:
            raise KeyError(progress.stage)

    with pytest.raises(KeyError, match="sampling"):
        upscaler(photo(20, 20), progress=complain)


@pytest.mark.parametrize("at", [1, 2, 7])
def test_cancelling_takes_effect_before_the_next_network_call(
    upscaler: Upscaler, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, at: int
) -> None:
    cancel = threading.Event()
    called: list[str] = []
    original = MultimodalPipeline.run

    def run(pipeline: Any, component: str, feeds: Any, picture: Any) -> Any:
        called.append(component)
        if called.count("unet") == at:
            cancel.set()
        return original(pipeline, component, feeds, picture)

    monkeypatch.setattr(MultimodalPipeline, "run", run)
    out = tmp_path / "out.png"
    out.write_bytes(b"of before")
    with pytest.raises(Cancelled):
        upscaler(photo(40, 100), guidance="m-cfg", guidance_scale=1, cancel=cancel, output=out)
    assert called.count("unet") == at
    assert called[-1] == "unet"
    assert out.read_bytes() == b"of before"
    assert list(tmp_path.iterdir()) == [out]


def test_cancelling_after_the_last_network_call_still_writes_nothing(
    upscaler: Upscaler, tmp_path: Path
) -> None:
    cancel = threading.Event()

    def stop(progress: Progress) -> None:
        if progress.stage == "finishing":
            cancel.set()

    with pytest.raises(Cancelled):
        upscaler(photo(9, 9), progress=stop, cancel=cancel, output=tmp_path / "out.png")
    assert not list(tmp_path.iterdir())


def test_several_threads_do_not_disturb_one_another(any_backend: Upscaler) -> None:
    picture = photo(40, 60)
    alone = [pixels(any_backend(picture, seed=seed, prompt=f"{seed}")) for seed in range(3)]
    together: dict[int, Result] = {}
    gate = threading.Barrier(3)

    def work(seed: int) -> None:
        gate.wait()
        together[seed] = any_backend(picture, seed=seed, prompt=f"{seed}")

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed in range(3):
        np.testing.assert_array_equal(pixels(together[seed]), alone[seed])
        assert together[seed].calls["unet"] == 2 * 6
        assert together[seed].seed == seed
