"""Settled seconds never change: runs that are redirected, extended or paused and die at each moment."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from magi_lite.control import RunControl
from magi_lite.events import ChunkFinished, Event, Finished, Progress, Redirected, Stopped
from magi_lite.pipeline import generate, prompts
from magi_lite.project import Project
from magi_lite.request.request import GenerationRequest
from magi_lite.timeline import PromptMix
from magi_lite.timeline.text import parse
from tests.pipeline.conftest import latents_of, same_bits

OLD = "[blend: 2] [0s-1s: a red ball] [1s-5s: a blue box]"
NEW = "[0s-2s: a red ball] [2s-5s: a green tree]"


def copies(events: Iterator[Event], folder: Path) -> Iterator[tuple[Event, Path | None]]:
    """Each event with what a process that is killed there leaves on the disk; None where that is nothing new."""
    last = None
    for number, event in enumerate(events):
        found = [path for path in folder.parent.glob("[!.]*") if path.is_dir()] if folder.parent.is_dir() else []
        if not found:
            continue
        files = [path for path in sorted(found[0].rglob("*")) if path.is_file() and path.name != "log.txt"]
        now = [(path, path.stat().st_mtime_ns, path.stat().st_size) for path in files]
        copy = None if now == last else folder / f"{number:03}"
        if copy is not None:
            last = now
            shutil.copytree(found[0], copy)
        yield event, copy


def mixes(folder: Path) -> list[PromptMix]:
    with Project.open(folder) as project:
        return list(project.request.timeline.compile(project.request.seconds))


@pytest.mark.parametrize("window", [1, 2])
def test_a_redirect_that_dies_at_any_moment_leaves_the_past_alone(
    window: int, request_for: Callable, run: Callable, tmp_path: Path
) -> None:
    """The redirect has another blend, and comes while a blend is on its way."""
    request, control = request_for(OLD, seconds=5, window=window), RunControl()
    plain = run(request)[-1].project
    first, dead, asked = None, [], False
    events = generate(request, control=control, projects_folder=tmp_path / "runs")
    for event, copy in copies(events, tmp_path / "runs" / ".dead"):
        if isinstance(event, Progress) and event.chunk == 1 and event.step == 1 and not asked:
            control.redirect(parse(NEW))
            asked = True
        if isinstance(event, Redirected):
            first = event.second
        if copy is not None:
            dead.append((first, copy))
    assert first is not None and isinstance(event, Finished)
    changed = event.project
    assert mixes(changed)[:first] == mixes(plain)[:first] and mixes(changed)[first:] != mixes(plain)[first:]
    assert same_bits(latents_of(changed)[:first], latents_of(plain)[:first])
    for redirected, copy in dead:
        assert isinstance(run(None, resume=copy)[-1], Finished)
        assert same_bits(latents_of(copy), latents_of(plain if redirected is None else changed)), copy.name


@pytest.mark.parametrize(("window", "more"), [(1, 3), (2, 3), (1, None)])
def test_a_run_that_dies_and_is_made_longer_goes_on_to_the_same_bits(
    window: int, more: int | None, request_for: Callable, run: Callable, tmp_path: Path
) -> None:
    """The model is told how much is still to come: seconds made again are told what they were told before.

    With a window of 1 a second is on disk before the state behind it. The run dies there, and again after the change.
    The run it is compared with pauses where the same seconds are settled.
    """
    request = request_for(OLD.replace("5s", "3s"), seconds=3, window=window)
    longer = replace(request, seconds=None if more is None else 3 + more)

    def upto(events: Iterator[Event], second: int) -> None:
        """Whether a second is finished and the state behind it is not saved."""
        for event in events:
            if isinstance(event, ChunkFinished) and event.chunk == second:
                return

    def paused_after(second: int, request: GenerationRequest, **options: object) -> Path:
        control = RunControl()
        for event in generate(request, control=control, projects_folder=tmp_path / "whole", **options):
            if isinstance(event, ChunkFinished) and event.chunk == second:
                control.pause()
        return event.project

    whole = paused_after(4, longer, resume=paused_after(2 - window, request))
    upto(generate(request, projects_folder=tmp_path / "dead"), 1)
    (folder,) = (tmp_path / "dead").iterdir()
    for asked in (longer, None):
        upto(generate(asked, resume=folder), 2 if asked else 4)
    with Project.open(folder) as project:
        assert project.latest_state() is not None, "else it would go on from its finished seconds"
    finished = latents_of(folder)
    assert len(finished) == 5 and same_bits(finished, latents_of(whole))


@pytest.mark.parametrize("how", ["stop", "pause"])
def test_a_redirect_that_is_still_being_encoded_is_kept(
    how: str, request_for: Callable, run: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("magi_lite.pipeline.run.text_encoder_is_small", lambda files: False)
    left, loads, real = threading.Event(), [], prompts.load_text_encoder

    def slow(*arguments: object, **options: object) -> object:
        loads.append(1)
        assert len(loads) == 1 or left.wait(60)
        return real(*arguments, **options)

    monkeypatch.setattr("magi_lite.pipeline.prompts.load_text_encoder", slow)
    control, events = RunControl(), []
    request = request_for("[0s-4s: a red ball]", seconds=4, window=1)
    for event in generate(request, control=control, projects_folder=tmp_path / "projects"):
        events.append(event)
        if isinstance(event, Progress) and event.chunk == 0 and event.step == 1:
            control.redirect(parse("[0s-4s: a green tree]"))
        if isinstance(event, Progress) and event.chunk == 1 and event.step == 2:
            getattr(control, how)()
        if isinstance(event, Redirected):
            left.set()
    assert isinstance(events[-1], Stopped) and len(loads) == 2
    (first,) = [event.second for event in events if isinstance(event, Redirected)]
    assert first == (1 if how == "stop" else 2), "a stop gives up the second that it breaks off"
    done = run(None, resume=events[-1].project)[-1]
    assert [mix.text for mix in mixes(done.project)] == ["a red ball"] * first + ["a green tree"] * (4 - first)


def test_a_redirect_given_while_the_model_is_loaded_is_kept_at_a_stop(
    request_for: Callable, run: Callable, tmp_path: Path
) -> None:
    control = RunControl()
    for event in generate(
        request_for("[0s-2s: a red ball]", seconds=2), control=control, projects_folder=tmp_path / "projects"
    ):
        if getattr(event, "phase", "") == "load":
            control.redirect(parse("[0s-2s: a green tree]"))
            control.stop()
    assert isinstance(event, Stopped) and event.chunks == 0
    assert [mix.text for mix in mixes(event.project)] == ["a green tree"] * 2
    assert any(isinstance(event, ChunkFinished) for event in run(None, resume=event.project))
