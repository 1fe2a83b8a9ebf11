"""The one GPU command runs every section in its dry mode, where there is no card."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import gpu
from benchmarks.gpu_models import NO_CARD, timed

NOT_NEEDED = ("ftfy", "bs4", "av", "PIL", "gradio", "imageio", "sentencepiece", "zstandard")
"""What the app requires and the benchmark says it does without."""


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def rows_of(value: Any) -> list[dict[str, Any]]:
    """Every dictionary inside a result."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    return [*([value] if isinstance(value, dict) else []), *(row for item in inner for row in rows_of(item))]


@pytest.mark.usefixtures("threads")
def test_the_dry_mode_runs_every_section(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in NOT_NEEDED:
        monkeypatch.setitem(sys.modules, package, None)
    out = tmp_path / "results" / "gpu.json"
    assert gpu.main(["--dry", "--out", str(out)]) == 0
    results = json.loads(out.read_text())
    assert results["dry"] and results.keys() >= gpu.SECTIONS.keys()
    assert not [row for row in rows_of(results) if row.keys() & {"failed", "skipped", "where"}]
    short = results["transformer"]
    assert short["streamed_equal_bits_float32"] is short["streamed_equal_bits_fp8"] is True
    assert short["again_equal_bits"] is True and short["finite"] is True
    for name in ("layers", "quantization"):  # no kernel serves here: plain arithmetic would be compared with itself
        assert short[f"kernels_against_plain_{name}"].startswith("not run")
    assert results["versions"]["torch"] and results["probes"]["attention sdpa"] == {
        "works": True, "reason": "", "speedup": None
    }  # fmt: skip
    assert len(results["reference"]) == 3 and all(0 < error < 0.02 for error in results["reference"].values())
    few = results["planned"]["few_layers"]
    assert results["planned"]["seconds"] > 0 and len(few["dearest_operators"]) > 5
    assert few["dearest_kernels"] == few["waits_for_the_card"] == NO_CARD
    assert list(gpu.SECTIONS)[:4] == ["versions", "probes", "reference", "planned"]
    assert len(results["host"]) == 2
    assert all(row["dearest_functions"][0]["own_us_a_layer"] > 0 for row in results["host"])
    assert short["sliced_against_whole"] < 1e-5
    assert {(row["what"], row.get("kv_dtype")) for row in results["streaming"]} == {
        ("keys and values", "bf16"), ("keys and values", "fp8"), ("layers", None)
    }  # fmt: skip
    assert all(row["equal_bits"] and row["copying"] > 0 for row in results["streaming"])
    assert len(results["slices"]) == 3 and all(row["error"] < 1e-5 for row in results["slices"])
    assert results["windows"]["windows_against_here"] < 1e-5
    assert results["windows"]["attention"]["by_group"]["error"] < 1e-5
    assert all(0 < row["two_blocks_error"] < 0.1 for row in results["encoding"]["text"])
    assert {row["frames"] for row in results["encoding"]["frames"]} == {1, 24}
    assert results["attention"]["flash_serves_groups"] is True
    assert all(row["steps_from_plain"] <= 0.51 for row in results["quantization"])
    assert all(len(row["together_with"]) == 3 for row in results["quantization"])
    assert all(row["error"] < 0.2 for row in results["linears"])
    paths = {row["scheme"]: row for row in results["linears"]}
    for scheme in ("unquantized", "fp8", "fp8 by tensor"):  # one path on a processor
        assert paths[scheme]["fast_against_plain"] is None and paths[scheme]["reason"]
    assert paths["fp8"]["fast"] == paths["fp8"]["plain"] != []
    assert "_int_mm" in paths["int8"]["fast"][0] and "_int_mm" not in paths["int8"]["plain"][0]
    assert "4bit" in paths["nf4"]["fast"][0] and paths["nf4"]["fast"] != paths["nf4"]["plain"]
    assert all(paths[scheme]["fast_against_plain"] < 0.02 and not paths[scheme]["reason"] for scheme in ("int8", "nf4"))
    assert {(row["scheme"], row["window"]) for row in results["passes"]} >= {("fp8", 4), ("fp8", 1), ("int8", 4)}
    assert all(row["steps_seconds_per_chunk"] > 0 and row["share_of_roofline"] > 0 for row in results["passes"])
    assert [row["chunks"] for row in results["generation"]] == [3, 3, 3]
    assert [row["decoding"] for row in results["generation"]] == ["between", "beside", "between"]
    assert results["generation"][1]["equal_frames"] is True
    assert all(row["finite"] for row in results["generation"])


def test_a_section_that_fails_loses_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    out = tmp_path / "gpu.json"
    seen = []

    def last(_: Any) -> str:
        seen.append(json.loads(out.read_text()))
        return "done"

    monkeypatch.setattr(gpu, "SECTIONS", {"first": lambda _: "well", "second": lambda _: 1 // 0, "third": last})
    assert gpu.main(["--dry", "--out", str(out)]) == 1
    assert seen[0]["first"] == "well" and "ZeroDivisionError" in seen[0]["second"]["error"], "written before the third"
    assert json.loads(out.read_text())["third"] == "done"
    assert "second failed" in capsys.readouterr().err


def test_times_tell_their_spread() -> None:
    time = timed(lambda: sum(range(1000)), budget=0.02)
    assert 0 < time["fastest"] <= time["seconds"] <= time["slowest"] and 1 <= time["runs"] <= 10


def test_what_hangs_is_cut_off_and_what_was_measured_stays(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    program = (
        "import sys, time\n"
        "from benchmarks import gpu\n"
        "gpu.LAST_SECOND = 2.0\n"
        "gpu.SECTIONS = {'first': lambda _: 'well', 'second': lambda _: time.sleep(60)}\n"
        f"sys.exit(gpu.main(['--dry', '--out', {str(out)!r}]))\n"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, timeout=50)
    assert done.returncode == 1 and "did not end within 2 s" in done.stderr
    assert json.loads(out.read_text())["first"] == "well"
