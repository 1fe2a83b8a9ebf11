"""Our safetensors files are read by the library, hold every bit, and are whole or not there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from magi_lite.errors import OutputError
from magi_lite.files import write_tensors
from quant.storage.headers import KINDS
from quant.storage.shards import Checkpoint
from tests.disk import small_files


def some_tensors() -> dict[str, torch.Tensor]:
    """One of every type that is read, of odd sizes, not contiguous, empty and without a dimension."""
    bits = torch.randint(0, 2, (3, 5, 7))
    made = {f"of {name}": bits.to(getattr(torch, kind)).transpose(0, 2) for name, (kind, _) in KINDS.items()}
    return made | {"none": torch.empty(0, 4), "one": torch.randn(()), "half": torch.randn(9).half()[::2]}


def test_the_library_reads_what_is_written(tmp_path: Path) -> None:
    made = some_tensors()
    write_tensors(tmp_path / "a.safetensors", made, {"said": 'ä "quoted" word'})
    read = load_file(tmp_path / "a.safetensors")
    assert read.keys() == made.keys()
    for name, tensor in made.items():
        assert read[name].dtype == tensor.dtype and read[name].shape == tensor.shape
        assert torch.equal(read[name].float(), tensor.float())
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        assert file.metadata() == {"said": 'ä "quoted" word'}
    assert Checkpoint.open(tmp_path).tensors.keys() == made.keys()


def test_equal_tensors_make_equal_files(tmp_path: Path) -> None:
    made = some_tensors()
    write_tensors(tmp_path / "a.safetensors", made)
    write_tensors(tmp_path / "b.safetensors", dict(reversed(made.items())))
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_a_full_disk_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_tensors(path, {"x": torch.ones(3)})
    before = path.read_bytes()
    with small_files(1000), pytest.raises(OutputError, match="The disk is full or limited at"):
        write_tensors(path, {"x": torch.ones(3000)})
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.safetensors"]
