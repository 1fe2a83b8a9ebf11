"""The one place where a request is refused: whatever cannot work is said before a weight is loaded.

Faces only offer what is legal; this is for command lines, files and programs. Each check says what was wrong and what
would work. Whether the machine can carry the request is the planner's affair.
"""

from __future__ import annotations

import difflib
import math
from pathlib import Path
from typing import Any

from magi_lite.errors import InputError, OutputError, PresetError
from magi_lite.files import check_output, check_source
from magi_lite.models import MODELS, SIZE_STEP
from magi_lite.request import presets
from magi_lite.request.request import STYLES, GenerationRequest, Overrides
from magi_lite.text.cleaning import check_caption, clean_caption
from magi_lite.timeline import MAX_SECONDS, Timeline

LEGAL_STEPS = (4, 8, 12, 16, 32, 64)
"""The published schedules, and 4 for a quick look."""
MIN_SIDE, MAX_SIDE = 32, 4096
"""Pixels: two patches of the transformer, and more than any card carries."""
MAX_SEED = 2**53 - 1
"""The largest whole number that every reader of JSON keeps exactly."""
MAX_PROMPT = 10_000
"""Characters; the text encoder reads the first 800 tokens at most, which a run says of prompts that have more."""
_WORDS = {
    "fit": ("crop", "pad", "stretch"),
    "shortcut": ("8,16,16", "16,16,8"),
    "image_prefix": ("exact", "published"),
    "quality": (None, "draft", "balanced", "quality"),
}


def validate_request(request: GenerationRequest) -> None:
    """Refuse a request that contradicts itself or asks for what does not exist.

    Raises:
        InputError: sizes, steps, window, seed, length, names, image and clip together; one sentence.
        TimelineError: the timeline does not fit the length.
        MediaError: the image or clip is not there.
        PresetError: no such preset.
        OutputError: the video could not be written in the end.
    """
    _check_numbers(request)
    check_size(request.width, request.height)
    _check_steps(request.steps, request.window)
    for name, legal in _WORDS.items():
        if getattr(request, name) not in legal:
            raise InputError(f"{name} cannot be {getattr(request, name)!r}; use {_either(legal)}.")
    _check_source(request)
    check_words(request)
    _check_names(request)
    _check_overrides(request.overrides)
    if request.out is not None:
        check_output(Path(request.out))
        _check_kept(Path(request.out), request.image or request.video)


def _check_numbers(request: GenerationRequest) -> None:
    for name in ("seconds", "width", "height", "steps", "window", "seed", "crf"):
        value = getattr(request, name)
        if (isinstance(value, bool) or not isinstance(value, int)) and not (name == "seconds" and value is None):
            raise InputError(f"{name} must be a whole number, not {value!r}.")
    if request.seconds is not None and not 1 <= request.seconds <= MAX_SECONDS:
        raise InputError(
            f"A video cannot have {request.seconds} seconds; ask for 1 to {MAX_SECONDS}, or for an endless one."
        )
    if not 0 <= request.seed <= MAX_SEED:
        raise InputError(f"The seed {request.seed} is out of range; use 0 to {MAX_SEED}.")
    if not 1 <= request.crf <= 51:
        raise InputError(f"The quality (crf) {request.crf} is out of range; use 1 (best) to 51 (smallest file).")


def check_size(width: int, height: int) -> tuple[int, int]:
    """Width and height of a video, both multiples of 16; an InputError names the nearest that are."""
    for name, side in (("width", width), ("height", height)):
        nearest = min(max(MIN_SIDE, round(side / SIZE_STEP) * SIZE_STEP), MAX_SIDE)
        if side % SIZE_STEP:
            raise InputError(f"A {name} of {side} is not a multiple of {SIZE_STEP}; use {nearest}.")
        if not MIN_SIDE <= side <= MAX_SIDE:
            raise InputError(f"A {name} of {side} is out of range; use {MIN_SIDE} to {MAX_SIDE}.")
    return width, height


def _check_steps(steps: int, window: int) -> None:
    if steps not in LEGAL_STEPS:
        raise InputError(f"There is no schedule of {steps} steps; use {_either(LEGAL_STEPS)}.")
    if window < 1 or steps % window:
        windows = [w for w in range(1, steps + 1) if steps % w == 0]
        raise InputError(f"A window of {window} does not divide {steps} steps; use {_either(windows)}.")


def _check_source(request: GenerationRequest) -> None:
    if request.image is not None and request.video is not None:
        raise InputError("An image and a clip cannot both be the start; give one of them.")
    for kind, given in (("an image", request.image), ("a video", request.video)):
        if given is not None:
            check_source(Path(given), kind)


def _check_kept(out: Path, source: Path | None) -> None:
    if source is not None and out.exists() and out.samefile(source):
        raise OutputError(f"The video would overwrite {source}, which it starts from; choose another name.")


def check_words(request: GenerationRequest) -> None:
    """Refuse words that cannot be read, say nothing at all, or do not fit the length.

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
        if any("\ud800" <= character <= "\udfff" for character in prompt):
            raise InputError("A prompt holds half a character (a lone surrogate); paste the text again.")
    if request.image is None and request.video is None and not any(prompt.strip() for prompt in prompts):
        raise InputError("Nothing is said and nothing is shown; write a prompt, or start with an image or a clip.")
    timeline.check(request.seconds)
    _check_something_is_left([prompt for prompt in timeline.prompts_from(0) if prompt])


def _check_something_is_left(prompts: list[str]) -> None:
    for prompt in prompts:
        check_caption(prompt)
    if prompts and not any(map(clean_caption, prompts)):
        raise InputError(
            f"{shortened(prompts[0])} says nothing to the model: Chinese characters, web addresses, file names and "
            "codes are taken out of prompts, as in its training; write it in plain English words."
        )


def _check_names(request: GenerationRequest) -> None:
    for style in request.tokens.styles:
        if style not in STYLES:
            raise InputError(f"There is no style {style!r}{_meant(style, STYLES)}; use {_either(STYLES)}.")
    models = ("demo", *MODELS)
    if request.model not in models and not Path(request.model).is_dir():
        raise InputError(
            f"There is no model {request.model!r}{_meant(request.model, models)}; use {_either(models)}, or a folder."
        )
    if request.preset != "auto":
        if not isinstance(request.preset, str):
            raise PresetError(f"A preset has a name, not {request.preset!r}; use auto.")
        presets.load(request.preset)


def _check_overrides(overrides: Overrides) -> None:
    for name, legal in presets.LEGAL.items():
        value = getattr(overrides, name)
        if value is not None and value not in legal:
            raise InputError(f"{name} cannot be {value!r}; use {_either(legal)}.")
    slices, memory = overrides.mlp_slice, overrides.vram_gb
    if slices is not None and (isinstance(slices, bool) or not isinstance(slices, int) or slices < 1):
        raise InputError(f"mlp_slice cannot be {slices!r}; give a number of tokens, such as 4096.")
    if memory is not None and not _sensible(memory):
        raise InputError(f"A card with {memory!r} GB of memory cannot be planned; give a number such as 12.")


def _sensible(memory: Any) -> bool:
    number = isinstance(memory, int | float) and not isinstance(memory, bool)
    return number and math.isfinite(memory) and 0 < memory < 10_000


def _either(choices: Any) -> str:
    """ "a, b or c"."""
    words = [str(choice) for choice in choices if choice is not None]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def shortened(prompt: str, length: int = 40) -> str:
    """The prompt in quotes, cut where it is long."""
    text = " ".join(prompt.split())
    return f'"{text if len(text) <= length else text[: length - 1] + "…"}"'


def _meant(name: str, choices: tuple[str, ...]) -> str:
    near = difflib.get_close_matches(str(name), choices, 1)
    return f" (did you mean {near[0]}?)" if near else ""
