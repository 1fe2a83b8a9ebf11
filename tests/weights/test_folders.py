"""What people have on disk: whole models in every layout that tools leave behind, and incomplete ones of every kind."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import zstandard
from safetensors.torch import load_file, save_file

from magi_lite.cli import main
from magi_lite.errors import CheckpointError, MagiLiteError
from magi_lite.request.build import models_on_disk
from magi_lite.weights import layout
from magi_lite.weights.hub import missing_files
from magi_lite.weights.layout import SpecialTokensMissing, find_model
from magi_lite.weights.loader import check_model, load_dit
from magi_lite.weights.t5 import load_t5
from quant import convert_folder, scheme_named

MODEL = "4.5B-distill"
FAMILY = "ckpt/magi/4.5B_distill"
DIT = f"{FAMILY}/inference_weight.distill"
VAE, T5 = "ckpt/vae", "ckpt/t5/t5-v1_1-xxl"


@pytest.fixture
def root(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The untrained model under a published model's names, whole."""
    root = tmp_path / "models"
    shutil.copytree(tiny_model, root)
    (root / "ckpt/magi/demo").rename(root / FAMILY)
    (root / "ckpt/t5/demo").rename(root / T5)
    monkeypatch.setattr(layout, "DEFAULT_MODELS_FOLDER", tmp_path / "no default folder")
    return root


def shard(folder: Path, count: int = 3) -> list[Path]:
    """Split the one weights file of a folder into shards with an index."""
    (file,) = folder.glob("*.safetensors")
    state = {name: tensor.clone() for name, tensor in load_file(file).items()}
    file.unlink()
    weight_map, paths = {}, []
    for number in range(count):
        paths.append(folder / f"model-{number + 1:05}-of-{count:05}.safetensors")
        part = dict(sorted(state.items())[number::count])
        save_file(part, paths[-1])
        weight_map |= dict.fromkeys(part, paths[-1].name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return paths


def pickled(folder: Path) -> list[Path]:
    """A text encoder's weights as they were published: two .bin files and their index."""
    state = {name: tensor.clone() for name, tensor in load_file(folder / "model.safetensors").items()}
    (folder / "model.safetensors").unlink()
    weight_map, paths = {}, []
    for number in (1, 2):
        paths.append(folder / f"pytorch_model-{number:05}-of-00002.bin")
        part = dict(sorted(state.items())[number - 1 :: 2])
        torch.save(part, paths[-1])
        weight_map |= dict.fromkeys(part, paths[-1].name)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return paths


def cut(path: Path, keep: float = 0.6) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])


def pointer(path: Path) -> None:
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 9000000000\n")


def compress(path: Path) -> Path:
    packed = path.with_name(path.name + ".zst")
    packed.write_bytes(zstandard.compress(path.read_bytes()))
    path.unlink()
    return packed


def edit_index(path: Path, change: Callable[[dict[str, str]], object]) -> None:
    content = json.loads(path.read_text())
    change(content["weight_map"])
    path.write_text(json.dumps(content))


# --- whole ---------------------------------------------------------------------------------------------------------


def as_cache(root: Path) -> Path:
    """As huggingface_hub's cache: snapshots of links into blobs, an older one beside the newest."""
    cache = root.parent / "hub" / "models--sand-ai--MAGI-1"
    (cache / "blobs").mkdir(parents=True)
    for commit in ("aaaa", "bbbb"):
        for number, file in enumerate(path for path in sorted(root.rglob("*")) if path.is_file()):
            link = cache / "snapshots" / commit / file.relative_to(root)
            link.parent.mkdir(parents=True, exist_ok=True)
            blob = cache / "blobs" / f"{number}"
            if not blob.exists():
                shutil.copyfile(file, blob)
            link.symlink_to(os.path.relpath(blob, link.parent))
    shutil.rmtree(cache / "snapshots" / "aaaa" / "ckpt" / "vae")
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("bbbb")
    shutil.rmtree(root)
    return cache


def as_checkout(root: Path) -> Path:
    """As the official source code has it: downloads/ beside example/assets."""
    checkout = root.parent / "MAGI-1"
    (checkout / "downloads").mkdir(parents=True)
    (checkout / "example" / "assets").mkdir(parents=True)
    shutil.move(root / FAMILY, checkout / "downloads" / "4.5B_distill")
    shutil.move(root / VAE, checkout / "downloads" / "vae")
    shutil.move(root / "ckpt/t5", checkout / "downloads" / "t5_pretrained")
    shutil.move(root / "special_tokens.safetensors", checkout / "example" / "assets")
    return checkout


def on_another_disk(root: Path) -> Path:
    """Family folder and text encoder are links to elsewhere."""
    for part in (FAMILY, "ckpt/t5"):
        elsewhere = root.parent / "disk" / Path(part).name
        elsewhere.parent.mkdir(exist_ok=True)
        shutil.move(root / part, elsewhere)
        (root / part).symlink_to(elsewhere)
    return root


def with_converted(root: Path) -> Path:
    convert_folder(root / DIT, root / FAMILY / "small", scheme_named("int8"))
    return root


WHOLE: dict[str, Callable[[Path], Path]] = {
    "as published": lambda root: root,
    "hub cache": as_cache,
    "folder of hub caches": lambda root: as_cache(root).parent,
    "official checkout": as_checkout,
    "its downloads folder": lambda root: as_checkout(root) / "downloads",
    "links to another disk": on_another_disk,
    "nested once more": lambda root: Path(shutil.copytree(root, root.parent / "outer" / "MAGI-1")),
    "shards": lambda root: (shard(root / DIT), shard(root / VAE), shard(root / T5), root)[-1],
    "compressed": lambda root: (compress(root / DIT / "model.safetensors"), root)[-1],
    "pickled text encoder": lambda root: (pickled(root / T5), root)[-1],
    "a copy converted as the README has it": with_converted,
}


@pytest.mark.parametrize("form", WHOLE)
def test_whole_models_are_found_by_name_and_by_folder(form: str, root: Path) -> None:
    place = WHOLE[form](root)
    files = find_model(MODEL, place)
    assert models_on_disk(place) == (MODEL,) and missing_files(MODEL, place) == []
    check_model(files)
    load_t5(files.text_encoder)
    assert load_dit(files).config == files.spec.dit
    for folder in (place, files.weights.parent, files.weights):
        assert find_model(folder) == files


def test_a_converted_copy_is_meant_by_its_own_name_only(root: Path) -> None:
    """So a run that was begun with the family's folder goes on with what it began with."""
    with_converted(root)
    assert find_model(root / FAMILY).spec.stored_scheme is None
    assert find_model(root / FAMILY / "small").spec.stored_scheme == "int8"
    shutil.copytree(root / FAMILY / "small", root / FAMILY / "smaller")
    assert find_model(root / FAMILY).weights == root / DIT
    shutil.rmtree(root / DIT)
    with pytest.raises(CheckpointError, match=r"holds several models \(small, smaller\); name one"):
        find_model(root / FAMILY)


def test_folders_of_another_release_are_not_taken_for_this_one(root: Path) -> None:
    """MAGI-1.1 calls its folders alike; without a configuration nothing says what they hold."""
    shutil.move(root / "ckpt/magi", root / "ckpt/magi1.1")
    with pytest.raises(CheckpointError, match=r"There are no weights of 4\.5B-distill"):
        find_model(MODEL, root)
    family = root / "ckpt/magi1.1/4.5B_distill"
    assert find_model(family).spec.name == "4.5B_distill"  # by its own config.json
    (family / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"No config\.json lies in"):
        find_model(family)


# --- incomplete ------------------------------------------------------------------------------------------------------

INCOMPLETE: dict[str, tuple[Callable[[Path], object], str]] = {
    "transformer missing": (
        lambda r: shutil.rmtree(r / FAMILY),
        r"no weights of 4\.5B-distill in .*magi_lite download",
    ),
    "a shard missing": (lambda r: shard(r / DIT)[1].unlink(), r"shard model-00002-of-00003\.safetensors .* missing"),
    "an autoencoder's shard missing": (lambda r: shard(r / VAE)[0].unlink(), r"model-00001-of-00003.* is missing"),
    "a text encoder's shard missing": (lambda r: shard(r / T5)[2].unlink(), r"model-00003-of-00003.* is missing"),
    "a pickled shard missing": (lambda r: pickled(r / T5)[1].unlink(), r"pytorch_model-00002-of-00002\.bin .*missing"),
    "a pickled shard cut": (lambda r: cut(pickled(r / T5)[0]), r"00001-of-00002\.bin is damaged or cut short"),
    "a pickled shard a pointer": (lambda r: pointer(pickled(r / T5)[0]), r"00002\.bin is a git-lfs pointer"),
    "transformer cut": (lambda r: cut(r / DIT / "model.safetensors"), r"is cut short: \d+ bytes instead of \d+"),
    "transformer a pointer": (lambda r: pointer(r / DIT / "model.safetensors"), "is a git-lfs pointer"),
    "a shard a pointer": (lambda r: pointer(shard(r / DIT)[2]), r"00003-of-00003\.safetensors is a git-lfs pointer"),
    "transformer empty": (lambda r: (r / DIT / "model.safetensors").write_bytes(b""), "is empty"),
    "transformer a web page": (lambda r: (r / DIT / "model.safetensors").write_text("<html>"), "is a web page"),
    "compressed and cut": (lambda r: cut(compress(r / DIT / "model.safetensors"), 0.0001), r"\.zst is cut short"),
    "compressed, not zstd": (
        lambda r: compress(r / DIT / "model.safetensors").write_bytes(b"no zstd at all"),
        r"\.zst is damaged or not zstd-compressed",
    ),
    "compressed, more than the index says": (
        lambda r: (
            shard(r / DIT),
            compress(r / DIT / "model-00001-of-00003.safetensors"),
            (r / DIT / "model.safetensors.index.json").write_text(
                json.dumps(
                    json.loads((r / DIT / "model.safetensors.index.json").read_text()) | {"metadata": {"total_size": 9}}
                )
            ),
        ),
        r"claims to hold \d+ bytes of tensors and the index says 9",
    ),
    "index no JSON": (
        lambda r: (shard(r / DIT), (r / DIT / "model.safetensors.index.json").write_text("{")),
        r"The index .* cannot be read",
    ),
    "index too deep": (
        lambda r: (shard(r / DIT), (r / DIT / "model.safetensors.index.json").write_text("[" * 100_000)),
        r"The index .* cannot be read",
    ),
    "text encoder's index too deep": (
        lambda r: (pickled(r / T5), (r / T5 / "pytorch_model.bin.index.json").write_text('{"a":' * 100_000)),
        r"The index .* cannot be read",
    ),
    "text encoder's index leads outside": (
        lambda r: (
            pickled(r / T5),
            edit_index(r / T5 / "pytorch_model.bin.index.json", lambda m: m.update(x="../../secret.bin")),
        ),
        r"names \.\./\.\./secret\.bin, which is not a file of its own folder",
    ),
    "index names what is not there": (
        lambda r: (shard(r / DIT), edit_index(r / DIT / "model.safetensors.index.json", lambda m: m.update(ghost="x"))),
        r"The shard x that belongs to .* is missing",
    ),
    "header too deep": (
        lambda r: (r / DIT / "model.safetensors").write_bytes((100_000).to_bytes(8, "little") + b"[" * 100_000),
        "is not a safetensors file",
    ),
    "no autoencoder": (lambda r: shutil.rmtree(r / VAE), "There is no autoencoder in"),
    "autoencoder cut": (lambda r: cut(next((r / VAE).glob("*.safetensors"))), "is cut short"),
    "no text encoder": (lambda r: shutil.rmtree(r / "ckpt/t5"), "There is no text encoder in"),
    "text encoder without weights": (
        lambda r: (r / T5 / "model.safetensors").unlink(),
        "Found no text encoder weights in",
    ),
    "no tokenizer": (lambda r: (r / T5 / "tokenizer.json").unlink(), "There is no tokenizer in"),
    "configuration too deep": (
        lambda r: (r / FAMILY / "config.json").write_text('{"model_config":' * 50_000),
        "is not a model configuration",
    ),
    "links to a disk that is not there": (
        lambda r: shutil.rmtree(on_another_disk(r).parent / "disk"),
        r"There are no weights of 4\.5B-distill",
    ),
    "no special tokens": (
        lambda r: (r / "special_tokens.safetensors").unlink(),
        r"no special-token file in .*magi_lite download special-tokens --models .*example/assets/special_tokens\.npz",
    ),
    "special tokens a pointer": (lambda r: pointer(r / "special_tokens.safetensors"), "is a git-lfs pointer"),
}


@pytest.mark.parametrize("case", INCOMPLETE)
def test_an_incomplete_model_is_not_ready_and_says_why(
    case: str, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before a run is queued: by its headers, in one sentence; and `download --offline` is no success."""
    spoil, sentence = INCOMPLETE[case]
    spoil(root)
    with pytest.raises(CheckpointError, match=sentence) as caught:
        find_model(MODEL, root)
    assert "\n" not in str(caught.value)
    assert models_on_disk(root) == ()
    assert missing_files(MODEL, root) or case == "configuration too deep"
    assert main(["download", MODEL, "--models", str(root), "--offline"]) != 0
    assert capsys.readouterr().err.strip()


WRONG: dict[str, tuple[Callable[[Path], object], str]] = {
    "an activation that is none": (
        lambda r: (r / T5 / "config.json").write_text(
            json.dumps(json.loads((r / T5 / "config.json").read_text()) | {"dense_act_fn": True})
        ),
        r"config\.json is not a T5 configuration",
    ),
    "a tensor of another shape": (
        lambda r: save_file(
            load_file(r / DIT / "model.safetensors") | {"rope.bands": torch.ones(9)}, r / DIT / "model.safetensors"
        ),
        r"Tensor rope\.bands .* has shape \(9,\)",
    ),
    "a tensor missing": (
        lambda r: save_file(
            {n: t for n, t in load_file(r / DIT / "model.safetensors").items() if n != "rope.bands"},
            r / DIT / "model.safetensors",
        ),
        r"Tensor rope\.bands .* is missing",
    ),
    "another autoencoder": (
        lambda r: save_file({"a": torch.ones(1)}, next((r / VAE).glob("*.safetensors"))),
        "these are not the weights of the autoencoder",
    ),
    "another text encoder": (
        lambda r: save_file({"a": torch.ones(1)}, r / T5 / "model.safetensors"),
        "these are not the weights of the T5 encoder",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_weights_of_another_model_are_refused_before_any_is_read(case: str, root: Path) -> None:
    spoil, sentence = WRONG[case]
    spoil(root)
    with pytest.raises(CheckpointError, match=sentence):
        files = find_model(MODEL, root)
        check_model(files)
        load_t5(files.text_encoder)


def test_missing_tokens_say_where_they_belong(root: Path) -> None:
    (root / "special_tokens.safetensors").unlink()
    with pytest.raises(SpecialTokensMissing) as caught:
        find_model(root / FAMILY)
    assert caught.value.root == root and isinstance(caught.value, MagiLiteError)
