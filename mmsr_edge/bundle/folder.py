"""Folders of bundles: opening, verifying and describing the files that a manifest lists."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from mmsr_edge.bundle.manifest import Manifest
from mmsr_edge.bundle.specs import FASTEST, PRECISIONS, Artifact, ComponentSpec, FileSpec
from mmsr_edge.errors import BundleError, OptionError
from mmsr_edge.files import write_text

if TYPE_CHECKING:
    import os
    from collections.abc import Collection, Sequence

__all__ = [
    "MANIFEST_NAME",
    "Bundle",
    "best_shipped",
    "copy_files",
    "describe_file",
    "load_manifest",
    "open_bundle",
    "shared",
    "shipped_bundles",
    "write_manifest",
]

MANIFEST_NAME = "manifest.json"
"""File name of the manifest in a bundle."""

_SHIPPED = Path(__file__).resolve().parents[1] / "bundles"
_BEST_FIRST = ("small", "nano")
_verified: dict[Path, tuple[int, int, str]] = {}  # path -> (mtime_ns, size, sha256)


@dataclass(frozen=True)
class Bundle:
    """An opened bundle. Every listed file was present and intact when it was opened."""

    root: Path
    """Folder of the bundle."""
    manifest: Manifest
    """The bundle's manifest."""
    beside: Path | None = None
    """Folder of the bundles that this one takes files from; None: the one that it lies in."""

    def component(self, name: str) -> ComponentSpec:
        """The component called `name`.

        Raises:
            BundleError: the bundle has no component of that name.
        """
        try:
            return self.manifest.components[name]
        except KeyError:
            has = ", ".join(self.manifest.components)
            raise BundleError(
                f"bundle {self.manifest.name!r} has no component {name!r}; it has {has}"
            ) from None

    def artifact(
        self,
        component: str,
        formats: Sequence[str],
        precision: str = "auto",
        order: Sequence[str] = FASTEST,
        backend: str | None = None,
    ) -> Artifact:
        """Choose an artifact of a component.

        Args:
            component: name of the component.
            formats: formats that can be opened, the preferred one first.
            precision: "auto" takes the first available one of `order`. A named precision falls back
                to the nearest more exact one, since not all components are worth quantizing.
            order: precisions for "auto", the preferred one first.
            backend: name of the backend that opens the artifact. Artifacts made for it come before
                those made for all; artifacts made for other backends only are left out.

        Raises:
            BundleError: the component has no such artifact.
            OptionError: `precision` is unknown.
        """
        if precision != "auto" and precision not in PRECISIONS:
            raise OptionError(
                f"precision {precision!r} is unknown; choose auto, {', '.join(PRECISIONS)}"
            )
        wanted = order if precision == "auto" else PRECISIONS[PRECISIONS.index(precision) :]
        artifacts = self.component(component).artifacts
        own = [a for a in artifacts if backend is not None and backend in a.backends]
        common = [a for a in artifacts if not a.backends]
        # Artifacts made for a backend were measured to be its fastest, so "auto" takes a common one
        # only if there are none. At a named precision, the backend's own artifact is preferred.
        groups = [own, common] if precision == "auto" else [[*own, *common]]
        for group in groups:
            # Of artifacts with the same precision and format, the first counts.
            forms: dict[tuple[str, str], Artifact] = {
                (a.precision, a.format): a for a in reversed(group)
            }
            for level in wanted:
                for form in formats:
                    if (level, form) in forms:
                        return forms[level, form]
        has = ", ".join(dict.fromkeys(f"{a.format} {a.precision}{_for(a)}" for a in artifacts))
        asked = "" if precision == "auto" else f" at {precision} or better"
        raise BundleError(
            f"bundle {self.manifest.name!r} has {component!r} as {has}; "
            f"needed: {' or '.join(formats)}{asked}"
        )

    def path(self, file: FileSpec) -> Path:
        """Path of a listed file."""
        if not file.bundle:
            return self.root / file.path
        return (self.beside or self.root.resolve().parent) / file.bundle / file.path


def _for(artifact: Artifact) -> str:
    return f" (for {' and '.join(artifact.backends)})" if artifact.backends else ""


def shared(spec: ComponentSpec, bundle: str) -> ComponentSpec:
    """A component whose files stay in the bundle called `bundle`, beside the one that gets it."""
    artifacts = tuple(
        replace(a, files=tuple(replace(f, bundle=f.bundle or bundle) for f in a.files))
        for a in spec.artifacts
    )
    return replace(spec, artifacts=artifacts)


def copy_files(bundle: Bundle, root: Path, without: Collection[str]) -> None:
    """Copy a bundle's own files into `root`, except those of the components `without`.

    Files that it takes from another bundle stay there.
    """
    for name, spec in bundle.manifest.components.items():
        files = (f for a in spec.artifacts for f in a.files if not f.bundle)
        for file in files if name not in without else ():
            (root / file.path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(bundle.path(file), root / file.path)


def shipped_bundles() -> tuple[str, ...]:
    """Names of the models that the package contains."""
    return tuple(sorted(path.parent.name for path in _SHIPPED.glob(f"*/{MANIFEST_NAME}")))


def best_shipped() -> tuple[str, ...]:
    """The shipped models that users choose between, the best and slowest first."""
    shipped = shipped_bundles()
    return tuple(name for name in _BEST_FIRST if name in shipped)


def open_bundle(model: str | os.PathLike[str], beside: Path | None = None) -> Bundle:
    """Open a bundle and check presence, size and SHA-256 of every file that it lists.

    A file is hashed once per process, and again if its modification time or size changes.

    Args:
        model: name of a shipped model, such as "nano", or a folder. A shipped model takes
            precedence over a folder of the same name; write `./nano` for the folder.
        beside: folder of the bundles that it takes files from; None: the one that it lies in.

    Raises:
        BundleError: there is no such bundle, or a file is missing or altered.
    """
    if isinstance(model, str) and model in shipped_bundles():
        root = _SHIPPED / model
    else:
        root = Path(model).expanduser()
    bundle = Bundle(root, load_manifest(root), beside)
    for component in bundle.manifest.components.values():
        for artifact in component.artifacts:
            for file in artifact.files:
                _verify(bundle, file)
    return bundle


def load_manifest(root: str | os.PathLike[str]) -> Manifest:
    """Read the manifest of the bundle in folder `root`, without checking the bundle's files.

    Raises:
        BundleError: the folder or the manifest is missing or malformed.
    """
    path = Path(root) / MANIFEST_NAME
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        names = ", ".join(map(repr, shipped_bundles())) or "none"
        raise BundleError(
            f"no bundle {str(root)!r}: {str(path)!r} does not exist. "
            f"Give a folder with a {MANIFEST_NAME}, or a shipped model: {names}"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise BundleError(f"{str(path)!r} cannot be read: {error}") from error
    try:
        return Manifest.from_json(text)
    except BundleError as error:
        raise BundleError(f"{path}: {error}") from None


def describe_file(root: str | os.PathLike[str], path: str | os.PathLike[str]) -> FileSpec:
    """The `FileSpec` of an existing file, for a manifest.

    Args:
        root: folder of the bundle.
        path: path of the file, relative to `root`.
    """
    full = Path(root, path)
    return FileSpec(path=Path(path).as_posix(), sha256=_digest(full), bytes=full.stat().st_size)


def write_manifest(root: str | os.PathLike[str], manifest: Manifest) -> Path:
    """Write `manifest` into folder `root` in one step, and return its path."""
    path = Path(root) / MANIFEST_NAME
    write_text(path, manifest.to_json())
    return path


def _verify(bundle: Bundle, file: FileSpec) -> None:
    path = bundle.path(file)
    remedy = "copy or export the bundle again"
    if file.bundle:
        remedy = f"put the bundle {file.bundle!r} that it was made with beside this one"
    if bundle.root.parent == _SHIPPED:
        remedy = "reinstall it: pip install --force-reinstall --no-deps mmsr-edge"
    try:
        state = path.stat()
        if not path.is_file():
            raise FileNotFoundError
        if state.st_size != file.bytes:
            raise BundleError(
                f"{str(path)!r} has {state.st_size} bytes instead of {file.bytes}; {remedy}"
            )
        key = path.resolve()
        known = _verified.get(key)
        if known is None or known[:2] != (state.st_mtime_ns, state.st_size):
            known = _verified[key] = (state.st_mtime_ns, state.st_size, _digest(path))
    except (FileNotFoundError, NotADirectoryError):
        raise BundleError(f"{str(path)!r} is listed but missing; {remedy}") from None
    except (OSError, UnicodeEncodeError) as error:  # a name that no file system can hold
        raise BundleError(f"{str(path)!r} cannot be read: {error}; {remedy}") from error
    if known[2] != file.sha256:
        raise BundleError(
            f"{str(path)!r} has SHA-256 {known[2][:12]}... instead of {file.sha256[:12]}...: "
            f"its content was altered; {remedy}"
        )


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
