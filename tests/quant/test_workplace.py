"""Conversions that meet other people's files, each other, damaged sources and disks that refuse."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import quant
from quant import folder
from quant.__main__ import main
from quant.folder import convert_folder
from quant.storage import files
from tests.quant.models import model
from tests.quant.test_folder import SHARD, interrupted, write_checkpoint

ROOT = Path(__file__).parents[2]


@pytest.fixture
def source(tmp_path: Path, generator: torch.Generator) -> Path:
    return write_checkpoint(tmp_path / "in", model(generator), shards=3)


def names(place: Path) -> set[str]:
    return {path.name for path in place.iterdir()}


def test_other_peoples_files_are_left_alone(source: Path, tmp_path: Path) -> None:
    """OUT.partial is where we work: whatever else is called so is neither used nor removed."""
    partial = tmp_path / "out.partial"
    partial.mkdir()
    (partial / "thesis.txt").write_text("years of work")
    with pytest.raises(quant.QuantError, match=r"out\.partial is needed .* but holds thesis\.txt"):
        convert_folder(source, tmp_path / "out", quant.Int8())
    assert (partial / "thesis.txt").read_text() == "years of work"
    shutil.rmtree(partial)
    partial.write_text("a file")
    with pytest.raises(quant.QuantError, match=r"out\.partial is needed .* but is a file"):
        convert_folder(source, tmp_path / "out", quant.Int8())
    assert partial.read_text() == "a file"


def test_a_name_that_no_disk_takes(source: Path, tmp_path: Path) -> None:
    with pytest.raises(quant.QuantError, match="cannot be read or written"):
        convert_folder(source, tmp_path / ("x" * 300), quant.Int8())
    with pytest.raises(quant.QuantError, match="cannot be read or written"):
        convert_folder(tmp_path / ("x" * 300), tmp_path / "out", quant.Int8())


@pytest.mark.parametrize("inside", ["", "unpacked", "model"])
def test_the_source_may_have_any_name(inside: str, source: Path, tmp_path: Path) -> None:
    """A source that is called as our own working folder is not taken for its remains."""
    place = tmp_path / "out.partial" / inside
    place.parent.mkdir(exist_ok=True)
    shutil.copytree(source, place)
    before = {path.name: path.read_bytes() for path in place.iterdir()}
    with pytest.raises(quant.QuantError, match=r"out\.partial is needed"):
        convert_folder(place, tmp_path / "out", quant.Int8())
    assert {path.name: path.read_bytes() for path in place.iterdir()} == before
    shutil.move(place, tmp_path / "out.unpacked")
    shutil.rmtree(tmp_path / "out.partial", ignore_errors=True)
    convert_folder(tmp_path / "out.unpacked", tmp_path / "out", quant.Int8())
    assert {path.name: path.read_bytes() for path in (tmp_path / "out.unpacked").iterdir()} == before


def test_out_may_lie_in_the_source(source: Path) -> None:
    before = names(source)
    convert_folder(source, source / "out", quant.Int8())
    assert names(source) == before | {"out"}
    convert_folder(source, source / "deep" / "er", quant.Int8())


def test_an_incomplete_download_is_refused(source: Path, tmp_path: Path) -> None:
    """Whether a shard of the index is missing, or a tensor of it, or the index itself is cut."""
    index = source / "model.safetensors.index.json"
    text = index.read_text()
    moved = (source / "model-00002-of-00003.safetensors").rename(tmp_path / "elsewhere")
    with pytest.raises(quant.QuantError, match=r"shard model-00002-of-00003\.safetensors that belongs to .*missing"):
        convert_folder(source, tmp_path / "out", quant.Int8())
    moved.rename(source / "model-00002-of-00003.safetensors")
    index.write_text(text[: text.rindex("}}")] + ', "final_linear.offset": "model-00001-of-00003.safetensors"}}')
    with pytest.raises(quant.QuantError, match=r"final_linear\.offset is not in .* although the index"):
        convert_folder(source, tmp_path / "out", quant.Int8())
    for damaged in (text[:-20], "[]", '{"weight_map": 3}'):
        index.write_text(damaged)
        with pytest.raises(quant.QuantError, match=r"index\.json cannot be read"):
            convert_folder(source, tmp_path / "out", quant.Int8())
    assert names(tmp_path) == {"in"}, "a refused conversion leaves nothing behind"


def test_two_at_once_do_not_meet(source: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; import quant; from quant.folder import convert_folder\n"
        "def say(line): print(line, flush=True); sys.stdin.readline()\n"
        "source, target, size = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])\n"
        "convert_folder(source, target, quant.Int8(), shard_bytes=size, say=say)"
    )
    command = [sys.executable, "-c", code, str(source), str(tmp_path / "out"), str(SHARD)]
    first = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert first.stdin and first.stdout
    try:
        first.stdout.readline()  # it made a shard, and waits
        for scheme in (quant.Int8(), quant.Fp8()):
            with pytest.raises(quant.QuantError, match="Another process is converting to"):
                convert_folder(source, tmp_path / "out", scheme, shard_bytes=SHARD)
        first.stdin.close()
        first.stdout.read()
        assert first.wait(60) == 0, "the second must not disturb the first"
    finally:
        first.kill()
    assert convert_folder(source, tmp_path / "out", quant.Int8(), shard_bytes=SHARD).scheme == quant.Int8()
    assert names(tmp_path) == {"in", "out"}


@pytest.mark.parametrize("where", ["write_atomic", "sync_file"])
def test_a_disk_that_refuses_is_one_sentence(
    where: str, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Full at any moment: the next run goes on with what is there."""
    calls = iter(range(1000))
    original = getattr(folder, where)

    def full(*arguments: Any) -> None:
        if next(calls) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(arguments[0]))
        original(*arguments)

    monkeypatch.setattr(folder, where, full)
    command = [str(source), str(tmp_path / "out"), "--scheme", "int8", "--shard-mb", "0"]
    assert main(command) == 1
    said = capsys.readouterr().err
    assert "No space left on device" in said and "free some space" in said and said.count("\n") == 1
    assert main(command) == 0
    assert "kept" in capsys.readouterr().out


def test_a_place_that_cannot_be_written_is_one_sentence(source: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(quant.QuantError, match="cannot be read or written"):
        convert_folder(source, tmp_path / "file" / "out", quant.Int8())
    with pytest.raises(quant.QuantError, match="is not this conversion"):
        convert_folder(source, Path(), quant.Int8())


def test_what_reads_back_differently_is_refused(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bit, or the header, changes between writing and verifying."""
    original = files.sync_file
    for position in (-3, 20):

        def failing(path: Path, position: int = position) -> None:
            original(path)
            data = bytearray(path.read_bytes())
            data[position] ^= 4
            path.write_bytes(data)

        monkeypatch.setattr(folder, "sync_file", failing)
        with pytest.raises(quant.QuantError, match="reads back differently"):
            convert_folder(source, tmp_path / "out", quant.Int8(), shard_bytes=SHARD)
        assert not list((tmp_path / "out.partial" / "model").glob("*.safetensors"))
        assert not (tmp_path / "out").exists()
    monkeypatch.setattr(folder, "sync_file", original)
    convert_folder(source, tmp_path / "out", quant.Int8(), shard_bytes=SHARD)


def test_a_source_that_changed_meanwhile_starts_over(source: Path, tmp_path: Path) -> None:
    interrupted(source, tmp_path / "out", quant.Int8(), 2)
    shard = source / "model-00001-of-00003.safetensors"
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    lines: list[str] = []
    convert_folder(source, tmp_path / "out", quant.Int8(), shard_bytes=SHARD, say=lines.append)
    assert not any("kept" in line for line in lines)


def test_damaged_records_cost_their_shard(source: Path, tmp_path: Path) -> None:
    interrupted(source, tmp_path / "out", quant.Int8(), 3)
    records = sorted((tmp_path / "out.partial" / "records").iterdir())
    records[0].write_text("{")
    records[1].write_text("{}")
    lines: list[str] = []
    convert_folder(source, tmp_path / "out", quant.Int8(), shard_bytes=SHARD, say=lines.append)
    assert [("kept" in line) for line in lines[:3]] == [False, False, True]


def test_a_finished_folder_that_changed_is_noticed(source: Path, tmp_path: Path) -> None:
    convert_folder(source, tmp_path / "out", quant.Int8())
    shard = tmp_path / "out" / "model.safetensors"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(quant.QuantError, match="was changed after its conversion; remove"):
        convert_folder(source, tmp_path / "out", quant.Int8())
    shard.write_bytes(whole[:-9])
    with pytest.raises(quant.QuantError, match="was damaged after its conversion; remove it"):
        convert_folder(source, tmp_path / "out", quant.Int8())
    shutil.rmtree(tmp_path / "out")
    convert_folder(source, tmp_path / "out", quant.Int8())


def test_an_interrupted_command_says_how_to_go_on(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(folder, "_quantize_group", stop)
    assert main([str(source), str(tmp_path / "out"), "--scheme", "int8"]) == 130
    assert "the same command goes on" in capsys.readouterr().err
