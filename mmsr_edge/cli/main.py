"""The program `mmsr-edge`: its commands and exit codes."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from mmsr_edge import __version__
from mmsr_edge.cli.bench import add_bench
from mmsr_edge.cli.info import add_info
from mmsr_edge.cli.output import CANCELLED, FAILED, USAGE
from mmsr_edge.cli.upscale import add_upscale
from mmsr_edge.errors import Cancelled, MMSRError, OptionError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


__all__ = ["main"]

_EPILOG = """\
exit codes:
  0    done
  1    failed, or one of several files failed; stderr gives the reason
  2    wrong usage: an unknown option, or a value outside its range
  130  cancelled with Ctrl-C; no unfinished file is left behind
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    Args:
        argv: arguments without the program's name; None: `sys.argv[1:]`.
    """
    arguments = _parser().parse_args(argv)
    run: Callable[[argparse.Namespace], int] = arguments.run
    try:
        return run(arguments)
    except (Cancelled, KeyboardInterrupt):
        print("mmsr-edge: cancelled", file=sys.stderr)
        return CANCELLED
    except MMSRError as error:
        print(f"mmsr-edge: {error}", file=sys.stderr)
        return USAGE if isinstance(error, OptionError) else FAILED


def _parser() -> argparse.ArgumentParser:
    form: dict[str, Any] = {
        "formatter_class": argparse.RawDescriptionHelpFormatter,
        "epilog": _EPILOG,
    }
    parser = argparse.ArgumentParser(
        prog="mmsr-edge", description="Multimodal diffusion super-resolution on the device.", **form
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    add_upscale(commands.add_parser("upscale", help="upscale one or more pictures", **form))
    add_info(commands.add_parser("info", help="show the model and the backends", **form))
    add_bench(commands.add_parser("bench", help="measure the speed on this machine", **form))
    return parser
