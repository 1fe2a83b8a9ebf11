"""The loader: placement of types, what may be quantized, conversion now or offline, goldens through the front door."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from magi_lite.dit.model import DiT
from magi_lite.errors import CheckpointError
from magi_lite.models import DIT_4_5B, DIT_24B, quantizable
from magi_lite.planner.execution import Execution
from magi_lite.weights.layout import scheme_of, vae_config
from magi_lite.weights.loader import (
    load_dit,
    load_dit_weights,
    load_special_tokens,
    load_text_encoder,
    load_vae,
)
from magi_lite.weights.opening import open_model
from quant import QuantizedLinear, convert_folder, scheme_named
from quant.storage.shards import Checkpoint
from tests.parity import ckpt as parity
from tests.weights.conftest import SMALL

GOLDENS = Path(__file__).parents[1] / "goldens"


def velocity(model: DiT, seed: int = 0) -> torch.Tensor:
    """One forward of a chunk on inputs that depend on the seed only."""
    generator = torch.Generator().manual_seed(seed)
    words = torch.randn(1, 5, SMALL.caption_channels, generator=generator)
    latents = torch.randn(1, 16, 6, 4, 8, generator=generator)
    with torch.inference_mode():
        captions = model.encode_captions(words)
        return model(latents, torch.full((1, 1), 0.3), captions, first_chunk=0, kv_ranges=[(0, 1)], step_size=4.0)


def test_golden_checkpoints_tensor_for_tensor() -> None:
    """The folders that this repository carries; the others are run by the parity command."""
    results = list(parity.run(GOLDENS / "ckpt", GOLDENS))
    loaded = [result for result in results if "tensors equal" in result.note]
    assert len(loaded) >= 2
    assert [result.line() for result in results if not result.passed] == []


@pytest.mark.parametrize(("dtype", "scheme"), [("float32", "float32"), ("bfloat16", "bf16")])
def test_types_are_where_the_published_program_has_them(weights: Path, dtype: str, scheme: str) -> None:
    """float32: embedders, rotation, q/k norms of self attention, post-norms, final norm and linear."""
    model = load_dit_weights(weights, SMALL, Execution(dtype=dtype, scheme=scheme))
    single = ("_embedder.", "rope.", "q_layernorm.", "k_layernorm.", "_post_norm.", "final_")
    for name, parameter in model.named_parameters():
        high = dtype == "float32" or any(place in name for place in single)
        assert parameter.dtype == (torch.float32 if high else torch.bfloat16), name


@pytest.mark.parametrize("config", [DIT_4_5B, DIT_24B], ids=["4.5B", "24B"])
def test_what_may_be_quantized_is_what_the_published_fp8_files_quantize(config) -> None:  # type: ignore[no-untyped-def]
    with torch.device("meta"):
        model = DiT(config)
    may = quantizable(config)
    chosen = {name for name, layer in model.named_modules() if isinstance(layer, torch.nn.Linear) and may(name)}
    ends = ("linear_qkv.q", "linear_qkv.qx", "linear_qkv.k", "linear_qkv.v", "linear_proj", "linear_fc1", "linear_fc2")
    assert len(chosen) == len(ends) * (config.num_layers - 2)
    assert all(name.endswith(ends) for name in chosen)
    assert {int(name.split(".")[2]) for name in chosen} == set(range(1, config.num_layers - 1))
    if config is DIT_4_5B:
        listed = json.loads((GOLDENS / "keys" / "dit_4.5B_distill_quant.json").read_text())["tensors"]
        assert chosen == {name.removesuffix(".weight_scale") for name in listed if name.endswith(".weight_scale")}


@pytest.mark.parametrize("scheme", ["fp8", "int8", "nf4"])
@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float32])
def test_converting_while_loading_equals_converting_offline(
    scheme: str, stored: torch.dtype, weights: Path, state: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    """Bit for bit, whatever the files' type, and the first and last layers stay as they are."""
    save_file({name: tensor.to(stored) for name, tensor in state.items()}, weights / "model.safetensors")
    execution = Execution(scheme=scheme)
    now = load_dit_weights(weights, SMALL, execution)
    convert_folder(weights, tmp_path / "converted", scheme_named(scheme))
    later = load_dit_weights(tmp_path / "converted", SMALL, execution)
    assert torch.equal(velocity(now), velocity(later))
    quantized = {name for name, layer in now.named_modules() if isinstance(layer, QuantizedLinear)}
    assert quantized == {name for name, layer in later.named_modules() if isinstance(layer, QuantizedLinear)}
    assert len(quantized) == 7
    assert all(name.startswith("videodit_blocks.layers.1.") for name in quantized)
    plain = velocity(load_dit_weights(weights, SMALL, Execution()))
    error = ((velocity(now) - plain).norm() / plain.norm()).item()
    assert 0 < error < 0.3, error  # it is quantized, and not destroyed


def test_slices_of_the_plan_reach_the_model(weights: Path) -> None:
    model = load_dit_weights(weights, SMALL, Execution(mlp_slice=8, attention_slice=4))
    assert (model.mlp_slice, model.attention_slice) == (8, 4)


def test_schemes_that_do_not_fit_have_their_sentence(weights: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="are not published FP8 ones; choose scheme bf16, fp8, int8 or nf4"):
        load_dit_weights(weights, SMALL, Execution(scheme="published"))
    convert_folder(weights, tmp_path / "converted", scheme_named("int8"))
    assert scheme_of(frozenset(Checkpoint.open(tmp_path / "converted").tensors)) == "int8"
    with pytest.raises(CheckpointError, match="are stored as int8 and cannot be run as nf4; choose scheme int8"):
        load_dit_weights(tmp_path / "converted", SMALL, Execution(scheme="nf4"))


def test_published_scales_that_differ_are_refused(tmp_path: Path) -> None:
    """Kernels use one input scale per layer: a file with several has no consistent meaning."""
    folder = _published_like(tmp_path / "made")
    tensors = load_file(folder / "model.safetensors")
    name = "videodit_blocks.layers.1.self_attention.linear_qkv.q.input_scale"
    tensors[name] = tensors[name].clone()
    tensors[name][1] *= 2
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"linear_qkv\.q: the entries of input_scale differ"):
        load_dit_weights(folder, SMALL, Execution(scheme="published"))


def _published_like(folder: Path) -> Path:
    """A small checkpoint in the published FP8 form."""
    from quant import convert_

    with torch.device("meta"):
        model = DiT(SMALL)
    convert_(model, scheme_named("published"), quantizable(SMALL))
    folder.mkdir()
    tensors = {}
    for name, tensor in model.state_dict().items():
        positive = name.endswith("_scale")
        tensors[name] = torch.full(tensor.shape, 0.01) if positive else torch.randn(tensor.shape).to(tensor.dtype)
    save_file(tensors, folder / "model.safetensors")
    return folder


def test_published_form_of_another_scale_shape_names_the_tensor(tmp_path: Path) -> None:
    folder = _published_like(tmp_path / "made")
    tensors = load_file(folder / "model.safetensors")
    name = "videodit_blocks.layers.1.mlp.linear_fc2.smooth_scale"
    tensors[name] = torch.ones(1, 7)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=rf"Tensor {name} in .* has shape \(1, 7\) where .* needs \(1, 192\)"):
        load_dit_weights(folder, SMALL, Execution(scheme="published"))


# --- whole models --------------------------------------------------------------------------------------------------


def test_a_complete_model_opens_by_root_family_or_weights_folder(tiny_model: Path) -> None:
    weights = tiny_model / "ckpt" / "magi" / "demo" / "inference_weight.distill"
    found = [open_model(place) for place in (tiny_model, weights.parent, weights)]
    assert len({(files.weights.resolve(), files.vae.resolve(), files.text_encoder.resolve()) for files in found}) == 1
    files = found[0]
    assert files.spec.distilled and not files.spec.published_fp8 and files.trained and files.spec.stored_scheme is None
    assert load_dit(files).config == files.spec.dit
    assert load_special_tokens(files).channels == files.spec.dit.caption_channels
    encoder = load_text_encoder(files)
    assert encoder.max_length == files.spec.dit.caption_max_length
    with torch.inference_mode():
        assert encoder.encode(["a red ball"])[0].shape == (4, files.spec.dit.caption_channels)
        assert load_vae(files.vae).decode(torch.randn(1, 16, 3, 4, 4)).shape[-2:] == (32, 32)


def test_demo_without_trained_weights_is_made_once_and_labelled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from magi_lite.weights import opening

    monkeypatch.setattr(opening, "DEMO_FOLDER", tmp_path / "nothing")
    files = open_model("demo", tmp_path / "models")
    assert files.spec.name == "demo" and not files.trained
    file = files.weights / "model.safetensors"
    stamp, content = file.stat().st_mtime_ns, file.read_bytes()
    assert open_model("demo", tmp_path / "models") == files
    assert file.stat().st_mtime_ns == stamp
    assert [path.name for path in (tmp_path / "models").iterdir()] == [opening.UNTRAINED]
    before = torch.random.get_rng_state()
    other = open_model("demo", tmp_path / "other")
    assert torch.equal(before, torch.random.get_rng_state())  # the caller's random numbers are its own
    assert (other.weights / "model.safetensors").read_bytes() == content  # a seed, not chance


def test_demo_falls_back_to_a_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tempfile

    from magi_lite.weights import opening

    monkeypatch.setattr(opening, "DEMO_FOLDER", tmp_path / "nothing")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    (tmp_path / "file").write_text("a file where the models folder should be")
    assert open_model("demo", tmp_path / "file").weights.is_relative_to(tmp_path / "temporary")


def test_the_shipped_demo_model_opens(tmp_path: Path) -> None:
    files = open_model("demo", tmp_path)
    assert files.trained and files.spec.name == "demo"
    assert load_dit(files).config.caption_channels == load_special_tokens(files).channels
    assert list(tmp_path.iterdir()) == []


def test_vae_of_another_shape_has_its_sentence(tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "vae"
    folder.mkdir()
    save_file(load_file(tiny_model / "ckpt/vae/diffusion_pytorch_model.safetensors"), folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"config\.json is not an autoencoder's configuration"):
        load_vae(folder)
    config = dataclasses.asdict(vae_config(tiny_model / "ckpt/vae"))
    (folder / "config.json").write_text(json.dumps({"ddconfig": {**config, "depth": 2}}))
    with pytest.raises(CheckpointError, match=r"Tensor encoder\.blocks\.1\..* is missing from .*the autoencoder"):
        load_vae(folder)
    (folder / "config.json").write_text("<html>")
    with pytest.raises(CheckpointError, match="is not an autoencoder's configuration"):
        load_vae(folder)


def test_tokens_of_another_width_have_their_sentence(tiny_model: Path) -> None:
    files = open_model(tiny_model)
    wrong = dataclasses.replace(
        files, spec=dataclasses.replace(files.spec, dit=dataclasses.replace(files.spec.dit, caption_channels=128))
    )
    with pytest.raises(CheckpointError, match="have 64 channels where the model needs 128"):
        load_special_tokens(wrong)


def test_a_model_knows_how_its_weights_are_stored(tiny_model: Path, tmp_path: Path) -> None:
    """A folder converted offline takes the place of the original and says what it is; the plan follows it."""
    root = tmp_path / "root"
    shutil.copytree(tiny_model, root)
    weights = root / "ckpt" / "magi" / "demo" / "inference_weight.distill"
    convert_folder(weights, tmp_path / "converted", scheme_named("int8"))
    shutil.rmtree(weights)
    (tmp_path / "converted").rename(weights)
    files = open_model(root)
    assert files.spec.stored_scheme == "int8" and not files.spec.published_fp8
    layers = [layer for layer in load_dit(files).modules() if isinstance(layer, QuantizedLinear)]
    assert len(layers) == 7 * (files.spec.dit.num_layers - 2)


def test_what_cannot_be_quantized_is_a_sentence_of_ours(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights that are not finite, or a library that is not there."""
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(CheckpointError, match=r"cannot be run as nf4: .*pip install bitsandbytes"):
        load_dit_weights(weights, SMALL, Execution(scheme="nf4"))
    bad = tmp_path / "bad"
    shutil.copytree(weights, bad)
    for file in bad.glob("*.safetensors"):
        state = load_file(file)
        for name in state:
            if name.endswith("layers.1.mlp.linear_fc1.weight"):
                state[name][0, 0] = float("nan")
        save_file(state, file)
    with pytest.raises(CheckpointError, match=r"Layer 1 .* cannot be run as int8: .*linear_fc1 holds NaN"):
        load_dit_weights(bad, SMALL, Execution(scheme="int8"))
