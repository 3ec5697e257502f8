"""Calibration: recorded inputs are those of the pipeline, from all parts of a trajectory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image

from mmsr_edge.bundle import REQUIRED, open_bundle
from mmsr_edge.calib.reader import HELD_OUT, CalibrationSet
from mmsr_edge.calib.record import RecordConfig, _Recorder, main, record, tiles_of_photos
from mmsr_edge.errors import OptionError
from mmsr_edge.sampler import timesteps

if TYPE_CHECKING:
    from pathlib import Path


def numbered(count: int) -> list[dict[str, Any]]:
    return [
        {"x": np.full((1, 2), i, np.float32), "i": np.array([i], np.int64)} for i in range(count)
    ]


def test_every_component_is_recorded_with_its_inputs(
    checkpoint: Path, recorded: CalibrationSet
) -> None:
    manifest = open_bundle(checkpoint).manifest
    used = set(manifest.components)
    assert set(recorded.inputs) == used and set(REQUIRED) < used
    for name in used:
        for feeds in recorded.calls(name):
            for spec in manifest.components[name].inputs:
                assert feeds[spec.name].shape == spec.shape
                assert feeds[spec.name].dtype.name == spec.dtype
    assert recorded.notes["model"] == "micro"
    assert recorded.notes["seed"] == 5


def test_trajectories_guidance_and_modalities_are_covered(
    checkpoint: Path, recorded: CalibrationSet
) -> None:
    seen = {float(feeds["timestep"][0]) for feeds in recorded.calls("unet")}
    # Trajectories of 2, 3 and 2 steps; the set has room for all of their calls.
    assert seen == {float(t) for n in (2, 3) for t in timesteps(1000, n, "trailing")}
    contexts = {feeds["context"].tobytes() for feeds in recorded.calls("unet")}
    assert len(contexts) == 6  # positive and negative branch of three pictures
    present = np.concatenate([feeds["present"] for feeds in recorded.calls("connector")])
    assert present.min(axis=0).max() == 0  # each modality is absent in some call
    assert present.max(axis=0).min() == 1  # and present in another


def test_recording_is_reproducible(checkpoint: Path, photos: Path) -> None:
    config = RecordConfig(pictures=1, calls=1, steps=(2,), seed=3)
    first, second = (record(checkpoint, photos, config, backend="torch") for _ in range(2))
    for name, columns in first.inputs.items():
        for key, column in columns.items():
            np.testing.assert_array_equal(column, second.inputs[name][key])


def test_tiles_are_alternately_clean_and_degraded(checkpoint: Path, photos: Path) -> None:
    """A clean tile is Pillow's bicubic reduction of its HR picture, a crop of a photograph."""
    manifest = open_bundle(checkpoint).manifest
    config = RecordConfig(pictures=4, seed=1)
    pairs = list(tiles_of_photos(photos, manifest, config))
    large = [np.asarray(Image.open(path).convert("RGB")) for path in sorted(photos.iterdir())]
    distances, found = [], 0
    for hr, tile in pairs:
        assert (hr.shape, tile.shape) == ((1, 3, 128, 128), (32, 32, 3))
        pixels = ((hr[0].transpose(1, 2, 0) + 1) * 127.5).round().astype(np.uint8)
        found += any(
            (sliding_window_view(photo, pixels.shape)[:, :, 0] == pixels).all((2, 3, 4)).any()
            for photo in large
            if min(photo.shape[:2]) >= 128
        )
        small = Image.fromarray(pixels).resize((32, 32), Image.Resampling.BICUBIC)
        distances.append(np.abs(np.asarray(small, np.float32) - tile).mean())
    assert found >= 2  # one photo of the three is smaller, and is upscaled
    assert max(distances[0::2]) < 1 < min(distances[1::2])


def test_calls_are_sampled_uniformly() -> None:
    """Each of ten calls is kept with probability 0.3, in the order of the calls."""
    recorder = _Recorder(3, np.random.default_rng(0))
    for _ in range(4000):
        for feeds in numbered(10):
            recorder.add("unet", feeds)
        recorder.end_picture()
    kept = np.array([int(feeds["i"][0]) for feeds in recorder.kept["unet"]])
    assert (np.diff(kept.reshape(-1, 3), axis=1) > 0).all()
    share = np.bincount(kept, minlength=10) / 4000
    np.testing.assert_allclose(share, 0.3, atol=5 * np.sqrt(0.3 * 0.7 / 4000))


def test_held_out_calls_are_not_calibrated_on() -> None:
    for count, held in [(1, 1), (3, 1), (8, 2), (100, HELD_OUT)]:
        stacked = CalibrationSet.stack({"unet": numbered(count)}, {})
        out = [int(feeds["i"][0]) for feeds in stacked.held_out("unet")]
        rest = [int(feeds["i"][0]) for feeds in stacked.calibration("unet")]
        assert out == list(range(count - held, count))
        assert rest == list(range(max(count - held, 1)))
    assert CalibrationSet({}, {}).held_out("unet") == []


def test_a_saved_set_loads_equal(tmp_path: Path, recorded: CalibrationSet) -> None:
    recorded.save(tmp_path / "set.npz")
    loaded = CalibrationSet.load(tmp_path / "set.npz")
    assert loaded.notes == {**recorded.notes, "steps": list(recorded.notes["steps"])}
    for name, columns in recorded.inputs.items():
        for key, column in columns.items():
            np.testing.assert_array_equal(column, loaded.inputs[name][key])
    assert [path.name for path in tmp_path.iterdir()] == ["set.npz"]


def test_files_that_are_no_sets_are_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="does not exist"):
        CalibrationSet.load(tmp_path / "none.npz")
    (tmp_path / "text.npz").write_text("no archive")
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    for name in ("text.npz", "other.npz"):
        with pytest.raises(OptionError, match="is no calibration set"):
            CalibrationSet.load(tmp_path / name)


def test_numbers_that_float16_cannot_hold_are_refused() -> None:
    with pytest.raises(OptionError, match=r"unet/x reaches 100000"):
        CalibrationSet.stack({"unet": [{"x": np.full((1, 2), 1e5, np.float32)}]}, {})


def test_the_command_writes_a_set(
    checkpoint: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "sets" / "micro.npz"
    command = ["--bundle", str(checkpoint), "--pictures", str(photos), "--out", str(out)]
    command += ["--backend", "torch", "--count", "1", "--calls", "2", "--steps", "2"]
    assert main(command) == 0
    assert CalibrationSet.load(out).count("unet") == 2
    assert "unet 2" in capsys.readouterr().out
    assert main([*command, "--pictures", str(tmp_path)]) == 1
    assert "no photographs" in capsys.readouterr().err
