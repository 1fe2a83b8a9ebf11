"""Offline conversion: equal to converting in memory, resumable after a kill, never loadable half done."""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import quant
from quant import folder
from quant.__main__ import main
from quant.folder import convert_folder
from quant.manifest import MANIFEST
from tests.quant.models import QUANTIZED, Model, empty, model

SHARD = 48 << 10
"""Small enough for the small model to fill many shards."""


def write_checkpoint(place: Path, network: Model, shards: int = 2) -> Path:
    """A bf16 checkpoint as published ones are laid out: shards, an index, a configuration."""
    place.mkdir()
    state = {name: tensor.to(torch.bfloat16) for name, tensor in network.state_dict().items()}
    names = sorted(state)
    cut = -(-len(names) // shards)
    index = {}
    for i in range(shards):
        file = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        part = {name: state[name] for name in names[i * cut : (i + 1) * cut]}
        save_file(part, place / file)
        index |= dict.fromkeys(part, file)
    (place / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    (place / "config.json").write_text('{"width": 64}')
    return place


@pytest.mark.parametrize("scheme", ["fp8", "int8", "nf4"])
def test_offline_and_on_the_fly_are_the_same_bits(scheme: str, tmp_path: Path, generator: torch.Generator) -> None:
    network = model(generator)
    source = write_checkpoint(tmp_path / "in", network)
    assert main([str(source), str(tmp_path / "out"), "--scheme", scheme]) == 0
    quant.convert_(network, scheme, QUANTIZED.__contains__)
    loaded = empty()
    report = quant.load_converted_(loaded, tmp_path / "out")
    assert {swap.name for swap in report.swapped} == QUANTIZED
    expected, found = network.state_dict(), loaded.state_dict()
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        wanted = tensor if name.rpartition(".")[0] in QUANTIZED and not name.endswith("bias") else tensor.bfloat16()
        assert torch.equal(found[name].flatten().view(torch.uint8), wanted.flatten().view(torch.uint8)), name
    loaded.float()
    x = torch.randn(3, 8, generator=generator)
    assert torch.equal(loaded(x), network(x))


def test_the_folder_is_complete_and_says_what_it_is(tmp_path: Path, generator: torch.Generator) -> None:
    source = write_checkpoint(tmp_path / "in", model(generator))
    manifest = convert_folder(source, tmp_path / "out", quant.Fp8("tensor"), shard_bytes=SHARD)
    assert quant.read_manifest(tmp_path / "out") == manifest
    assert manifest.scheme == quant.Fp8("tensor")
    assert set(manifest.layers) == QUANTIZED
    assert 0.005 < manifest.worst_error < 0.05
    assert len(manifest.shards) > 3
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())["weight_map"]
    stored = {n: f.name for f in (tmp_path / "out").glob("*.safetensors") for n in load_file(f)}
    assert stored == index
    declared = empty()
    quant.convert_(declared, manifest.scheme, QUANTIZED.__contains__)
    assert stored.keys() == declared.state_dict().keys()
    assert (tmp_path / "out" / "config.json").read_text() == '{"width": 64}'
    assert not (tmp_path / "out.partial").exists()


def test_a_single_file_stays_a_single_file(tmp_path: Path, generator: torch.Generator) -> None:
    save_file(model(generator).state_dict(), tmp_path / "weights.safetensors")
    convert_folder(tmp_path / "weights.safetensors", tmp_path / "out", quant.Int8())
    assert [f.name for f in (tmp_path / "out").glob("*.safetensors")] == ["model.safetensors"]
    quant.load_converted_(empty(), tmp_path / "out")


def start(source: Path, target: Path, progress: Path) -> int:
    """The conversion in a process of its own, slowed down so that a kill finds it at work; its id."""
    child = os.fork()
    if child:
        return child
    try:
        make, verify = folder._quantize_group, folder._verify
        folder._quantize_group = lambda *a: (make(*a), time.sleep(0.05))[0]
        folder._verify = lambda *a: (time.sleep(0.05), verify(*a))[1]

        def say(line: str) -> None:
            with progress.open("a") as file:
                file.write("kept\n" if "kept" in line else "made\n")

        convert_folder(source, target, quant.Int8(), shard_bytes=SHARD, say=say)
    finally:
        os._exit(1)


def wait_for_shards(progress: Path, count: int) -> None:
    """Until the child has made so many."""
    deadline = time.monotonic() + 60
    while not progress.exists() or progress.read_text().count("made") < count:
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that can be forked and killed")
def test_killed_again_and_again_it_resumes_and_nothing_half_is_loaded(
    tmp_path: Path, generator: torch.Generator
) -> None:
    source, target = write_checkpoint(tmp_path / "in", model(generator)), tmp_path / "out"
    for kill, extra in enumerate((0.0, 0.02, 0.05, 0.08)):
        child = start(source, target, tmp_path / f"progress{kill}")
        wait_for_shards(tmp_path / f"progress{kill}", 1)
        time.sleep(extra)  # the next shard is being made, written, verified
        os.kill(child, signal.SIGKILL)
        assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
        assert not target.exists()
        with pytest.raises(quant.QuantError, match="no complete conversion"):
            quant.load_converted_(empty(), target)
        for shard in (tmp_path / "out.partial" / "model").glob("*.safetensors"):
            load_file(shard)  # a shard under its own name is whole
    assert "kept" in (tmp_path / "progress3").read_text()
    convert_folder(source, target, quant.Int8(), shard_bytes=SHARD)
    convert_folder(source, tmp_path / "fresh", quant.Int8(), shard_bytes=SHARD)
    assert {f.name for f in target.iterdir()} == {f.name for f in (tmp_path / "fresh").iterdir()}
    for file in (tmp_path / "fresh").iterdir():
        assert (target / file.name).read_bytes() == file.read_bytes(), file.name
    quant.load_converted_(empty(), target)


def interrupted(source: Path, target: Path, scheme: quant.Scheme, shards: int) -> None:
    """Convert, but stop after some shards as an exception would."""
    seen: list[str] = []

    def say(line: str) -> None:
        seen.append(line)
        if len(seen) == shards:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert_folder(source, target, scheme, shard_bytes=SHARD, say=say)


def test_another_job_starts_over(tmp_path: Path, generator: torch.Generator) -> None:
    source = write_checkpoint(tmp_path / "in", model(generator))
    interrupted(source, tmp_path / "out", quant.Int8(), 2)
    lines: list[str] = []
    convert_folder(source, tmp_path / "out", quant.Fp8(), shard_bytes=SHARD, say=lines.append)
    assert not any("kept" in line for line in lines)
    loaded = empty()
    assert quant.load_converted_(loaded, tmp_path / "out").scheme == quant.Fp8()


def test_a_damaged_finished_shard_is_made_again(tmp_path: Path, generator: torch.Generator) -> None:
    source = write_checkpoint(tmp_path / "in", model(generator))
    interrupted(source, tmp_path / "out", quant.Int8(), 2)
    shard = sorted((tmp_path / "out.partial" / "model").glob("*.safetensors"))[0]
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    lines: list[str] = []
    convert_folder(source, tmp_path / "out", quant.Int8(), shard_bytes=SHARD, say=lines.append)
    assert "kept" not in lines[0]
    assert "kept" in lines[1]
    convert_folder(source, tmp_path / "fresh", quant.Int8(), shard_bytes=SHARD)
    assert (tmp_path / "out" / shard.name).read_bytes() == (tmp_path / "fresh" / shard.name).read_bytes()


def test_finished_is_finished_and_foreign_folders_are_left_alone(tmp_path: Path, generator: torch.Generator) -> None:
    source = write_checkpoint(tmp_path / "in", model(generator))
    first = convert_folder(source, tmp_path / "out", quant.Int8())
    times = {f.name: f.stat().st_mtime_ns for f in (tmp_path / "out").iterdir()}
    assert convert_folder(source, tmp_path / "out", quant.Int8()) == first
    assert times == {f.name: f.stat().st_mtime_ns for f in (tmp_path / "out").iterdir()}
    with pytest.raises(quant.QuantError, match="is not this conversion"):
        convert_folder(source, tmp_path / "out", quant.Fp8())
    with pytest.raises(quant.QuantError, match="is not this conversion"):
        convert_folder(source, source, quant.Fp8())


def test_damage_after_the_fact_is_noticed(tmp_path: Path, generator: torch.Generator) -> None:
    source = write_checkpoint(tmp_path / "in", model(generator))
    convert_folder(source, tmp_path / "out", quant.Int8())
    shard = tmp_path / "out" / "model.safetensors"
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(quant.QuantError, match="missing or not complete"):
        quant.load_converted_(empty(), tmp_path / "out")
    (tmp_path / "out" / MANIFEST).write_text("{")
    with pytest.raises(quant.QuantError, match="is damaged"):
        quant.read_manifest(tmp_path / "out")


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("layers",), [[]]), (("layers", 0), {}), (("layers", 0), None), (("source",), 3), (("worst_error",), "0"),
        (("shards", 0, "bytes"), True), (("shards", 0, "file"), 5), (("shards", 0, "file"), "x" * 999),
        (("shards", 0, "file"), "../model.safetensors"), (("shards", 0, "sha256"), None),
        (("shards", 0, "tensors"), [1]), (("format",), "9" * 999), (("scheme", "name"), "9" * 999),
    ],
    ids=str,
)  # fmt: skip
def test_a_manifest_of_other_kinds_is_one_sentence(
    place: tuple[str | int, ...], value: object, tmp_path: Path, generator: torch.Generator
) -> None:
    source = write_checkpoint(tmp_path / "in", model(generator))
    convert_folder(source, tmp_path / "out", quant.Int8())
    path = tmp_path / "out" / MANIFEST
    content = inner = json.loads(path.read_text())
    for name in place[:-1]:
        inner = inner[name]
    inner[place[-1]] = value
    path.write_text(json.dumps(content))
    with pytest.raises(quant.QuantError, match=r"convert again\.$|There is no quantization scheme") as caught:
        quant.load_converted_(empty(), tmp_path / "out")
    assert str(caught.value).endswith(".") and len(str(caught.value)) < 500


def test_another_model_is_refused(tmp_path: Path, generator: torch.Generator) -> None:
    source = write_checkpoint(tmp_path / "in", model(generator))
    convert_folder(source, tmp_path / "out", quant.Int8())
    for other in (empty(width=32), empty(blocks=3), empty(blocks=5)):
        with pytest.raises(quant.QuantError, match=r"another model|lacks"):
            quant.load_converted_(other, tmp_path / "out")


def test_sources_that_cannot_be_converted(
    tmp_path: Path, generator: torch.Generator, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "nothing").mkdir()
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "model.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    bad = model(generator)
    with torch.no_grad():
        bad.layers[1].mlp["linear_fc1"].weight[3, 5] = float("nan")
    write_checkpoint(tmp_path / "nan", bad)
    good = write_checkpoint(tmp_path / "good", model(generator))
    convert_folder(good, tmp_path / "done", quant.Int8())
    for place, message in (
        ("nothing", "Found no weights in"),
        ("half", "is cut short: it ends inside its header"),
        ("nan", "does not survive quantization"),
        ("done", "quantized already"),
    ):
        assert main([str(tmp_path / place), str(tmp_path / "out"), "--scheme", "fp8"]) == 1
        assert message in capsys.readouterr().err
        assert not (tmp_path / "out").exists()
    arguments = [str(good), str(tmp_path / "out"), "--scheme", "fp8", "--include", "no such layer"]
    assert main(arguments) == 1
    assert "loosen --include" in capsys.readouterr().err


WATCHED = """
import sys
from pathlib import Path
import quant
from quant import folder
make = folder._quantize_group
def watched(*arguments):
    made = make(*arguments)  # the moment when a shard's tensors are all there
    lines = Path("/proc/self/status").read_text().splitlines()
    print(next(line for line in lines if line.startswith("RssAnon")).split()[1])
    return made
folder._quantize_group = watched
folder.convert_folder(Path(sys.argv[1]), Path(sys.argv[2]), quant.Int8(), shard_bytes=8 << 20)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_memory_does_not_grow_with_the_checkpoint(tmp_path: Path) -> None:
    """256 MiB in shards of 8: once the heap has settled, a process of its own does not hold more and more."""
    state = {f"layers.{i}.mlp.fc1.weight": torch.full((512, 4096), 0.01 * (i + 1)).bfloat16() for i in range(64)}
    save_file(state, tmp_path / "big.safetensors")
    command = [sys.executable, "-c", WATCHED, str(tmp_path / "big.safetensors"), str(tmp_path / "out")]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True)
    held = [int(line) for line in done.stdout.split()]
    assert len(held) == 32
    growth = statistics.median(held[-8:]) - statistics.median(held[8:16])
    assert growth < 32 << 10  # KiB: keeping the shards would take 64 MiB more
