"""The one GPU command runs every section in its dry mode, where there is no card."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks import gpu


def test_the_dry_mode_runs_every_section(tmp_path: Path) -> None:
    out = tmp_path / "results" / "gpu.json"
    assert gpu.main(["--dry", "--out", str(out)]) == 0
    results = json.loads(out.read_text())
    assert results["dry"] and results.keys() >= gpu.SECTIONS.keys()
    assert results["fast_paths"]["streamed_equal_bits"] is True
    assert results["fast_paths"]["sliced_against_whole"] < 1e-5
    assert results["generation"]["chunks"] == 3 and results["generation"]["finite"]
    assert all("share_of_roofline" in row for row in results["forwards"])
