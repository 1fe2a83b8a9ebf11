"""Finding models: the places they may lie in, their settings, and what is said when nothing fits."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
import zstandard
from safetensors.torch import save_file

from magi_lite.errors import CheckpointError, InputError
from magi_lite.models import DIT_24B, MODELS, VAE_PUBLISHED, Guidance
from magi_lite.weights.layout import find_model, sampler_settings

FAMILY = MODELS["4.5B-base"]
T5_CONFIG = {
    "num_layers": 24, "d_model": 4096, "num_heads": 64, "d_kv": 64, "d_ff": 10240, "vocab_size": 32128
}  # fmt: skip
EMPTY = (2).to_bytes(8, "little") + b"{}"
"""A safetensors file of no tensors."""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The skeleton of a published download: names and configurations, weight files without a tensor."""
    root = tmp_path / "models"
    for folder in ("ckpt/magi/4.5B_base/inference_weight", "ckpt/vae", "ckpt/t5/t5-v1_1-xxl"):
        (root / folder).mkdir(parents=True)
        (root / folder / "model.safetensors").write_bytes(EMPTY)
    (root / "ckpt/vae/config.json").write_text(json.dumps({"ddconfig": asdict(VAE_PUBLISHED)}))
    (root / "ckpt/t5/t5-v1_1-xxl/config.json").write_text(json.dumps(T5_CONFIG))
    (root / "ckpt/t5/t5-v1_1-xxl/spiece.model").write_bytes(b"a tokenizer that nobody reads")
    (root / "special_tokens.npz").write_bytes(b"tokens that nobody reads")
    return root


def move(root: Path, source: str, target: str) -> None:
    (root / target).parent.mkdir(parents=True, exist_ok=True)
    shutil.move(root / source, root / target)


def compress(path: Path) -> None:
    """Store the one file as the one shard of a compressed checkpoint."""
    packed = path.with_name("model-00001-of-00001.safetensors.zst")
    packed.write_bytes(zstandard.compress(path.read_bytes()))
    path.unlink()


PLACES: dict[str, Callable[[Path], object]] = {
    "as published": lambda root: None,
    "without ckpt": lambda root: [move(root, f"ckpt/{name}", name) for name in ("magi", "vae", "t5")],
    "family at the root": lambda root: move(root, "ckpt/magi/4.5B_base", "4.5B_base"),
    "weights in the family's folder": lambda root: move(
        root, "ckpt/magi/4.5B_base/inference_weight/model.safetensors", "ckpt/magi/4.5B_base/model.safetensors"
    ),
    "compressed": lambda root: compress(root / "ckpt/magi/4.5B_base/inference_weight/model.safetensors"),
    "t5 without a folder of its own": lambda root: [
        move(root, f"ckpt/t5/t5-v1_1-xxl/{name}", f"ckpt/t5/{name}")
        for name in ("config.json", "model.safetensors", "spiece.model")
    ],
    "another t5 folder": lambda root: move(root, "ckpt/t5/t5-v1_1-xxl", "ckpt/t5/other"),
    "tokens as in the source repository": lambda root: move(
        root, "special_tokens.npz", "example/assets/special_tokens.npz"
    ),
}


@pytest.mark.parametrize("place", PLACES)
def test_a_named_model_is_found_wherever_it_may_lie(place: str, root: Path) -> None:
    PLACES[place](root)
    files = find_model("4.5B-base", root)
    assert files.spec == replace(FAMILY, folder="", weights_folder="")
    assert not files.spec.distilled and not files.spec.published_fp8
    sampler = files.spec.sampler
    assert sampler.guidance == Guidance() and sampler.steps == 64 and not sampler.nearly_clean
    assert any(files.weights.iterdir()) and (files.vae / "config.json").is_file()
    assert (files.text_encoder / "config.json").is_file() and files.special_tokens.is_file()
    by_folder = find_model(files.weights)
    assert by_folder.weights == files.weights and by_folder.spec.dit == files.spec.dit


MISSING: dict[str, tuple[Callable[[Path], object], str]] = {
    "weights": (
        lambda root: shutil.rmtree(root / "ckpt/magi"),
        r"no weights of 4\.5B-base in .* \(looked for safetensors in ckpt/magi/4\.5B_base/inference_weight, .*"
        r"python -m magi_lite download 4\.5B-base",
    ),
    "everything": (shutil.rmtree, r"There are no weights of 4\.5B-base in"),
    "autoencoder": (
        lambda root: shutil.rmtree(root / "ckpt/vae"),
        r"There is no autoencoder in .*: looked for config\.json in ckpt/vae, vae and downloads/vae",
    ),
    "text encoder": (lambda root: shutil.rmtree(root / "ckpt/t5"), r"There is no text encoder in .*ckpt/t5/\*"),
    "special tokens": (
        lambda root: (root / "special_tokens.npz").unlink(),
        r"There is no special-token file in .*: looked for special_tokens\.npz",
    ),
    "configuration damaged": (
        lambda root: (root / "ckpt/magi/4.5B_base/config.json").write_text("<html>"),
        r"config\.json is not a model configuration",
    ),
    "configuration incomplete": (
        lambda root: (root / "ckpt/magi/4.5B_base/config.json").write_text('{"model_config": {"num_layers": 3}}'),
        r"The model_config in .*config\.json lacks caption_channels, .*kv_channels",
    ),
}


@pytest.mark.parametrize("part", MISSING)
def test_what_is_missing_is_named_with_where_it_was_looked_for(part: str, root: Path) -> None:
    take, sentence = MISSING[part]
    take(root)
    with pytest.raises(CheckpointError, match=sentence):
        find_model("4.5B-base", root)


def test_folders_that_say_too_little_or_too_much(root: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"There is no model '5B': it is neither a folder nor one of demo, 4\.5B-base"):
        find_model("5B", root)
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"no transformer weights in .*empty: looked for safetensors in it"):
        find_model(tmp_path / "empty")
    shutil.copytree(root / "ckpt/magi/4.5B_base", root / "ckpt/magi/other")
    with pytest.raises(CheckpointError, match=r"holds several models \(.*4\.5B_base.*other.*\); name one"):
        find_model(root)
    with pytest.raises(CheckpointError, match=r"No config\.json lies in .*other"):
        find_model(root / "ckpt/magi/other")


def test_a_configuration_beside_the_weights_decides(root: Path) -> None:
    names = {"head_dim": "kv_channels"}
    model = {names.get(name, name): getattr(DIT_24B, name) for name in DIT_24B.__dataclass_fields__}
    config = {
        "model_config": {**model, "num_layers": 5, "params_dtype": "torch.bfloat16"},
        "runtime_config": {"cfg_number": 1, "num_steps": 12, "window_size": 1, "clean_t": 0.99},
        "engine_config": {"distill": True, "fp8_quant": True, "shortcut_mode": "16,16,8"},
    }
    (root / "ckpt/magi/4.5B_base/config.json").write_text(json.dumps(config))
    scale = {"videodit_blocks.layers.1.mlp.linear_fc1.input_scale": torch.ones(3)}
    save_file(scale, root / "ckpt/magi/4.5B_base/inference_weight/model.safetensors")
    files = find_model(root)
    assert (files.spec.dit.num_layers, files.spec.dit.hidden_size, files.spec.dit.gated_linear_unit) == (5, 6144, True)
    assert files.spec.distilled and files.spec.published_fp8
    settings = files.spec.sampler
    assert (settings.steps, settings.window, settings.shortcut, settings.clean_t) == (12, 1, "16,16,8", 0.99)
    assert settings.guidance is None


def test_guidance_is_read_for_three_passes_only() -> None:
    runtime = {"cfg_number": 3, "cfg_t_range": [0, 0.5], "prev_chunk_scales": [2, 1], "text_scales": [5, 0]}
    settings = sampler_settings({"runtime_config": runtime, "engine_config": {"distill": False}})
    assert settings.guidance == Guidance((0, 0.5), (2, 1), (5, 0))
    assert not settings.distilled and not settings.nearly_clean
