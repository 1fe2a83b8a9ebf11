"""How well a model of the world does what it is asked, measured against the world's truth.

    python -m training.evaluate PART ... [--model FOLDER] [--samples 48] [--work DIR] [--out FILE.json]

Every part stands by itself and is added to the results, with a contact sheet beside them. Real loader, real sampler,
seeds never trained on; photographs are the held-back ones of the training run in DIR.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from magi_lite.errors import MagiLiteError
from training.photographs import album
from training.quality import PARTS, Figures
from training.sheets import contact_sheet
from training.studio import Studio

RESULTS = Path(__file__).parents[1] / "benchmarks" / "demo_quality.json"
SHEET_ROWS = 8
"""Clips on a contact sheet."""


def evaluate(
    studio: Studio,
    parts: Iterable[str],
    samples: int,
    out: Path,
    label: str = "",
    table: dict[str, Callable[[Studio, int], Any]] = PARTS,
) -> Figures:
    """Run parts and add them to the results; a contact sheet of each goes to `results/` beside them.

    `label` is put behind the parts' names, for another model or setting.
    """
    results = json.loads(out.read_text(encoding="utf-8")) if out.is_file() else {}
    for name in parts:
        began = time.process_time()
        measured, rows = table[name](studio, samples)
        key = f"{name}_{label}" if label else name
        results[key] = {
            "about": (table[name].__doc__ or "").strip().split("\n")[0],
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
        prog="python -m training.evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="+", choices=tuple(PARTS))
    parser.add_argument("--samples", type=int, default=48)
    parser.add_argument("--model", default="demo", help="a model folder of this world")
    parser.add_argument("--work", type=Path, default=None, help="folder of the training run, for its photographs")
    parser.add_argument("--label", default="", help="kept behind the parts' names, e.g. undistilled")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    from magi_lite.weights.opening import open_model

    try:
        work = arguments.work
        pictures = None if work is None else album(work / "photos", work / "album.safetensors")
        studio = Studio(open_model(arguments.model), album=pictures)
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
