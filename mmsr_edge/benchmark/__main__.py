"""The process that `mmsr_edge.benchmark.measure` starts. Users call `mmsr-edge bench`."""

from __future__ import annotations

import sys

from mmsr_edge.benchmark.measure import main

if __name__ == "__main__":
    main(sys.argv[1:])
