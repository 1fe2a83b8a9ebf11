"""The command line over the same API as the app. Errors are one sentence; `--debug` shows where they came from."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from pathlib import Path
from typing import NoReturn

from magi_lite import __version__
from magi_lite.cli.show import INTERRUPTED
from magi_lite.cli.terminal import streams
from magi_lite.errors import MagiLiteError, OutputError
from magi_lite.files import check_working_folder

PROGRAM = "magi-lite" if Path(sys.argv[0]).stem == "magi-lite" else "python -m magi_lite"
"""How this command line was called, for its help."""
KEPT = {
    "app": "every finished second is kept, and the queue goes on at the next start",
    "generate": "every finished second is kept",
    "render": "every finished second is kept, and the same command goes on from there",
    "download": "what has come is kept, and the same command goes on from there",
}
"""What Ctrl-C leaves behind, by command."""


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one sentence, as all others."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}; see {self.prog} --help.\n")


def build_parser() -> argparse.ArgumentParser:
    """All commands with their options; the modules behind them are imported only when run."""
    from magi_lite.cli import app, download, export, generate, info, plan, render

    parser = Parser(
        prog=PROGRAM, description="MAGI-1 video, second by second, on one graphics card."
    )
    parser.add_argument("--version", action="version", version=f"magi_lite {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, module, summary in (
        ("app", app, "serve the desktop app"),
        ("generate", generate, "make a video"),
        ("render", render, "make the videos of many timelines, here or on a Ray cluster"),
        ("plan", plan, "show what a video would need in memory and time, on any card"),
        ("info", info, "show the settings inside a video"),
        ("export", export, "write a finished video in another format"),
        ("download", download, "fetch model weights"),
    ):
        command = commands.add_parser(name, help=summary, description=module.__doc__)
        module.add_arguments(command)
        command.add_argument("--debug", action="store_true", help="show where an error came from")
        command.set_defaults(run=module.run, kept=KEPT.get(name, "nothing was changed"), ours=False)
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit code (0 done, 2 bad input, 3 weights, 4 output, 5 memory, 130 interrupted).

    Args:
        arguments: None: the program's own, whose process is ours alone; commands that map weights then mind `faults`.
    """
    try:
        with streams():
            parsed = build_parser().parse_args(arguments)
            parsed.ours = arguments is None
            return _run(parsed)
    except OutputError as error:  # of stdout itself, at the end
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:  # whoever read what we print has gone, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _run(parsed: argparse.Namespace) -> int:
    from magi_lite.cli.reading import check_paths

    try:
        check_working_folder()
        check_paths(parsed)
        return parsed.run(parsed)
    except MagiLiteError as error:
        if parsed.debug:
            traceback.print_exc()
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"Interrupted; {parsed.kept}.", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        raise
    except Exception as error:
        if parsed.debug:
            raise
        print(f"error: unexpected {type(error).__name__}: {error} (--debug shows where)", file=sys.stderr)
        return 1
