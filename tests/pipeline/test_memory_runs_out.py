"""Memory may run out at every kind of allocation: the next smaller plan is tried once, finished seconds are kept."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from magi_lite import planner
from magi_lite.errors import OutOfMemory
from magi_lite.events import ChunkFinished, Finished, Notice, PlanReady
from magi_lite.pipeline.engine import engine
from magi_lite.pipeline.prompts import text_execution
from magi_lite.planner import learned
from magi_lite.planner.execution import Execution
from magi_lite.project import Project
from magi_lite.request.request import Overrides
from magi_lite.weights.opening import open_model
from tests.pipeline.conftest import latents_of, same_bits

SITES = {
    "reading weights": "magi_lite.pipeline.engine.load_dit",
    "loading the autoencoder": "magi_lite.pipeline.engine.load_vae",
    "loading the text encoder": "magi_lite.pipeline.prompts.load_text_encoder",
    "encoding words": "magi_lite.text.encoder.PromptEncoder.encode",
    "captions' keys and values": "magi_lite.dit.model.DiT.encode_captions",
    "a forward": "magi_lite.dit.model.DiT.forward",
    "keeping keys and values": "magi_lite.sampling.kv_store.KVRing.write",
    "decoding": "magi_lite.pipeline.engine.decode_chunk",
    "placing the transformer": "magi_lite.weights.residency.Residency.place_dit",
    "placing the autoencoder": "magi_lite.weights.residency.Residency.place_vae",
    "making the store": "magi_lite.pipeline.engine.Engine.store",
    "saving the state": "magi_lite.sampling.sampler.Sampler.state",
    "writing frames": "magi_lite.project.project.Project.write_chunk",
}
ERRORS = {
    "device": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    "host": MemoryError(),
    "allocator": RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
}


def fail_at(monkeypatch: pytest.MonkeyPatch, site: str, calls: set[int], error: BaseException) -> None:
    """Make the given calls (from 1) of a function fail."""
    owner_name, _, name = site.rpartition(".")
    try:
        owner = importlib.import_module(owner_name)
    except ModuleNotFoundError:  # a class, not a module
        module, _, cls = owner_name.rpartition(".")
        owner = getattr(importlib.import_module(module), cls)
    original, count = getattr(owner, name), [0]

    def failing(*args: object, **options: object) -> object:
        count[0] += 1
        if count[0] in calls:
            raise error
        return original(*args, **options)

    monkeypatch.setattr(owner, name, failing)


@pytest.mark.parametrize("site", list(SITES))
def test_a_smaller_plan_finishes_the_video(
    site: str, request_for: Callable, run: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = request_for("[0s-2s: a red ball]", window=1, seconds=2, overrides=Overrides())
    fail_at(monkeypatch, SITES[site], {1}, ERRORS["device"])
    events = run(request)
    assert isinstance(events[-1], Finished)
    assert len([event for event in events if isinstance(event, PlanReady)]) == 2
    assert any(isinstance(event, Notice) and "Memory ran out" in event.message for event in events)


def test_the_smaller_plan_is_the_one_that_runs(
    request_for: Callable, run: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = request_for("[0s-2s: a red ball]", seconds=2, window=1)
    whole = run(request)[-1]
    monkeypatch.setattr(
        planner, "next_smaller", lambda plan, *_: replace(plan, execution=replace(plan.execution, mlp_slice=16))
    )
    fail_at(monkeypatch, SITES["a forward"], {12}, ERRORS["device"])
    events = run(request)
    assert [event.chunk for event in events if isinstance(event, ChunkFinished)] == [0, 1], "none is made twice"
    for one, other in zip(latents_of(whole.project), latents_of(events[-1].project), strict=True):
        assert np.allclose(one, other, atol=1e-4), "slices change nothing but rounding"
    assert [event.plan.execution.mlp_slice for event in events if isinstance(event, PlanReady)][1] == 16
    assert any(isinstance(event, Notice) and "smaller plan" in event.message for event in events)


def test_each_plan_teaches_the_pace_of_its_own_steps(
    request_for: Callable, run: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    taught = []
    monkeypatch.setattr(
        planner, "next_smaller", lambda plan, *_: replace(plan, execution=replace(plan.execution, mlp_slice=16))
    )
    monkeypatch.setattr(
        learned, "learn", lambda plan, clock: taught.append((plan.execution.mlp_slice, clock.steps_measured))
    )
    fail_at(monkeypatch, "magi_lite.sampling.sampler.Sampler._step", {12}, ERRORS["device"])
    run(request_for("[0s-2s: a red ball]", seconds=2, window=1))
    (_, first), (smaller, second) = taught
    assert first == 10 and (smaller, second) == (16, 7), "the second goes on behind the first second's 8 steps"


@pytest.mark.parametrize(
    ("site", "stage"),
    [("encoding words", "text"), ("reading weights", "denoise"), ("a forward", "denoise"), ("decoding", "decode")],
)
def test_the_planner_is_told_where_memory_ran_out(
    site: str, stage: str, request_for: Callable, run: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[str | None, str]] = []
    original = planner.next_smaller
    monkeypatch.setattr(planner, "next_smaller", lambda plan, *what: (told.append(what), original(plan, *what))[1])
    for error, place in ((ERRORS["device"], "vram"), (ERRORS["host"], "ram"), (ERRORS["allocator"], "ram")):
        with monkeypatch.context() as patch:
            fail_at(patch, SITES[site], {1}, error)
            words = f"[0s-1s: a red ball, {place} {type(error).__name__}]"  # words that no cache knows
            assert isinstance(run(request_for(words, seconds=1))[-1], Finished)
        assert told.pop() == (stage, place)


@pytest.mark.parametrize("kind", list(ERRORS))
def test_finished_seconds_survive_and_the_run_can_be_resumed(
    kind: str, request_for: Callable, run: Callable, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    request = request_for(window=1)
    whole = run(request)[-1]
    with monkeypatch.context() as patch:
        fail_at(patch, "magi_lite.pipeline.engine.decode_chunk", set(range(2, 99)), ERRORS[kind])
        with pytest.raises(OutOfMemory, match="twice"):
            run(request)
    (folder,) = (f for f in (tmp_path / "projects").iterdir() if f.is_dir() and f != whole.project)
    with Project.open(folder) as project:
        assert project.chunks == 1
        assert project.status == "failed"
    events = run(None, resume=folder)
    assert [event.chunk for event in events if isinstance(event, ChunkFinished)] == [1, 2]
    assert same_bits(latents_of(folder), latents_of(whole.project))


def test_other_errors_are_not_taken_for_memory(
    request_for: Callable, run: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_at(monkeypatch, SITES["a forward"], {1}, RuntimeError("shape mismatch"))
    with pytest.raises(RuntimeError, match="shape mismatch"):
        run(request_for())


def test_what_ran_out_of_memory_is_not_kept_by_the_error(
    request_for: Callable, run: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job may keep its error for as long as it is shown: its frames must not hold networks and latents."""
    fail_at(monkeypatch, SITES["a forward"], {1, 2}, ERRORS["host"])
    with pytest.raises(OutOfMemory) as caught:
        run(request_for())
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


def test_networks_are_gone_after_their_block_even_where_someone_holds_them(tiny_model: Path) -> None:
    execution = Execution(mlp_slice=16)
    with engine(open_model(tiny_model), execution) as networks:
        assert sum(p.numel() for p in networks.dit.parameters()) > 0
    assert not list(networks.dit.parameters())


def test_words_are_read_on_the_cpu_where_the_card_is_full(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files, planned = open_model(tiny_model), Execution(t5="bf16", t5_device="cuda")
    for free, place in ((1 << 20, "cpu"), (40 << 30, "cuda")):
        monkeypatch.setattr("magi_lite.machine.devices.memory_info", lambda free=free: (free, 48 << 30))
        assert text_execution(files, planned).t5_device == place


@pytest.mark.parametrize("vae", ["cpu", "swapped", "resident"])
def test_previews_come_from_a_decoder_that_is_beside_the_latents(tiny_model: Path, vae: str) -> None:
    files, execution = open_model(tiny_model), Execution(vae=vae)
    with engine(files, execution) as networks:
        latents = torch.randn(1, files.spec.dit.latent_channels, 6, 4, 4)
        assert (networks.preview(latents) is None) == (vae == "swapped")
        networks.home.device = torch.device("meta")  # as on a card, whose autoencoder may be elsewhere
        if vae == "cpu":
            assert networks.preview(latents) is None
