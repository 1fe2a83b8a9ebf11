"""The sampler against a plain one that keeps everything and runs it in one pass, on fresh inputs; then its promises."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from itertools import islice
from typing import Any

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor

from magi_lite.dit.model import DiT
from magi_lite.errors import InputError
from magi_lite.models import SamplerSettings
from magi_lite.sampling.noise import chunk_noise
from magi_lite.sampling.results import Caption, CleanChunk, SamplerState, StageDone, StepDone
from magi_lite.sampling.sampler import Sampler
from magi_lite.sampling.schedule import time_grid
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
from tests.sampling.plain import plain_chunks

Make = Callable[..., Sampler]
SCHEDULES = [(8, 1, 6), (8, 2, 5), (8, 4, 5), (12, 3, 4), (16, 8, 3), (16, 16, 2)]
"""Steps, window, chunks: enough chunks that the ring goes round, or that the window is never full."""
RELATIVE = 2e-5
"""Two float32 evaluations of one formula, after some tens of passes through the network."""


def relative(a: Tensor, b: Tensor) -> float:
    return ((a - b).double().norm() / b.double().norm()).item()


def plain(dit: DiT, chosen: SamplerSettings, chunks: int, seed: int = 5, prefix: Tensor | None = None) -> list[Tensor]:
    """What the plain sampler makes of the inputs that `make` gives."""
    shape = (1, CONFIG.latent_channels, 6, *SIZE)

    def text(chunk: int) -> Tensor:
        return caption_of(chunk, None).embeddings

    null = words(1, 4).embeddings
    return plain_chunks(dit, chosen, chunks, lambda c: chunk_noise(seed, c, shape), text, null, prefix)


# --- against a plain sampler -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("steps", "window", "chunks"), SCHEDULES)
def test_equals_a_sampler_that_keeps_everything(make: Make, dit: DiT, steps: int, window: int, chunks: int) -> None:
    chosen = settings(steps, window)
    ours = clean_chunks(make(chosen, chunks, seed=steps))
    for a, b in zip(ours, plain(dit, chosen, chunks, steps), strict=True):
        assert relative(a, b) < RELATIVE


EVERYTHING = {"noise_to_clean_ranges": (), "clean_range": -1}


@pytest.mark.parametrize("clean_range", [-1, 1, 3])
@pytest.mark.parametrize(("window", "chunks", "frames"), [(1, 6, 0), (2, 5, 6), (4, 6, 20), (1, 3, 62), (4, 3, 61)])
def test_without_ranges_every_chunk_sees_all_before_it(
    make: Make, dit: DiT, window: int, chunks: int, frames: int, clean_range: int
) -> None:
    """The published default: nothing is ever forgotten, and chunks of a prefix see the last 8 (or `clean_range`)."""
    chosen = settings(8, window, noise_to_clean_ranges=(), clean_range=clean_range)
    prefix = latents(4, frames) if frames else None
    sampler = make(chosen, chunks, prefix=prefix, emit_prefix="published")
    for a, b in zip(clean_chunks(sampler), plain(dit, chosen, chunks, prefix=prefix), strict=True):
        assert relative(a, b) < RELATIVE


def test_other_ranges_than_the_published_ones(make: Make, dit: DiT) -> None:
    for ranges, window, frames in (((9, 7, 5, 3), 1, 0), ((7, 3), 4, 20), ((2, 2, 2, 2), 2, 0), ((3,), 4, 32)):
        chosen = settings(8, window, noise_to_clean_ranges=ranges)
        prefix = latents(4, frames) if frames else None
        ours = clean_chunks(make(chosen, 5, prefix=prefix, emit_prefix="published"))
        for a, b in zip(ours, plain(dit, chosen, 5, prefix=prefix), strict=True):
            assert relative(a, b) < RELATIVE, ranges


@pytest.mark.parametrize("seed", range(12))
def test_no_clean_chunk_is_computed_twice(make: Make, dit: DiT, seed: int) -> None:
    """Not even when the store gets another size, as it does while a window fills behind a clip."""
    chooser = random.Random(seed)
    steps, window = chooser.choice([(8, 1), (8, 2), (8, 4), (16, 4), (8, 8)])
    ranges = chooser.choice([(5, 4, 3, 2), (9, 7, 5, 3), (2, 4), ()])
    chosen = settings(steps, window, noise_to_clean_ranges=ranges)
    written, call = [], dit.forward

    def watch(*args: Any, **named: Any) -> Tensor:
        if named.get("write"):
            written.append(named["first_chunk"])
        return call(*args, **named)

    dit.forward = watch  # type: ignore[method-assign]
    try:
        clean_chunks(make(chosen, 6, prefix=latents(2, 6 * chooser.randint(0, 6) + 1)))
    finally:
        del dit.forward  # type: ignore[misc]
    assert len(written) == len(set(written)), (written, chosen)


def test_a_caption_without_a_token_is_the_null_caption(make: Make) -> None:
    null, nothing = words(1, 4), Caption(torch.empty(0, CONFIG.caption_channels))
    empty = clean_chunks(make(settings(8, 2), 2, caption=lambda *_: nothing, null_caption=null))
    assert same_bits(empty, clean_chunks(make(settings(8, 2), 2, caption=lambda *_: null, null_caption=null)))


def test_12_steps_the_other_way_round(make: Make, dit: DiT) -> None:
    chosen = settings(12, 2, shortcut="16,16,8")
    for a, b in zip(clean_chunks(make(chosen, 3)), plain(dit, chosen, 3), strict=True):
        assert relative(a, b) < RELATIVE


@pytest.mark.parametrize("frames", [1, 4, 6, 7, 32])
@pytest.mark.parametrize("window", [1, 4])
def test_continues_a_prefix(make: Make, dit: DiT, frames: int, window: int) -> None:
    chosen, prefix = settings(8, window), latents(9, frames)
    ours = clean_chunks(make(chosen, 2, prefix=prefix, emit_prefix="published"))
    expected = plain(dit, chosen, 2, prefix=prefix)
    assert [len(x[0, 0]) for x in ours] == [6 if frames in (1, 6) else 6 - frames % 6, 6]
    for a, b in zip(ours, expected, strict=True):
        assert relative(a, b) < RELATIVE


def test_without_the_nearly_clean_copy(make: Make, dit: DiT) -> None:
    lean = settings(8, 2, nearly_clean=False)
    ours = clean_chunks(make(lean, 3))
    for a, b in zip(ours, plain(dit, lean, 3), strict=True):
        assert relative(a, b) < RELATIVE
    assert relative(ours[2], clean_chunks(make(settings(8, 2), 3))[2]) > 100 * RELATIVE  # chunk 0 is always alone


def test_an_image_is_emitted_as_it_is_unless_asked_otherwise(make: Make) -> None:
    image = latents(2, 1)
    exact = clean_chunks(make(settings(), 2, prefix=image))
    published = clean_chunks(make(settings(), 2, prefix=image, emit_prefix="published"))
    assert torch.equal(exact[0][:, :, :1], image)
    assert not torch.equal(published[0][:, :, :1], image)
    assert torch.equal(exact[0][:, :, 1:], published[0][:, :, 1:])
    assert torch.equal(exact[1], published[1])


@pytest.mark.parametrize(("window", "frames"), [(1, 0), (2, 8), (4, 1)])
def test_base_models_make_three_passes(make: Make, dit: DiT, window: int, frames: int) -> None:
    """Ours leaves out passes that no chunk has a weight for; the plain one makes them all."""
    chosen, prefix = base_settings(8, window), latents(4, frames) if frames else None
    ours = clean_chunks(make(chosen, 3, prefix=prefix, emit_prefix="published"))
    for a, b in zip(ours, plain(dit, chosen, 3, prefix=prefix), strict=True):
        assert relative(a, b) < 5 * RELATIVE  # the three velocities cancel: -6 and 7.5 of them sum to 1


# --- state -----------------------------------------------------------------------------------------------------------


def through_disk(state: SamplerState) -> SamplerState:
    """As a project keeps it: JSON and safetensors."""
    return SamplerState(json.loads(json.dumps(state.position)), load(save(state.tensors)))


GROWING = [(settings(8, 2, **EVERYTHING), 0), (settings(8, 1, **EVERYTHING), 62), (settings(8, 4, **EVERYTHING), 7)]
THREE_PASSES = [(base_settings(8, 1), 0), (base_settings(8, 4), 8)]
STATEFUL = [(settings(8, 1), 0), (settings(8, 2), 8), (settings(8, 4), 1), (settings(12, 3), 0), (settings(8, 8), 32)]


@pytest.mark.parametrize(("chosen", "prefix"), [*STATEFUL, *GROWING, *THREE_PASSES])
def test_restored_at_any_stage_it_goes_on_bit_for_bit(make: Make, chosen: SamplerSettings, prefix: int) -> None:
    given = latents(7, prefix) if prefix else None
    whole = make(chosen, 4, prefix=given)
    states, emitted, before = [whole.state()], [], [0]
    for event in whole.run():
        if isinstance(event, CleanChunk):
            emitted.append(event.latents)
        if isinstance(event, StageDone):
            states.append(through_disk(whole.state()))
            before.append(len(emitted))
    for state, count in zip(states, before, strict=True):
        again = make(chosen, 4)  # the prefix comes with the state
        again.restore(state)
        assert same_bits(clean_chunks(again), emitted[count:]), state.position["next_stage"]


def test_stopped_between_steps_it_goes_on_from_the_last_stage(make: Make) -> None:
    expected = clean_chunks(make(settings(8, 2), 4))
    for stop_after in (1, 3, 7, 10):
        sampler, emitted = make(settings(8, 2), 4), []
        run = sampler.run()
        for event in islice(run, stop_after):
            if isinstance(event, CleanChunk):
                emitted.append(event.latents)
        run.close()
        assert same_bits(emitted + clean_chunks(sampler), expected), stop_after


def test_a_sampler_can_be_taken_back(make: Make) -> None:
    """Restoring an earlier state into the sampler that has run further forgets what came after."""
    sampler, states = make(settings(8, 1), 4), []
    expected = []
    for event in sampler.run():
        if isinstance(event, CleanChunk):
            expected.append(event.latents)
        elif isinstance(event, StageDone):
            states.append(sampler.state())
    sampler.restore(states[1])
    assert same_bits(clean_chunks(sampler), expected[2:])


def test_a_longer_video_begins_with_the_same_seconds(make: Make) -> None:
    """At window 1 bit for bit; a wider window's last passes hold fewer chunks at the end, and so round otherwise."""
    short, long = (clean_chunks(make(settings(8, 1), n)) for n in (2, 4))
    assert same_bits(short, long[:2])
    short, long = (clean_chunks(make(settings(8, 4), n)) for n in (3, 5))
    assert all(relative(a, b) < RELATIVE for a, b in zip(short, long, strict=False))


def test_a_state_taken_while_chunks_still_enter_serves_a_longer_video(make: Make) -> None:
    short, states = make(settings(8, 2), 3), []
    for event in short.run():
        if isinstance(event, StageDone):
            states.append(short.state())
    longer = make(settings(8, 2), 5)
    longer.restore(states[2])
    assert same_bits(clean_chunks(longer), clean_chunks(make(settings(8, 2), 5))[2:])
    with pytest.raises(InputError, match="take an earlier state"):
        make(settings(8, 2), 5).restore(states[3])


def test_any_second_is_made_again_alone(make: Make) -> None:
    """From the state before it entered a chunk comes out as before; another caption changes it and what follows."""
    chosen, chunk = settings(8, 2), 3
    sampler, states = make(chosen, 6), {}
    states[0] = sampler.state()
    expected = []
    for event in sampler.run():
        if isinstance(event, CleanChunk):
            expected.append(event.latents)
        elif isinstance(event, StageDone):
            states[event.stage + 1] = sampler.state()
    again, other = make(chosen, 6), make(chosen, 6, caption=lambda c, r: words(c, 3))
    for one in (again, other):
        one.restore(states[chunk])  # stage 3 lets chunk 3 in; chunk 1 is the oldest still to come
    remade, changed = clean_chunks(again), clean_chunks(other)
    skip = len(expected) - len(remade)
    assert same_bits(remade, expected[skip:])
    assert len(changed) == len(remade)
    assert all(not torch.equal(a, b) for a, b in zip(changed[chunk - skip :], remade[chunk - skip :], strict=True))
    assert same_bits(changed[: chunk - skip], remade[: chunk - skip])


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda s: s.position.update(format=99), "another version"),
        (lambda s: s.position["settings"].update(steps=16), "other settings .steps."),
        (lambda s: s.position.pop("total"), "is damaged; take an earlier one"),
        (lambda s: s.position.update(settings=[1]), "is damaged; take an earlier one"),
        (lambda s: s.position.update(clean=["0"]), "is damaged; take an earlier one"),
        (lambda s: s.position.update(next_stage=None), "is damaged; take an earlier one"),
        (lambda s: s.tensors.pop("window"), "lacks the tensor window"),
        (lambda s: s.tensors.update({"clean.0": torch.zeros(1, 4, 6, 2, 2)}), "clean.0 of shape"),
        (lambda s: s.tensors.pop("caption.1"), "lacks captions"),
    ],
)
def test_a_state_that_does_not_fit_is_refused(make: Make, spoil: Callable[[SamplerState], Any], sentence: str) -> None:
    sampler = make(settings(8, 1), 3)
    for event in sampler.run():
        if isinstance(event, StageDone):
            break
    state = sampler.state()
    if "caption" in sentence:  # a window of one is empty between stages: take a wider one
        sampler = make(settings(8, 2), 3)
        for event in sampler.run():
            if isinstance(event, StageDone) and event.stage == 1:
                break
        state = sampler.state()
    spoil(state)
    with pytest.raises(InputError, match=sentence):
        make(settings(8, 2 if "caption" in sentence else 1), 3).restore(state)


# --- streaming -------------------------------------------------------------------------------------------------------


def test_earlier_seconds_never_depend_on_later_ones(make: Make) -> None:
    """New noise and new words from chunk 3 on leave chunks 0 to 2 as they are, bit for bit."""

    def noise(chunk: int) -> Tensor:
        return chunk_noise(5 if chunk < 3 else 77, chunk, (1, CONFIG.latent_channels, 6, *SIZE))

    def caption(chunk: int, remaining: int | None) -> Caption:
        return caption_of(chunk if chunk < 3 else chunk + 10, remaining)

    for chosen in (settings(8, 4), settings(8, 1), base_settings(8, 4)):
        usual, other = clean_chunks(make(chosen, 5)), clean_chunks(make(chosen, 5, noise=noise, caption=caption))
        assert same_bits(usual[:3], other[:3])
        assert not torch.equal(usual[3], other[3])


def test_events_come_in_order_and_words_are_asked_for_when_a_chunk_enters(make: Make) -> None:
    asked: list[tuple[int, int | None]] = []
    log: list[Any] = []

    def caption(chunk: int, remaining: int | None) -> Caption:
        asked.append((chunk, remaining))
        log.append(("caption", chunk))
        return caption_of(chunk, remaining)

    sampler = make(settings(8, 2), 3, caption=caption)
    steps = []
    for event in sampler.run():
        if isinstance(event, StepDone):
            steps.append(event)
            log.append(("step", event.stage, event.step, event.oldest_chunk))
        else:
            log.append(("clean", event.index) if isinstance(event, CleanChunk) else ("stage", event.stage))
    assert asked == [(0, 3), (1, 2), (2, 1)]
    expected = []
    for stage in range(4):
        expected += [("caption", stage)] if stage < 3 else []
        expected += [("step", stage, step, max(0, stage - 1)) for step in range(4)]
        expected += [("clean", stage - 1)] if stage else []
        expected.append(("stage", stage))
    assert log == expected
    assert [s.steps_done for s in steps] == list(range(1, 17))
    assert {s.steps_total for s in steps} == {16}
    assert {s.steps_in_stage for s in steps} == {4}


def test_new_words_are_obeyed_by_chunks_that_have_not_entered(make: Make) -> None:
    now = {"shift": 0}
    sampler = make(settings(8, 2), 5, caption=lambda c, r: caption_of(c + now["shift"], r))
    redirected = []
    for event in sampler.run():
        if isinstance(event, CleanChunk):
            redirected.append(event.latents)
            if event.index == 1:
                now["shift"] = 20  # chunks 0 to 2 have entered by now
    planned = clean_chunks(make(settings(8, 2), 5, caption=lambda c, r: caption_of(c + (20 if c > 2 else 0), r)))
    assert same_bits(redirected, planned)


def test_an_endless_run_goes_on_and_equals_a_bounded_one(make: Make) -> None:
    remaining = []

    def caption(chunk: int, left: int | None) -> Caption:
        remaining.append(left)
        return caption_of(chunk, left)

    endless, emitted = make(settings(8, 2), None, caption=caption), []
    for event in endless.run():
        if isinstance(event, StepDone):
            assert event.steps_total is None
        if isinstance(event, CleanChunk):
            emitted.append(event.latents)
            if len(emitted) == 7:
                break
    assert set(remaining) == {None}
    assert same_bits(emitted, clean_chunks(make(settings(8, 2), 8))[:7])


def test_preview_is_the_straight_line_to_clean(make: Make) -> None:
    """On the last step nothing remains, so the preview is the chunk itself; before, it is x + (1 - t) v."""
    steps = [(e, e.latents.clone(), e.preview) for e in make(settings(8, 1), 1).run() if isinstance(e, StepDone)]
    grid = time_grid(8)
    for i, (event, x, preview) in enumerate(steps):
        expected = x + (1 - min(1.0, grid[i + 1])) * event.velocity
        assert torch.allclose(preview, expected, atol=1e-6)
    assert torch.equal(steps[-1][1], steps[-1][2])


def test_noise_is_a_function_of_seed_and_chunk() -> None:
    shape = (1, 4, 6, 8, 8)
    first = chunk_noise(1, 2, shape)
    assert torch.equal(first, chunk_noise(1, 2, shape))
    others = [chunk_noise(seed, chunk, shape) for seed, chunk in ((1, 3), (2, 2), (2, 1), (-1, 2), (2**70, 2))]
    assert all(abs((first * other).mean().item()) < 0.1 for other in others)  # 1536 numbers: 4 deviations are 0.1
    assert abs(first.mean().item()) < 0.1
    assert abs(first.std().item() - 1) < 0.1


@pytest.mark.parametrize(
    ("named", "sentence"),
    [
        ({"prefix": torch.zeros(1, 4, 2, 4, 4)}, "prefix has the shape"),
        ({"prefix": torch.zeros(1, 4, 0, *SIZE)}, "prefix has the shape"),
        ({"prefix": torch.zeros(4, 2, *SIZE)}, "prefix has the shape"),
        ({"noise": lambda chunk: torch.zeros(1, 4, 5, *SIZE)}, "noise of a chunk has the shape"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(make: Make, named: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        clean_chunks(make(settings(), 1, **named))


@pytest.mark.parametrize("chunks", [0, -1])
def test_no_seconds_are_refused(make: Make, chunks: int) -> None:
    with pytest.raises(InputError, match="ask for at least 1"):
        make(settings(), chunks)
