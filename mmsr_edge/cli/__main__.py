"""`python -m mmsr_edge.cli` is `mmsr-edge`."""

import sys

from mmsr_edge.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
