"""PyTorch: the original networks at full precision, on CUDA if available (extra `torch`)."""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np

from mmsr_edge.errors import BundleError, OptionError
from mmsr_edge.runtimes.base import CheckedSession, Session, SessionOptions, Tensors

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from mmsr_edge.bundle import Artifact, ComponentSpec


def load() -> None:
    """Import the library and the networks, which need diffusers and transformers too.

    Raises:
        Exception: whatever a broken or partial installation raises.
    """
    import torch  # noqa: F401

    import mmsr_edge.models  # noqa: F401


def open_session(
    path: Path, component: ComponentSpec, artifact: Artifact, options: SessionOptions, preset: str
) -> Session:
    """Build the network of `preset` and load the .safetensors file at `path` into it.

    `options.device` is torch's name; "auto" is CUDA if available, otherwise the CPU.
    `options.threads` is set for the whole process, which is the only way in torch. With
    `options.compile` the first call at each batch size compiles, which takes about a minute. On
    CUDA the result is also recorded as a CUDA graph, since launching the kernels of networks as
    small as these takes longer than running them.

    Raises:
        BundleError: the weights do not fit the network.
        OptionError: torch cannot use the device.
    """
    del artifact
    return _TorchSession(path, component, options, preset)


class _TorchSession(CheckedSession):
    def __init__(
        self, path: Path, component: ComponentSpec, options: SessionOptions, preset: str
    ) -> None:
        import torch
        from safetensors.torch import load_file

        from mmsr_edge.models import build_component

        super().__init__(component)
        name = options.device.lower()
        if name == "auto":
            name = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            self._device = torch.device(name)
            torch.empty(0, device=self._device)
        except (RuntimeError, AssertionError) as error:
            raise OptionError(
                f"device {options.device!r} cannot be used by torch: {error}"
            ) from None
        if options.threads is not None:
            torch.set_num_threads(options.threads)
        module = build_component(component.name, preset)
        try:
            # fp16 weights are copied into float32 parameters: small files, full precision.
            module.load_state_dict(load_file(path))
        except RuntimeError as error:
            raise BundleError(
                f"component {component.name!r}: {str(path)!r} does not hold the weights of preset "
                f"{preset!r}: {error}"
            ) from None
        self._module = module.to(self._device).eval()
        self._busy: AbstractContextManager[object] = nullcontext()
        if options.compile:
            self._module.compile(
                mode="reduce-overhead" if self._device.type == "cuda" else None, dynamic=False
            )
            self._busy = threading.Lock()  # the next replay of a graph overwrites its results

    def _infer(self, feeds: Tensors) -> Sequence[NDArray[Any]]:
        return self._infer_all([feeds])[0]

    def _infer_all(self, calls: Sequence[Tensors]) -> list[Sequence[NDArray[Any]]]:
        import torch

        # TF32 convolutions, torch's default on CUDA, agree with other runtimes 20 dB less well.
        exact = torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
        with self._busy, torch.inference_mode(), exact:
            arguments = [
                torch.from_numpy(np.concatenate([feeds[s.name] for feeds in calls]))
                for s in self.inputs
            ]
            results = self._module(*(argument.to(self._device) for argument in arguments))
            if isinstance(results, torch.Tensor):
                results = (results,)
            # clone(): a network may return a view of its input or of its own buffer.
            batches = [result.cpu().clone().numpy() for result in results]
        rows = [np.split(batch, len(calls)) for batch in batches]
        return [list(row) for row in zip(*rows, strict=True)]
