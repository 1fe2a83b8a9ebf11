"""The goldens that the repository carries, and that the comparison can fail."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.parity import dit_forward, keys
from tests.parity.report import CaseResult

GOLDENS = Path(__file__).parents[1] / "goldens"


def lines(results: list[CaseResult]) -> str:
    return "\n".join(result.line() for result in results if not result.passed)


def test_forward_equals_the_goldens() -> None:
    with torch.inference_mode():
        results = list(dit_forward.run(GOLDENS / "dit_forward", GOLDENS))
    names = {result.name for result in results}
    assert {"g_first_chunk.out", "a_first_chunk.bf16.mid.layer0_attn_proj", "c3_distill_nearly_clean_cached"} <= {
        name.removesuffix(".kv_cache.layer0") for name in names
    }
    assert len(results) > 25
    assert not lines(results), lines(results)


def test_true_size_models_have_the_published_names_shapes_and_types() -> None:
    results = list(keys.run(GOLDENS / "keys", GOLDENS))
    assert len(results) == 15
    assert not lines(results), lines(results)


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    shutil.copytree(GOLDENS / "dit_forward", tmp_path / "dit_forward")
    (tmp_path / "ckpt").symlink_to(GOLDENS / "ckpt")
    return tmp_path


def change(folder: Path, path: list[str], value: object) -> None:
    file = folder / "dit_forward" / "dit_forward.json"
    sidecar = json.loads(file.read_text())
    place = sidecar["cases"]
    for part in path[:-1]:
        place = place[part]
    place[path[-1]] = value
    sidecar["cases"] = {path[0]: sidecar["cases"][path[0]]}
    file.write_text(json.dumps(sidecar))


@pytest.mark.parametrize(
    ("path", "value", "note"),
    [
        (["g_first_chunk", "kwargs", "surprise"], True, "surprise"),
        (["g_first_chunk", "fn"], "backward", "backward"),
        (["g_first_chunk", "weights"], "other", "other"),
        (["g_first_chunk", "outputs", "mid.layer0_out", "rows"], "some rows", "some rows"),
        (["g_first_chunk", "outputs", "mid.news"], {"tensor": "x", "tolerance": {"rel_max": 1}}, "not known"),
        (["g_first_chunk", "kwargs", "range_num"], 3, "1 timesteps"),
        (["c2_distill_nearly_clean_extra", "config", "runtime_config", "cfg_number"], 2, "cfg_number 2"),
    ],
)
def test_what_is_not_understood_fails(copied: Path, path: list[str], value: object, note: str) -> None:
    change(copied, path, value)
    with torch.inference_mode():
        results = list(dit_forward.run(copied / "dit_forward", copied))
    assert any(note in result.note for result in results if not result.passed), lines(results)


@pytest.mark.parametrize("name", ["g_first_chunk.out.out", "c3_distill_nearly_clean_cached.out.kv_cache.layer0"])
def test_a_wrong_number_fails(copied: Path, name: str) -> None:
    file = copied / "dit_forward" / "dit_forward.safetensors"
    tensors = load_file(file)
    tensors[name].view(-1)[7] += 0.01
    file.unlink()
    save_file(tensors, file)
    with torch.inference_mode():
        failed = [result.name for result in dit_forward.run(copied / "dit_forward", copied) if not result.passed]
    assert failed == [name.replace(".out.", ".", 1)]
