"""How well the demo model follows its prompts, measured against the true state of the world.

    python -m training.shipped.evaluate PART ... --samples 64 [--model demo] [--out benchmarks/demo_quality.json]

Every part stands by itself and is added to the results, with a contact sheet beside them; every number comes with its
standard error and its count. Real loader, real sampler, seeds never trained on.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path

from magi_lite.errors import MagiLiteError
from training.evaluate import evaluate as run_parts
from training.shipped.quality import PARTS, Figures
from training.studio import Studio

RESULTS = Path(__file__).parents[2] / "benchmarks" / "demo_quality.json"


def evaluate(studio: Studio, parts: Iterable[str], samples: int, out: Path, label: str = "") -> Figures:
    """As `training.evaluate.evaluate`, with the parts of the flat world."""
    return run_parts(studio, parts, samples, out, label, PARTS, "")


def main() -> int:
    """Parse the command line and run parts; user's mistakes are one sentence."""
    parser = argparse.ArgumentParser(
        prog="python -m training.shipped.evaluate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("parts", nargs="+", choices=tuple(PARTS))
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--model", default="demo", help="demo, or a model folder")
    parser.add_argument("--label", default="", help="kept behind the parts' names, e.g. undistilled")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    from magi_lite.weights.opening import open_model

    try:
        studio = Studio(open_model(arguments.model))
        results = evaluate(studio, arguments.parts, arguments.samples, arguments.out, arguments.label)
    except MagiLiteError as error:
        print(error)
        return error.exit_code
    for name in arguments.parts:
        key = f"{name}_{arguments.label}" if arguments.label else name
        print(json.dumps({key: results[key]}, indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
