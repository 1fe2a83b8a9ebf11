"""One `check` of a request: what cannot work is refused before a weight is loaded.

Whatever front end a request comes from, the same sentences say what was wrong and what would work. Each value alone is
checked by its option (see `request`); here are the rules between values, and those that look at files. Whether the
machine can carry the request is the planner's affair.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from magi_lite.errors import InputError, MediaError, OutputError
from magi_lite.files import check_output, check_source, is_folder
from magi_lite.models import MODELS
from magi_lite.request import presets
from magi_lite.request.request import (
    OPTIONS,
    PARTS,
    REUSE_STAGE,
    REUSE_STEPS,
    STYLES,
    GenerationRequest,
    windows_of,
)
from magi_lite.sentences import did_you_mean, either, has_half_character, shortened, shown
from magi_lite.text.cleaning import check_prompt, clean_prompt
from magi_lite.timeline import Timeline
from magi_lite.timeline.timeline import MAX_PROMPT
from quant.storage.files import open_plain, read_now

_WEIGHT = re.compile(r"\(([^()]{1,80}):\s*\d+(?:\.\d+)?\s*\)")


def check(request: GenerationRequest, *, prompts: bool = True, files: bool = True, weights: bool = True) -> None:
    """Refuse a request that contradicts itself or asks for what does not exist.

    Args:
        prompts: False: there may be none yet, as when memory and time are planned.
        files: False: image, clip and output are not looked at.
        weights: False: the model may be any folder, which another machine has.

    Raises:
        InputError: sizes, steps, window, seed, length, names, image and clip together; one sentence.
        TimelineError: the timeline does not fit the length.
        MediaError: the image or clip is not there.
        PresetError: no such preset.
        OutputError: the video could not be written in the end.
    """
    check_values(request)
    if request.image is not None and request.video is not None:
        raise InputError("An image and a clip cannot both be the start; give one of them.")
    if isinstance(request.timeline, Timeline) and request.timeline.shots(request.seconds)[0].image is not None:
        for name, what in (("image", "picture"), ("video", "clip")):
            if getattr(request, name) is not None:
                raise InputError(f"The video starts from a {what}, its first block from a picture; keep one of them.")
    if files:
        _check_source(request)
        check_pictures(request)
    if prompts:
        check_prompts(request)
    elif isinstance(request.timeline, Timeline):
        request.timeline.check(request.seconds)
    _check_names(request, weights)
    if files and request.out is not None:
        check_output(Path(request.out))
        _check_kept(Path(request.out), request.image or request.video)


def check_values(request: GenerationRequest) -> None:
    """Refuse a value that is of the wrong kind or not legal, whatever the others are, and steps and window together.

    Raises:
        InputError: (or PresetError) one sentence.
    """
    for part, cls in PARTS.items():
        if not isinstance(getattr(request, part), cls):
            raise InputError(f"{part} must be {cls.__name__}, not {shown(getattr(request, part))}.")
    for option in OPTIONS.values():
        if option.field and option.kind != "timeline":
            option.check(option.of(request))
    windows = windows_of(request.steps)
    if request.window not in windows:
        raise InputError(
            f"A window of {shown(request.window)} does not divide {request.steps} steps; use {either(windows)}."
        )
    if request.reuse != "off" and (request.steps < REUSE_STEPS or request.steps // request.window < REUSE_STAGE):
        raise InputError(
            f"Reuse between steps needs {REUSE_STEPS} steps or more, and at least {REUSE_STAGE} for each second of the "
            f"window; with {request.steps} steps in a window of {request.window} use reuse off."
        )


def _check_source(request: GenerationRequest) -> None:
    for what, other, given in (("an image", "video", request.image), ("a video", "image", request.video)):
        if given is None:
            continue
        check_source(Path(given), what)
        if kind_of_file(Path(given)) == other:
            raise MediaError(
                f"{given.name} is {'a video' if other == 'video' else 'a picture'}, not {what}; "
                f"give it with {OPTIONS[other].called}."
            )
        if request.source_sha256 is not None and request.source_sha256 != content_hash(Path(given)):
            name, option = given.name, OPTIONS["video" if other == "image" else "image"]
            raise MediaError(
                f"{name} is not the file of that name that these settings were made with; "
                f"give that one with {option.called}."
            )


def check_pictures(request: GenerationRequest) -> None:
    """Refuse a block's picture that is not there, or whose content is not that of the one it was.

    Raises:
        MediaError: one sentence, with the block's time.
    """
    for segment in request.timeline.segments if isinstance(request.timeline, Timeline) else ():
        path = segment.image
        if path is None:
            continue
        check_source(path, "an image")
        if kind_of_file(path) == "video":
            raise MediaError(f"{path.name} is a video, and the block at {segment.start} s starts from a picture.")
        if segment.image_sha256 is not None and segment.image_sha256 != content_hash(path):
            raise MediaError(
                f"{path.name} is not the picture of that name that the block at {segment.start} s was made with; "
                "give it that picture again, or take it off."
            )


def content_hash(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal.

    Raises:
        MediaError: it cannot be read.
    """
    found = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                found.update(block)
    except OSError as error:
        raise MediaError(f"{path} cannot be read ({error.strerror or error}); use another copy.") from None
    return found.hexdigest()


def kind_of_file(path: Path) -> str:
    """ "image" for what is a still picture for sure, "video" for what is a clip for sure, "" for anything else.

    GIF, WebP, AVIF and PNG may hold either; the bytes decide, not the ending.
    """
    try:
        with open_plain(path) as file:
            head = read_now(file, 16)
    except (OSError, ValueError):
        return ""
    if head.startswith((b"\xff\xd8\xff", b"BM", b"II*\0", b"MM\0*")) or head[4:12] in (b"ftypheic", b"ftypheix"):
        return "image"
    if head[4:8] == b"ftyp":
        return "" if head[8:12] in (b"avif", b"avis", b"mif1", b"msf1", b"hevc") else "video"
    riff = head.startswith(b"RIFF") and head[8:12] == b"AVI "
    return "video" if riff or head.startswith((b"\x1aE\xdf\xa3", b"\0\0\1\xba", b"\0\0\1\xb3", b"OggS")) else ""


def _check_kept(out: Path, source: Path | None) -> None:
    if source is not None and out.exists() and out.samefile(source):
        raise OutputError(f"The video would overwrite {source}, which it starts from; choose another name.")


def check_prompts(request: GenerationRequest) -> None:
    """Refuse prompts that cannot be read, are empty where they are needed, or do not fit the length.

    Raises:
        InputError, TimelineError: one sentence.
    """
    timeline = request.timeline
    if not isinstance(timeline, Timeline):
        raise InputError(f"The timeline is {type(timeline).__name__}; read it with magi_lite.timeline.text.parse.")
    prompts = [timeline.global_prompt, *(segment.prompt for segment in timeline.segments)]
    for prompt in prompts:
        if len(prompt) > MAX_PROMPT:
            raise InputError(f"A prompt has {len(prompt)} characters; {MAX_PROMPT} is the most that can be given.")
        if has_half_character(prompt):
            raise InputError("A prompt holds half a character (a lone surrogate); paste the text again.")
    pictured = request.image or request.video or request.timeline.shots(request.seconds)[0].image
    if not pictured and not any(prompt.strip() for prompt in prompts):
        raise InputError("There is neither a prompt nor a picture; write a prompt, or start with an image or a clip.")
    timeline.check(request.seconds)
    _check_something_is_left([prompt for prompt in timeline.prompts_from(0) if prompt])


def _check_something_is_left(prompts: list[str]) -> None:
    for prompt in prompts:
        check_prompt(prompt)
    if prompts and not any(map(clean_prompt, prompts)):
        raise InputError(
            f"{shortened(prompts[0])} says nothing to the model: Chinese characters, web addresses, file names and "
            "codes are taken out of prompts, as in its training; write it in plain English words."
        )


def notices(timeline: Timeline) -> tuple[str, ...]:
    """What in the prompts works otherwise than their writer may think, a sentence each."""
    prompts = [timeline.global_prompt, *(segment.prompt for segment in timeline.segments)]
    weighted = next((found for found in map(_WEIGHT.search, prompts) if found), None)
    if weighted is None:
        return ()
    return (
        f'{shortened(weighted[0])} is read as plain text: the model knows no weights; write "{weighted[1].strip()}".',
    )


def _check_names(request: GenerationRequest, weights: bool) -> None:
    for style in request.tokens.styles:
        if style not in STYLES:
            raise InputError(f"There is no style {shown(style)}{did_you_mean(style, STYLES)}; use {either(STYLES)}.")
    models = ("demo", *MODELS)
    elsewhere = not weights and Path(request.model).is_absolute()
    if request.model not in models and not elsewhere and not is_folder(request.model):
        raise InputError(
            f"There is no model {shown(request.model)}{did_you_mean(request.model, models)}; "
            f"use {either(models)}, or {'a folder' if weights else 'the full path of a folder of the nodes'}."
        )
    if request.preset != "auto":
        presets.load(request.preset)
