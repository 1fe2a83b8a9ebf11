"""The published FP8 layers against the goldens that travel with the repository (whole forwards need its checkpoint)."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from tests.parity import fp8

GOLDENS = Path(__file__).parents[1] / "goldens"


def test_fp8_goldens() -> None:
    with torch.inference_mode():
        results = list(fp8.run(GOLDENS / "fp8", GOLDENS))
    assert len(results) >= 19
    assert not [result.line() for result in results if not result.passed]


def test_a_changed_golden_is_noticed(tmp_path: Path) -> None:
    """Every compared tensor can fail: each is nudged by more than its tolerance, in turn all at once."""
    tensors = load_file(GOLDENS / "fp8" / "fp8.safetensors")
    changed = {name: nudged(tensor) if ".out." in name else tensor for name, tensor in tensors.items()}
    save_file(changed, tmp_path / "fp8.safetensors")
    shutil.copy(GOLDENS / "fp8" / "fp8.json", tmp_path)
    compared = [result for result in fp8.run(tmp_path, tmp_path) if not result.name.endswith(".refused")]
    assert len(compared) >= 18
    assert not [result.line() for result in compared if result.passed]


def nudged(tensor: torch.Tensor) -> torch.Tensor:
    """The same but for its largest number, which is a hundredth (or the next e4m3 number) off."""
    wide = tensor.float().flatten()
    wide[wide.abs().argmax()] *= 0.9 if tensor.dtype == torch.float8_e4m3fn else 0.99
    return wide.to(tensor.dtype).view(tensor.shape)
