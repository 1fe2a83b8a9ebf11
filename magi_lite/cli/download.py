"""Fetch the weights of a published model into a folder; interrupted downloads go on where they stopped."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from magi_lite.cli import faults

SPECIAL_TOKENS = "special-tokens"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `download`."""
    from magi_lite.models import MODELS

    parser.add_argument(
        "model",
        nargs="?",
        default="4.5B-distill-fp8",
        choices=[*sorted(MODELS), SPECIAL_TOKENS],
        help=f"which model; {SPECIAL_TOKENS}: only the small file that a download by other tools does not bring",
    )
    parser.add_argument("--models", type=Path, help="the folder to put it in (default: models)")
    parser.add_argument("--special-tokens", type=Path, help="a local special_tokens.npz to use")
    parser.add_argument("--offline", action="store_true", help="only say which files are missing")
    parser.add_argument("--verify", action="store_true", help="check the files that are there against their hashes")


def run(arguments: argparse.Namespace) -> int:
    """Download with a progress bar; prints the folder of the transformer's weights."""
    from tqdm import tqdm

    from magi_lite.weights.hub import download, download_special_tokens

    if arguments.model == SPECIAL_TOKENS and not arguments.offline:
        print(download_special_tokens(arguments.models))
        return 0
    with (
        faults.sentence(arguments.kept, ours=arguments.ours),  # pickled weights are mapped while they are converted
        tqdm(total=0, unit="B", unit_scale=True, unit_divisor=1000, file=sys.stderr) as bar,
    ):

        def progress(done: int, total: int, file: str) -> None:
            bar.total, bar.n = total, done
            bar.set_description_str(Path(file).name, refresh=True)

        files = download(
            arguments.model,
            arguments.models,
            progress=progress,
            offline=arguments.offline,
            special_tokens=arguments.special_tokens,
            verify=arguments.verify,
        )
    print(files.weights)
    return 0
