"""ONNX Runtime on the CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mmsr_edge.errors import OptionError
from mmsr_edge.runtimes.base import (
    CheckedSession,
    Session,
    SessionOptions,
    Tensors,
    check_signature,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from mmsr_edge.bundle import Artifact, ComponentSpec

# numpy's names of ONNX Runtime's tensor types; other types keep ONNX Runtime's name.
_DTYPES = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(int64)": "int64"}


def load() -> None:
    """Import the library.

    Raises:
        Exception: whatever a broken installation raises.
    """
    import onnxruntime  # noqa: F401


def open_session(
    path: Path, component: ComponentSpec, artifact: Artifact, options: SessionOptions, preset: str
) -> Session:
    """Open the .onnx file at `path`; `artifact` and `preset` are not used.

    Raises:
        BundleError: the file's inputs or outputs differ from `component`'s.
        OptionError: `options.device` is not the CPU.
    """
    del artifact, preset
    if options.device.lower() not in ("auto", "cpu"):
        raise OptionError(f"device {options.device!r}: the onnxruntime backend runs on 'cpu' only")
    return _OrtSession(path, component, options)


class _OrtSession(CheckedSession):
    def __init__(self, path: Path, component: ComponentSpec, options: SessionOptions) -> None:
        import onnxruntime as ort

        super().__init__(component)
        settings = ort.SessionOptions()
        settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        settings.inter_op_num_threads = 1
        settings.intra_op_num_threads = options.threads or 0  # 0: one per core
        # By default products with int8 or int4 weights round their float activations to int8 too.
        settings.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
        settings.log_severity_level = 3  # errors; warnings concern its own graph rewriting
        self._session = ort.InferenceSession(
            str(path), settings, providers=["CPUExecutionProvider"]
        )
        check_signature(self.name, "input", self.inputs, _signature(self._session.get_inputs()))
        check_signature(self.name, "output", self.outputs, _signature(self._session.get_outputs()))

    def _infer(self, feeds: Tensors) -> Sequence[NDArray[Any]]:
        results: list[NDArray[Any]] = self._session.run([s.name for s in self.outputs], feeds)
        return results


def _signature(nodes: Sequence[Any]) -> dict[str, tuple[str, list[int | None]]]:
    # A free dimension is a string (its symbol) or None.
    return {
        node.name: (
            _DTYPES.get(node.type, node.type),
            [size if isinstance(size, int) else None for size in node.shape],
        )
        for node in nodes
    }
