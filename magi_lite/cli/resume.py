"""`generate --resume`: a project's own request with what the options change in it."""

from __future__ import annotations

import argparse
import filecmp
from dataclasses import replace
from pathlib import Path

from magi_lite.cli.reading import newer_words, overrides_given, parse_size, tokens_given
from magi_lite.errors import InputError
from magi_lite.request.request import GenerationRequest
from magi_lite.timeline.edit import splice


def changed_request(arguments: argparse.Namespace) -> GenerationRequest:
    """The request of the project to resume, with the words, length, seed and placement that the options change.

    Raises:
        InputError: there is no such project, or an option is one that finished seconds depend on.
    """
    from magi_lite.project import Project

    with Project.open(arguments.resume) as project:
        request, finished = project.request, project.chunks
    _refuse_changes(arguments, request)
    seconds = _length(arguments, request, finished)
    if arguments.redo_from is not None and seconds is not None and arguments.redo_from >= seconds:
        raise InputError(f"Nothing of {seconds} seconds comes after second {arguments.redo_from}; add --seconds.")
    newer = newer_words(arguments, request.timeline)
    return replace(
        request,
        timeline=splice(request.timeline, arguments.redo_from or 0, newer),
        seconds=seconds,
        seed=request.seed if arguments.seed == -1 else arguments.seed,
        tokens=tokens_given(arguments, request.tokens),
        preset=request.preset if arguments.preset == "auto" else arguments.preset,
        overrides=replace(request.overrides, **overrides_given(arguments)),
        models_folder=arguments.models or request.models_folder,
        out=arguments.out if arguments.redo_from is not None else arguments.out or request.out,
    )


def _same_file(given: Path, held: Path | None) -> bool:
    """Whether a picture or clip is the one that the project keeps a copy of."""
    try:
        return held is not None and filecmp.cmp(given, held, shallow=False)
    except OSError:
        return False


def _length(arguments: argparse.Namespace, request: GenerationRequest, finished: int) -> int | None:
    """Seconds that are wanted in the end; None: endless."""
    if arguments.endless:
        return None
    if arguments.seconds is None:
        return request.seconds
    asked = finished if request.seconds is None else request.seconds
    if arguments.redo_from is None and arguments.seconds < asked:
        raise InputError(
            f"{arguments.resume} cannot be cut to {arguments.seconds} seconds; ask for {asked} or more, "
            "or leave --seconds out."
        )
    return arguments.seconds


def _refuse_changes(arguments: argparse.Namespace, request: GenerationRequest) -> None:
    """Refuse options that a run which goes on would not obey; those that say what holds anyway are welcome."""
    if arguments.endless and arguments.seconds is not None:
        raise InputError("--endless and --seconds contradict each other; give one of them.")
    from magi_lite.pipeline.prepare import absolute_model

    given = {
        "size": (parse_size(arguments.size) if arguments.size else None, (request.width, request.height)),
        "model": (arguments.model and absolute_model(arguments.model), request.model),
        "lean": (arguments.lean or None, not request.nearly_clean),
        "no-metadata": (arguments.no_metadata or None, not request.embed_settings),
    }
    for name in ("steps", "window", "shortcut", "fit", "crf", "quality"):
        given[name] = (getattr(arguments, name), getattr(request, name))
    if arguments.redo_from is None:
        given["seed"] = (None if arguments.seed == -1 else arguments.seed, request.seed)
        given["style"] = (tuple(arguments.style) or None, request.tokens.styles)
        given["no-quality-token"] = (arguments.no_quality_token or None, not request.tokens.quality)
        given["no-duration-token"] = (arguments.no_duration_token or None, not request.tokens.duration)
    for option in ("image", "video"):
        mine, theirs = getattr(request, option), getattr(arguments, option)
        given[option] = (theirs and (True if _same_file(theirs, mine) else theirs), True)
    for option, (wanted, held) in given.items():
        if wanted is not None and wanted != held:
            raise InputError(f"--{option} cannot change in a video that goes on; start a new one without --resume.")
