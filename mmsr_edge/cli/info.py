"""`mmsr-edge info`: show the model, its files and the backends."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

from mmsr_edge import __version__
from mmsr_edge.cli.arguments import add_model
from mmsr_edge.cli.output import FAILED, OK, byte_size
from mmsr_edge.errors import MMSRError

if TYPE_CHECKING:
    import argparse

    from mmsr_edge.bundle import Bundle

__all__ = ["add_info"]


def add_info(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.set_defaults(run=_info)
    add_model(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")


def _info(arguments: argparse.Namespace) -> int:
    report = _report(arguments.model)
    print(json.dumps(report, indent=2) if arguments.json else _as_text(report))
    for error in report["errors"]:
        print(f"mmsr-edge: {error}", file=sys.stderr)
    return FAILED if report["errors"] else OK


def _report(model: str) -> dict[str, Any]:
    """Version, model, backends and errors, as JSON types; "model" is None if it cannot open."""
    from mmsr_edge.bundle import open_bundle
    from mmsr_edge.runtimes.registry import list_backends, select_backend

    errors: list[str] = []
    bundle: Bundle | None = None
    try:
        bundle = open_bundle(model)
    except MMSRError as error:
        errors.append(str(error))
    try:
        select_backend("auto", bundle)
    except MMSRError as error:
        errors.append(str(error))
    backends = {
        status.name: {"usable": status.usable, "reason": status.reason, "chosen": status.chosen}
        for status in list_backends(bundle)
    }
    return {
        "version": __version__,
        "model": _describe(bundle) if bundle else None,
        "backends": backends,
        "errors": errors,
    }


def _describe(bundle: Bundle) -> dict[str, Any]:
    manifest = bundle.manifest
    components = {
        name: [
            {
                "format": artifact.format,
                "precision": artifact.precision,
                "backends": list(artifact.backends),
                "bytes": sum(file.bytes for file in artifact.files),
                "files": {file.path: file.sha256 for file in artifact.files},
            }
            for artifact in component.artifacts
        ]
        for name, component in manifest.components.items()
    }
    # Two artifacts may share a file.
    files = {
        file.path: file.bytes
        for component in manifest.components.values()
        for artifact in component.artifacts
        for file in artifact.files
    }
    sampler = manifest.sampler
    return {
        "name": manifest.name,
        "version": manifest.version,
        "preset": manifest.preset,
        "folder": str(bundle.root),
        "scale": manifest.scale,
        "tile": manifest.tile.size,
        "steps": sampler.steps,
        "timesteps": sampler.num_train_timesteps,
        "guidance": sampler.guidance,
        "baked_guidance": sampler.baked_guidance,
        "unets": {name: [served[0], served[-1]] for name, served in manifest.unets.items()},
        "licence": manifest.provenance.licence,
        "files": len(files),
        "bytes": sum(files.values()),
        "verified": True,  # otherwise the bundle would not have opened
        "components": components,
    }


def _served(unets: dict[str, list[int]], most: int) -> str:
    """Which UNet serves which numbers of steps, on one line."""
    parts = [f"{first} to {last}: {name}" for name, (first, last) in unets.items()]
    last = max(last for _, last in unets.values())
    if last < most:
        parts.append(f"from {last + 1}: none, the diffusion UNet was left out of this bundle")
    return "; ".join(parts)


def _as_text(report: dict[str, Any]) -> str:
    lines = [f"mmsr-edge {report['version']}"]
    model = report["model"]
    if model:
        guidance = model["guidance"] or "none"
        if model["baked_guidance"] is not None:
            guidance = f"baked in at w = {model['baked_guidance']:g}"
        side = model["tile"]
        lines += [
            "",
            f"model     {model['name']} {model['version']} ({model['licence']})",
            f"folder    {model['folder']}",
            f"files     {model['files']}, {byte_size(model['bytes'])}, SHA-256 verified",
            f"tile      {side}x{side} -> {side * model['scale']}x{side * model['scale']}",
            f"sampler   steps: {model['steps']}, guidance: {guidance}",
            f"steps     {_served(model['unets'], model['timesteps'])}",
            "",
            "components",
        ]
        for name, artifacts in model["components"].items():
            forms = ", ".join(
                f"{form['format']} {form['precision']} "
                f"({', '.join([byte_size(form['bytes']), *form['backends']])})"
                for form in artifacts
            )
            lines.append(f"  {name:<13} {forms}")
    lines += ["", "backends"]
    for name, backend in report["backends"].items():
        state = "chosen by auto" if backend["chosen"] else backend["reason"] or "usable"
        lines.append(f"  {name:<13} {state}")
    return "\n".join(lines)
