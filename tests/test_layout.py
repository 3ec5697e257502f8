"""Guards of the layout: rules for the tree as a whole.

Each guard is a function that lists violations. One test applies it to the tree; others plant
violations and check that they are found.
"""

from __future__ import annotations

import importlib.util
import json
import os
import pkgutil
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from importlib import metadata
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]

MAPPED = ("calib", "converters", "runtimes")
"""Top-level folders that are installed inside mmsr_edge."""

TORCH_SIDE = ("calib/record.py", "converters", "mmsr_edge/models", "mmsr_edge/training")
"""Files and folders that may import torch."""

LIBRARIES = (
    "coremltools",
    "diffusers",
    "nncf",
    "onnx",
    "onnxruntime",
    "openvino",
    "optimum",
    "safetensors",
    "torch",
    "transformers",
)
"""Libraries that the device side must not import."""


def package_files(root: Path) -> list[Path]:
    """The Python files of all packages, relative to `root`."""
    folders = [root / name for name in ("mmsr_edge", *MAPPED)]
    return sorted(path.relative_to(root) for folder in folders for path in folder.rglob("*.py"))


def installed_path(path: Path) -> Path:
    """Path of a file of the tree after installation."""
    return Path("mmsr_edge", path) if path.parts[0] in MAPPED else path


def run_python(
    code: str, *options: str, cwd: Path | None = None, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter, by default outside the checkout."""
    command = [sys.executable, *options, "-c", code]
    cwd = cwd or Path(sys.prefix)
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)


# --- The wheel holds every package, and nothing beside mmsr_edge --------------------------------


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of all that goes into the wheel, to build and to damage."""
    copy = tmp_path / "tree"
    copy.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, copy)
    for name in ("mmsr_edge", *MAPPED):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    return copy


def build_wheel(root: Path) -> set[str]:
    """Build the tree at `root` and return the names in its wheel."""
    code = "from setuptools import build_meta; print(build_meta.build_wheel('.'))"
    result = run_python(code, cwd=root)
    assert result.returncode == 0, result.stderr
    with zipfile.ZipFile(root / result.stdout.splitlines()[-1]) as wheel:
        return set(wheel.namelist())


def missing_from_wheel(root: Path, names: set[str]) -> set[str]:
    """Python files and data of the tree that a wheel of it lacks."""
    data = [path for path in (root / "mmsr_edge" / "bundles").rglob("*") if path.is_file()]
    files = package_files(root) + [path.relative_to(root) for path in data]
    return {installed_path(path).as_posix() for path in files} - names


def test_every_package_folder_is_in_the_wheel(tree: Path) -> None:
    folder = tree / "mmsr_edge" / "bundles" / "probe" / "unet.mlpackage" / "Data"
    folder.mkdir(parents=True)
    (folder / "weights").write_bytes(b"w")
    names = build_wheel(tree)
    assert missing_from_wheel(tree, names) == set()
    assert "mmsr_edge/bundles/probe/unet.mlpackage/Data/weights" in names
    assert "mmsr_edge/py.typed" in names
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
    assert {name.split("/")[0].partition("-")[0] for name in names} == {"mmsr_edge"}


def test_a_package_folder_left_out_is_found(tree: Path) -> None:
    shutil.rmtree(tree / "mmsr_edge" / "bundles")
    for folder in ("mmsr_edge/planted", "runtimes/planted"):
        (tree / folder).mkdir()
        (tree / folder / "__init__.py").touch()
    expected = {"mmsr_edge/planted/__init__.py", "mmsr_edge/runtimes/planted/__init__.py"}
    assert missing_from_wheel(tree, build_wheel(tree)) == expected


def test_metadata_of_the_distribution() -> None:
    about = metadata.metadata("mmsr-edge")
    extras = {"onnx", "openvino", "coreml", "torch", "convert", "train", "web", "peers"}
    extras |= {"dev", "docs", "lint"}
    assert set(about.get_all("Provides-Extra") or ()) == extras
    assert set(about["Requires-Python"].split(",")) == {">=3.10", "<3.14"}
    required = [r for r in metadata.requires("mmsr-edge") or () if "extra ==" not in r]
    assert {r.partition(">")[0] for r in required} == {"numpy", "pillow", "tqdm"}


# --- No module shadows a library ----------------------------------------------------------------


def shadowing(root: Path) -> set[str]:
    """Files and folders that hide a library when a script beside them is run.

    A script's own folder is first on sys.path: beside `converters/onnx.py`, `import onnx` finds
    that file.
    """
    site = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    taken = {module.name for module in pkgutil.iter_modules(site)} | set(LIBRARIES)
    taken = (taken | sys.stdlib_module_names) - {"mmsr_edge", "__init__", "__main__"}
    scripts = [path for name in ("examples", "benchmarks") for path in (root / name).rglob("*.py")]
    found = set()
    for path in package_files(root) + [path.relative_to(root) for path in scripts]:
        beside = {path, *(parent for parent in path.parents if len(parent.parts) > 1)}
        found |= {entry.as_posix() for entry in beside if entry.stem in taken}
    return found


def test_no_module_shadows_a_library() -> None:
    assert shadowing(ROOT) == set()


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("converters/onnx.py", "converters/onnx.py"),  # an installed library
        ("runtimes/select.py", "runtimes/select.py"),  # the standard library; breaks subprocess
        ("mmsr_edge/training/logging.py", "mmsr_edge/training/logging.py"),
        ("runtimes/openvino/session.py", "runtimes/openvino"),
        ("examples/numpy.py", "examples/numpy.py"),
    ],
)
def test_a_module_that_shadows_is_found(path: str, found: str, tmp_path: Path) -> None:
    (tmp_path / path).parent.mkdir(parents=True)
    (tmp_path / path).touch()
    assert shadowing(tmp_path) == {found}


def test_a_script_beside_a_shadow_breaks(tmp_path: Path) -> None:
    # The failure that the guard prevents, with the standard library's `select`.
    (tmp_path / "select.py").touch()
    (tmp_path / "script.py").write_text(
        "import subprocess; subprocess.run(['true'], capture_output=True)"
    )
    command = [sys.executable, str(tmp_path / "script.py")]
    assert subprocess.run(command, capture_output=True, check=False).returncode != 0


# --- The device side needs no torch, and no runtime before it is used ---------------------------


def device_modules() -> list[str]:
    """Import names of all device-side modules."""
    paths = [p for p in package_files(ROOT) if not p.as_posix().startswith(TORCH_SIDE)]
    modules = [".".join(installed_path(path).with_suffix("").parts) for path in paths]
    return [module.removesuffix(".__init__") for module in modules]


def needing_a_library(modules: list[str], folder: Path | None = None) -> dict[str, str]:
    """Modules that cannot be imported without `LIBRARIES`, and the errors."""
    code = f"""
import importlib, json, sys
sys.path[:0] = {[str(folder)] if folder else []}
sys.modules.update(dict.fromkeys({LIBRARIES}))
failed = {{}}
for name in {modules}:
    try:
        importlib.import_module(name)
    except ImportError as error:
        failed[name] = str(error)
print(json.dumps(failed))
"""
    result = run_python(code)
    assert result.returncode == 0, result.stderr
    failed: dict[str, str] = json.loads(result.stdout)
    return failed


def test_the_device_side_needs_no_torch() -> None:
    modules = device_modules()
    assert {"mmsr_edge", "mmsr_edge.bundle", "mmsr_edge.runtimes.pytorch"} <= set(modules)
    assert needing_a_library(modules) == {}


def test_a_module_that_reaches_torch_is_found(tmp_path: Path) -> None:
    (tmp_path / "planted_direct.py").write_text("from torch import nn")
    (tmp_path / "planted_indirect.py").write_text("import mmsr_edge.models.presets, planted_direct")
    (tmp_path / "planted_runtime.py").write_text("import openvino")
    (tmp_path / "planted_lazy.py").write_text("def f():\n    import torch")
    planted = ["planted_direct", "planted_indirect", "planted_runtime", "planted_lazy"]
    failed = needing_a_library(planted, tmp_path)
    assert set(failed) == {"planted_direct", "planted_indirect", "planted_runtime"}
    assert "torch" in failed["planted_indirect"]


# --- Imports use the long names -----------------------------------------------------------------


def ruff_rules(name: str, code: str) -> set[str]:
    """The import rules that `code` would break if it were the file `name` of the tree."""
    command = [sys.executable, "-m", "ruff", "check", "--no-cache", "--select", "TID"]
    command += ["--output-format", "json", "--stdin-filename", str(ROOT / name), "-"]
    result = subprocess.run(
        command, cwd=ROOT, input=code, capture_output=True, text=True, check=False
    )
    return {finding["code"] for finding in json.loads(result.stdout)}


def test_the_tree_keeps_the_import_rules() -> None:
    command = [sys.executable, "-m", "ruff", "check", "--no-cache", "--select", "TID", "."]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize(
    ("name", "code", "rules"),
    [
        ("mmsr_edge/planted.py", "import runtimes", {"TID251"}),
        ("mmsr_edge/planted.py", "import runtimes.base", {"TID251"}),
        ("mmsr_edge/planted.py", "from runtimes import base", {"TID251"}),
        ("converters/planted.py", "from converters.parity import psnr", {"TID251"}),
        ("tests/host/planted.py", "import calib", {"TID251"}),
        ("runtimes/planted.py", "from . import base", {"TID251", "TID252"}),
        ("runtimes/planted.py", "import mmsr_edge.runtimes.base", set()),
        ("mmsr_edge/planted.py", "import torch", {"TID253"}),
        ("mmsr_edge/modalities/planted.py", "from torch import nn", {"TID253"}),
        ("runtimes/pytorch.py", "import torch", {"TID253"}),
        ("calib/reader.py", "import torch", {"TID253"}),
        ("mmsr_edge/planted.py", "import openvino", {"TID253"}),
        ("runtimes/planted.py", "def f():\n    import torch", set()),
        ("mmsr_edge/models/planted.py", "import torch", set()),
        ("mmsr_edge/training/planted.py", "import torch", set()),
        ("converters/planted.py", "import torch", set()),
        ("calib/record.py", "import torch", set()),
    ],
)
def test_broken_import_rules_are_found(name: str, code: str, rules: set[str]) -> None:
    assert ruff_rules(name, code + "\n") == rules


# --- The public names ---------------------------------------------------------------------------


def test_importing_loads_no_library() -> None:
    code = "import json, sys; import mmsr_edge; print(json.dumps(sorted(sys.modules)))"
    result = run_python(code)
    assert result.returncode == 0, result.stderr
    assert set(json.loads(result.stdout)).isdisjoint({*LIBRARIES, "numpy", "PIL", "tqdm"})


@pytest.fixture(scope="module")
def house_rules() -> ModuleType:
    """The module of rules that the lint session runs."""
    spec = importlib.util.spec_from_file_location("house_rules", ROOT / ".ci" / "house_rules.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_house_rules_are_kept(house_rules: ModuleType) -> None:
    assert house_rules.violations(ROOT, timed=False) == []


def test_a_broken_house_rule_is_found(house_rules: ModuleType, tmp_path: Path) -> None:
    package = tmp_path / "mmsr_edge"
    package.mkdir()
    (package / "__init__.py").write_text("import time, tqdm; time.sleep(0.2)\n")
    (package / "planted.py").write_text("\n" * (house_rules.MAX_LINES + 1))
    long, slow, heavy = house_rules.violations(tmp_path)
    assert long.startswith(f"mmsr_edge/planted.py has {house_rules.MAX_LINES + 1} lines")
    assert "import mmsr_edge takes 0.2" in slow
    assert "import mmsr_edge imports tqdm" in heavy


def test_every_public_name_is_there() -> None:
    import mmsr_edge

    assert set(dir(mmsr_edge)) == set(mmsr_edge.__all__)
    for name in mmsr_edge.__all__:
        assert getattr(mmsr_edge, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Downscaler'"):
        mmsr_edge.Downscaler  # noqa: B018


# --- It imports where it stands -----------------------------------------------------------------

IN_PLACE = (
    ["-c", "from mmsr_edge import Upscaler; print(Upscaler.__name__)"],
    ["-m", "mmsr_edge", "--version"],
)


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Python of a fresh virtual environment with this one's libraries, but without the package.

    A folder in a .pth file is searched for modules, but its own .pth files, which make an editable
    installation, are not read. Nothing is downloaded.
    """
    folder = tmp_path_factory.mktemp("fresh") / "venv"
    venv.create(folder, with_pip=True)
    scripts = folder / ("Scripts" if os.name == "nt" else "bin")
    python = scripts / "python"
    site = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    # The setuptools that Python 3.11 installs is too old, and would be found first.
    command = [python, "-m", "pip", "uninstall", "--yes", "--quiet", "setuptools"]
    subprocess.run(command, check=True, capture_output=True)
    (Path(site) / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def in_place(python: Path, root: Path) -> list[str]:
    """Output of the two commands of `IN_PLACE` in the folder `root`."""
    outputs = []
    for command in IN_PLACE:
        result = subprocess.run(
            [python, *command], cwd=root, capture_output=True, text=True, check=False
        )
        outputs.append(result.stdout.strip() or result.stderr.strip().splitlines()[-1])
    return outputs


WORKS = ["Upscaler", f"mmsr-edge {metadata.version('mmsr-edge')}"]


@pytest.mark.parametrize("editable", [False, True], ids=["plain", "editable"])
def test_it_imports_in_its_own_folder(environment: Path, tree: Path, editable: bool) -> None:
    """In the checkout and elsewhere, with the package installed as by the README."""
    install = [environment, "-m", "pip", "install", "--no-deps", "--no-build-isolation"]
    install += ["--no-index", "--quiet", *(["--editable"] if editable else []), "."]
    subprocess.run(install, cwd=tree, check=True)
    try:
        assert in_place(environment, tree) == WORKS
        assert in_place(environment, environment.parent) == WORKS
    finally:
        uninstall = [environment, "-m", "pip", "uninstall", "--yes", "--quiet", "mmsr-edge"]
        subprocess.run(uninstall, check=True)


def test_it_imports_in_a_checkout_that_is_not_installed(environment: Path, tree: Path) -> None:
    assert in_place(environment, tree) == WORKS
    # The three folders are found, and no other.
    (tree / "planted").mkdir()
    (tree / "planted" / "__init__.py").touch()
    code = "import mmsr_edge.converters, mmsr_edge.calib; import mmsr_edge.planted"
    result = subprocess.run(
        [environment, "-c", code], cwd=tree, capture_output=True, text=True, check=False
    )
    assert "No module named 'mmsr_edge.planted'" in result.stderr


def test_a_checkout_without_a_folder_names_it(environment: Path, tree: Path) -> None:
    shutil.rmtree(tree / "runtimes")
    for line in in_place(environment, tree):
        assert "runtimes must be beside it. Run `pip install .`" in line


def test_static_checkers_find_the_mapped_folders() -> None:
    links = {path.name: path for path in (ROOT / ".typing" / "mmsr_edge").iterdir()}
    assert set(links) == {"__init__.py", *MAPPED}
    if not all(link.is_symlink() for link in links.values()):
        pytest.skip("this checkout was made without symbolic links")
    for name, link in links.items():
        assert link.resolve() == ROOT / ("mmsr_edge/__init__.py" if name == "__init__.py" else name)
