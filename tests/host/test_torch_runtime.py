"""The torch runtime: the networks of a preset, from files, at full precision."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch._dynamo.utils import counters

from mmsr_edge.bundle import Artifact, ComponentSpec, FileSpec, TensorSpec
from mmsr_edge.errors import BundleError, OptionError
from mmsr_edge.models import build_component
from mmsr_edge.runtimes.base import SessionOptions
from mmsr_edge.runtimes.registry import BACKENDS

if TYPE_CHECKING:
    from pathlib import Path

    from mmsr_edge.runtimes.base import Session


TORCH = next(backend for backend in BACKENDS if backend.name == "torch")


def feed(shape: tuple[int, ...], seed: int = 0) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


def describe(name: str, **feeds: np.ndarray[Any, Any]) -> tuple[torch.nn.Module, ComponentSpec]:
    """A network of the `micro` preset with random weights, and its spec for these inputs."""
    torch.manual_seed(5)
    module = build_component(name, "micro")
    for parameter in module.parameters():  # zero-initialized layers would have no effect
        torch.nn.init.normal_(parameter, std=0.1)
    with torch.no_grad():
        results = module(*map(torch.from_numpy, feeds.values()))
    results = results if isinstance(results, tuple) else (results,)
    names = {"tokenizer": ("tokens", "indices")}.get(name, ("out",))

    def spec(key: str, value: Any) -> TensorSpec:
        dtype = "int64" if "int64" in str(value.dtype) else "float32"
        return TensorSpec(key, tuple(value.shape), dtype)  # type: ignore[arg-type]

    artifact = Artifact("torch", "fp32", (FileSpec("w.safetensors", "0" * 64, 0),))
    inputs = tuple(spec(key, value) for key, value in feeds.items())
    outputs = tuple(spec(key, value) for key, value in zip(names, results, strict=True))
    return module, ComponentSpec(name, inputs, outputs, (artifact,))


def open_weights(
    path: Path, spec: ComponentSpec, device: str = "cpu", *, compiled: bool = False
) -> Session:
    options = SessionOptions(device=device, compile=compiled)
    return TORCH.open(path, spec, spec.artifacts[0], options, "micro")


def test_a_session_is_the_network(tmp_path: Path) -> None:
    maps = feed((1, 3, 256, 256))
    module, spec = describe("tokenizer", map=maps)
    save_file(module.state_dict(), tmp_path / "w.safetensors")
    session = open_weights(tmp_path / "w.safetensors", spec)
    first = session.run({"map": maps})
    with torch.no_grad():
        tokens, indices = module(torch.from_numpy(maps))
    np.testing.assert_array_equal(first["tokens"], tokens.numpy())
    np.testing.assert_array_equal(first["indices"], indices.numpy())


def test_several_calls_are_one_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lr = feed((1, 3, 16, 16))
    module, spec = describe("lr_encoder", lr=lr)
    save_file(module.state_dict(), tmp_path / "w.safetensors")
    session = open_weights(tmp_path / "w.safetensors", spec)
    alone = [session.run({"lr": lr})["out"], session.run({"lr": -lr})["out"]]
    sizes: list[int] = []
    forward = type(module).forward

    def seen(self: torch.nn.Module, given: torch.Tensor) -> torch.Tensor:
        sizes.append(len(given))
        result: torch.Tensor = forward(self, given)
        return result

    monkeypatch.setattr(type(module), "forward", seen)
    together = session.run_all([{"lr": lr}, {"lr": -lr}])
    assert sizes == [2]
    for one, result in zip(alone, together, strict=True):
        np.testing.assert_allclose(result["out"], one, atol=1e-5)


def test_a_compiled_network_is_the_same_network(tmp_path: Path) -> None:
    calls = [{"lr": feed((1, 3, 16, 16), seed)} for seed in (0, 1)]
    module, spec = describe("lr_encoder", lr=calls[0]["lr"])
    save_file(module.state_dict(), tmp_path / "w.safetensors")
    plain = open_weights(tmp_path / "w.safetensors", spec)
    counters.clear()
    session = open_weights(tmp_path / "w.safetensors", spec, compiled=True)
    assert not counters["frames"]  # the first call compiles, not the opening
    alone = session.run(calls[0])
    assert counters["frames"]["ok"] == 1
    together = session.run_all(calls)
    assert counters["frames"]["ok"] == 2  # a batch of two is compiled anew
    kept = {key: value.copy() for key, value in alone.items()}
    again = session.run_all(calls)[0]
    assert counters["frames"]["ok"] == 2
    for one, result in zip([plain.run(call) for call in calls], together, strict=True):
        np.testing.assert_allclose(result["out"], one["out"], atol=1e-5)
    np.testing.assert_array_equal(again["out"], together[0]["out"])
    np.testing.assert_array_equal(alone["out"], kept["out"])  # not overwritten by later calls


def test_reversed_feeds_are_accepted(tmp_path: Path) -> None:
    # BGR reversed to RGB has negative strides, which torch itself refuses.
    lr = feed((1, 3, 16, 16))
    module, spec = describe("lr_encoder", lr=lr)
    save_file(module.state_dict(), tmp_path / "w.safetensors")
    session = open_weights(tmp_path / "w.safetensors", spec)
    first, flipped = session.run({"lr": lr})["out"], session.run({"lr": lr[:, ::-1]})["out"]
    with torch.no_grad():
        expected = module(torch.from_numpy(lr[:, ::-1].copy())).numpy()
    np.testing.assert_array_equal(flipped, expected)
    assert np.abs(flipped - first).max() > 1e-3


def test_half_precision_weights_compute_in_full(tmp_path: Path) -> None:
    lr = feed((1, 3, 16, 16))
    module, spec = describe("lr_encoder", lr=lr)
    halves = {key: value.half() for key, value in module.state_dict().items()}
    save_file(halves, tmp_path / "w.safetensors")
    result = open_weights(tmp_path / "w.safetensors", spec).run({"lr": lr})["out"]
    module.load_state_dict({key: value.float() for key, value in halves.items()})
    with torch.no_grad():
        np.testing.assert_array_equal(result, module(torch.from_numpy(lr)).numpy())


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    _, spec = describe("lr_encoder", lr=feed((1, 3, 16, 16)))
    save_file({"stray": torch.zeros(1)}, tmp_path / "w.safetensors")
    with pytest.raises(
        BundleError, match=r"(?s)does not hold the weights of preset 'micro'.*stray"
    ):
        open_weights(tmp_path / "w.safetensors", spec)


@pytest.mark.parametrize("device", ["abacus", "cuda:99"])
def test_a_device_that_is_not_there(device: str, tmp_path: Path) -> None:
    module, spec = describe("lr_encoder", lr=feed((1, 3, 16, 16)))
    save_file(module.state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(OptionError, match=f"device '{device}' cannot be used by torch"):
        open_weights(tmp_path / "w.safetensors", spec, device)
    open_weights(tmp_path / "w.safetensors", spec, "auto")


def test_torch_is_available_here() -> None:
    assert TORCH.available() is None
