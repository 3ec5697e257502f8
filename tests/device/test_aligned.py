"""Maps on the latent's grid: each channel against a loop over cells and parts."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest

from mmsr_edge.bundle import ALIGNED, Manifest
from mmsr_edge.errors import BundleError
from mmsr_edge.modalities.aligned import align_maps, pull
from mmsr_edge.modalities.segmentation import PALETTE, SUBJECT

if TYPE_CHECKING:
    from mmsr_edge.bundle import Bundle

SIZE = 5


def drawn(side: int, seed: int = 0, batch: int = 1) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        name: rng.uniform(-1, 1, (batch, 3, side, side)).astype(np.float32)
        for name in ("depth", "segmentation", "edges")
    }


@pytest.mark.parametrize("k", [4, 8])
def test_the_channels_of_a_cell(k: int) -> None:
    maps = drawn(k * SIZE)
    aligned = align_maps(maps, SIZE)
    assert aligned.shape == (1, ALIGNED, SIZE, SIZE)
    assert aligned.dtype == np.float32
    for row in range(SIZE):
        for column in range(SIZE):
            here = np.s_[row * k : (row + 1) * k, column * k : (column + 1) * k]
            cell = aligned[0, :, row, column]
            assert cell[0] == pytest.approx(maps["depth"][0, 0][here].mean(), abs=1e-6)
            for channel in range(3):
                colour = maps["segmentation"][0, channel][here].mean()
                assert cell[1 + channel] == pytest.approx(colour, abs=1e-6)
            edges, part = (maps["edges"][0, 0][here] + 1) / 2, k // 4
            for i in range(4):
                for j in range(4):
                    share = edges[i * part : (i + 1) * part, j * part : (j + 1) * part].mean()
                    assert cell[4 + 4 * i + j] == pytest.approx(share, abs=1e-6)


@pytest.mark.parametrize("absent", ["depth", "segmentation", "edges"])
def test_the_channels_of_an_absent_map_are_zero(absent: str) -> None:
    maps = drawn(4 * SIZE)
    whole, without = align_maps(maps, SIZE), align_maps({**maps, absent: None}, SIZE)
    channels = {"depth": slice(0, 1), "segmentation": slice(1, 4), "edges": slice(4, 20)}
    for name, part in channels.items():
        expected = 0 * whole[:, part] if name == absent else whole[:, part]
        np.testing.assert_array_equal(without[:, part], expected)
    assert not align_maps({}, SIZE).any()
    assert align_maps(dict.fromkeys(maps), SIZE).shape == (1, ALIGNED, SIZE, SIZE)


def test_no_edge_is_zero_and_all_edge_is_one() -> None:
    for value, expected in ((-1.0, 0.0), (1.0, 1.0)):
        flat = np.full((1, 3, 4 * SIZE, 4 * SIZE), value, np.float32)
        np.testing.assert_array_equal(align_maps({"edges": flat}, SIZE)[:, 4:20], expected)


def test_a_batch_is_its_samples() -> None:
    maps = drawn(4 * SIZE, batch=3)
    together = align_maps(maps, SIZE)
    for i in range(3):
        one = align_maps({name: whole[i : i + 1] for name, whole in maps.items()}, SIZE)
        np.testing.assert_array_equal(together[i : i + 1], one)


@pytest.mark.parametrize("side", [2 * SIZE, 6 * SIZE, 4 * SIZE + 1])
def test_maps_without_4_parts_to_a_cell_are_refused(side: int) -> None:
    with pytest.raises(BundleError, match=f"maps of {side} pixels a side"):
        align_maps({"edges": drawn(side)["edges"]}, SIZE)


def test_dials_act_on_what_is_far_on_all_but_the_subject_and_on_what_is_flat() -> None:
    side = 8 * SIZE
    depth = np.full((1, 3, side, side), 1.0, np.float32)
    depth[..., : side // 2] = -1  # far on the left
    colours = PALETTE[np.full((side, side), 7)]
    colours[: 8 * 2] = PALETTE[3 + SUBJECT]
    segmentation = colours.transpose(2, 0, 1)[None].astype(np.float32) / 127.5 - 1
    edges = np.full((1, 3, side, side), -1, np.float32)
    edges[..., 8 * 4 + 3] = 1  # a line in the last column of cells
    maps = {"depth": depth, "segmentation": segmentation, "edges": edges}
    heat = {"depth": 0.4, "segmentation": 10.0, "edges": 0.4}
    far, rest, flat = align_maps(maps, SIZE, heat)[0, -3:]
    assert far[:, :2] == pytest.approx(1, abs=1e-6) and far[:, 3:].max() == 0
    assert rest[:3].max() == 0 and rest[3:] == pytest.approx(-0.5)  # a cell around it too
    assert flat[:, :3] == pytest.approx(1, abs=1e-6) and flat[:, 3:].max() == 0
    assert not align_maps(maps, SIZE)[0, -3:].any()
    assert not align_maps({"depth": depth}, SIZE, heat)[0, -2:].any()


def test_the_pull_of_a_temperature_is_monotone_and_nothing_at_one() -> None:
    steps = [0.4, 0.63, 1.0, 3.0, 10.0]
    assert [pull(t) for t in steps] == sorted((pull(t) for t in steps), reverse=True)
    assert [pull(t) for t in (0.4, 1.0, 10.0)] == pytest.approx([1, 0, -0.5])


@pytest.mark.parametrize("component", ["unet", "decoder"])
def test_networks_may_take_aligned_maps(bundle: Bundle, component: str) -> None:
    """The maps of 32 pixels a side have 4 × 4 parts to each of 8 × 8 latent cells."""
    data = json.loads(bundle.manifest.to_json())
    tensor = {"name": "aligned", "shape": [1, ALIGNED, 8, 8], "dtype": "float32"}
    data["components"][component]["inputs"].append(tensor)
    assert Manifest.from_json(json.dumps(data)).components[component].takes("aligned")
    tensor["shape"] = [1, 7, 8, 8]
    with pytest.raises(BundleError, match=r"'aligned' is float32 \[1, 7, 8, 8\], expected"):
        Manifest.from_json(json.dumps(data))
    tensor["shape"] = [1, ALIGNED, 8, 8]
    data["components"]["tokenizer"]["inputs"][0]["shape"] = [1, 3, 24, 24]
    with pytest.raises(BundleError, match="have 24 pixels a side; they need a multiple of 32"):
        Manifest.from_json(json.dumps(data))
