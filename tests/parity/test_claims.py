"""A golden that nobody runs must fail the comparison, wherever in the folders it lies."""

from __future__ import annotations

import importlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.parity.__main__ import KINDS

GOLDENS = Path(__file__).parents[1] / "goldens"
ODD = {
    "schedule": "more.json",
    "keys": "more.txt",
    "ckpt": "inference_weight/more.bin",
    "text": "deep/more.npz",
    "dit_forward": "more.safetensors",
    "sampler": "deep/more.json.safetensors",
    "vae": "ckpt/more.json",
    "fp8": "deep/down/more.safetensors",
}
EMPTY = {
    "dit_forward": {"cases": {}, "file": "a.safetensors", "weights": "../ckpt/inference_weight"},
    "fp8": {"linears": {}, "cases": {}, "file": "a.safetensors", "weights": "../ckpt/inference_weight"},
    "vae": {"cases": {}, "file": "a.safetensors"},
}
"""Sidecars without a case: what is left to find fault with is the files."""


@pytest.fixture
def goldens(tmp_path: Path) -> Path:
    """Goldens of every kind but the slow cases."""
    for kind in ("ckpt", "schedule", "keys", "text"):
        shutil.copytree(GOLDENS / kind, tmp_path / kind)
    for kind, sidecar in EMPTY.items():
        (tmp_path / kind).mkdir()
        (tmp_path / kind / f"{kind}.json").write_text(json.dumps(sidecar))
        save_file({"x": torch.zeros(1)}, tmp_path / kind / "a.safetensors")
    (tmp_path / "sampler").mkdir()
    return tmp_path


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("schedule", "keys")])
def test_a_file_that_no_case_uses_fails(kind: str, goldens: Path) -> None:
    run = importlib.import_module(f"tests.parity.{kind}").run
    with torch.inference_mode():
        assert all(result.passed for result in run(goldens / kind, goldens))
        odd = goldens / kind / ODD[kind]
        odd.parent.mkdir(parents=True, exist_ok=True)
        odd.write_bytes(b"")
        failed = [result.name for result in run(goldens / kind, goldens) if not result.passed]
    assert failed == [ODD[kind]]


@pytest.mark.parametrize("kind", ["schedule", "keys"])
def test_a_listing_of_no_known_kind_fails(kind: str, goldens: Path) -> None:
    for path in (goldens / kind).iterdir():
        path.unlink()
    (goldens / kind / ODD[kind]).write_text("{}")
    run = importlib.import_module(f"tests.parity.{kind}").run
    assert [result.name for result in run(goldens / kind, goldens) if not result.passed] == [ODD[kind]]
