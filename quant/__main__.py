"""`python -m quant IN OUT --scheme fp8|int8|nf4|published`: convert a checkpoint once, load it small ever after."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from quant.errors import QuantError
from quant.schemes import SCHEMES, Fp8, Scheme, scheme_named
from quant.select import KEEP, Selection
from quant.storage.files import check_working_folder


def parser() -> argparse.ArgumentParser:
    """The command line."""
    about = "Quantize the linears of a safetensors checkpoint."
    made = argparse.ArgumentParser(prog="python -m quant", description=about)
    made.add_argument("source", metavar="IN", type=Path, help="folder with .safetensors (or .zst) shards, or one file")
    made.add_argument("target", metavar="OUT", type=Path, help="new folder; a conversion that was killed goes on")
    made.add_argument("--scheme", required=True, choices=list(SCHEMES))
    made.add_argument("--granularity", choices=("row", "tensor"), default="row", help="of the fp8 scales")
    made.add_argument("--calibration", type=Path, help="published: recorded activations (quant.Recorder)")
    made.add_argument("--include", default="", help="regular expression: layers to quantize (default: all)")
    made.add_argument("--exclude", default=KEEP, help="regular expression: layers to leave (default: %(default)s)")
    made.add_argument("--all-blocks", action="store_true", help="quantize the first and the last block too")
    made.add_argument("--shard-mb", type=_megabytes, default=2048, help="source MiB per shard: about the peak RAM")
    return made


def _megabytes(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of megabytes")
    return int(text)


def main(arguments: list[str] | None = None) -> int:
    """Run; 0 done, 1 refused with one sentence on stderr, 130 interrupted."""
    options = parser().parse_args(arguments)
    try:
        check_working_folder()  # before torch, which is loaded here
        from quant.calibrate import read_recording
        from quant.folder import convert_folder

        scheme: Scheme = Fp8(options.granularity) if options.scheme == "fp8" else scheme_named(options.scheme)
        selection = Selection(options.include, options.exclude, not options.all_blocks)
        recording = read_recording(options.calibration) if options.calibration else None
        manifest = convert_folder(
            options.source, options.target, scheme, selection,
            recording=recording, shard_bytes=options.shard_mb << 20, say=lambda line: print(line, flush=True),
        )  # fmt: skip
    except QuantError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Stopped; the same command goes on with the shard it was at.", file=sys.stderr)
        return 130
    print(f"{len(manifest.layers)} layers in {scheme.name}, largest error {manifest.worst_error:.3f}: {options.target}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
