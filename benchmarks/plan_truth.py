"""How true the plan is: `python benchmarks/plan_truth.py [--out FILE]`.

For every combination of `tests/plan/test_truth.py`, and some that are too slow for a test: the peaks that the planner
promises, beside those of the full-size models run without data, every live byte counted. Gigabytes are 10^9 bytes.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.figures import RESULTS, save
from tests.plan.full_size import denoise_and_decode, encode, text
from tests.plan.test_truth import COMBINATIONS, ENCODINGS, plan_of

SLOW = [
    ("4.5B-distill", (1280, 720), 4, {"vae": "decoder"}),
    ("4.5B-distill", (1440, 2560), 1, {"kv_place": "pinned"}),
    ("4.5B-distill", (960, 544), 2, {"kv_place": "pinned", "kv_dtype": "fp8"}),
    ("4.5B-distill", (480, 480), 4, {"layers": "streamed", "vae": "swapped"}),
]


def rows() -> list[dict[str, Any]]:
    """One row per combination and phase."""
    found = []
    for model, size, window, changes in [*COMBINATIONS, *SLOW]:
        plan = plan_of(model, size, window, changes)
        tracked, _ = denoise_and_decode(plan)
        about = {"model": model, "size": f"{size[0]}x{size[1]}", "window": window, **changes}
        for phase in ("denoise", "decode"):
            found.append(row(about, phase, plan.peak_per_phase[phase], tracked[phase]))
    for start, size, changes in ENCODINGS:
        plan = plan_of("4.5B-distill", size, 1, changes, **{start: Path("start")})
        about = {"start": start, "size": f"{size[0]}x{size[1]}", **changes}
        found.append(row(about, "encode", plan.peak_per_phase["encode"], encode(plan)[0]))
    for kind in ("bf16", "int8", "nf4"):
        plan = plan_of("4.5B-distill", (480, 480), 1, {"t5": kind})
        found.append(row({"model": "T5-XXL", "t5": kind}, "text", plan.peak_per_phase["text"], text(plan)[0]))
    return found


def row(about: dict[str, Any], phase: str, planned: int, tracked: int) -> dict[str, Any]:
    """Promise and truth of one phase."""
    off = round(100 * (planned / tracked - 1), 2)
    return {**about, "phase": phase, "planned_gb": planned / 1e9, "tracked_gb": tracked / 1e9, "off_percent": off}


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS / "plan_truth.json")
    out = parser.parse_args().out
    found = rows()
    for one in found:
        print(f"{one['off_percent']:+6.2f} %  {one}")
    result = {"what": "planned against counted peaks", "torch": torch.__version__, "rows": found}
    save(out, result)


if __name__ == "__main__":
    main()
