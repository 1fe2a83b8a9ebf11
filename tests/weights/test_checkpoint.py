"""Reading checkpoints: every published form gives the same tensors, and every accident its sentence."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import zstandard
from safetensors.torch import load_file, save_file

from magi_lite.errors import CheckpointError, OutputError
from magi_lite.files import write_tensors
from magi_lite.planner.execution import Execution
from magi_lite.weights.loader import load_dit_weights
from quant.errors import WeightsError
from quant.storage.shards import Checkpoint
from tests.weights.conftest import SMALL

State = dict[str, torch.Tensor]
PLAIN = Execution()


def shards(folder: Path, count: int = 3, *, index: bool = True) -> list[Path]:
    """Split the one file of a folder."""
    state = load_file(folder / "model.safetensors")
    state = {name: tensor.clone() for name, tensor in state.items()}
    (folder / "model.safetensors").unlink()
    names, weight_map, paths = sorted(state), {}, []
    for number in range(count):
        name = f"model-{number + 1:05}-of-{count:05}.safetensors"
        mine = names[number::count]
        save_file({key: state[key] for key in mine}, folder / name)
        weight_map |= dict.fromkeys(mine, name)
        paths.append(folder / name)
    if index:
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return paths


def compress(path: Path, *, frames: int = 1) -> Path:
    """Store a file zstd-compressed only, in one or several frames."""
    data = path.read_bytes()
    size = -(-len(data) // frames)
    packed = b"".join(zstandard.compress(data[start : start + size]) for start in range(0, len(data), size))
    path.unlink()
    target = path.with_name(path.name + ".zst")
    target.write_bytes(packed)
    return target


FORMS: dict[str, Callable[[Path], object]] = {
    "one file": lambda folder: None,
    "index and shards": lambda folder: shards(folder),
    "shards without an index": lambda folder: shards(folder, index=False),
    "one shard without an index": lambda folder: shards(folder, 1, index=False),
    "compressed": lambda folder: compress(folder / "model.safetensors"),
    "compressed in frames": lambda folder: compress(folder / "model.safetensors", frames=3),
    "some shards compressed": lambda folder: [compress(path) for path in shards(folder)[1:]],
    "compressed shards without an index": lambda folder: [compress(path) for path in shards(folder, index=False)],
    "diffusers name beside a variant": lambda folder: (
        (folder / "model.safetensors").rename(folder / "diffusion_pytorch_model.safetensors"),
        save_file({"a": torch.ones(1)}, folder / "diffusion_pytorch_model.fp16.safetensors"),
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_tensors(form: str, weights: Path, state: State) -> None:
    FORMS[form](weights)
    model = load_dit_weights(weights, SMALL, PLAIN)
    loaded = model.state_dict()
    assert set(loaded) == set(state)
    assert all(torch.equal(loaded[name], state[name]) for name in state)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    if "compressed" not in form:
        assert set(Checkpoint.open(weights).tensors) == set(state)


def test_unpacked_once_and_again_when_newer(weights: Path) -> None:
    packed = compress(weights / "model.safetensors")
    Checkpoint.open(weights).unpack()
    unpacked = weights / "model.safetensors"
    first = unpacked.stat().st_mtime_ns
    Checkpoint.open(weights).unpack()
    assert unpacked.stat().st_mtime_ns == first
    assert [path.name for path in weights.iterdir() if path.name.startswith(".")] == []
    save_file({"other": torch.ones(2)}, weights / "other.safetensors")
    packed.write_bytes(zstandard.compress((weights / "other.safetensors").read_bytes()))
    (weights / "other.safetensors").unlink()
    os.utime(packed, ns=(first + 10**9, first + 10**9))
    assert set(Checkpoint.open(weights).tensors) == {"other"}


@pytest.mark.parametrize("seconds", [-9999, 9999])
def test_what_stands_beside_a_packed_file_is_known_by_its_content(weights: Path, state: State, seconds: int) -> None:
    """Not by its time: clocks are set, and downloads bring the times of elsewhere."""
    whole = (weights / "model.safetensors").read_bytes()
    packed = compress(weights / "model.safetensors")
    times = [packed.stat().st_mtime_ns + seconds * 10**9] * 2
    unpacked = weights / "model.safetensors"
    unpacked.write_bytes(whole)
    os.utime(unpacked, ns=(times[0], times[1]))
    Checkpoint.open(weights).unpack()
    assert unpacked.stat().st_mtime_ns == times[0]  # by somebody else, and right
    other = {name: tensor + 1 for name, tensor in state.items()}
    save_file(other, unpacked)
    os.utime(unpacked, ns=(times[0], times[1]))
    name = next(iter(state))
    assert torch.equal(Checkpoint.open(weights).read(name), state[name])


def test_a_folder_that_cannot_be_written_is_unpacked_in_memory(
    weights: Path, state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    compress(weights / "model.safetensors")

    really = os.open

    def refuse(path: Any, flags: int, *rest: Any) -> int:
        if str(path).startswith(str(weights)) and flags & (os.O_WRONLY | os.O_RDWR):
            raise PermissionError(13, "Permission denied")
        return really(path, flags, *rest)

    monkeypatch.setattr(os, "open", refuse)
    checkpoint = Checkpoint.open(weights)
    assert all(torch.equal(checkpoint.read(name), state[name]) for name in state)
    assert [path.name for path in weights.iterdir()] == ["model.safetensors.zst"]


def test_a_full_disk_while_unpacking_has_its_sentence(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compress(weights / "model.safetensors")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match="The disk is full"):
        load_dit_weights(weights, SMALL, PLAIN)
    assert [path.name for path in weights.iterdir()] == ["model.safetensors.zst"]


def mapped_file(tensor: torch.Tensor) -> str:
    """The file that the memory of a tensor is mapped from; empty: none."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        addresses, *_, name = line.split(maxsplit=5) if len(line.split()) > 5 else (*line.split(), "")
        first, last = (int(address, 16) for address in addresses.split("-"))
        if first <= tensor.data_ptr() < last:
            return name
    return ""


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="reads Linux's list of mappings")
def test_matching_types_stay_mapped(weights: Path, state: State) -> None:
    """A tensor of the wanted type, aligned in its file, is the file itself and not a copy."""
    write_tensors(weights / "model.safetensors", state)
    file = str(weights / "model.safetensors")
    single = load_dit_weights(weights, SMALL, PLAIN).videodit_blocks.layers[1].mlp.linear_fc1.weight
    assert mapped_file(single) == file
    half = load_dit_weights(weights, SMALL, Execution(dtype="bfloat16", scheme="bf16"))
    assert mapped_file(half.videodit_blocks.layers[1].mlp.linear_fc1.weight) != file
    assert mapped_file(half.x_embedder.weight) == file


# --- accidents -----------------------------------------------------------------------------------------------------


def rewrite(folder: Path, change: Callable[[State], None]) -> None:
    state = {name: tensor.clone() for name, tensor in load_file(folder / "model.safetensors").items()}
    change(state)
    save_file(state, folder / "model.safetensors")


def cut(path: Path, keep: float) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])


def edit_index(folder: Path, change: Callable[[dict[str, str]], None]) -> None:
    path = folder / "model.safetensors.index.json"
    content = json.loads(path.read_text())
    change(content["weight_map"])
    path.write_text(json.dumps(content))


FC1 = "videodit_blocks.layers.1.mlp.linear_fc1.weight"
BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty folder": (
        lambda f: (f / "model.safetensors").unlink(),
        r"Found no weights in .*: looked for \*\.safetensors",
    ),
    "only pickles": (
        lambda f: (f / "model.safetensors").rename(f / "model.bin"),
        r"Found no weights in .* \(the pickled model\.bin is not executed\)",
    ),
    "cut": (
        lambda f: cut(f / "model.safetensors", 0.7),
        r"model\.safetensors is cut short: \d+ bytes instead of \d+; download it again\.",
    ),
    "cut in the header": (lambda f: cut(f / "model.safetensors", 0.001), r"cut short: it ends inside its header"),
    "longer": (
        lambda f: (f / "model.safetensors").open("ab").write(b"more"),
        r"is longer than its header says: \d+ bytes instead of \d+",
    ),
    "empty file": (lambda f: (f / "model.safetensors").write_bytes(b""), r"model\.safetensors is empty"),
    "html": (
        lambda f: (f / "model.safetensors").write_text("<!DOCTYPE html><html>404</html>"),
        r"is a web page and not weights",
    ),
    "html with space": (lambda f: (f / "model.safetensors").write_text("\n  <html>"), r"is a web page"),
    "lfs pointer": (
        lambda f: (f / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\n"),
        r"is a git-lfs pointer and not the weights",
    ),
    "noise": (lambda f: (f / "model.safetensors").write_bytes(b"\xff" * 500), r"is not a safetensors file"),
    "few bytes": (lambda f: (f / "model.safetensors").write_bytes(b"abc"), r"is not a safetensors file"),
    "header no JSON": (
        lambda f: (f / "model.safetensors").write_bytes((5).to_bytes(8, "little") + b"{{{{{"),
        r"its header makes no sense",
    ),
    "unknown number type": (
        lambda f: (f / "model.safetensors").write_bytes(
            (57).to_bytes(8, "little") + b'{"a":{"dtype":"Q3","shape":[1],"data_offsets":[0,1]}}    ' + b"\0"
        ),
        r"its header makes no sense",
    ),
    "missing tensor": (
        lambda f: rewrite(f, lambda s: s.pop(FC1)),
        rf"Tensor {FC1} \(192, 128\) is missing from .*these are not the weights of this model",
    ),
    "several missing": (
        lambda f: rewrite(f, lambda s: (s.pop(FC1), s.pop("rope.bands"))),
        r"is missing from .* \(and 1 more\)",
    ),
    "extra key": (
        lambda f: rewrite(f, lambda s: s.update(surprise=torch.ones(3))),
        r"Tensor surprise \(3,\) in .*model\.safetensors is unexpected",
    ),
    "misshapen": (
        lambda f: rewrite(f, lambda s: s.update({FC1: torch.ones(192, 64)})),
        rf"Tensor {FC1} in .*model\.safetensors has shape \(192, 64\) where this model .* needs \(192, 128\)",
    ),
    "transposed": (
        lambda f: rewrite(f, lambda s: s.update({FC1: s[FC1].T.contiguous()})),
        r"has shape \(128, 192\) where this model .* needs \(192, 128\)",
    ),
    "wrong dtype": (
        lambda f: rewrite(f, lambda s: s.update({FC1: s[FC1].to(torch.int64)})),
        rf"Tensor {FC1} in .* is int64 where this model .* needs bfloat16 or float16 or float32",
    ),
    "eight bit without scales": (
        lambda f: rewrite(f, lambda s: s.update({FC1: s[FC1].to(torch.float8_e4m3fn)})),
        r"is float8_e4m3fn where this model",
    ),
    "missing shard": (
        lambda f: shards(f)[1].unlink(),
        r"The shard model-00002-of-00003\.safetensors that belongs to the weights in .* is missing",
    ),
    "missing shards without index": (
        lambda f: [path.unlink() for path in shards(f, index=False)[1:]],
        r"The shard model-00002-of-00003\.safetensors .* is missing \(and 1 more\)",
    ),
    "cut shard": (lambda f: cut(shards(f)[2], 0.5), r"model-00003-of-00003\.safetensors is cut short"),
    "index no JSON": (
        lambda f: (shards(f), (f / "model.safetensors.index.json").write_text("<html>")),
        r"The index .* cannot be read",
    ),
    "index without a map": (
        lambda f: (shards(f), (f / "model.safetensors.index.json").write_text("[]")),
        r"The index .* cannot be read",
    ),
    "index leads outside": (
        lambda f: (shards(f), edit_index(f, lambda m: m.update({FC1: "../../secret.safetensors"}))),
        r"names \.\./\.\./secret\.safetensors, which is not a file of its own folder",
    ),
    "index of names that no file has": (
        lambda f: (shards(f), edit_index(f, lambda m: m.update({FC1: "x" * 5000}))),
        r"names x{80}, which is not a file of its own folder; it is not trusted\.$",
    ),
    "index of a name too long with .zst": (
        lambda f: (shards(f), edit_index(f, lambda m: m.update({FC1: "ü" * 126}))),
        r"which is not a file of its own folder; it is not trusted\.$",
    ),
    "index names half a character": (
        lambda f: (shards(f), edit_index(f, lambda m: m.update({FC1: "\ud800.safetensors"}))),
        r"The shard \\ud800\.safetensors .* is missing",
    ),
    "index names a tensor that is not there": (
        lambda f: (shards(f), edit_index(f, lambda m: m.update(ghost="model-00001-of-00003.safetensors"))),
        r"Tensor ghost is not in .*model-00001-of-00003\.safetensors although the index",
    ),
    "shard holds more than the index says": (
        lambda f: (shards(f), edit_index(f, lambda m: m.pop(FC1))),
        rf"Tensor {FC1} \(192, 128\) in .* is not listed in the index",
    ),
    "twice": (
        lambda f: [save_file(load_file(p) | {"rope.bands": torch.ones(4)}, p) for p in shards(f, index=False)[:2]],
        r"Tensor rope\.bands is in both",
    ),
    "two sets": (
        lambda f: (
            shards(f, index=False),
            save_file({"a": torch.ones(1)}, f / "ema.safetensors"),
            [
                path.rename(path.with_name("other-" + path.name.split("-", 1)[1]))
                for path in [f / "model-00001-of-00003.safetensors"]
            ],
        ),
        r"holds several sets of weights .* and no index",
    ),
    "zst cut": (
        lambda f: cut(compress(f / "model.safetensors"), 0.6),
        r"model\.safetensors\.zst is cut short; download it again",
    ),
    "zst noise": (
        lambda f: compress(f / "model.safetensors").write_bytes(b"<html>not found</html>"),
        r"model\.safetensors\.zst is damaged or not zstd-compressed",
    ),
    "zst of something else": (
        lambda f: compress(f / "model.safetensors").write_bytes(zstandard.compress(b"<html></html>")),
        r"model\.safetensors is a web page",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_every_accident_has_its_sentence(case: str, weights: Path) -> None:
    spoil, sentence = BAD[case]
    spoil(weights)
    with pytest.raises(CheckpointError, match=sentence) as caught:
        load_dit_weights(weights, SMALL, PLAIN)
    assert "\n" not in str(caught.value)


def test_no_folder_has_its_sentence(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"There is no folder .*nowhere with weights"):
        Checkpoint.open(tmp_path / "nowhere")


def test_a_cut_compressed_file_leaves_nothing_behind(weights: Path) -> None:
    cut(compress(weights / "model.safetensors"), 0.6)
    for _ in range(2):  # and is not taken for whole the second time
        with pytest.raises(CheckpointError, match="cut short"):
            load_dit_weights(weights, SMALL, PLAIN)
    assert [path.name for path in weights.iterdir()] == ["model.safetensors.zst"]
