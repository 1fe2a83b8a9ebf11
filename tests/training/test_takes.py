"""Seconds for the tuning of the decoder: with a transformer that makes no mistake they are the encoder's own."""

import numpy as np
import pytest
import torch

from training import takes, train_vae
from training.latents import encode_clips
from training.reel import TILE, Reel, to_signed
from training.takes import Takes
from training.text_model import make_tokenizer
from training.train_dit import make_model
from training.world import film_many, make_scene


@pytest.fixture
def vae():
    torch.manual_seed(torch.seed() % 100_000)
    return train_vae.make_vae().eval()


def straight_to_the_truth(student, example, number, *, noisy, times):
    """The velocity that ends at the clean latents, from wherever the latents are."""
    left = (1 - times).repeat_interleave(6, 1)[:, None, :, None, None]
    return (example.clean - noisy) / left


def test_a_transformer_without_fault_makes_what_the_encoder_makes(vae, monkeypatch):
    monkeypatch.setattr(takes, "predict", straight_to_the_truth)
    monkeypatch.setattr(takes, "CONTINUED", 0.0)
    seed = int(torch.randint(500_000, ()))
    made = Takes(make_model(), vae, make_tokenizer(), (), first=3, seed=seed)
    for number, (latents, frames) in enumerate(made.kept):
        filmed = film_many([make_scene(seed + number)])
        assert torch.equal(frames, filmed[0])
        true = encode_clips(vae, filmed)[0][0] / 0.18215
        error = (latents.float() - true)[:, 1:].abs().max()  # the first may be that of an image
        assert error < 0.01 * true.abs().max()


def test_seconds_are_of_scenes_and_photographs_and_follow_others(vae):
    picture = np.random.default_rng(0).integers(256, size=(200, 260, 3), dtype=np.uint8)
    made = Takes(make_model(), vae, make_tokenizer(), (picture,), first=8)
    assert len({frames.numpy().tobytes() for _, frames in made.kept}) == 8, "all are different seconds"
    for latents, frames in made.kept:
        assert latents.shape == (16, 6, 12, 12) and frames.shape == (24, 96, 96, 3)
        assert latents.float().isfinite().all() and frames.dtype == torch.uint8


def test_half_seconds_of_a_batch_are_the_frames_of_their_latents(vae, monkeypatch):
    monkeypatch.setattr(takes, "predict", straight_to_the_truth)
    made = Takes(make_model(), vae, make_tokenizer(), (), first=2)
    made.kept = [
        (
            torch.arange(6.0).view(1, 6, 1, 1).expand(16, 6, 12, 12) + 10 * n,
            torch.full((24, 96, 96, 3), n, dtype=torch.uint8),
        )
        for n in range(2)
    ]
    for _, frames in made.kept:
        frames[TILE:] += 100
    latents, x = made.batch(8, torch.Generator().manual_seed(0))
    for some, shown in zip(latents, x, strict=True):
        clip, half = divmod(float(some[0, 0, 0, 0]), 10)
        assert some[0, :, 0, 0].tolist() == [10 * clip + half + n for n in range(3)] and half in (0, 3)
        assert torch.equal(shown, to_signed(torch.full((TILE, 96, 96, 3), clip + (100 if half else 0))))


def test_the_store_forgets_its_oldest(vae, monkeypatch):
    monkeypatch.setattr(takes, "predict", straight_to_the_truth)
    made = Takes(make_model(), vae, make_tokenizer(), (), first=3, most=2)
    one, two = (frames for _, frames in made.kept)
    made.renew()
    assert torch.equal(made.kept[0][1], one) and not torch.equal(made.kept[1][1], two)


def test_batches_for_the_decoder_are_mostly_what_the_transformer_makes(vae, monkeypatch):
    monkeypatch.setattr(takes, "predict", straight_to_the_truth)
    made, reel = Takes(make_model(), vae, make_tokenizer(), (), first=2), Reel((), first=2)
    made.kept = [(torch.full((16, 6, 12, 12), 77.0), frames) for _, frames in made.kept]
    monkeypatch.setattr(made, "renew", lambda: None)
    draw = train_vae.made_latents(made, reel)
    latents, x = draw(vae, 0, torch.Generator().manual_seed(1))
    assert (latents.flatten(1) == 77).all(1).tolist() == [True, True, True, False]
    assert x.shape == (4, 3, TILE, 96, 96)
    latents, x = draw(vae, 7, torch.Generator().manual_seed(1))
    assert x.shape == (4, 3, 4, 96, 96) and not (latents == 77).any(), "images are the encoder's own"
