"""Reuse between steps: what is left out, that the rest is what it was, and that it resumes to the same bits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from magi_lite.dit.captions import CaptionContext
from magi_lite.dit.model import DiT
from magi_lite.errors import InputError
from magi_lite.models import SamplerSettings
from magi_lite.sampling.noise import chunk_noise
from magi_lite.sampling.passes import Passes, Window
from magi_lite.sampling.results import CleanChunk, StageDone, StepDone
from magi_lite.sampling.reuse import Reuse
from magi_lite.sampling.sampler import Sampler
from magi_lite.sampling.schedule import Schedule
from tests.sampling.conftest import (
    CONFIG,
    SIZE,
    base_settings,
    caption_of,
    clean_chunks,
    latents,
    same_bits,
    settings,
    words,
)

Make = Callable[..., Sampler]
EVERYTHING_SERVES = 1e9


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Chunks of every forward from here on."""
    chunks: list[int] = []
    forward = DiT.forward

    def counting(self: DiT, x: Tensor, times: Tensor, *rest: Any, **named: Any) -> Tensor:
        chunks.append(times.shape[1])
        return forward(self, x, times, *rest, **named)

    monkeypatch.setattr(DiT, "forward", counting)
    return chunks


# --- the decision -----------------------------------------------------------------------------------------------------


def test_a_velocity_serves_while_it_would_have_changed_by_less_than_the_threshold() -> None:
    """A velocity that grows evenly with t: |v(b) - v(a)| / |v(b)| is (b - a) / (1 + b), its rate 1 / (1 + b)."""
    width = 2
    direction = torch.randn(1, 3, width, 2, 2)

    def velocity(*times: float) -> Tensor:
        return torch.cat([(1 + t) * direction for t in times], dim=2)

    reuse = Reuse(0.1, width)
    assert reuse.needed([0.0, 0.5], "here") == 2, "nothing is known"
    reuse.complete(velocity(0.0, 0.5), [0.0, 0.5], "here")
    assert reuse.needed([0.1, 0.6], "here") == 2, "no change is known"
    reuse.complete(velocity(0.1, 0.6), [0.1, 0.6], "here")  # rates 1 / 1.1 and 1 / 1.6
    assert reuse.needed([0.209, 0.6 + 0.159], "here") == 0
    assert torch.equal(reuse.complete(None, [0.209, 0.759], "here"), velocity(0.1, 0.6))
    assert reuse.needed([0.2111, 0.75], "here") == 1, "only the older one has changed too much"
    assert reuse.needed([0.15, 0.7601], "here") == 2, "an older one goes along with a younger one"
    assert reuse.needed([0.15, 0.65], "elsewhere") == 2
    mixed = reuse.complete(velocity(0.3), [0.3, 0.7], "here")
    assert torch.equal(mixed, velocity(0.3, 0.6)), "the younger one serves again"
    assert reuse.needed([0.3 + 0.12, 0.7], "here") == 0 and reuse.needed([0.3 + 0.14, 0.7], "here") == 1
    reuse.forget()
    assert reuse.needed([0.3, 0.7], "here") == 2


# --- the sampler ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chosen", [settings(16, 1), settings(16, 4), base_settings(16, 2)])
def test_a_threshold_that_nothing_keeps_changes_no_bit(make: Make, chosen: SamplerSettings) -> None:
    every = clean_chunks(make(chosen, 3))
    assert same_bits(clean_chunks(make(replace(chosen, reuse=1e-30), 3)), every)


def test_the_oldest_chunks_of_a_window_are_computed_as_in_the_whole(dit: DiT) -> None:
    for chosen in (settings(16, 4), base_settings(16, 4)):
        schedule = Schedule(chosen, 0, 9)
        stage = schedule.stage(3)
        found: dict[int, Tensor] = {}
        for count in (4, 3, 1):
            passes = Passes(dit, chosen, words(1, 4), torch.device("cpu"), torch.float32)
            contexts = [passes.encode(caption_of(chunk, None)) for chunk in range(4)]
            times = torch.tensor([schedule.timesteps(stage, 2)])
            window = Window(stage, 2, latents(4, 24), times, CaptionContext.cat(contexts), None)
            with torch.no_grad():
                found[count] = passes.velocity(window.oldest(count, 6))
            assert found[count].shape[2] == 6 * count
            assert torch.allclose(found[count], found[4][:, :, : 6 * count], rtol=1e-4, atol=1e-5)


def test_two_steps_of_a_stage_are_computed_where_everything_serves(
    make: Make, dit: DiT, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against steps written out: the second velocity for all that follow it."""
    chosen = settings(16, 1, noise_to_clean_ranges=(2,), nearly_clean=False, reuse=EVERYTHING_SERVES)
    chunks = counted(monkeypatch)
    first, second = clean_chunks(make(chosen, 2))
    assert chunks == [1, 1, 1, 1, 1], "two for each second, and the clean pass of the first"
    schedule, x = Schedule(chosen), chunk_noise(5, 0, (1, CONFIG.latent_channels, 6, *SIZE))
    context = dit.encode_captions(caption_of(0, None).embeddings[None])
    velocity = x
    with torch.no_grad():
        for step in range(16):
            if step < 2:
                velocity = dit(
                    x, torch.tensor([[schedule.grid[step]]]), context, first_chunk=0, kv_ranges=((0, 1),),
                    step_size=schedule.step_size(step),
                )  # fmt: skip
            x = x + velocity * (schedule.grid[step + 1] - schedule.grid[step])
    assert torch.allclose(first, x, rtol=1e-4, atol=1e-5)
    assert torch.isfinite(second).all()


def test_what_leaps_is_computed_anew(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a chunk begins to see others, or the copy of the nearly clean one begins, no velocity serves again."""
    chosen = settings(16, 1, reuse=EVERYTHING_SERVES)
    schedule = Schedule(chosen, 0, 1)
    chunks = counted(monkeypatch)
    clean_chunks(make(chosen, 1))
    situations = [schedule.timesteps(schedule.stage(0), step)[0] > chosen.nearly_clean_threshold for step in range(16)]
    assert situations[0] is False and situations[-1] is True
    assert len(chunks) == 2 + 2 * 2, "two steps of either, those of the nearly clean one with their copy"


@pytest.mark.parametrize("threshold", [0.05, 0.3, EVERYTHING_SERVES])
@pytest.mark.parametrize("chosen", [settings(16, 1), settings(16, 4), settings(32, 2), base_settings(16, 2)])
def test_restored_at_any_stage_it_goes_on_bit_for_bit(make: Make, chosen: SamplerSettings, threshold: float) -> None:
    chosen = replace(chosen, reuse=threshold)
    whole = make(chosen, 3)
    states, emitted, before = [whole.state()], [], [0]
    for event in whole.run():
        if isinstance(event, CleanChunk):
            emitted.append(event.latents)
        if isinstance(event, StepDone):
            assert event.velocity.shape == event.latents.shape
        if isinstance(event, StageDone):
            states.append(whole.state())
            before.append(len(emitted))
    for state, count in zip(states, before, strict=True):
        again = make(chosen, 3)
        again.restore(state)
        assert same_bits(clean_chunks(again), emitted[count:])


def test_less_is_computed_the_more_may_change(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    chunks = counted(monkeypatch)
    work, far = [], []
    every = None
    for threshold in (0.0, 0.02, 0.2, EVERYTHING_SERVES):
        chunks.clear()
        made = torch.cat(clean_chunks(make(settings(64, 4, reuse=threshold), 4)))
        every = made if every is None else every
        work.append(sum(chunks))
        far.append(float((made - every).norm() / every.norm()))
    assert work == sorted(work, reverse=True) and work[0] > work[2] > work[3]
    assert far[0] == 0 and far[1] <= far[3]


def test_states_without_reuse_are_what_they_were_and_others_are_told_apart(make: Make) -> None:
    plain = make(settings(16, 4), 2).state()
    assert "reuse" not in plain.position["settings"]
    with pytest.raises(InputError, match="other settings \\(reuse\\)"):
        make(settings(16, 4, reuse=0.1), 2).restore(plain)
    reused = make(settings(16, 4, reuse=0.1), 2).state()
    with pytest.raises(InputError, match="other settings \\(reuse\\)"):
        make(settings(16, 4), 2).restore(reused)
