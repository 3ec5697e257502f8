"""Recorded inputs in the formats of the quantization tools."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray

    Feeds = Mapping[str, NDArray[Any]]

__all__ = ["coreml_samples", "nncf_dataset", "onnxruntime_reader"]


def nncf_dataset(samples: Iterable[Feeds]) -> Any:
    """Make an `nncf.Dataset` of feeds by name."""
    import nncf

    return nncf.Dataset([dict(sample) for sample in samples])


def onnxruntime_reader(samples: Iterable[Feeds]) -> Any:
    """Make an `onnxruntime.quantization.CalibrationDataReader` of feeds by name."""
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):
        def __init__(self, feeds: list[dict[str, NDArray[Any]]]) -> None:
            self._feeds = feeds
            self.rewind()

        def get_next(self) -> dict[str, NDArray[Any]] | None:
            return next(self._iterator, None)

        def rewind(self) -> None:
            self._iterator = iter(self._feeds)

        def __len__(self) -> int:
            return len(self._feeds)

    return Reader([dict(sample) for sample in samples])


def coreml_samples(samples: Iterable[Feeds]) -> list[dict[str, NDArray[Any]]]:
    """Feeds by name for coremltools, with int64 as int32, because Core ML has no int64.

    The function is `coremltools.optimize.coreml.experimental.linear_quantize_activations`.
    """
    return [
        {k: v.astype(np.int32) if v.dtype == np.int64 else v for k, v in sample.items()}
        for sample in samples
    ]
