"""Show the settings that a video of ours carries."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from magi_lite.errors import MediaError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `info`."""
    parser.add_argument("file", type=Path, help="an MP4 made by magi_lite")


def run(arguments: argparse.Namespace) -> int:
    """Print the settings as JSON."""
    from magi_lite.video.writer import read_settings

    settings = read_settings(arguments.file)
    if settings is None:
        raise MediaError(f"{arguments.file} carries no settings; only videos made by magi_lite with metadata on do.")
    text = json.dumps(settings, indent=2, ensure_ascii=False)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:  # JSON has an escape for every character
        text = json.dumps(settings, indent=2)
    print(text)
    return 0
