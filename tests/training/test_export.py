"""What is exported is read by the ordinary loader, strictly, and generates through the ordinary pipeline."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from magi_lite.dit.model import DiT
from magi_lite.errors import InputError
from magi_lite.events import ChunkFinished, Finished
from magi_lite.models import SCALE_FACTOR, DiTConfig, VAEConfig
from magi_lite.pipeline import generate
from magi_lite.request.request import GenerationRequest, Overrides
from magi_lite.timeline.text import parse
from magi_lite.vae.model import ViTVAE
from magi_lite.weights.loader import load_dit, load_special_tokens, load_text_encoder, load_vae
from magi_lite.weights.opening import open_model
from training import export as e
from training.studio import Studio
from training.text_model import CHANNELS, make_encoder, make_tokenizer

DIT = DiTConfig(
    num_layers=2,
    hidden_size=64,
    ffn_hidden_size=96,
    num_attention_heads=2,
    num_query_groups=2,
    head_dim=32,
    in_channels=16,
    out_channels=16,
    caption_channels=CHANNELS,
    caption_max_length=32,
    gated_linear_unit=False,
    half_channel_vae=False,
    x_rescale_factor=1,
)
VAE = VAEConfig(video_size=32, video_length=12, embed_dim=32, depth=1, num_heads=2, z_chans=16, use_final_proj=True)


def randomize(module: nn.Module, seed: int) -> nn.Module:
    """Every parameter random, so that a tensor that went astray shows."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            scale = 1 / math.sqrt(parameter[0].numel()) if parameter.ndim > 1 else 0.1
            parameter += scale * torch.randn(parameter.shape, generator=generator)
    return module


@pytest.fixture
def model() -> e.TrainedModel:
    encoder = randomize(make_encoder(), 3)
    return e.TrainedModel(
        dit=randomize(DiT(DIT), 1).state_dict(),
        dit_config=DIT,
        vae=randomize(ViTVAE(VAE), 2).state_dict(),
        vae_config=VAE,
        text=encoder.state_dict(),
        text_config=encoder.config.to_dict(),
        tokens=torch.randn(e.TOKEN_ROWS, CHANNELS, generator=torch.Generator().manual_seed(4)),
        tokenizer=make_tokenizer(),
    )


def test_the_loader_reads_back_what_was_trained(model: e.TrainedModel, tmp_path: Path) -> None:
    e.export(tmp_path / "demo", model)
    files = open_model(tmp_path / "demo")
    assert files.spec.distilled and files.spec.dit == DIT
    dit = load_dit(files).state_dict()
    assert dit.keys() == model.dit.keys()
    for name, tensor in dit.items():
        torch.testing.assert_close(tensor, model.dit[name], rtol=2**-8, atol=0)
    vae = load_vae(files.vae).state_dict()
    for name, tensor in vae.items():
        torch.testing.assert_close(tensor, model.vae[name], rtol=2**-8, atol=0)


def test_the_exported_encoder_embeds_as_the_trained_one(model: e.TrainedModel, tmp_path: Path) -> None:
    e.export(tmp_path / "demo", model)
    encoder = load_text_encoder(open_model(tmp_path / "demo"))
    text = "A Red ball, moves left in a meadow at night"
    ids = encoder.tokenize(text)
    words = model.tokenizer.convert_ids_to_tokens(ids)
    assert words == ["a", "red", "ball", "moves", "left", "in", "a", "meadow", "at", "night", "</s>"]
    trained = make_encoder()
    trained.load_state_dict(model.text)
    with torch.no_grad():
        expected = trained.eval()(input_ids=torch.tensor([ids])).last_hidden_state[0]
        torch.testing.assert_close(encoder.encode([text])[0], expected, rtol=0, atol=1e-5)


def test_only_learned_special_tokens_say_something(model: e.TrainedModel, tmp_path: Path) -> None:
    e.export(tmp_path / "demo", model)
    table = load_special_tokens(open_model(tmp_path / "demo"))
    quality, duration = table.token("quality"), table.token("duration", 3)
    torch.testing.assert_close(quality[0].float(), model.tokens[1], rtol=2**-10, atol=1e-6)
    torch.testing.assert_close(duration[0].float(), model.tokens[9], rtol=2**-10, atol=1e-6)
    assert not table.token("anime").any() and not table.token("logo").any()


def test_an_exported_model_generates_and_the_studio_films_the_same(
    model: e.TrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("magi_lite.pipeline.prompts.EMBEDDINGS_FOLDER", tmp_path / "embeddings")
    e.export(tmp_path / "demo", model)
    request = GenerationRequest(
        timeline=parse("[0s-1s: a red ball falls]"),
        seconds=1,
        width=32,
        height=32,
        model=str(tmp_path / "demo"),
        preset="demo",
        overrides=Overrides(scheme="float32", t5="float32"),
    )
    events = list(generate(request, projects_folder=tmp_path / "projects"))
    assert isinstance(events[-1], Finished) and events[-1].video.is_file()
    (made,) = [event.frames for event in events if isinstance(event, ChunkFinished)]
    studio = Studio(open_model(tmp_path / "demo"))
    np.testing.assert_array_equal(studio.film(["a red ball falls"], seed=0, size=32), made)


def test_exporting_again_replaces(model: e.TrainedModel, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("kept")
    e.export(tmp_path, model)
    changed = dataclasses.replace(model, dit={n: t + 1 for n, t in model.dit.items()})
    e.export(tmp_path, changed)
    norm = load_dit(open_model(tmp_path)).state_dict()["videodit_blocks.final_layernorm.weight"]
    torch.testing.assert_close(norm, changed.dit["videodit_blocks.final_layernorm.weight"])
    assert {path.name for path in tmp_path.iterdir()} == {"README.md", "ckpt", "special_tokens.safetensors"}


def test_folding_changes_latents_and_no_picture(model: e.TrainedModel) -> None:
    rng = np.random.default_rng(5)
    mean, deviation = (torch.tensor(rng.uniform(low, 2.0, 16), dtype=torch.float32) for low in (-2.0, 0.3))
    before, after = ViTVAE(VAE), ViTVAE(VAE)
    before.load_state_dict(model.vae)
    after.load_state_dict(e.fold_statistics(model.vae, mean, deviation))
    frames = torch.tensor(rng.uniform(-1, 1, (2, 3, 8, 16, 16)), dtype=torch.float32)
    with torch.no_grad():
        old, spread = before.moments(frames)
        new, new_spread = after.moments(frames)
        shape = (1, 16, 1, 1, 1)
        wanted = (old - mean.view(shape)) / deviation.view(shape)
        torch.testing.assert_close(new * SCALE_FACTOR, wanted, rtol=1e-4, atol=1e-4)
        scale = (deviation * SCALE_FACTOR).view(shape)
        torch.testing.assert_close((0.5 * new_spread).exp() * scale, (0.5 * spread).exp(), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(after.decode(new), before.decode(old), rtol=1e-4, atol=1e-4)


def test_tokens_of_another_width_are_refused(model: e.TrainedModel, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"\(100, 64\)"):
        e.export(tmp_path, dataclasses.replace(model, tokens=model.tokens[:, :32]))


def test_the_mean_with_another_model_is_in_between(model: e.TrainedModel, tmp_path: Path) -> None:
    other = dataclasses.replace(
        model, dit=randomize(DiT(DIT), 11).state_dict(), text=randomize(make_encoder(), 13).state_dict(),
        tokens=model.tokens + 1,
    )  # fmt: skip
    for name, one in (("one", model), ("other", other)):
        e.export(tmp_path / name, one)
    e.average_with(tmp_path / "one", tmp_path / "other")
    files, vae = open_model(tmp_path / "one"), load_vae(open_model(tmp_path / "other").vae).state_dict()
    for name, tensor in load_dit(files).state_dict().items():
        mean = (model.dit[name].double() + other.dit[name].double()) / 2
        scale = torch.maximum(model.dit[name].abs(), other.dit[name].abs()).double()
        assert ((tensor.double() - mean).abs() <= 2**-7 * scale).all(), name  # both rounded, and their mean
    assert all(torch.equal(tensor, vae[name]) for name, tensor in load_vae(files.vae).state_dict().items())
    learned = list(e.LEARNED_ROWS)
    tokens = e.load_file(tmp_path / "one" / "special_tokens.safetensors")["other_tokens"]
    torch.testing.assert_close(tokens[learned], model.tokens[learned] + 0.5)


def test_a_decoder_that_was_trained_on_alone_is_kept(model: e.TrainedModel, tmp_path: Path) -> None:
    theirs = {name: tensor + 1 if name.startswith("decoder.") else tensor for name, tensor in model.vae.items()}
    e.export(tmp_path / "one", model)
    e.export(tmp_path / "other", dataclasses.replace(model, vae=theirs))
    before = (tmp_path / "one" / e.AUTOENCODER).read_bytes()
    e.average_with(tmp_path / "one", tmp_path / "other")
    assert (tmp_path / "one" / e.AUTOENCODER).read_bytes() == before


def test_models_that_mean_different_things_are_not_averaged(model: e.TrainedModel, tmp_path: Path) -> None:
    e.export(tmp_path / "one", model)
    e.export(tmp_path / "drawn", dataclasses.replace(model, vae=randomize(ViTVAE(VAE), 22).state_dict()))
    deeper = dataclasses.replace(DIT, num_layers=3)
    e.export(tmp_path / "deeper", dataclasses.replace(model, dit=DiT(deeper).state_dict(), dit_config=deeper))
    for other, sentence in (("drawn", "another autoencoder"), ("deeper", "other weights"), ("gone", "no model folder")):
        with pytest.raises(InputError, match=sentence):
            e.average_with(tmp_path / "one", tmp_path / other)
