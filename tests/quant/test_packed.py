"""Checkpoints whose shards are compressed convert like any other."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
import zstandard
from safetensors.torch import load_file

import quant
from quant.__main__ import main
from quant.folder import convert_folder
from tests.quant.models import model
from tests.quant.test_folder import SHARD, write_checkpoint


def pack(file: Path, frames: int = 1) -> Path:
    """Compress a file in place, in one frame or several."""
    data, packed = file.read_bytes(), file.with_name(file.name + ".zst")
    step = -(-len(data) // frames)
    compressor = zstandard.ZstdCompressor()
    packed.write_bytes(b"".join(compressor.compress(data[i : i + step]) for i in range(0, len(data), step)))
    file.unlink()
    return packed


@pytest.mark.parametrize("frames", [1, 3])
@pytest.mark.parametrize("every", [True, False])
def test_packed_shards_give_the_same_bits(frames: int, every: bool, tmp_path: Path, generator: torch.Generator) -> None:
    source = write_checkpoint(tmp_path / "in", model(generator))
    convert_folder(source, tmp_path / "plain", quant.Int8(), shard_bytes=SHARD)
    shards = sorted(source.glob("*.safetensors"))
    for shard in shards if every else shards[1:]:
        pack(shard, frames)
    before = sorted(source.iterdir())
    assert main([str(source), str(tmp_path / "out"), "--scheme", "int8", "--shard-mb", "0"]) == 0
    made, plain = (
        {name: t for f in (tmp_path / folder).glob("*.safetensors") for name, t in load_file(f).items()}
        for folder in ("out", "plain")
    )
    assert made.keys() == plain.keys()
    assert all(torch.equal(made[name], tensor) for name, tensor in plain.items())
    assert sorted(source.iterdir()) == before, "nothing is left beside the source"
    assert {path.name for path in tmp_path.iterdir()} == {"in", "plain", "out"}
    assert not list((tmp_path / "out").glob("*.zst"))


def test_a_killed_conversion_of_packed_shards_goes_on(
    tmp_path: Path, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_checkpoint(tmp_path / "in", model(generator))
    for shard in list(source.glob("*.safetensors")):
        pack(shard)
    said: list[str] = []

    def say(line: str) -> None:
        said.append(line)
        if len(said) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert_folder(source, tmp_path / "out", quant.Int8(), shard_bytes=SHARD, say=say)
    monkeypatch.setattr("quant.storage.packing.pieces", lambda *_: pytest.fail("what was unpacked is kept"))
    convert_folder(source, tmp_path / "out", quant.Int8(), shard_bytes=SHARD, say=said.append)
    assert sum("kept" in line for line in said) == 2
    assert {path.name for path in tmp_path.iterdir()} == {"in", "out"}


def test_damaged_and_unreadable_shards_are_said_in_one_sentence(
    tmp_path: Path, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_checkpoint(tmp_path / "in", model(generator), shards=1)
    (shard,) = source.glob("*.safetensors")
    packed = pack(shard)
    whole = packed.read_bytes()
    for data, words in ((whole[: len(whole) // 2], "cut short"), (b"no zstd at all", "damaged or not zstd-compressed")):
        packed.write_bytes(data)
        with pytest.raises(quant.QuantError, match=words):
            convert_folder(source, tmp_path / "out", quant.Int8())
        assert {path.name for path in tmp_path.iterdir()} == {"in"}
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(quant.QuantError, match=r"pip install zstandard, or unpack it first with: zstd -d"):
        convert_folder(source, tmp_path / "out", quant.Int8())
