"""Write a finished run again in another format, from its latents: 10-bit or lossless video, pictures, animations."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from magi_lite.cli import faults
from magi_lite.errors import InputError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `export`."""
    from magi_lite.video.formats import FORMATS

    parser.add_argument("project", type=Path, metavar="RUN", help="the folder of a run, or the video in it")
    parser.add_argument(
        "--to",
        required=True,
        metavar="FILE_OR_FORMAT",
        help="the file or folder to write, or a format: " + "; ".join(f"{k}: {v.summary}" for k, v in FORMATS.items()),
    )
    parser.add_argument("--format", choices=tuple(FORMATS), help="where the file's ending leaves a choice")
    parser.add_argument("--seconds", metavar="A-B", help="only these, such as 1-2.5; for a single frame: its moment")
    parser.add_argument("--audio", type=Path, metavar="FILE", help="lay the sound of this file under the video")
    parser.add_argument(
        "--clip",
        action="store_true",
        help="put the clip that the run continues in front, with its sound; --audio then begins behind it",
    )
    parser.add_argument("--no-metadata", action="store_true", help="do not write the settings into the file")
    parser.add_argument("--overwrite", action="store_true", help="replace a file that is there")


def run(arguments: argparse.Namespace) -> int:
    """Write the file; prints progress to stderr and the file's name to stdout."""
    from magi_lite.cli.show import show
    from magi_lite.pipeline.export import exporting

    with faults.sentence(arguments.kept, ours=arguments.ours):
        return show(
            exporting(
                arguments.project,
                arguments.to,
                parse_seconds(arguments.seconds),
                format=arguments.format,
                audio=arguments.audio,
                clip=arguments.clip,
                overwrite=arguments.overwrite,
                metadata=False if arguments.no_metadata else None,
            )
        )


def parse_seconds(text: str | None) -> tuple[float, float] | float | None:
    """ "1-2.5" to (1.0, 2.5), "1.5" to 1.5.

    Raises:
        InputError: it is neither.
    """
    if text is None:
        return None
    found = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?)(?:-(\d{1,9}(?:\.\d{1,9})?))?", text.strip(), re.ASCII)
    if found is None:
        raise InputError(f'The seconds "{text[:40]}" cannot be read; write FROM-TO, such as 1-2.5.')
    return float(found[1]) if found[2] is None else (float(found[1]), float(found[2]))
