"""Clips that are filmed beside the training: whole, of different seeds, and as latents what the encoder makes."""

import numpy as np
import pytest
import torch

from training.footage import Footage
from training.latents import SECONDS, encode_clips, film_clip
from training.reel import TILE, to_signed
from training.text_model import make_tokenizer
from training.train_vae import make_vae


@pytest.fixture(scope="module")
def footage() -> Footage:
    picture = np.random.default_rng().integers(256, size=(200, 260, 3), dtype=np.uint8)
    with Footage((picture,), 6, make_tokenizer(), processes=2, seed=int(torch.randint(100_000, ()))) as filmed:
        filmed.wait_for(6)
    return filmed


def test_it_films_until_it_is_full_and_no_clip_twice(footage):
    assert footage.count == 6 and footage.frames.shape == (6, 24 * SECONDS, 96, 96, 3)
    assert len({frames.numpy().tobytes() for frames in footage.frames}) == 6
    assert (footage.tokens != 0).any(-1).all(), "every second has its sentence"
    footage.renew()


def test_a_scene_is_what_its_seed_says(footage):
    scenes = (~footage.photograph).nonzero()[:, 0]
    filmed = [film_clip(footage.seed + n, SECONDS, (), 0.0, np.random.default_rng(0)).frames for n in range(12)]
    for number in scenes.tolist():
        assert any(torch.equal(footage.frames[number], clip) for clip in filmed)


def test_batches_are_pieces_of_its_clips(footage):
    halves = footage.batch(8, False, torch.Generator().manual_seed(1))
    assert halves.shape == (8, 3, TILE, 96, 96) and halves.abs().max() <= 1
    windows = to_signed(footage.frames).unfold(2, TILE, 1)
    for half in halves:
        found = windows.movedim(-1, 3)[:, :, :, 0] == half[None, :, :1].expand(6, -1, windows.shape[2], -1, -1)
        assert found.all((1, 3, 4)).any()
    images = footage.batch(4, True, torch.Generator().manual_seed(2))
    assert images.shape == (4, 3, 4, 96, 96) and torch.equal(images[:, :, :1].expand_as(images), images)
    assert footage.some(3).shape == (3, 24, 96, 96, 3)


@torch.no_grad()
def test_its_pool_holds_what_the_encoder_makes_and_cuts_fit(footage):
    vae = make_vae().eval()
    pool = footage.pool(vae)
    assert len(pool) == 6 and pool.seconds == SECONDS
    latents, images = encode_clips(vae, footage.frames[2:3])
    assert torch.equal(pool.latents[2:3], latents.half()) and torch.equal(pool.images[2:3], images.half())
    picks, begins = torch.tensor([4, 2]), torch.tensor([1, 3])
    part, frames = pool.cut(picks, begins, 2), footage.cut(picks, begins, 2)
    assert torch.equal(part.latents[1], pool.latents[2][:, 18:30]) and torch.equal(part.images[0], pool.images[4][1:3])
    assert torch.equal(part.tokens[1], pool.tokens[2, 3:5]) and torch.equal(part.body[0], pool.body[4][6:18])
    assert torch.equal(frames[1], footage.frames[2][72:]) and torch.equal(frames[0], footage.frames[4][24:72])


def test_who_goes_on_with_a_training_waits_for_the_first_clips():
    with Footage((), 2, make_tokenizer()) as filmed:
        assert filmed.batch(3, False, torch.Generator().manual_seed(0)).shape == (3, 3, TILE, 96, 96)
        assert filmed.count == 2


def test_photographs_alone_are_drawn_alone(footage):
    before = footage.photograph.clone()
    footage.photograph[:] = True
    assert footage.batch(4, False, torch.Generator().manual_seed(3)).shape[0] == 4
    footage.photograph[:] = before


def test_a_fault_of_who_films_is_that_of_who_waits():
    no_picture = np.zeros((2, 2), dtype=np.uint8)
    with Footage((no_picture,), 400, make_tokenizer()) as filmed, pytest.raises((RuntimeError, ValueError)):
        filmed.wait_for(400)
    assert filmed.count < 400


def test_a_fault_before_the_first_clip_is_said_too(monkeypatch):
    def no_room(*args: object, **kwargs: object) -> None:
        raise OSError("no room")

    monkeypatch.setattr("training.footage.TemporaryDirectory", no_room)
    with Footage((), 2, make_tokenizer()) as filmed, pytest.raises(OSError, match="no room"):
        filmed.wait_for(1)
