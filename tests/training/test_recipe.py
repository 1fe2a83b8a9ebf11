"""All stages one after the other, each of a few steps: what comes out is a model that the ordinary loader reads."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from magi_lite.errors import InputError
from magi_lite.text.vocabulary import Vocabulary
from magi_lite.weights.opening import open_model
from training import export, latents, precision, recipe
from training.checkpoint import load
from training.export import AUTOENCODER
from training.footage import Footage
from training.photographs import Album
from training.recipe import STAGES, Recipe, run
from training.reel import Reel
from training.studio import Studio
from training.text_model import make_tokenizer
from training.world.draw import SIZE


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few steps on a few clips."""
    monkeypatch.setattr(recipe, "STEPS", dict.fromkeys(recipe.STEPS, 1))
    monkeypatch.setattr(precision, "seconds_of", partial(precision.seconds_of, times=1))
    monkeypatch.setattr(recipe, "PROCESSOR", replace(recipe.PROCESSOR, halves=2, chunks=2))
    monkeypatch.setattr(recipe, "GATE_CLIPS", 2)
    monkeypatch.setattr(recipe, "FOLD_CLIPS", 4)
    monkeypatch.setattr(recipe, "SIZED_CLIPS", 2)
    monkeypatch.setattr(recipe, "FIRST_TAKES", 2)
    monkeypatch.setattr(recipe, "CHECKED_TAKES", 1)
    monkeypatch.setattr(recipe, "Reel", lambda pictures, first=2, seed=0: Reel(pictures, first=2, seed=seed))
    monkeypatch.setattr(latents, "CLIPS", 2)
    monkeypatch.setattr(latents, "POOLS", 1)


def test_the_whole_recipe_ends_in_a_model_folder(tmp_path: Path, small: None) -> None:
    made = Recipe(tmp_path)
    assert made.album() == Album((), (), (), ()), "without photographs the world alone is learned"
    for stage in STAGES:
        run(stage, made)
    lines = [json.loads(line) for line in (tmp_path / "training.jsonl").read_text().splitlines()]
    gates = [line for line in lines if line["what"] == "gates of the autoencoder"]
    assert [line["budget"] for line in gates] == [1, 2], "gates that are not passed cost twice the budget, no more"
    assert not any(line["passed"]["world_psnr"] for line in gates)
    assert {"vae precision", "dit precision", "distill precision"} <= {line["what"] for line in lines}

    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.safetensors")}
    for stage in STAGES[:-1]:
        run(stage, made)
    after = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.safetensors")}
    assert before == after, "what is done is not done again"

    tuned, exported = load(tmp_path / "vae_tuned.safetensors")[0]["model"], load_file(tmp_path / "demo" / AUTOENCODER)
    folded = load(tmp_path / "vae_folded.safetensors")[0]["model"]
    assert {name for name in tuned if not torch.equal(tuned[name].to(exported[name].dtype), exported[name])} == set()
    changed = {name for name in tuned if not torch.equal(tuned[name], folded[name])}
    assert changed and all(name.startswith("decoder.") for name in changed), "the latents stay"
    takes = [line for line in lines if line["what"].startswith("takes of the")]
    assert [line["what"] for line in takes] == ["takes of the decoder", "takes of the tuned decoder"]

    files = open_model(tmp_path / "demo")
    shards = list((tmp_path / "demo").rglob("*.safetensors"))
    assert sum(path.stat().st_size for path in shards) <= 40e6
    assert all(path.stat().st_size < 16e6 for path in shards)
    assert Vocabulary.beside(files.text_encoder).unknown(["a red car moves left in a town at night"]) == []
    torch.manual_seed(0)
    frames = Studio(files).film(["a red car moves left in a town"], seed=1)
    assert frames.shape == (24, SIZE, SIZE, 3)

    averaged = replace(made, out=tmp_path / "mean", before=tmp_path / "demo")
    run("export", averaged)
    one, mean = (next((tmp_path / name / export.WEIGHTS).glob("*.safetensors")) for name in ("demo", "mean"))
    assert mean.read_bytes() == one.read_bytes(), "the mean with itself"
    kept = one.stat().st_mtime_ns
    with pytest.raises(InputError, match="choose another --out"):
        run("export", replace(made, out=tmp_path / "demo", before=tmp_path / "demo"))
    assert one.stat().st_mtime_ns == kept


def test_with_footage_all_stages_learn_from_the_same_clips(
    tmp_path: Path, small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recipe, "TIME", dict.fromkeys(recipe.TIME, 0.05 / 60))
    with Footage((), 2, make_tokenizer()) as footage:
        made = Recipe(tmp_path, footage=footage, minutes=1.0)
        for stage in STAGES:
            run(stage, made)
        assert footage.count == 2
    assert not list(tmp_path.glob("pool-*")), "what is filmed stays in memory"
    lines = [json.loads(line) for line in (tmp_path / "training.jsonl").read_text().splitlines()]
    gates = [line for line in lines if line["what"] == "gates of the autoencoder"]
    assert [line["budget"] for line in gates] == [1], "who gives minutes waits no longer"
    torch.manual_seed(0)
    frames = Studio(open_model(tmp_path / "demo")).film(["a red car moves left in a town"], seed=1)
    assert frames.shape == (24, SIZE, SIZE, 3)
