"""The project that a run writes into, and what a request changes in one that goes on."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from magi_lite.errors import InputError, MagiLiteError
from magi_lite.pipeline.engine import plan_for
from magi_lite.pipeline.prefix import look_at_pictures, prefix_latents, prefix_pixels, save_prefix
from magi_lite.planner.disk import check_room
from magi_lite.project import Project
from magi_lite.request.build import absolute_model
from magi_lite.request.checks import check, check_prompts, content_hash
from magi_lite.request.request import GenerationRequest
from magi_lite.timeline import Segment
from magi_lite.timeline.edit import splice, with_pictures
from magi_lite.weights.identity import autoencoder_identity
from magi_lite.weights.loader import check_model
from magi_lite.weights.opening import open_model


def prepare_project(
    request: GenerationRequest | None, root: Path, resume: Path | None, from_chunk: int | None
) -> Project:
    """The locked project of a run: a new one under `root`, the one to go on with, or a branch of it.

    A new one is made only once weights, machine and picture or clip have been looked at: what cannot be carried out
    leaves no folder behind.

    Raises:
        MagiLiteError: the request cannot be carried out, or the project cannot be opened or written.
    """
    if request is not None:
        check(request)
        request = _anchored(request)
    if resume is None:
        if from_chunk is not None:
            raise InputError(f"Second {from_chunk} can be made again only in a project; name it, to resume from it.")
        if request is None:
            raise InputError("There is nothing to make; give a prompt, or a project to resume.")
        files = open_model(request.model, request.models_folder)
        check_model(files)
        check_room(request, files.spec, root)
        reach = files.spec.sampler.prefix_reach
        latents = prefix_latents(request, reach)
        plan_for(files, request)
        if latents is None:
            prefix_pixels(request, reach)
        look_at_pictures(request)
        project = Project.create(root, request)
        if latents is not None:
            with _closed_on_error(project):
                save_prefix(project, project.shot, latents)
        return project
    project = Project.open(resume)
    if request is not None:
        look_at_pictures(request)
    if from_chunk is not None:
        _check_what_follows(project, request, from_chunk)
        return project.branch(from_chunk, request)
    with _closed_on_error(project):
        project.lock()
        _check_what_follows(project, request, project.chunks)
        if request is not None:
            _take_over(project, request)
    return project


def _check_what_follows(project: Project, request: GenerationRequest | None, finished: int) -> None:
    """Refuse to go on, before anything changes, with no room for the seconds that are left or with another autoencoder.

    Args:
        finished: how many seconds stay.
    """
    request = request or project.request
    if request.seconds is not None and request.seconds <= finished:
        return  # a finished run needs no model
    try:
        files = open_model(request.model, request.models_folder)
    except MagiLiteError:  # it is refused, with all that is wrong, when it is loaded
        return
    check_room(request, files.spec, project.folder, finished)
    if finished:
        project.check_autoencoder(autoencoder_identity(files.vae))


def _anchored(request: GenerationRequest) -> GenerationRequest:
    """The request with paths that mean the same from any working folder, and with what is in its picture or clip."""
    source = request.image or request.video
    known = request.source_sha256 or (None if source is None else content_hash(source))

    def anchored(segment: Segment) -> Segment:
        assert segment.image is not None
        known = segment.image_sha256 or content_hash(segment.image)
        return replace(segment, image=segment.image.absolute(), image_sha256=known)

    return replace(
        request,
        timeline=with_pictures(request.timeline, anchored),
        out=None if request.out is None else Path(request.out).absolute(),
        models_folder=None if request.models_folder is None else Path(request.models_folder).absolute(),
        model=absolute_model(request.model),
        source_sha256=known,
    )


@contextlib.contextmanager
def _closed_on_error(project: Project) -> Iterator[None]:
    """Let go of a project that nobody will run: a lock that is kept would refuse the next try."""
    try:
        yield
    except BaseException:
        project.close()
        raise


def _take_over(project: Project, request: GenerationRequest) -> None:
    """Apply what `request` changes in a project: length, prompts of seconds not started, precision and placement."""
    request = replace(request, timeline=project.adopt(request.timeline))
    other_prompts = request.timeline != project.request.timeline
    if other_prompts and (request.seconds is None or project.chunks < request.seconds):
        check_prompts(replace(request, timeline=splice(project.request.timeline, project.chunks, request.timeline)))
    old, new = project.request.seconds, request.seconds
    if new is None and old is not None:
        project.extend(None)
    elif new is not None and new > (project.chunks if old is None else old):
        project.extend(new - (project.chunks if old is None else old))
    started = project.started  # after the change of length, which drops states
    if other_prompts and (request.seconds is None or started < request.seconds):
        project.edit_timeline(request.timeline, started)
    elif other_prompts:
        project.notices.append("The new prompts were not applied: every second of this video has started.")
    project.run_as(request)
