"""Registry: the backends, which of them can be used here, and why the others cannot."""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mmsr_edge.bundle import FASTEST, PRECISIONS
from mmsr_edge.errors import BackendError, BundleError, MMSRError, OptionError, missing_extra

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from mmsr_edge.bundle import Artifact, Bundle, ComponentSpec
    from mmsr_edge.runtimes.base import Session, SessionOptions


@dataclass(frozen=True)
class Backend:
    """One runtime. Its library is imported by `check` and `open` only."""

    name: str
    """Name of the backend, as users give it."""
    extra: str
    """Optional dependency group that installs its library."""
    module: str
    """Module of its `load` and `open_session`."""
    formats: tuple[str, ...]
    """Formats that it opens, the preferred one first."""
    precisions: tuple[str, ...] = FASTEST
    """Precisions from the fastest to the slowest, for `precision="auto"`."""
    interprets: bool = False
    """Whether networks run without being compiled, so that compiling them is an option."""

    def check(self) -> None:
        """Import the library.

        Raises:
            MissingExtraError: the library is not installed.
            BackendError: the library is installed, but cannot be used on this machine.
        """
        try:
            self._import().load()
        except MMSRError:
            raise
        except Exception as error:
            name = (getattr(error, "name", None) or "").partition(".")[0]
            absent = isinstance(error, ModuleNotFoundError) and name
            if absent and importlib.util.find_spec(name) is None:
                raise missing_extra(name, self.extra) from None
            raise BackendError(
                f"backend {self.name!r} is installed but cannot be imported "
                f"({type(error).__name__}: {error}); "
                f'try: pip install --force-reinstall "mmsr-edge[{self.extra}]"'
            ) from error

    def check_options(self, options: SessionOptions) -> None:
        """Refuse options that `open` cannot use.

        Raises:
            OptionError: `options.compile` is set, but networks are always compiled.
        """
        if options.compile and not self.interprets:
            raise OptionError(f"compile: backend {self.name!r} compiles by itself; leave it out")

    def available(self) -> str | None:
        """None if the backend can be used, otherwise the reason."""
        try:
            self.check()
        except MMSRError as error:
            return str(error)
        return None

    def serves(self, bundle: Bundle, precision: str = "auto") -> str | None:
        """None if the backend opens every component of `bundle`, otherwise the reason."""
        try:
            for component in bundle.manifest.components:
                self.artifact(bundle, component, precision)
        except BundleError as error:
            return str(error)
        return None

    def unusable(self, bundle: Bundle | None = None, precision: str = "auto") -> str | None:
        """None if the backend can be used and opens all of `bundle`, otherwise the reason."""
        # The bundle is checked first, since that imports nothing.
        reason = None if bundle is None else self.serves(bundle, precision)
        return reason or self.available()

    def artifact(self, bundle: Bundle, component: str, precision: str = "auto") -> Artifact:
        """The artifact of a component that this backend opens; see `Bundle.artifact`.

        Raises:
            BundleError, OptionError: as `Bundle.artifact`.
        """
        return bundle.artifact(component, self.formats, precision, self.precisions, self.name)

    def open(
        self,
        path: Path,
        component: ComponentSpec,
        artifact: Artifact,
        options: SessionOptions,
        preset: str,
    ) -> Session:
        """Open the model file at `path`.

        Raises:
            BackendError: the runtime cannot open it.
            BundleError: the file differs from the manifest.
            OptionError: this runtime or machine does not support `options`.
        """
        try:
            session: Session = self._import().open_session(
                path, component, artifact, options, preset
            )
        except MMSRError:
            raise
        except Exception as error:
            raise BackendError(
                f"backend {self.name!r} cannot open component {component.name!r} "
                f"({str(path)!r}): {error}"
            ) from error
        return session

    def _import(self) -> Any:
        return importlib.import_module(self.module)


_EXACTEST = PRECISIONS[::-1]  # for runtimes without fast kernels for the shipped int8 file

# The order of "auto": by the time of one call of a 25 M-parameter UNet on two Zen 4 cores, OpenVINO
# 35 ms (int8), ONNX Runtime 67 ms (int8, convolutions only) or 94 ms (fp32), torch 124 ms (fp32).
# ONNX Runtime takes 194 ms for the int8 file that is fastest in OpenVINO, hence its own precisions.
# Core ML is unmeasured. It comes before torch, which is not for deployment.
BACKENDS: tuple[Backend, ...] = (
    Backend("openvino", "openvino", "mmsr_edge.runtimes.ov", ("openvino", "onnx")),
    Backend("onnxruntime", "onnx", "mmsr_edge.runtimes.ort", ("onnx",), _EXACTEST),
    Backend("coreml", "coreml", "mmsr_edge.runtimes.coreml", ("coreml",)),
    Backend("torch", "torch", "mmsr_edge.runtimes.pytorch", ("torch",), _EXACTEST, interprets=True),
)


@dataclass(frozen=True)
class Selection:
    """The chosen backend, and why the others were not chosen."""

    backend: Backend
    """The backend to use."""
    passed_over: dict[str, str]
    """Reason for each of the other backends, by name."""


def select_backend(
    name: str = "auto", bundle: Bundle | None = None, precision: str = "auto"
) -> Selection:
    """Choose a backend.

    Args:
        name: "auto" takes the first of `BACKENDS` that is installed and opens the whole bundle.
        bundle: bundle that the backend must open; None: it must only be installed.
        precision: precision of the artifacts, as for `Bundle.artifact`.

    Raises:
        OptionError: there is no backend of that name.
        MissingExtraError: the named backend is not installed.
        BackendError: the named backend cannot be used, or "auto" found none.
        BundleError: the named backend cannot open the bundle.
    """
    if name != "auto":
        backend = backend_named(name)
        backend.check()
        if bundle is not None and (reason := backend.serves(bundle, precision)):
            raise BundleError(f"backend {name!r} cannot open this bundle: {reason}")
        others = (other.name for other in BACKENDS if other is not backend)
        return Selection(backend, dict.fromkeys(others, f"{name!r} was requested"))
    passed_over: dict[str, str] = {}
    for position, backend in enumerate(BACKENDS):
        reason = backend.unusable(bundle, precision)
        if reason is None:
            for later in BACKENDS[position + 1 :]:
                passed_over[later.name] = f"comes after {backend.name!r} in order of speed"
            return Selection(backend, passed_over)
        passed_over[backend.name] = reason
    reasons = "".join(f"\n  {other}: {reason}" for other, reason in passed_over.items())
    raise BackendError(f"no backend can be used here:{reasons}")


@dataclass(frozen=True)
class BackendStatus:
    """Whether a backend can be used on this machine."""

    name: str
    """Name of the backend, as `Upscaler(backend=…)` takes it."""
    reason: str | None
    """Reason why it is not usable; None if it is."""
    chosen: bool
    """Whether `backend="auto"` chooses it."""

    @property
    def usable(self) -> bool:
        """Whether it is installed and opens the whole bundle."""
        return self.reason is None


def list_backends(bundle: Bundle | None = None) -> tuple[BackendStatus, ...]:
    """All backends, in the order in which "auto" tries them.

    Args:
        bundle: the bundle to open; None: a backend must only be installed.
    """
    reasons = {backend.name: backend.unusable(bundle) for backend in BACKENDS}
    first = next((name for name, reason in reasons.items() if reason is None), None)
    return tuple(BackendStatus(name, reason, name == first) for name, reason in reasons.items())


def open_session(
    bundle: Bundle,
    component: str,
    backend: Backend,
    options: SessionOptions,
    precision: str = "auto",
) -> Session:
    """Open one component of a bundle.

    Raises:
        BackendError, BundleError, OptionError: as `Backend.open` and `Bundle.artifact`.
    """
    backend.check_options(options)
    artifact = backend.artifact(bundle, component, precision)
    spec = bundle.component(component)
    path = bundle.path(artifact.files[0])
    return backend.open(path, spec, artifact, options, bundle.manifest.preset)


def backend_named(name: str) -> Backend:
    """The member of `BACKENDS` with a given name.

    Raises:
        OptionError: there is no backend of that name.
    """
    for backend in BACKENDS:
        if backend.name == name:
            return backend
    names: Sequence[str] = ["auto", *(backend.name for backend in BACKENDS)]
    raise OptionError(f"backend {name!r} is unknown; choose {', '.join(names)}")
