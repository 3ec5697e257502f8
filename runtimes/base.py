"""Session: tensors in, tensors out, and the checks that every runtime shares."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path  # noqa: TC003 - an annotation that get_type_hints may resolve
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np

from mmsr_edge.errors import BackendError, BundleError, OptionError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from mmsr_edge.bundle import ComponentSpec, TensorSpec

Tensors: TypeAlias = "dict[str, NDArray[Any]]"


class Session(Protocol):
    """An opened component. Safe to call from several threads; calls may wait for one another."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Tensors that `run` takes."""

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Tensors that `run` returns."""

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> Tensors:
        """Run once.

        Args:
            feeds: an array for each of `inputs`, by name, with exactly its shape and dtype.

        Returns:
            A new array for each of `outputs`, by name.

        Raises:
            OptionError: `feeds` does not match `inputs`.
            BackendError: the runtime failed.
        """

    def run_all(self, calls: Sequence[Mapping[str, NDArray[Any]]]) -> list[Tensors]:
        """Results of `run` for each of `calls`, in one batch where the runtime supports it.

        Raises:
            OptionError, BackendError: as `run`.
        """


@dataclass(frozen=True)
class SessionOptions:
    """Options for opening sessions; the same for every component."""

    threads: int | None = None
    """Number of threads for one call; None: the runtime's choice."""
    cache_dir: Path | None = None
    """Folder for compiled models; None: the user's cache folder."""
    device: str = "auto"
    """Device in the runtime's own naming, such as "cpu", "GPU.0" or "cuda:1"."""
    compile: bool = False
    """Whether to compile networks; only for a runtime that does not always do so (torch)."""

    def __post_init__(self) -> None:
        if self.threads is not None and self.threads < 1:
            raise OptionError(
                f"threads {self.threads} must be >= 1, or None for the runtime's choice"
            )
        if not self.device:
            raise OptionError("device '' is empty; 'auto' leaves the choice to the runtime")


class CheckedSession(ABC):
    """A `Session` that checks inputs and outputs; a runtime adds `_infer`."""

    def __init__(self, component: ComponentSpec) -> None:
        self.name = component.name
        self.inputs = component.inputs
        self.outputs = component.outputs

    @abstractmethod
    def _infer(self, feeds: Tensors) -> Sequence[NDArray[Any]]:
        """Arrays in the order of `outputs`, in memory that no later call overwrites."""

    def _infer_all(self, calls: Sequence[Tensors]) -> list[Sequence[NDArray[Any]]]:
        """Results of `_infer` for several calls; a runtime with batches overrides it."""
        return [self._infer(feeds) for feeds in calls]

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> Tensors:
        return self.run_all([feeds])[0]

    def run_all(self, calls: Sequence[Mapping[str, NDArray[Any]]]) -> list[Tensors]:
        checked = [check_feeds(self.name, self.inputs, feeds) for feeds in calls]
        try:
            results = self._infer_all(checked)
        except Exception as error:
            raise BackendError(f"component {self.name!r} failed to run: {error}") from error
        return [self._checked_results(arrays) for arrays in results]

    def _checked_results(self, results: Sequence[NDArray[Any]]) -> Tensors:
        for spec, result in zip(self.outputs, results, strict=True):
            if result.shape != spec.shape or result.dtype != spec.dtype:
                raise BackendError(
                    f"component {self.name!r}: output {spec.name!r} came as {result.dtype} "
                    f"{list(result.shape)}, but the manifest declares {spec.dtype} "
                    f"{list(spec.shape)}"
                )
        return {spec.name: result for spec, result in zip(self.outputs, results, strict=True)}


def check_feeds(
    component: str, inputs: Sequence[TensorSpec], feeds: Mapping[str, NDArray[Any]]
) -> Tensors:
    """Check names, shapes and dtypes, and return the feeds as contiguous arrays.

    Dtypes are not converted: a float64 feed is a mistake upstream that would cost a copy per step.

    Raises:
        OptionError: a feed does not match. The message names it, its form and the expected one.
    """
    names = [spec.name for spec in inputs]
    if set(feeds) != set(names):
        raise OptionError(
            f"component {component!r} takes {sorted(names)}, but was fed {sorted(feeds)}"
        )
    checked: Tensors = {}
    for spec in inputs:
        value = feeds[spec.name]
        if not isinstance(value, np.ndarray):
            raise OptionError(
                f"component {component!r}: feed {spec.name!r} is a {type(value).__name__}, "
                "not a numpy array"
            )
        if value.shape != spec.shape or value.dtype != spec.dtype:
            raise OptionError(
                f"component {component!r}: feed {spec.name!r} is {value.dtype} "
                f"{list(value.shape)}; it must be {spec.dtype} {list(spec.shape)}"
            )
        checked[spec.name] = np.ascontiguousarray(value)
    return checked


def check_signature(
    component: str,
    kind: str,
    specs: Sequence[TensorSpec],
    found: Mapping[str, tuple[str, Sequence[int | None]]],
) -> None:
    """Check the inputs or outputs of a model file against the manifest.

    Args:
        component: name of the component.
        kind: "input" or "output".
        specs: tensors in the manifest.
        found: dtype (numpy's name) and shape (None: not fixed) of the tensors in the file, by name.

    Raises:
        BundleError: they disagree, so the manifest was written for another file.
    """
    if {spec.name for spec in specs} != set(found):
        raise BundleError(
            f"component {component!r}: the file has {kind}s {sorted(found)}, "
            f"the manifest {sorted(spec.name for spec in specs)}; export the bundle again"
        )
    for spec in specs:
        dtype, shape = found[spec.name]
        fits = len(shape) == len(spec.shape) and all(
            size is None or size == wanted for size, wanted in zip(shape, spec.shape, strict=True)
        )
        if not fits or dtype != spec.dtype:
            form = ", ".join("?" if size is None else str(size) for size in shape)
            raise BundleError(
                f"component {component!r}: {kind} {spec.name!r} is {dtype} [{form}] in the file, "
                f"{spec.dtype} {list(spec.shape)} in the manifest; export the bundle again"
            )
