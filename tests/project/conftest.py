"""A small run that behaves as the sampler does: what a second becomes depends on the state before it, bit for bit."""

import os
import sys
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from magi_lite.errors import InputError
from magi_lite.project import Project
from magi_lite.request.request import GenerationRequest
from magi_lite.timeline.text import parse
from magi_lite.video import fragments

SIZE = 32


@dataclass
class State:
    position: dict
    tensors: dict


def second(request, index, before):
    """Latents and frames of a second: a function of seed, prompt and the second before."""
    words = request.timeline.prompt_for(index).text.encode()
    mixed = torch.Generator().manual_seed(request.seed * 1000 + index + sum(words) * 10**6)
    latents = torch.randn((1, 4, 6, 4, 4), generator=mixed) + 0.5 * before
    return latents, frames_of(latents)


def frames_of(latents):
    """What latents are decoded to."""
    value = int(latents.abs().sum()) % 200
    frames = np.full((24, SIZE, SIZE, 3), value, np.uint8)
    frames[:, 4:20, 8:24] = (np.arange(24) * 10).astype(np.uint8)[:, None, None, None]
    return frames


def run(project, stop_after=None):
    """Go on from the project's latest state, as the pipeline does: seconds and states in turn, a window of 1."""
    request, state = project.request, project.latest_state()
    before = state.tensors["before"] if state else torch.zeros(1, 4, 6, 4, 4)
    stage = state.stage + 1 if state else 0
    project.set_status("running")
    while stage < request.seconds:
        before, frames = second(request, stage, before)
        project.write_chunk(stage, before, frames)
        project.save_state(stage, State({"next_stage": stage + 1}, {"before": before}))
        project.log(f"second {stage} done")
        stage += 1
        if stop_after is not None and stage > stop_after:
            return
    project.set_status("finished")


KINDS = ("safetensors", "m4s", "jpg")


def seconds_of(project):
    """Everything that a second is on disk, second by second: latents, fragment, thumbnails."""
    return [tuple(project.seconds.path(i, kind).read_bytes() for kind in KINDS) for i in range(project.chunks)]


def differences(found, wanted):
    """A sentence for each file in which seconds (see `seconds_of`) differ: which, where, and what stands there."""
    lengths = [] if len(found) == len(wanted) else [f"{len(found)} seconds instead of {len(wanted)}"]
    files = [
        (f"second {index}'s {kind}", one, other)
        for index, (first, second) in enumerate(zip(found, wanted, strict=False))
        for kind, one, other in zip(KINDS, first, second, strict=True)
    ]
    return lengths + [_difference(name, one, other) for name, one, other in files if one != other]


def _difference(name, found, wanted):
    places = [n for n, (a, b) in enumerate(zip(found, wanted, strict=False)) if a != b]
    at = places[0] if places else min(len(found), len(wanted))
    part = ""
    if name.endswith("safetensors"):
        header = 8 + int.from_bytes(wanted[:8], "little")
        part = " in the header" if at < header else f" in number {(at - header) // 4}"
    elif name.endswith("m4s"):
        part = "".join(f" in {kind.decode()}" for kind, start, end in fragments.boxes(wanted) if start <= at < end)
    return (
        f"{name}: {len(places)} bytes differ ({len(found)} bytes long, wanted {len(wanted)}), "
        f"first at byte {at}{part}: "
        f"{found[max(0, at - 8) : at + 24].hex(' ')} instead of {wanted[max(0, at - 8) : at + 24].hex(' ')}"
    )


def in_child(work):
    """Run `work` in a forked process; returns its exit code: what it gives, 0 for nothing, or 1 if it raises."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = work() or 0
        finally:
            sys.stderr.flush()
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def folders(root):
    """Runs under a folder, hidden ones and what is being deleted left out."""
    return sorted(path for path in root.glob("[!.]*") if path.is_dir())


def reason(folder):
    """Why a folder cannot be opened, in a sentence; empty if it can."""
    try:
        Project.open(folder)
    except InputError as error:
        return str(error)
    return ""


@pytest.fixture
def ask():
    """A request for a small video."""

    def make(text="[0s-2s: a] [2s-4s: b]", seconds=4, **settings):
        settings = {"width": SIZE, "height": SIZE, "window": 1, "steps": 4, "seed": 3} | settings
        return GenerationRequest(parse(text), seconds, **settings)

    return make


@pytest.fixture
def finished(tmp_path, ask):
    """A project that ran to its end."""
    with Project.create(tmp_path / "runs", ask()) as project:
        run(project)
    return project
