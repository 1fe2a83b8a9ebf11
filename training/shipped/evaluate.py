"""How well the demo model does what it is told, measured against the world's truth.

    python -m training.shipped.evaluate PART ... --samples 64 [--model demo] [--out benchmarks/demo_quality.json]

Every part stands by itself and is added to the results, with a contact sheet beside them; every number comes with its
standard error and its count. Real loader, real sampler, seeds never trained on.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterable
from pathlib import Path

from magi_lite.errors import MagiLiteError
from training.sheets import contact_sheet
from training.shipped.quality import PARTS, Figures
from training.studio import Studio

RESULTS = Path(__file__).parents[2] / "benchmarks" / "demo_quality.json"
SHEET_ROWS = 8
"""Clips on a contact sheet."""


def evaluate(studio: Studio, parts: Iterable[str], samples: int, out: Path, label: str = "") -> Figures:
    """Run parts and add them to the results; a contact sheet of each goes to `results/` beside them.

    `label` is put behind the parts' names, for another model or setting.
    """
    results = json.loads(out.read_text(encoding="utf-8")) if out.is_file() else {}
    for name in parts:
        began = time.process_time()
        measured, rows = PARTS[name](studio, samples)
        key = f"{name}_{label}" if label else name
        results[key] = {
            "about": (PARTS[name].__doc__ or "").strip().split("\n")[0],
            "samples": samples,
            "cpu_seconds": round(time.process_time() - began),
            "figures": measured,
        }
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(dict(sorted(results.items())), indent=1) + "\n", encoding="utf-8")
        if rows:
            clips, words = zip(*rows[:SHEET_ROWS], strict=True)
            contact_sheet(out.parent / "results" / f"demo_{key}.png", clips, words)
    return results


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
