"""What a CPU computes does not depend on where a file put a tensor."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from magi_lite.dit.model import DiT
from magi_lite.planner.execution import Execution
from magi_lite.weights.loader import load_dit_weights
from quant import convert_folder, scheme_named
from quant.storage.headers import read_header
from quant.storage.shards import Checkpoint
from quant.storage.tensors import ALIGNMENT, write_tensors
from tests.weights.conftest import SMALL
from tests.weights.test_loader import velocity

State = dict[str, torch.Tensor]


def shift(path: Path, count: int) -> None:
    """Pad the header of a safetensors file, so that its numbers begin `count` bytes later."""
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    path.write_bytes(struct.pack("<Q", length + count) + data[8 : 8 + length] + b" " * count + data[8 + length :])


def addresses(model: DiT) -> set[int]:
    """How far the model's tensors lie behind a multiple of the alignment."""
    return {tensor.data_ptr() % ALIGNMENT for tensor in model.state_dict().values()}


@pytest.mark.parametrize("scheme", ["float32", "int8", "nf4"])
@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float32])
def test_a_files_offsets_change_no_bit(scheme: str, stored: torch.dtype, weights: Path, state: State) -> None:
    """Whatever the offset: unquantized, converted while loading, and loaded from a converted folder."""
    file, execution = weights / "model.safetensors", Execution(scheme=scheme)
    save_file({name: tensor.to(stored) for name, tensor in state.items()}, file)
    starts, results = set(), []
    for count in (0, 4, 8, 20, 36):
        shift(file, count)
        starts.add(min(tensor.start for tensor in read_header(file).tensors) % ALIGNMENT)
        model = load_dit_weights(weights, SMALL, execution)
        assert addresses(model) == {0}
        results.append(velocity(model))
    assert len(starts) > 3, "the file's numbers did lie elsewhere"
    assert all(torch.equal(result, results[0]) for result in results)
    if scheme != "float32":
        converted = weights.parent / "converted"
        convert_folder(weights, converted, scheme_named(scheme))
        for count in (0, 8, 20):
            shift(next(converted.glob("*.safetensors")), count)
            (converted / "quantization.json").unlink(missing_ok=True)  # it knows the size; names tell the scheme
            model = load_dit_weights(converted, SMALL, execution)
            assert addresses(model) == {0}
            assert torch.equal(velocity(model), results[0])


def test_files_of_ours_hold_large_tensors_aligned(tmp_path: Path) -> None:
    """So they are mapped; only what does not fill whole lines is copied, which the format leaves no gap for."""
    made = {
        "matrix": torch.randn(64, 48).bfloat16(),
        "scalar": torch.randn(()),
        "odd": torch.randn(7, 3),
        "vector": torch.randn(320),
        "bytes": torch.randint(0, 255, (128, 3), dtype=torch.uint8),
        "none": torch.empty(0, 4),
    }
    write_tensors(tmp_path / "a.safetensors", made, {"note": "x" * 13})
    info = {tensor.name: tensor for tensor in read_header(tmp_path / "a.safetensors").tensors}
    assert all(info[name].start % ALIGNMENT == 0 for name in ("matrix", "vector", "bytes"))
    stored = Checkpoint.open(tmp_path / "a.safetensors")
    for name, tensor in made.items():
        read = stored.read(name)
        assert read.data_ptr() % ALIGNMENT == 0
        assert torch.equal(read, tensor) and read.dtype == tensor.dtype


def test_overlapping_and_gaping_tensors_are_refused(tmp_path: Path) -> None:
    """Offsets that name numbers twice, leave some out, or give a tensor other than its shape's bytes."""
    file = tmp_path / "model.safetensors"
    save_file({"a": torch.ones(4), "b": torch.ones(4)}, file)
    data = file.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    for offsets in ([0, 16], [20, 36], [16, 28], [-16, 0], [16.0, 32.0], [True, 17]):
        changed = json.dumps({**header, "b": {**header["b"], "data_offsets": offsets}}).encode()
        file.write_bytes(struct.pack("<Q", len(changed)) + changed + data[8 + length :])
        with pytest.raises(Exception, match="is not a safetensors file"):
            Checkpoint.open(file)
    file.write_bytes(data)
    assert load_file(file).keys() == Checkpoint.open(file).tensors.keys()
