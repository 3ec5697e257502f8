"""Types of the public API: mypy finds a mistyped option in a client's program."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

CORRECT = """
from pathlib import Path
from mmsr_edge import Result, UpscaleOptions, Upscaler, list_backends, run_job, Task

upscaler = Upscaler(backend="auto")
result: Result = upscaler.upscale(
    "a.png", prompt="auto", depth=None, temperature={"edges": 2.0}, output=Path("b.png")
)
again: Result = upscaler("a.png", steps=4)
run_job(upscaler, [Task(Path("a.png"), Path("b.png"))], Path("out"), workers=2, scale=2.5)
options = UpscaleOptions(guidance_scale=0.5)
usable: list[str] = [status.name for status in list_backends() if status.usable]
"""

WRONG = {
    'upscaler.upscale("a.png", promt="a wall")': "promt",
    'upscaler("a.png", promt="a wall")': "promt",
    'upscaler.upscale("a.png", steps="four")': "steps",
    'upscaler.upscale("a.png", seed=None)': "seed",
    'run_job(upscaler, [], Path("out"), workrs=2)': "workrs",
    "UpscaleOptions(temprature=1.0)": "temprature",
    'Upscaler(bakend="torch")': "bakend",
}


def findings(code: str, folder: Path) -> list[str]:
    """Errors of `mypy --strict` for `code` as a client's program, a line each."""
    (folder / "client.py").write_text(code)
    environment = {**os.environ, "MYPYPATH": f"{ROOT}{os.pathsep}{ROOT / '.typing'}"}
    command = [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", "client.py"]
    command += ["--config-file", str(ROOT / "pyproject.toml"), "--follow-imports", "silent"]
    result = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode in (0, 1), result.stdout + result.stderr
    return [line for line in result.stdout.splitlines() if ": error: " in line]


def test_a_correct_program_has_no_errors(tmp_path: Path) -> None:
    assert findings(CORRECT, tmp_path) == []


def test_every_mistyped_option_is_found(tmp_path: Path) -> None:
    lines = findings(CORRECT + "\n".join(WRONG), tmp_path)
    first = CORRECT.count("\n") + 1
    for number, (call, name) in enumerate(WRONG.items(), start=first):
        found = [line for line in lines if line.startswith(f"client.py:{number}:")]
        assert found and name in found[0], (call, found)
    assert len({line.split(":")[1] for line in lines}) == len(WRONG)
