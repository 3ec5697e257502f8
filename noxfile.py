"""The checks: `pip install nox && python -m nox` runs lint, device, host and docs.

lint    ruff, its formatter, mypy in strict mode, and the house rules.
device  builds the wheel, installs it without torch, and tests what was installed.
host    the networks, training and conversion, and the guards of the layout; needs torch.
docs    builds the documentation; a broken link or reference fails.
oldest  as device, on the lowest versions that pyproject.toml declares. By hand: `nox -s oldest`.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import nox
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent
PROJECT = nox.project.load_toml(ROOT / "pyproject.toml")["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]

# Always named before anything that depends on it: left to the resolver, torch may become the
# newest CUDA build, gigabytes of it. A local CPU wheel among pip's find-links takes precedence.
TORCH = "torch==2.13.0"

DEVICE_TESTS = ["hypothesis", "onnx", "pytest", "pytest-cov", "scikit-image", "scikit-learn"]

# Packages that the host's tests reach, and the device's coverage need not list.
HOST_SIDE = ("calib", "converters", "models", "training")

WHAT_IS_TESTED = """
import importlib.util, pathlib, sys
import mmsr_edge, mmsr_edge.runtimes
assert importlib.util.find_spec("torch") is None, "torch is installed beside the wheel"
for module in (mmsr_edge, mmsr_edge.runtimes):
    assert pathlib.Path(module.__file__).is_relative_to(sys.prefix), module.__file__
print("testing", mmsr_edge.__file__, mmsr_edge.__version__)
"""

nox.options.sessions = ["lint", "device", "host", "docs"]


@nox.session
def lint(session: nox.Session) -> None:
    """Style, types, the length of modules and the time of an import."""
    session.install(*EXTRAS["lint"], "numpy", "pillow")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("mypy")
    scripts = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("examples/*.py"))
    scripts += sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("benchmarks/*.py"))
    session.run("mypy", *scripts, env={"MYPYPATH": "benchmarks"})  # they import `lib` beside them
    session.run("mypy", ".ci/house_rules.py")
    session.run("python", ".ci/house_rules.py")


@nox.session
def device(session: nox.Session) -> None:
    """The wheel, as a device installs it."""
    wheel = _build_wheel(session)
    session.install(f"{wheel}[onnx,openvino]", *DEVICE_TESTS)
    # Again by itself: in a reused environment, pip takes the same version for the same wheel.
    session.install("--force-reinstall", "--no-deps", str(wheel))
    settings = ROOT / "pyproject.toml"
    _test_wheel(session, wheel, "--cov=mmsr_edge", "--cov-report=", f"--cov-config={settings}")
    data = wheel.with_name(".coverage")
    omit = ",".join(f"*/mmsr_edge/{package}/*" for package in HOST_SIDE)
    session.chdir(ROOT / session.virtualenv.location)  # files are named from here
    report = ["coverage", "report", f"--rcfile={settings}", f"--data-file={data}"]
    session.run(*report, f"--omit={omit}")


@nox.session
def host(session: nox.Session) -> None:
    """What needs torch, the layout and the documents."""
    session.install(TORCH)
    session.install("-e", ".[convert,train,dev]")
    targets = ["tests/host", *sorted(str(path) for path in ROOT.glob("tests/test_*.py"))]
    session.run("python", "-m", "pytest", "--durations=15", *targets, *session.posargs)


@nox.session
def docs(session: nox.Session) -> None:
    """The documentation, from the installed package; it is read, not imported."""
    session.install(".", *EXTRAS["docs"])
    site = Path(session.create_tmp()).resolve() / "site"
    # Not `python -m mkdocs`, which would look into the checkout before the installed package.
    quiet = {"NO_MKDOCS_2_WARNING": "1"}  # advice on what comes after mkdocs-material
    session.run("mkdocs", "build", "--strict", "--quiet", "--site-dir", str(site), env=quiet)
    session.log(f"{sum(1 for _ in site.rglob('*.html'))} pages in {site}")


@nox.session
def oldest(session: nox.Session) -> None:
    """The wheel on the lowest versions that pyproject.toml declares."""
    wheel = _build_wheel(session)
    declared = PROJECT["dependencies"] + EXTRAS["onnx"] + EXTRAS["openvino"]
    lowest = [_lowest(Requirement(text)) for text in declared]
    session.install(f"{wheel}[onnx,openvino]", *lowest, *DEVICE_TESTS)
    session.install("--force-reinstall", "--no-deps", str(wheel))
    session.run("python", "-m", "pip", "list")
    _test_wheel(session, wheel)


def _build_wheel(session: nox.Session) -> Path:
    """Build the wheel into the session's temporary folder, and check its size."""
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
    return wheel


def _test_wheel(session: nox.Session, wheel: Path, *options: str) -> None:
    """Run the device's tests on the installed wheel."""
    session.chdir(wheel.parent)  # from the checkout, `import mmsr_edge` would find the checkout
    session.run("python", "-c", WHAT_IS_TESTED)
    session.run("python", "-m", "pytest", str(ROOT / "tests/device"), *options, *session.posargs)


def _lowest(requirement: Requirement) -> str:
    """`name==version` for the lower bound of `name>=version`."""
    (bound,) = (spec.version for spec in requirement.specifier if spec.operator == ">=")
    return f"{requirement.name}=={bound}"
