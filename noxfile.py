"""The checks: `pip install nox && nox` runs all three sessions.

lint    ruff, its formatter, and mypy in strict mode.
device  builds the wheel, installs it without torch, and tests what was installed.
host    the networks, training and conversion, and the guards of the layout; needs torch.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import nox

ROOT = Path(__file__).resolve().parent

# Always named before anything that depends on it: left to the resolver, torch may become the
# newest CUDA build, gigabytes of it. A local CPU wheel among pip's find-links takes precedence.
TORCH = "torch==2.13.0"

DEVICE_TESTS = ["hypothesis", "onnx", "pytest", "scikit-image", "scikit-learn"]

WHAT_IS_TESTED = """
import importlib.util, pathlib, sys
import mmsr_edge, mmsr_edge.runtimes
assert importlib.util.find_spec("torch") is None, "torch is installed beside the wheel"
for module in (mmsr_edge, mmsr_edge.runtimes):
    assert pathlib.Path(module.__file__).is_relative_to(sys.prefix), module.__file__
print("testing", mmsr_edge.__file__, mmsr_edge.__version__)
"""

nox.options.sessions = ["lint", "device", "host"]


@nox.session
def lint(session: nox.Session) -> None:
    """Style and types."""
    session.install("mypy", "numpy", "pillow", "ruff")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("mypy")


@nox.session
def device(session: nox.Session) -> None:
    """The wheel, as a device installs it."""
    out = Path(session.create_tmp()).resolve() / "dist"
    shutil.rmtree(out, ignore_errors=True)
    session.install("build", "setuptools>=77")
    # By way of the sdist, so that nothing left over in the checkout gets in.
    session.run("python", "-m", "build", "--no-isolation", "--outdir", str(out), str(ROOT))
    (wheel,) = out.glob("*.whl")
    size = wheel.stat().st_size / 1e6
    session.log(f"{wheel.name}: {size:.1f} MB")
    if size > 80:
        session.error(f"the wheel has {size:.1f} MB; 80 MB is the limit")
    session.install(f"{wheel}[onnx,openvino]", *DEVICE_TESTS)
    # Again by itself: in a reused environment, pip takes the same version for the same wheel.
    session.install("--force-reinstall", "--no-deps", str(wheel))
    session.chdir(out)  # from the checkout, `import mmsr_edge` would find the checkout
    session.run("python", "-c", WHAT_IS_TESTED)
    session.run("python", "-m", "pytest", str(ROOT / "tests" / "device"), *session.posargs)


@nox.session
def host(session: nox.Session) -> None:
    """What needs torch, and the layout."""
    session.install(TORCH)
    session.install("-e", ".[convert,train,dev]")
    targets = ["tests/host", "tests/test_layout.py"]
    session.run("python", "-m", "pytest", *targets, *session.posargs)
