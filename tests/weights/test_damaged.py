"""Model folders that are damaged where headers tell nothing: each is read right, or refused early with a sentence."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from magi_lite.errors import CheckpointError, DownloadError
from magi_lite.library import stream
from magi_lite.project import Project
from magi_lite.weights.contents import check_contents
from magi_lite.weights.hub import download
from magi_lite.weights.loader import check_model, load_special_tokens
from magi_lite.weights.opening import open_model
from magi_lite.weights.t5 import load_t5, load_tokenizer
from quant import QuantError, convert_folder, scheme_named
from quant.storage.shards import Checkpoint, WeightsError
from tests import memory
from tests.weights.test_folders import pickled

T5, VAE, DIT = "ckpt/t5/demo", "ckpt/vae", "ckpt/magi/demo/inference_weight.distill"


# --- special tokens

Arrays = dict[str, Any]


def as_npz(root: Path, change: Callable[[Arrays], object]) -> Path:
    """The special tokens as they are published, with something changed."""
    path = root / "special_tokens.npz"
    tokens = load_file(root / "special_tokens.safetensors")
    (root / "special_tokens.safetensors").unlink()
    arrays: Arrays = {name: tensor.double().numpy() for name, tensor in tokens.items()}
    change(arrays)
    np.savez(path, **arrays)
    return path


def claims(root: Path, shape: str) -> None:
    """A member whose header names far more numbers than follow."""
    path = as_npz(root, lambda a: None)
    header = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}, }}".ljust(117).encode() + b"\n"
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    members["other_tokens.npy"] = b"\x93NUMPY\x01\x00v\x00" + header + bytes(800)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def as_type(kind: torch.dtype) -> Callable[[Path], object]:
    def change(root: Path) -> None:
        path = root / "special_tokens.safetensors"
        tokens = {name: tensor.to(kind) for name, tensor in load_file(path).items()}
        save_file(tokens, path)

    return change


def cut_tokens(root: Path) -> None:
    path = as_npz(root, lambda a: None)
    path.write_bytes(path.read_bytes()[:3000])


TOKENS: dict[str, tuple[Callable[[Path], object], str]] = {
    "claims terabytes": (lambda r: claims(r, "(3000000000, 64)"), "cannot be read"),
    "claims less than nothing": (lambda r: claims(r, "(-1, 64)"), "cannot be read"),
    "claims text": (lambda r: claims(r, "'all'"), "cannot be read"),
    "cut": (cut_tokens, "cannot be read"),
    "a pickle in it": (
        lambda r: as_npz(r, lambda a: a.update(logo_token=np.array([{}], dtype=object))),
        "cannot be read",
    ),
    "texts": (lambda r: as_npz(r, lambda a: a.update(logo_token=np.array([["x"] * 64]))), "is .* where float16"),
    "one lacks": (lambda r: as_npz(r, lambda a: a.pop("caption_token")), "lacks caption_token"),
    "one flat": (lambda r: as_npz(r, lambda a: a.update(logo_token=a["logo_token"][0])), r"has shape \(64,\)"),
    "too few rows": (lambda r: as_npz(r, lambda a: a.update(other_tokens=a["other_tokens"][:16])), "at least 17"),
    "another width": (lambda r: as_npz(r, lambda a: a.update({n: t[:, :32] for n, t in a.items()})), "32 channels"),
    "no width": (lambda r: as_npz(r, lambda a: a.update({n: t[:, :0] for n, t in a.items()})), "has shape"),
    "whole numbers": (as_type(torch.int8), "is int8 where float16"),
    "truths": (as_type(torch.bool), "is bool where float16"),
    "no file": (lambda r: (r / "special_tokens.safetensors").write_bytes(b"[]" * 200), "cannot be read"),
}


@pytest.mark.parametrize("case", TOKENS)
def test_special_tokens_are_checked_before_a_job_is_queued(case: str, own_model: Path) -> None:
    damage, sentence = TOKENS[case]
    damage(own_model)
    before = memory.begin()
    for check in (check_contents, check_model, load_special_tokens):
        with pytest.raises(CheckpointError, match=sentence) as caught:
            check(open_model(own_model))
        assert str(caught.value).endswith(".")
    assert memory.peak() - before < 200 << 20


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_special_tokens_of_any_float_are_read(kind: torch.dtype, own_model: Path) -> None:
    wanted = load_file(own_model / "special_tokens.safetensors")["other_tokens"].to(kind).to(torch.float16)
    as_type(kind)(own_model)
    check_contents(open_model(own_model))
    assert torch.equal(load_special_tokens(open_model(own_model)).other_tokens, wanted)


def test_special_tokens_that_are_no_numbers(own_model: Path) -> None:
    as_npz(own_model, lambda a: a["other_tokens"].__setitem__((3, 3), 1e300))  # beyond float16
    with pytest.raises(CheckpointError, match="holds NaN or infinite numbers"):
        load_special_tokens(open_model(own_model))


# --- text encoder


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"])
@pytest.mark.parametrize("content", [b"", b"[]", b"{", b'{"a":' * 50_000, b'{"a":"\xff\xfe"}', b"<html>"])
def test_a_tokenizer_that_is_none_is_named_before_a_job_is_queued(name: str, content: bytes, own_model: Path) -> None:
    (own_model / T5 / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{name} is not a part of a tokenizer; download it again"):
        check_contents(open_model(own_model))


@pytest.mark.parametrize("content", [b"", b"<html>", b"version https://git-lfs.github.com/spec/v1\n"])
def test_a_vocabulary_that_is_none(content: bytes, own_model: Path) -> None:
    (own_model / T5 / "tokenizer.json").unlink()
    (own_model / T5 / "spiece.model").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"spiece\.model is (empty|a web page|a git-lfs pointer)"):
        check_contents(open_model(own_model))


def test_a_tokenizer_of_more_words_than_the_encoder_knows(own_model: Path) -> None:
    path = own_model / T5 / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["vocab"]["beyond"] = 10_000
    path.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=r"has a token 10000 where the text encoder knows \d+"):
        load_t5(own_model / T5)


@pytest.mark.parametrize(
    ("name", "value"),
    [("use_cache", []), ("id2label", []), ("torch_dtype", ["a"]), ("quantization_config", "8"), ("auto_map", 5)],
)
def test_what_other_programs_note_in_a_configuration_does_no_harm(name: str, value: object, own_model: Path) -> None:
    wanted = load_t5(own_model / T5).encode(["a red ball"])[0]
    path = own_model / T5 / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {name: value}))
    load_tokenizer(own_model / T5)
    assert torch.equal(load_t5(own_model / T5).encode(["a red ball"])[0], wanted)


def test_a_text_encoder_of_another_width_than_the_model(own_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = open_model(own_model)
    other = dataclasses.replace(files.spec, dit=dataclasses.replace(files.spec.dit, caption_channels=32))
    monkeypatch.setattr("magi_lite.weights.contents.dit_shapes", lambda dit: {})
    monkeypatch.setattr("magi_lite.weights.contents.check_token_file", lambda path, channels: None)
    monkeypatch.setattr(Checkpoint, "require", lambda *given: None)
    with pytest.raises(CheckpointError, match="gives 64 channels where the model needs 32"):
        check_contents(dataclasses.replace(files, spec=other))


@pytest.mark.parametrize("damage", ["cut", "index", "lost", "empty"])
def test_a_damaged_copy_of_pickled_weights_is_made_again(damage: str, own_model: Path) -> None:
    pickled(own_model / T5)
    wanted = load_t5(own_model / T5, "bf16").encode(["a red ball"])[0]
    copy = own_model / T5 / "converted-bfloat16"
    shards = sorted(copy.glob("*.safetensors"))
    if damage == "cut":
        os.truncate(shards[0], 900)
    elif damage == "index":
        next(copy.glob("*.index.json")).write_text("{")
    elif damage == "lost":
        shards[1].unlink()
    else:
        shards[0].write_bytes(b"")
    check_contents(open_model(own_model))
    assert torch.equal(load_t5(own_model / T5, "bf16").encode(["a red ball"])[0], wanted)
    assert Checkpoint.open(copy).tensors


def test_a_damaged_copy_whose_origin_is_gone_is_named(own_model: Path) -> None:
    files = pickled(own_model / T5)
    load_t5(own_model / T5, "bf16")
    os.truncate(sorted((own_model / T5 / "converted-bfloat16").glob("*.safetensors"))[0], 900)
    files[0].unlink()
    with pytest.raises(CheckpointError, match=r"converted-bfloat16/.* is cut short"):
        check_contents(open_model(own_model))


# --- numbers that are none


@pytest.mark.parametrize(
    ("place", "name", "sentence"),
    [
        (DIT, "final_linear.linear.weight", "The transformer gave NaN or infinite numbers"),
        (VAE, "decoder.last_layer.weight", "The autoencoder gave NaN or infinite numbers"),
        (T5, "encoder.final_layer_norm.weight", "The text encoder gave NaN or infinite numbers"),
    ],
)
def test_weights_that_are_no_numbers_make_no_video(
    place: str, name: str, sentence: str, own_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of it is kept: with whole weights the same run goes on."""
    monkeypatch.setattr("magi_lite.pipeline.prompts.EMBEDDINGS_FOLDER", tmp_path / "embeddings")
    (path,) = (own_model / place).glob("*.safetensors")
    whole = path.read_bytes()
    state = load_file(path)
    state[name] = torch.full_like(state[name], float("nan"))
    save_file(state, path)
    asked: Any = {"seconds": 1, "size": "32x32", "steps": 8, "model": str(own_model), "projects": tmp_path / "runs"}
    with pytest.raises(CheckpointError, match=sentence):
        list(stream("a red ball", **asked))
    (folder,) = (entry for entry in (tmp_path / "runs").iterdir() if (entry / "project.json").is_file())
    with Project.open(folder) as project:
        assert project.chunks == 0
    path.write_bytes(whole)
    assert not list((tmp_path / "embeddings").glob("*")) or place != T5
    for _ in stream(resume=folder):
        pass
    with Project.open(folder) as project:
        assert project.chunks == 1 and bool(project.read_latents(0).isfinite().all())


# --- what takes time or memory


def test_an_index_of_a_hundred_thousand_files(tmp_path: Path) -> None:
    index = {"weight_map": {f"t{n}": f"f{n}.safetensors" for n in range(100_000)}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(WeightsError, match="names 100000 files; it is not trusted"):
        Checkpoint.open(tmp_path)


def test_a_header_that_would_take_gigabytes(tmp_path: Path) -> None:
    header = b'{"a":[' + b"[]," * 20_000_000 + b"0]}"
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    before = memory.begin()
    with pytest.raises(WeightsError, match="its header makes no sense"):
        Checkpoint.open(tmp_path)
    assert memory.peak() - before < 300 << 20


def test_many_missing_files_are_counted(own_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.move(own_model / "ckpt/magi/demo", own_model / "ckpt/magi/4.5B_distill")
    pickled(own_model / T5)
    index = own_model / T5 / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": {f"t{n}": f"f{n}.bin" for n in range(500)}}))
    with pytest.raises(DownloadError, match=r"f0\.bin, .* and 488 more; download"):
        download("4.5B-distill", own_model, offline=True)


# --- converting


@pytest.mark.parametrize("which", ["source", "target"])
def test_links_in_a_circle(which: str, own_model: Path, tmp_path: Path) -> None:
    (tmp_path / "circle").symlink_to("circle")
    source, target = own_model / DIT, tmp_path / "out"
    given = (tmp_path / "circle" / "x", target) if which == "source" else (source, tmp_path / "circle")
    with pytest.raises(QuantError) as caught:
        convert_folder(*given, scheme_named("int8"))
    assert str(caught.value).endswith(".")


@pytest.mark.parametrize("field", ["tensors", "error", "bytes"])
def test_a_record_of_other_tensors_is_not_believed(
    field: str, own_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The shard that it is about is made again."""
    whole = convert_folder(own_model / DIT, tmp_path / "whole", scheme_named("int8"), shard_bytes=100_000)

    def stop(*given: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("quant.folder._write_index", stop)
        with pytest.raises(KeyboardInterrupt):
            convert_folder(own_model / DIT, tmp_path / "out", scheme_named("int8"), shard_bytes=100_000)
    record = sorted((tmp_path / "out.partial" / "records").iterdir())[0]
    wrong: Any = {"tensors": ["other"], "error": float("nan"), "bytes": True}
    record.write_text(json.dumps(json.loads(record.read_text()) | {field: wrong[field]}))
    said: list[str] = []
    made = convert_folder(
        own_model / DIT, tmp_path / "out", scheme_named("int8"), shard_bytes=100_000, say=said.append
    )
    assert made.shards == whole.shards and "kept" not in said[0] and "kept" in said[1]


@pytest.mark.parametrize("place", [DIT, VAE, T5, "ckpt/magi/demo", "ckpt"])
def test_folders_that_may_not_be_entered(place: str, own_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They can be listed; the superuser may enter all, so the system's answer is put in its place."""
    asked = Path.stat

    def stat(path: Path, **given: Any) -> os.stat_result:
        if own_model / place in path.parents:
            raise PermissionError(13, "Permission denied", str(path))
        return asked(path, **given)

    monkeypatch.setattr(Path, "stat", stat)
    with pytest.raises(CheckpointError, match=r"no permission|There (is|are) no|no config"):
        open_model(own_model)
