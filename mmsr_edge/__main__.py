"""Entry point of `python -m mmsr_edge`, which is the command `mmsr-edge`."""

import sys

from mmsr_edge.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
