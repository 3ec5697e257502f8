"""House rules that neither ruff nor mypy knows: modules are short, and the import is quick.

`python .ci/house_rules.py` checks the checkout it is in; `nox -s lint` runs it.
`tests/test_layout.py` plants violations and sees that they are found.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

PACKAGES = ("mmsr_edge", "calib", "converters", "runtimes")
"""Folders of the package."""

MAX_LINES = 450
"""Most lines of a module."""

MAX_SECONDS = 0.15
"""Longest time that `import mmsr_edge` may add to Python's start."""

REPEATS = 5
"""Fresh interpreters that are asked; the quickest counts, for a busy machine only delays."""

HEAVY = frozenset(
    ["PIL", "coremltools", "numpy", "onnx", "onnxruntime", "openvino", "torch", "tqdm"]
)
"""Libraries that `import mmsr_edge` leaves to the first use."""

TIMED = """
import json, sys, time
start = time.perf_counter()
{code}
print(json.dumps([time.perf_counter() - start, sorted(sys.modules)]))
"""


def long_modules(root: Path, most: int = MAX_LINES) -> dict[str, int]:
    """Python files of the package folders below `root` with more than `most` lines.

    Returns:
        The number of lines, by path relative to `root`.
    """
    found = {}
    for path in sorted(path for name in PACKAGES for path in (root / name).rglob("*.py")):
        lines = len(path.read_text(encoding="utf-8").splitlines())
        if lines > most:
            found[path.relative_to(root).as_posix()] = lines
    return found


def import_cost(code: str = "import mmsr_edge", root: Path = ROOT) -> tuple[float, set[str]]:
    """Run `code` in fresh interpreters that start in the folder `root`.

    Returns:
        Seconds of the quickest run, and the members of `HEAVY` that it imported.

    Raises:
        RuntimeError: `code` fails.
    """
    seconds, loaded = float("inf"), set[str]()
    for _ in range(REPEATS):
        command = [sys.executable, "-c", TIMED.format(code=code)]
        result = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
        if result.returncode:
            raise RuntimeError(f"{code!r} fails in {str(root)!r}:\n{result.stderr}")
        took, modules = json.loads(result.stdout.splitlines()[-1])
        seconds, loaded = min(seconds, took), loaded | HEAVY.intersection(modules)
    return seconds, loaded


def violations(root: Path, *, timed: bool = True) -> list[str]:
    """A sentence for each rule that the tree at `root` breaks."""
    found = [
        f"{path} has {lines} lines, over the limit of {MAX_LINES}; take a noun out of it"
        for path, lines in long_modules(root).items()
    ]
    if timed:
        seconds, loaded = import_cost(root=root)
        if seconds > MAX_SECONDS:
            found.append(f"import mmsr_edge takes {seconds:.2f} s, over {MAX_SECONDS} s")
        if loaded:
            names = ", ".join(sorted(loaded))
            found.append(f"import mmsr_edge imports {names}; import them where they are used")
    return found


def main() -> int:
    """Print what is wrong, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--untimed", action="store_true", help="leave out the time of the import")
    found = violations(ROOT, timed=not parser.parse_args().untimed)
    print("\n".join(found) or "the house rules are kept")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
