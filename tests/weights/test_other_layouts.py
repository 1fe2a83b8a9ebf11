"""Model folders as other tools, systems and accidents leave them: whole ones work, others are named at every place."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import struct
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zstandard
from safetensors.torch import load_file, save_file

from magi_lite.cli import main
from magi_lite.errors import CheckpointError
from magi_lite.request.build import models_on_disk
from magi_lite.weights.contents import check_contents
from magi_lite.weights.hub import missing_files
from magi_lite.weights.layout import find_model
from magi_lite.weights.loader import check_model, load_dit, load_special_tokens, load_vae
from magi_lite.weights.t5 import load_t5
from quant import QuantError, convert_folder, scheme_named
from quant.storage.shards import Checkpoint, WeightsError
from tests import memory
from tests.weights.test_folders import DIT, FAMILY, MODEL, T5, VAE, as_cache, edit_index, pointer, root, shard  # noqa: F401

ONE = f"{DIT}/model.safetensors"
INDEX = f"{DIT}/model.safetensors.index.json"
TOKENS = "special_tokens.safetensors"


class Trap:
    """A pickle that leaves a mark where it is loaded."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return (Path.touch, (self.mark,))


def lay_traps(root: Path) -> Path:  # noqa: F811
    for name in ("pytorch_model.bin", "model.pt", "model.ckpt", "optimizer.pkl"):
        for folder in (DIT, VAE, T5):
            (root / folder / name).write_bytes(pickle.dumps(Trap(root.parent / "sprung")))
    return root


def several_snapshots(root: Path, which: str) -> Path:  # noqa: F811
    """A cache whose `refs/main` is `which`; another, newer snapshot lacks nearly all."""
    cache = as_cache(root)
    shutil.copytree(cache / "snapshots" / "bbbb", cache / "snapshots" / "cccc", symlinks=True)
    shutil.rmtree(cache / "snapshots" / "cccc" / "ckpt" / "t5")
    os.utime(cache / "snapshots" / "bbbb", (1, 1))
    (cache / "refs" / "main").write_text(which)
    return cache


def with_litter(root: Path) -> Path:  # noqa: F811
    """What finders, downloaders and editors leave beside files."""
    for folder in (DIT, VAE, T5, ""):
        for name in (
            ".DS_Store", "._model.safetensors", "Thumbs.db", "README.md", "model.safetensors~", "desktop.ini",
            "model.safetensors.incomplete", "model.safetensors.aria2",
        ):  # fmt: skip
            (root / folder / name).write_bytes(b"\x00\x05\x16\x07")
        (root / folder / ".cache" / "huggingface").mkdir(parents=True)
        (root / folder / ".cache" / "huggingface" / "model.safetensors.metadata").write_text("x")
    return root


def elsewhere(root: Path) -> Path:  # noqa: F811
    """Every file is a link to another disk."""
    for number, path in enumerate([path for path in root.rglob("*") if path.is_file()]):
        target = root.parent / "disk" / f"{number}"
        target.parent.mkdir(exist_ok=True)
        shutil.move(path, target)
        path.symlink_to(target)
    return root


def renamed(root: Path, name: str) -> Path:  # noqa: F811
    return Path(shutil.move(root, root.parent / name))


def repacked(root: Path, pack: Callable[[bytes], bytes]) -> Path:  # noqa: F811
    path = root / ONE
    path.with_name(path.name + ".zst").write_bytes(pack(path.read_bytes()))
    path.unlink()
    return root


def in_frames(data: bytes) -> bytes:
    """Frames of 100 kB, without their sizes, and skippable ones between them."""
    packer = zstandard.ZstdCompressor(write_content_size=False)
    skipped = struct.pack("<II", 0x184D2A50, 5) + b"hello"
    return skipped + skipped.join(packer.compress(data[at : at + 100_000]) for at in range(0, len(data), 100_000))


def recoded(root: Path, encoding: str) -> Path:  # noqa: F811
    for path in (root / FAMILY / "config.json", root / VAE / "config.json", root / T5 / "config.json"):
        path.write_text(path.read_text(), encoding=encoding)
    return root


def unaligned(root: Path) -> Path:  # noqa: F811
    """A header with text entries and of an odd length."""
    save_file(load_file(root / ONE), root / ONE, {"format": "pt", "note": "x" * 101})
    data = (root / ONE).read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    (root / ONE).write_bytes(struct.pack("<Q", length + 3) + data[8 : 8 + length] + b"   " + data[8 + length :])
    return root


def in_each_other(root: Path) -> Path:  # noqa: F811
    shutil.copytree(root, root.parent / "copy")
    shutil.move(root.parent / "copy", root / "ckpt" / "magi" / "copy of models")
    shutil.copytree(root / DIT, root / DIT / "inference_weight.distill")
    return root


WHOLE: dict[str, Callable[[Path], Path]] = {
    "pickles beside it": lay_traps,
    "the snapshot that refs names": lambda r: several_snapshots(r, "bbbb"),
    "refs with a line's end": lambda r: several_snapshots(r, "bbbb\r\n"),
    "litter": with_litter,
    "every file a link": elsewhere,
    "spaces and other letters": lambda r: renamed(r, "mes modèles – 模型 (1)"),
    "signs of patterns": lambda r: renamed(r, "models[1]{a}*?"),
    "a hidden folder": lambda r: renamed(r, ".models"),
    "a name as long as a disk takes": lambda r: renamed(r, "m" * 255),
    "frames without sizes": lambda r: repacked(r, in_frames),
    "packed with a window": lambda r: repacked(r, zstandard.ZstdCompressor(22).compress),
    "byte order marks": lambda r: recoded(r, "utf-8-sig"),
    "utf-16": lambda r: recoded(r, "utf-16"),
    "an odd header": unaligned,
    "copies in each other": in_each_other,
    "another case beside it": lambda r: (shutil.copyfile(r / ONE, r / DIT / "MODEL.safetensors"), r)[1],
    "backups beside it": lambda r: (shutil.copyfile(r / ONE, r / DIT / "model.safetensors.bak"), r)[1],
}


@pytest.mark.parametrize("form", WHOLE)
def test_whole_models_work(form: str, root: Path) -> None:  # noqa: F811
    place = WHOLE[form](root)
    files = find_model(MODEL, place)
    assert models_on_disk(place) == (MODEL,) and missing_files(MODEL, place) == []
    check_contents(files)
    check_model(files)
    assert load_dit(files).config == files.spec.dit
    load_vae(files.vae), load_t5(files.text_encoder), load_special_tokens(files)
    assert not (root.parent / "sprung").exists(), "nothing pickled was loaded"


# --- broken ----------------------------------------------------------------------------------------------------------


def header(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Rewrite a file's header, the numbers as they are."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    entries = json.loads(data[8 : 8 + length])
    change(entries)
    raw(path, json.dumps(entries).encode(), data[8 + length :])


def raw(path: Path, text: bytes, numbers: bytes = b"") -> None:
    path.write_bytes(struct.pack("<Q", len(text)) + text + numbers)


def first(entries: dict[str, Any]) -> dict[str, Any]:
    return next(entry for name, entry in entries.items() if name != "__metadata__")


def twice(root: Path) -> None:  # noqa: F811
    """One tensor in two shards."""
    paths = shard(root / DIT)
    name, tensor = next(iter(load_file(paths[0]).items()))
    save_file(load_file(paths[1]) | {name: tensor}, paths[1])


def retyped(path: Path, kind: torch.dtype) -> None:
    save_file({name: tensor.to(kind) for name, tensor in load_file(path).items()}, path)


def without(path: Path, part: str) -> None:
    state = load_file(path)
    save_file({name: tensor for name, tensor in state.items() if part not in name}, path)


def config(root: Path, text: str) -> None:  # noqa: F811
    (root / FAMILY / "config.json").write_text(text)


def config_with(root: Path, part: str, name: str, text: str) -> None:  # noqa: F811
    content = json.loads((root / FAMILY / "config.json").read_text())
    content[part][name] = "@"
    config(root, json.dumps(content).replace('"@"', text))


def mapped(root: Path, name: str) -> None:  # noqa: F811
    """An index that names this file for the first tensor."""
    shard(root / DIT)
    edit_index(root / INDEX, lambda m: m.update({next(iter(m)): name}))


def blobless(root: Path, part: str) -> None:  # noqa: F811
    """A cache, in the place of the root, in which the blobs of a part were cleaned away."""
    cache = as_cache(root)
    for link in (cache / "snapshots" / "bbbb" / part).rglob("*.safetensors"):
        link.resolve().unlink()
    in_place(root, cache)


def in_place(root: Path, cache: Path) -> None:  # noqa: F811
    """The cache inside the folder that is asked for."""
    root.mkdir()
    shutil.move(cache, root)


def bomb(data: bytes) -> bytes:
    """Behind a right header six gigabytes of nothing."""
    (length,) = struct.unpack("<Q", data[:8])
    packer = zstandard.ZstdCompressor(write_content_size=False)
    zeros = packer.compress(bytes(1 << 26))
    return packer.compress(data[: 8 + length]) + zeros * 96


def token_zip(root: Path, members: dict[str, bytes]) -> None:  # noqa: F811
    (root / TOKENS).unlink()
    with zipfile.ZipFile(root / "special_tokens.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def array(value: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, value, allow_pickle=True)
    return file.getvalue()


def tokens_and(**more: bytes) -> dict[str, bytes]:
    rows = {"caption_token": 1, "logo_token": 1, "other_tokens": 20}
    return {f"{name}.npy": array(np.ones((count, 64), np.float32)) for name, count in rows.items()} | {
        f"{name}.npy": content for name, content in more.items()
    }


Spoil = Callable[[Path], object]
HUGE = "[" + ",".join(["9" * 4000] * 4000) + "]"
BROKEN: dict[str, tuple[Spoil, str]] = {
    "a cache without the transformer's blobs": (lambda r: blobless(r, DIT), r"model\.safetensors .* is missing"),
    "a cache without the autoencoder's blobs": (lambda r: blobless(r, VAE), r"\.safetensors .* is missing"),
    "a cache whose refs names no snapshot, the newest cut": (
        lambda r: in_place(r, several_snapshots(r, "dddd")),
        "There is no text encoder in",
    ),
    "a cache whose refs leads outside": (
        lambda r: (in_place(r, several_snapshots(r, "../../../elsewhere")), (r.parent / "elsewhere").mkdir()),
        "There is no text encoder in .*cccc",
    ),
    "a folder that is a link to itself": (
        lambda r: (shutil.rmtree(r / DIT), (r / DIT).symlink_to(r / DIT)), "There are no weights of"),
    "folders that link to each other": (
        lambda r: (shutil.rmtree(r / VAE), (r / VAE).symlink_to(r / "ckpt/v"), (r / "ckpt/v").symlink_to(r / VAE)),
        "There is no autoencoder in",
    ),
    "a file where the folder should be": (
        lambda r: (shutil.rmtree(r / "ckpt/t5"), (r / "ckpt/t5").write_text("x")), "There is no text encoder in"),
    "an index that names an absolute path": (lambda r: mapped(r, "/etc/passwd"), "not a file of its own folder"),
    "an index that leads up": (lambda r: mapped(r, "../model.safetensors"), "not a file of its own folder"),
    "an index in Windows' way": (lambda r: mapped(r, "a\\b.safetensors"), "not a file of its own folder"),
    "an index that names nothing": (lambda r: mapped(r, ""), "not a file of its own folder"),
    "an index that names the folder": (lambda r: mapped(r, "."), "not a file of its own folder"),
    "an index with a zero byte": (lambda r: mapped(r, "a\0b.safetensors"), "not a file of its own folder"),
    "an index that names what is no weights": (lambda r: mapped(r, "config.json"), "missing|not a safetensors|belongs"),
    "an index that is a list": (
        lambda r: (shard(r / DIT), (r / INDEX).write_text("[]")), "The index .* cannot be read"),
    "an index of nothing": (
        lambda r: (shard(r / DIT), (r / INDEX).write_text('{"weight_map": {}}')), "is missing from"),
    "an index whose map is a list": (
        lambda r: (shard(r / DIT), (r / INDEX).write_text('{"weight_map": ["a"]}')), "The index .* cannot be read"),
    "a tensor in two shards": (twice, "is not listed in the index|is in both"),
    "two shards without an index, one twice": (
        lambda r: (twice(r), (r / INDEX).unlink()), "is in both"),
    "two sets": (lambda r: (shutil.copyfile(r / ONE, r / DIT / "a.safetensors"),
                            (r / ONE).rename(r / DIT / "b.safetensors")), "holds several sets of weights"),
    "a shard of no length": (lambda r: shard(r / DIT)[1].write_bytes(b""), "is empty"),
    "a shard of eight bytes": (lambda r: shard(r / DIT)[1].write_bytes(bytes(8)), "not a safetensors file"),
    "a shard that is a pointer": (lambda r: pointer(shard(r / VAE)[1]), "is a git-lfs pointer"),
    "whole numbers": (lambda r: retyped(r / ONE, torch.int64), "is int64 where"),
    "double numbers": (lambda r: retyped(r / ONE, torch.float64), "is float64 where"),
    "an autoencoder of bytes": (
        lambda r: retyped(next((r / VAE).glob("*.safetensors")), torch.uint8), "is uint8 where"),
    "no biases": (lambda r: without(r / ONE, ".bias"), "bias .* is missing from"),
    "one tensor more": (
        lambda r: save_file(load_file(r / ONE) | {"extra": torch.ones(1)}, r / ONE), "Tensor extra .* is unexpected"),
    "an autoencoder with less": (
        lambda r: without(next((r / VAE).glob("*.safetensors")), "decoder.last"), "decoder.last.* is missing"),
    "a type that is none": (
        lambda r: header(r / ONE, lambda h: first(h).update(dtype="C64")), "not a safetensors file"),
    "overlapping tensors": (
        lambda r: header(r / ONE, lambda h: [e.update(data_offsets=first(h)["data_offsets"], shape=first(h)["shape"],
                                                      dtype=first(h)["dtype"]) for e in list(h.values())[1:3]]),
        "not a safetensors file"),
    "a hole": (
        lambda r: header(r / ONE, lambda h: h.pop(max(h, key=lambda n: h[n].get("data_offsets", [0])[0]))),
        "longer than its header says|is missing from",
    ),
    "offsets backwards": (
        lambda r: header(r / ONE, lambda h: first(h).update(data_offsets=first(h)["data_offsets"][::-1])),
        "not a safetensors file"),
    "a negative side": (lambda r: header(r / ONE, lambda h: first(h).update(shape=[-1, -1])), "not a safetensors file"),
    "half a side": (lambda r: header(r / ONE, lambda h: first(h).update(shape=[1.5])), "not a safetensors file"),
    "a name twice": (
        lambda r: raw(r / ONE, b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
                               b'"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}', bytes(8)),
        "not a safetensors file"),
    "sides of four thousand digits": (
        lambda r: raw(r / ONE, b'{"a":{"dtype":"F32","shape":%s,"data_offsets":[0,4]}}' % HUGE.encode(), bytes(4)),
        "not a safetensors file"),
    "a header of 100 MB": (lambda r: raw(r / ONE, b" " * 100_000_000 + b"{}"), "not a safetensors file"),
    "a header that begins behind the end": (
        lambda r: (r / ONE).write_bytes(struct.pack("<Q", 2**63) + b"{}"), "not a safetensors file"),
    "a configuration of NaN": (lambda r: config_with(r, "runtime_config", "clean_t", "NaN"), "clean_t nan, which must"),
    "an endless number": (lambda r: config_with(r, "runtime_config", "clean_t", "1e999"), "clean_t inf, which must"),
    "a number of 5000 digits": (
        lambda r: config_with(r, "model_config", "num_layers", "9" * 5000), "is not a model configuration"),
    "layers of 400 digits": (
        lambda r: config_with(r, "model_config", "num_layers", "9" * 400), "num_layers .* must be"),
    "layers in quotes": (lambda r: config_with(r, "model_config", "num_layers", '"34"'), "num_layers '34', which must"),
    "no layers": (lambda r: config_with(r, "model_config", "num_layers", "null"), "num_layers None, which must"),
    "an empty configuration": (lambda r: config(r, ""), "is not a model configuration"),
    "a configuration that is a list": (lambda r: config(r, "[1]"), "is not a model configuration"),
    "a configuration nested deeply": (lambda r: config(r, '{"model_config":' * 20_000), "is not a model configuration"),
    "packed twice": (
        lambda r: repacked(r, lambda d: zstandard.compress(zstandard.compress(d))), "not a safetensors file"),
    "packed nothing": (
        lambda r: repacked(r, lambda d: struct.pack("<II", 0x184D2A50, 5) + b"hello"), "is cut short|is empty"),
    "packed, of another make": (lambda r: repacked(r, lambda d: b"\x1f\x8b" + d[:100]), "not zstd-compressed"),
    "tokens that are a pickle": (
        lambda r: (
            (r / TOKENS).unlink(), (r / "special_tokens.npz").write_bytes(pickle.dumps(Trap(r.parent / "sprung")))),
        "cannot be read"),
    "tokens with a trap": (
        lambda r: token_zip(r, tokens_and(other_tokens=array(np.array([Trap(r.parent / "sprung")], dtype=object)))),
        "cannot be read"),
    "tokens of a gigabyte": (
        lambda r: token_zip(r, tokens_and(other_tokens=array(np.zeros((1 << 18, 1024), np.float32)))),
        "cannot be read"),
    "tokens flat": (lambda r: token_zip(r, tokens_and(other_tokens=array(np.ones(64)))), "has shape"),
    "tokens of texts": (
        lambda r: token_zip(r, tokens_and(other_tokens=array(np.array([["a"] * 64] * 20)))), "is .* where"),
    "tokens without an end": (
        lambda r: token_zip(r, tokens_and(other_tokens=array(np.ones((20, 64)))[:-100])), "cannot be read"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_broken_models_are_named_wherever_they_are_used(
    case: str, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]  # noqa: F811
) -> None:
    """In the list of models, before a job, by `generate` and offline by `download`; cheaply, and with one sentence."""
    spoil, sentence = BROKEN[case]
    spoil(root)
    before, began = memory.begin(), time.monotonic()
    with pytest.raises(CheckpointError, match=sentence) as caught:
        check_contents(find_model(MODEL, root))
    assert time.monotonic() - began < 10 and memory.peak() - before < 300 << 20
    assert "\n" not in str(caught.value) and str(caught.value).endswith((".", f"download {MODEL}"))
    assert models_on_disk(root) == ()
    asked = ["generate", "--prompt", "a", "--preset", "demo", "--model", MODEL, "--models", str(root), "--seconds", "1"]
    assert main([*asked, "--projects", str(tmp_path / "runs")]) == 3
    told = capsys.readouterr().err.strip().splitlines()
    assert told[-1].startswith("error: ") and "Traceback" not in "".join(told)
    assert not list((tmp_path / "runs").glob("2*"))
    assert main(["download", MODEL, "--models", str(root), "--offline"]) != 0
    assert not (tmp_path / "sprung").exists(), "nothing pickled was loaded"


QUANTIZED = [
    name
    for name in BROKEN
    if any(part in name for part in ("shard", "header", "index", "twice", "sides", "packed", "offsets", "two sets"))
    and "pointer" not in name  # of the autoencoder
]


@pytest.mark.parametrize("case", QUANTIZED)
def test_broken_weights_are_not_converted(case: str, root: Path, tmp_path: Path) -> None:  # noqa: F811
    BROKEN[case][0](root)
    with pytest.raises(QuantError) as caught:
        convert_folder(root / DIT, tmp_path / "out", scheme_named("int8"))
    assert str(caught.value).endswith(".") and "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_packed_weights_that_are_a_bomb(root: Path, tmp_path: Path) -> None:  # noqa: F811
    """The header is right; what comes behind it is six gigabytes. Nothing of it stays in memory or on the disk."""
    repacked(root, bomb)
    before = memory.begin()
    with pytest.raises(CheckpointError, match="is longer than its header says"):
        load_dit(find_model(MODEL, root))
    with pytest.raises(WeightsError, match="is longer than its header says"):
        convert_folder(root / DIT, tmp_path / "out", scheme_named("int8"))
    assert memory.peak() - before < 400 << 20
    size = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    assert size < 100 << 20


def test_a_frame_that_wants_gigabytes_of_memory(root: Path) -> None:  # noqa: F811
    """A window of 2 GB, which whoever unpacks has to hold."""
    head = b"\x28\xb5\x2f\xfd" + bytes([0x00, 21 << 3]) + bytes([0x01 | 8 << 3 & 0xFF, 0, 0]) + b"x"
    repacked(root, lambda data: head)
    before = memory.begin()
    with pytest.raises(CheckpointError, match=r"damaged or not zstd|cut short"):
        find_model(MODEL, root)
    assert memory.peak() - before < 100 << 20


@pytest.mark.skipif(not hasattr(os, "fork") or not hasattr(os, "geteuid"), reason="needs fork and users")
@pytest.mark.parametrize("place", [FAMILY, DIT, ONE, VAE, f"{VAE}/config.json", T5, f"{T5}/config.json", TOKENS, ""])
def test_what_may_not_be_read_is_named(place: str, root: Path, tmp_path: Path) -> None:  # noqa: F811
    """As a user who is not the owner; the superuser may read all."""
    if os.geteuid() != 0:
        pytest.skip("only the superuser can become another user")
    for folder in (tmp_path, *tmp_path.parents):
        if folder != Path("/") and folder.is_relative_to("/tmp"):
            folder.chmod(0o755)
    (root / place).chmod(0)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setuid(65534)
            try:
                listed = models_on_disk(root)
                check_contents(find_model(MODEL, root))
                told = "read"
            except CheckpointError as error:
                told = f"{listed} {error}"
            except BaseException as error:
                told = f"program error {error!r}"
            os.write(writing, told.encode())
        finally:
            os._exit(0)
    os.close(writing)
    os.waitpid(child, 0)
    with os.fdopen(reading) as file:
        told = file.read()
    (root / place).chmod(0o755)
    assert told.startswith("() ") and told.endswith((".", f"download {MODEL}")), told


def test_a_folder_that_vanishes_while_it_is_read(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    """At every file that is opened on the way, one run each."""
    import quant.storage.files as storage

    opened, limit = storage.open_plain, 0
    while limit < 100:
        place = root.parent / f"copy{limit}"
        shutil.copytree(root, place)
        left = [limit]

        def opening(path: Path, left: list[int] = left, place: Path = place) -> Any:
            if left[0] == 0:
                shutil.rmtree(place, ignore_errors=True)
            left[0] -= 1
            return opened(path)

        for name, module in list(sys.modules.items()):
            if name.startswith(("quant.", "magi_lite.")) and getattr(module, "open_plain", None) is not None:
                monkeypatch.setattr(module, "open_plain", opening)
        try:
            check_contents(find_model(MODEL, place))
        except CheckpointError as error:
            assert str(error).endswith(".") and "\n" not in str(error)
        else:
            assert left[0] >= 0
            break
        finally:
            for name, module in list(sys.modules.items()):
                if name.startswith(("quant.", "magi_lite.")) and getattr(module, "open_plain", None) is not None:
                    monkeypatch.setattr(module, "open_plain", opened)
            shutil.rmtree(place, ignore_errors=True)
        limit += 1
    assert limit >= 6


def test_a_bare_file_of_weights_is_checked_alike(tmp_path: Path) -> None:
    raw(tmp_path / "a.safetensors", b'{"a":{"dtype":"F32","shape":%s,"data_offsets":[0,4]}}' % HUGE.encode(), bytes(4))
    began = time.monotonic()
    with pytest.raises(WeightsError, match="not a safetensors file"):
        Checkpoint.open(tmp_path / "a.safetensors")
    assert time.monotonic() - began < 5
