"""Upscale a folder of photos. Ctrl-C stops the job; the same command resumes it.

python examples/batch_job.py photos out
"""

from __future__ import annotations

import signal
import sys
import threading
from pathlib import Path

from mmsr_edge import Upscaler
from mmsr_edge.jobs import Outcome, find_tasks, run_job


def main() -> int:
    """Upscale the photos in the first argument's folder into the second."""
    source, output = sys.argv[1:3]
    cancel = threading.Event()
    signal.signal(signal.SIGINT, lambda *_: cancel.set())

    def finished(outcome: Outcome) -> None:
        print(f"{outcome.source}: {outcome.status} {outcome.error or ''}".rstrip(), flush=True)

    tasks = find_tasks([source], Path(output), recursive=True, suffix=".png")
    report = run_job(Upscaler(), tasks, Path(output), cancel=cancel, finished=finished)
    return 1 if report.count("failed") else 0


if __name__ == "__main__":
    sys.exit(main())
