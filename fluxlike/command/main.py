"""``python -m fluxlike COMMAND``: the arguments, the exit code, and problems told in a line."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Sequence

from fluxlike.command import info, predict, summary, train
from fluxlike.command.printing import ReaderLeft, one_line
from fluxlike.command.ranks import tell

__all__ = ["main"]

#: Each adds its arguments by ``add(commands, common)`` and sets ``run`` to a function of what was parsed.
COMMANDS = (info, summary, train, predict)

_EPILOG = """\
exit codes:
  0    fine
  1    a problem, told in a line on standard error; --traceback shows where it came from
  2    arguments that can't be understood
  130  interrupted

examples:
  python -m fluxlike info
  python -m fluxlike summary model.safetensors --depth 2
  python -m fluxlike train run.toml
  torchrun --nproc-per-node 4 -m fluxlike train run.toml
  python -m fluxlike predict run/model.safetensors pictures --top 3
  python -m fluxlike COMMAND --help
"""

#: Errors whose message says what to do; of others the type is told too.
_TOLD = (ValueError, TypeError, OSError, ImportError, MemoryError)


def main(arguments: Sequence[str] | None = None, /) -> int:
    """Run one command.

    Args:
        arguments: what stands behind ``python -m fluxlike``. (default: the arguments of the process)

    Returns:
        The exit code: 0, 1 for a problem, 130 where it was interrupted.

    Raises:
        SystemExit: for ``--help``, and with code 2 for arguments that can't be understood.

    Example:
        >>> main(["summary", "nowhere.safetensors"])
        1
    """
    given = _parser().parse_args(arguments)
    try:
        given.run(given)
    except ReaderLeft:  # as `head` does
        # Python writes what is left at the end, and would complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt as stop:
        tell(stop)
        print(str(stop) or "interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        tell(error)
        if getattr(given, "traceback", False):
            traceback.print_exc()
        else:
            print(f"fluxlike {given.command}: {_told(error)}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--traceback",
        action="store_true",
        default=argparse.SUPPRESS,
        help="show where in the code a problem came from",
    )
    parser = argparse.ArgumentParser(
        prog="python -m fluxlike",
        description="fluxlike: models as plain trees of parameters, for PyTorch.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[common],
        allow_abbrev=False,
    )
    version = f"fluxlike {info.package_version()}"
    parser.add_argument("--version", action="version", version=version, help="show the version")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, title="commands")
    for command in COMMANDS:
        command.add(commands, common)
    return parser


def _told(error: Exception) -> str:
    text = one_line(str(error))
    if isinstance(error, _TOLD) and text:
        return text
    return f"{type(error).__name__}: {text}; --traceback shows where it came from"
