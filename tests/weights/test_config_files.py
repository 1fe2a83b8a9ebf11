"""Configurations from strangers: each value that makes no sense is named before a network is built."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from magi_lite.errors import CheckpointError
from magi_lite.models import DIT_24B, DiTConfig, VAEConfig
from magi_lite.weights.layout import find_model, vae_config
from magi_lite.weights.loader import check_model
from magi_lite.weights.t5 import load_t5
from quant.storage.shards import Checkpoint

FILES = {
    "dit": Path("ckpt/magi/demo/config.json"),
    "vae": Path("ckpt/vae/config.json"),
    "t5": Path("ckpt/t5/demo/config.json"),
}


@pytest.fixture
def root(tiny_model: Path, tmp_path: Path) -> Path:
    """A model whose configurations may be changed; its weights are not looked at."""
    return shutil.copytree(tiny_model, tmp_path / "model")


def changed(root: Path, file: str, part: str | None, values: dict[str, Any]) -> None:
    path = root / FILES[file]
    content = json.loads(path.read_text())
    target = content if part is None else content[part]
    for name, value in values.items():
        if value is KeyError:
            del target[name]
        else:
            target[name] = value
    path.write_text(json.dumps(content))


def look(root: Path) -> None:
    """What a run does before it loads anything."""
    find_model(root)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_marks_in_front_of_any_json_do_no_harm(encoding: str, root: Path) -> None:
    """Editors and shells of Windows put them there: configurations, and indices of sharded weights."""
    files = find_model(root)
    for folder in (files.weights, files.vae, files.text_encoder):
        (weights,) = folder.glob("*.safetensors")
        names = dict.fromkeys(Checkpoint.open(folder).tensors, weights.name)
        weights.with_name(f"{weights.stem}.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    written = list(root.rglob("*.json"))
    assert len(written) >= 6
    for path in written:
        path.write_text(path.read_text(), encoding=encoding)
    again = find_model(root)
    check_model(again)
    assert load_t5(again.text_encoder).encode(["a"])[0].shape[1] == files.spec.dit.caption_channels


BAD: dict[str, tuple[str, str | None, dict[str, Any], str]] = {
    "layers in quotes": ("dit", "model_config", {"num_layers": "4"}, r"num_layers '4', which must be a whole number"),
    "no layers": ("dit", "model_config", {"num_layers": None}, r"num_layers None, which must be a whole number from 1"),
    "negative width": ("dit", "model_config", {"hidden_size": -1}, r"hidden_size -1, which must be a whole number"),
    "half a layer": ("dit", "model_config", {"num_layers": 4.5}, r"num_layers 4\.5"),
    "true layers": ("dit", "model_config", {"num_layers": True}, r"num_layers True"),
    "heads and groups": ("dit", "model_config", {"num_attention_heads": 5}, r"heads 5, which must be a multiple of 2"),
    "head width": ("dit", "model_config", {"kv_channels": 30}, r"kv_channels 30, which must be a multiple of 8"),
    "odd halves": (
        "dit", "model_config", {"half_channel_vae": True, "in_channels": 15}, r"in_channels 15, which must be a mult",
    ),
    "scale 0": ("dit", "model_config", {"x_rescale_factor": 0}, r"x_rescale_factor 0, which must be a number above 0"),
    "a word for a switch": ("dit", "model_config", {"gated_linear_unit": "no"}, r"'no', which must be true or false"),
    "missing": ("dit", "model_config", {"kv_channels": KeyError}, r"The model_config in .* lacks kv_channels; use"),
    "model a list": ("dit", None, {"model_config": []}, r"model_config in .* is \[\], not an object"),
    "engine a list": ("dit", None, {"engine_config": []}, r"engine_config in .* is \[\], not an object"),
    "runtime null": ("dit", None, {"runtime_config": None}, r"runtime_config in .* is None, not an object"),
    "one range": ("dit", "runtime_config", {"noise2clean_kvrange": 5}, r"kvrange 5, which must be a list of numbers"),
    "odd range": ("dit", "runtime_config", {"noise2clean_kvrange": [5, 0]}, r"\[5, 0\], which must be a list of whole"),
    "two passes": ("dit", "runtime_config", {"cfg_number": 2}, r"cfg_number 2, which must be 1 or 3"),
    "guidance": ("dit", "runtime_config", {"cfg_number": 3, "text_scales": [7.5]}, r"text_scales of different lengths"),
    "shortcut": ("dit", "engine_config", {"shortcut_mode": 8}, r"shortcut_mode 8, which must be"),
    "distilled": ("dit", "engine_config", {"distill": "yes"}, r"distill 'yes', which must be true or false"),
    "no heads": ("vae", "ddconfig", {"num_heads": 0}, r"num_heads 0, which must be a whole number from 1"),
    "seven heads": ("vae", "ddconfig", {"num_heads": 7}, r"embed_dim 64, which must be a multiple of 7"),
    "rotary": ("vae", "ddconfig", {"use_rope": True}, r"use_rope True, which must be False"),
    "patches": ("vae", "ddconfig", {"patch_size": 16}, r"patch_size 16, which must be 8"),
    "narrow": ("vae", "ddconfig", {"use_final_proj": False}, r"embed_dim 64, which must be a multiple of 256"),
    "ddconfig": ("vae", None, {"ddconfig": 3}, r"The ddconfig in .* is 3, not an object"),
    "t5 width": ("t5", None, {"d_kv": KeyError}, r"config\.json lacks d_kv; use"),
    "t5 layers": ("t5", None, {"num_layers": "2"}, r"num_layers '2', which must be a whole number"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_each_senseless_value_is_named(case: str, root: Path) -> None:
    file, part, values, sentence = BAD[case]
    look(root)
    changed(root, file, part, values)
    with pytest.raises(CheckpointError, match=sentence) as caught:
        look(root)
    assert str(FILES[file]) in str(caught.value)
    assert "\n" not in str(caught.value) and str(caught.value).endswith(".")


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("content", ["<html>", "[]", "3", "", '{"a": ', "[" * 5000, b"\xff\xfe"])
def test_what_is_no_configuration_is_said(file: str, content: str | bytes, root: Path) -> None:
    (root / FILES[file]).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(CheckpointError, match=r"config\.json is not an? .*; download it again"):
        look(root)


def test_the_text_encoder_itself_reads_the_same_way(root: Path) -> None:
    changed(root, "t5", None, {"d_ff": 0})
    with pytest.raises(CheckpointError, match=r"d_ff 0, which must be a whole number from 1"):
        load_t5(root / FILES["t5"].parent)


def test_published_numbers_come_through(root: Path) -> None:
    published: dict[str, Any] = {**vars(DIT_24B), "kv_channels": 128, "params_dtype": "torch.bfloat16"}
    published.pop("head_dim")
    assert DiTConfig.from_published(published) == DIT_24B
    found = vae_config(root / "ckpt/vae")
    assert VAEConfig.from_published({**vars(found), "_class_name": "ViTVAE"}) == found


def test_the_promise_of_a_missing_number_holds() -> None:
    good = {**vars(DIT_24B), "kv_channels": 128}
    for name in ("caption_channels", "kv_channels", "x_rescale_factor", "gated_linear_unit", "num_query_groups"):
        with pytest.raises(CheckpointError, match=f"The model configuration lacks {name}"):
            DiTConfig.from_published({key: value for key, value in good.items() if key != name})
