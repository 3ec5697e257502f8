"""Parity: near outputs pass the gate, and the error names the others."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio

from mmsr_edge.bundle import TensorSpec, open_bundle
from mmsr_edge.converters.parity import (
    Score,
    check,
    check_pictures,
    check_quality,
    measure,
    pictures,
    psnr,
    smooth_tile,
)
from mmsr_edge.errors import BackendError, ParityError
from mmsr_edge.models.checkpoint import open_checkpoint, run_network
from mmsr_edge.models.signatures import draw_inputs
from mmsr_edge.runtimes.base import SessionOptions
from mmsr_edge.runtimes.registry import BACKENDS, open_session

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    Array = np.ndarray[Any, np.dtype[Any]]


GOOD = Score(70.0, 1e-4, None, finite=True, repeats=True, milliseconds=1.0, samples=2)
FEED = {"x": np.zeros((1, 4), np.float32)}


class Replies:
    """A session that returns prepared outputs, one per call."""

    inputs = (TensorSpec("x", (1, 4), "float32"),)
    outputs = (TensorSpec("y", (1, 4), "float32"),)

    def __init__(self, *replies: Mapping[str, Array]) -> None:
        self.replies = iter(replies)

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        assert set(feeds) == {"x"}
        return dict(next(self.replies))


def y(*values: float) -> dict[str, Array]:
    return {"y": np.array([values], np.float32)}


def test_psnr_agrees_with_scikit_image() -> None:
    rng = np.random.default_rng(0)
    reference = rng.uniform(-3, 5, (1, 3, 16, 16)).astype(np.float32)
    value = reference + rng.normal(0, 0.05, reference.shape).astype(np.float32)
    peak = float(np.ptp(reference))
    expected = peak_signal_noise_ratio(reference, value, data_range=peak)
    assert psnr(reference, value, peak) == pytest.approx(expected, abs=1e-3)
    assert psnr(reference, reference, peak) == np.inf
    assert psnr(np.zeros(3), np.ones(3), 0.0) == -np.inf


def test_the_peak_is_the_outputs_own_range_and_the_worst_input_counts() -> None:
    near, far = y(0, 1, 2, 4.04), y(0, 0, 0, 1.1)
    session = Replies(near, near, far, far)
    score = measure(session, [FEED, FEED], [y(0, 1, 2, 4), y(0, 0, 0, 1)])
    assert score.psnr == pytest.approx(10 * np.log10(1 / (0.1**2 / 4)), abs=1e-3)
    assert score.max_abs_error == pytest.approx(0.1, abs=1e-6)
    assert score.samples == 2


def test_equal_outputs_have_no_number() -> None:
    score = measure(Replies(y(1, 2, 3, 4), y(1, 2, 3, 4)), [FEED], [y(1, 2, 3, 4)])
    assert (score.psnr, score.max_abs_error, score.repeats) == (None, 0.0, True)
    check(score, "unet", "fp32", "openvino", 60)


def test_nan_in_the_second_run_is_caught() -> None:
    """Some accelerators return NaN from the second run on."""
    session = Replies(y(1, 2, 3, 4), y(1, np.nan, 3, 4))
    score = measure(session, [FEED], [y(1, 2, 3, 4)])
    assert not score.finite
    assert not score.repeats
    with pytest.raises(ParityError, match="unet at fp16 on openvino: the output is not finite"):
        check(score, "unet", "fp16", "openvino", 40)


def test_a_network_with_nan_is_caught(checkpoint: Path, exported: Path) -> None:
    opened = open_checkpoint(checkpoint)
    feeds = [draw_inputs("decoder", opened.preset, np.random.default_rng(0))]
    feeds[0]["latent"][0, 0, 0, 0] = np.nan
    references = [run_network(opened.networks["decoder"], "decoder", feeds[0])]
    score = measure(session(exported, "decoder", "onnxruntime"), feeds, references)
    with pytest.raises(ParityError, match="not finite"):
        check(score, "decoder", "fp32", "onnxruntime", 60)


def test_the_message_names_everything() -> None:
    with pytest.raises(ParityError) as caught:
        check(replace(GOOD, psnr=34.96), "unet", "int8", "openvino", 35)
    for part in ("unet", "int8", "openvino", "35.0 dB", "gate 35 dB", "--quantization"):
        assert part in str(caught.value)
    check(replace(GOOD, psnr=35.0), "unet", "int8", "openvino", 35)


def session(exported: Path, name: str, backend: str) -> Any:
    chosen = next(b for b in BACKENDS if b.name == backend)
    return open_session(open_bundle(exported), name, chosen, SessionOptions(threads=1), "fp32")


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino", "torch"])
def test_a_perturbed_weight_is_caught(checkpoint: Path, exported: Path, backend: str) -> None:
    opened = open_checkpoint(checkpoint)
    feeds = [draw_inputs("lr_encoder", opened.preset, np.random.default_rng(i)) for i in (0, 1)]
    network = opened.networks["lr_encoder"]

    def score() -> Score:
        references = [run_network(network, "lr_encoder", feed) for feed in feeds]
        return measure(session(exported, "lr_encoder", backend), feeds, references)

    check(score(), "lr_encoder", "fp32", backend, 60)
    network.out.weight[0, 0, 1, 1] += 0.05
    with pytest.raises(
        ParityError, match=rf"lr_encoder at fp32 on {backend}: \d\d\.\d dB, gate 60"
    ):
        check(score(), "lr_encoder", "fp32", backend, 60)


def tokens(*indices: int) -> dict[str, Array]:
    codebook = np.arange(12, dtype=np.float32).reshape(6, 2)
    chosen = np.array([indices], np.int64)
    return {"tokens": codebook[chosen], "indices": chosen}


def test_a_flipped_code_counts_once_and_not_as_a_wrong_token() -> None:
    wanted, got = tokens(0, 1, 2, 3), tokens(0, 1, 2, 4)
    got["tokens"][0, 0, 0] += 0.01
    score = measure(Replies(got, got), [FEED], [wanted], codes="indices")
    assert score.agreement == 0.75
    assert score.psnr == pytest.approx(10 * np.log10(7**2 / (0.01**2 / 6)), abs=0.1)
    with pytest.raises(ParityError, match=r"tokenizer at int8 on openvino: 75.00% of the indices"):
        check(replace(score, psnr=70.0), "tokenizer", "int8", "openvino", 35)


def test_the_whole_pipeline_is_gated_by_lpips() -> None:
    black = np.zeros((1, 3, 4, 4), np.float32)

    def distance(a: Array, b: Array) -> float:
        return float(np.abs(a - b).mean())

    def check_it(candidates: list[Array], gate: float | None = 0.01) -> dict[str, float]:
        references, originals = [[black + x] * len(candidates) for x in (0, -0.5)]
        return check_quality(references, candidates, originals, distance, "int8 on mil", gate)

    # One is worse by .03, the other better by .02, and both differ from torch's picture.
    pair = check_it([black + 0.03, black - 0.02])
    assert pair == {"lpips_change": pytest.approx(0.005), "lpips": pytest.approx(0.03)}
    with pytest.raises(ParityError, match=r"int8 on mil: ΔLPIPS \+0.0150 against .* gate 0.01"):
        check_it([black + 0.03, black])
    with pytest.raises(ParityError, match=r"ΔLPIPS \+?nan"):
        check_it([black, black * np.nan, black])
    assert check_it([black + 1], None) == {"lpips_change": 1, "lpips": 1}


def test_the_whole_pipeline_is_gated() -> None:
    reference = np.zeros((1, 3, 4, 4), np.float32)
    assert check_pictures([reference], [reference + 0.01], "x", 40) == pytest.approx(
        46.02, abs=0.01
    )
    assert check_pictures([reference], [reference], "x", 40) is None
    with pytest.raises(ParityError, match=r"int8 on openvino: 26.0 dB, gate 35 dB"):
        check_pictures([reference] * 2, [reference, reference + 0.1], "int8 on openvino", 35)
    with pytest.raises(ParityError, match="nan dB"):
        check_pictures([reference], [reference * np.nan], "int8 on openvino", 35)
    assert check_pictures([reference], [reference + 0.1], "x", None) == pytest.approx(
        26.02, abs=0.01
    )


class Overflows:
    """A session whose outputs are infinite."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def run_all(self, calls: list[dict[str, Array]]) -> list[dict[str, Array]]:
        results = self.inner.run_all(calls)
        return [{name: v * np.inf for name, v in result.items()} for result in results]


def test_pictures_that_overflow_are_caught(exported: Path) -> None:
    bundle = open_bundle(exported)
    tile = np.random.default_rng(0).uniform(-1, 1, (1, 3, 32, 32)).astype(np.float32)
    assert not np.ptp(smooth_tile(tile))

    def opener(damage: bool) -> Callable[[str], Any]:
        def open_component(name: str) -> Any:
            opened = session(exported, name, "onnxruntime")
            return Overflows(opened) if damage and name == "decoder" else opened

        return open_component

    results = pictures(bundle.manifest, opener(damage=False), [tile, smooth_tile(tile)])
    assert [r.shape for r in results] == [(1, 3, 128, 128)] * 2
    with pytest.raises(BackendError, match="not finite"):
        pictures(bundle.manifest, opener(damage=True), [smooth_tile(tile)])
