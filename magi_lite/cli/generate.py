"""Make a video: from text, from an image (--image) or continuing a clip (--video), with a prompt for every second."""

from __future__ import annotations

import argparse
import random
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from magi_lite.cli.reading import (
    newer_words,
    overrides_given,
    parse_size,
    read_settings_file,
    read_timeline,
    tokens_given,
)
from magi_lite.cli.resume import changed_request
from magi_lite.cli.show import show
from magi_lite.control import RunControl
from magi_lite.errors import InputError, OutputError
from magi_lite.request.request import GenerationRequest, Overrides, SpecialTokens

DEFAULT_SECONDS = 4
SEED_LIMIT = 2**31


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `generate`."""
    what = parser.add_argument_group("what to make")
    what.add_argument("--prompt", default="", help="said in every second (in front of a timeline's own words)")
    what.add_argument("--timeline", help='a JSON or text file, or shorthand: "[0s-2s: a cat walks] [2s-5s: it jumps]"')
    what.add_argument(
        "--settings", type=Path, metavar="FILE", help="begin with those inside a video of ours, or printed by info"
    )
    what.add_argument("--blend", type=int, help="seconds over which prompts fade into each other at a seam")
    what.add_argument("--image", type=Path, help="start with this picture")
    what.add_argument("--video", type=Path, help="continue this clip")
    what.add_argument(
        "--seconds", type=int, help=f"new seconds to make (default: the timeline's, or {DEFAULT_SECONDS})"
    )
    what.add_argument("--endless", action="store_true", help="go on until Ctrl-C")
    what.add_argument("--size", metavar="WxH", help="width and height, multiples of 16 (default: the preset's)")
    what.add_argument("--fit", choices=("crop", "pad", "stretch"), help="how a picture fills the frame (default: crop)")
    what.add_argument("--seed", type=int, default=-1, help="-1 (default) draws one; the one used is kept in the video")
    what.add_argument("--style", action="append", default=[], help="a style token, such as anime; may be repeated")
    what.add_argument("--no-quality-token", action="store_true", help="leave out the learned 'high quality' token")
    what.add_argument(
        "--no-duration-token", action="store_true", help="leave out the token that counts the seconds left"
    )

    how = parser.add_argument_group("how to make it")
    how.add_argument("--preset", default="auto", help="a machine profile of presets/, or demo; auto picks one")
    how.add_argument("--quality", choices=("draft", "balanced", "quality"), help="a preset's tier (default: balanced)")
    how.add_argument("--model", help="4.5B-distill-fp8, demo, ... or a folder (default: the preset's)")
    how.add_argument("--models", type=Path, help="the folder that holds downloaded weights (default: models)")
    how.add_argument("--steps", type=int, help="8, 12, 16, 32 or 64 denoising steps")
    how.add_argument("--window", type=int, help="chunks denoised together: 1, 2 or 4")
    how.add_argument(
        "--shortcut",
        choices=("8,16,16", "16,16,8"),
        metavar="PARTS",
        help="where 12 steps are spent: 8,16,16 (default) or 16,16,8",
    )
    how.add_argument("--lean", action="store_true", help="skip the extra pass over nearly clean seconds (faster)")
    how.add_argument("--image-prefix", choices=("exact", "published"), default="exact", help=argparse.SUPPRESS)
    for option, choices in (
        ("device", ("cuda", "cpu")),
        ("scheme", ("float32", "bf16", "fp8", "int8", "nf4")),
        ("layers", ("resident", "streamed")),
        ("vae", ("resident", "swapped", "decoder", "cpu")),
        ("t5", ("float32", "bf16", "int8", "nf4")),
        ("t5-device", ("cuda", "cpu")),
        ("kv-dtype", ("float32", "bf16", "fp8")),
        ("kv-place", ("device", "pinned")),
        ("attention", ("sdpa", "flash", "sage")),
    ):
        how.add_argument(f"--{option}", choices=choices, help=f"fix the {option} instead of leaving it to the plan")
    how.add_argument("--vram-gb", type=float, help="plan as if the card had this much memory")

    how.add_argument(
        "--record-activations", type=Path, metavar="FILE", help="write what the linears see, to calibrate FP8 with"
    )

    where = parser.add_argument_group("where it goes")
    where.add_argument("--out", type=Path, help="the video file (default: in its project folder)")
    where.add_argument("--overwrite", action="store_true", help="let --out replace a file that is there")
    where.add_argument("--projects", type=Path, default=Path("outputs"), help="where runs are kept (default: outputs)")
    where.add_argument("--crf", type=int, help="H.264 quality, 1 (best) to 51 (default: 18)")
    where.add_argument("--no-metadata", action="store_true", help="do not write the settings into the video")

    again = parser.add_argument_group("going on")
    again.add_argument("--resume", type=Path, metavar="PROJECT", help="finish an interrupted run, to the same bits")
    again.add_argument(
        "--redo-from",
        type=int,
        metavar="N",
        help="with --resume: make second N (from 0) and later again, as a new version; --prompt: what is said there",
    )


def run(arguments: argparse.Namespace) -> int:
    """Make the video; prints progress to stderr and the file's name to stdout."""
    from magi_lite.pipeline import generate  # torch comes in here

    if arguments.redo_from is not None and not arguments.resume:
        raise InputError("--redo-from needs the project to make again; name it with --resume.")
    request = changed_request(arguments) if arguments.resume else build_request(arguments)
    if arguments.out is not None and arguments.out.exists() and not (arguments.overwrite or _is_its_own(arguments)):
        raise OutputError(f"{arguments.out} exists; give another name, or add --overwrite.")
    control = RunControl()
    with _stop_on_interrupt(control):
        events = generate(
            request,
            control=control,
            projects_folder=arguments.projects,
            resume=arguments.resume,
            from_chunk=arguments.redo_from,
            record=arguments.record_activations,
        )
        return show(events)


def _is_its_own(arguments: argparse.Namespace) -> bool:
    """Whether --out is the file that the project to resume has written before."""
    from magi_lite.project import Project

    if arguments.resume is None or arguments.redo_from is not None:
        return False
    with Project.open(arguments.resume) as project:
        out = project.request.out
    return out is not None and out.exists() and out.samefile(arguments.out)


def build_request(arguments: argparse.Namespace) -> GenerationRequest:
    """The request that the options ask for; sizes, steps and window default to the preset's.

    Raises:
        InputError: an option cannot be read, or options contradict each other.
    """
    from magi_lite.request.defaults import with_defaults

    if arguments.endless and arguments.seconds is not None:
        raise InputError("--endless and --seconds contradict each other; give one of them.")
    if arguments.settings is not None:
        return _from_settings(arguments)
    timeline = read_timeline(arguments.timeline, arguments.prompt, arguments.blend)
    seconds = arguments.seconds if arguments.seconds is not None else timeline.end or DEFAULT_SECONDS
    width, height = parse_size(arguments.size) if arguments.size else (None, None)
    request = GenerationRequest(
        timeline=timeline,
        seconds=None if arguments.endless else seconds,
        image=arguments.image,
        video=arguments.video,
        nearly_clean=not arguments.lean,
        seed=random.SystemRandom().randrange(SEED_LIMIT) if arguments.seed == -1 else arguments.seed,
        tokens=tokens_given(arguments, SpecialTokens()),
        image_prefix=arguments.image_prefix,
        models_folder=arguments.models,
        preset=arguments.preset,
        quality=arguments.quality,
        overrides=Overrides(**overrides_given(arguments)),
        out=arguments.out,
        embed_settings=not arguments.no_metadata,
    )
    given = {name: getattr(arguments, name) for name in ("fit", "shortcut", "crf")}
    request = replace(request, **{name: value for name, value in given.items() if value is not None})
    chosen = {name: getattr(arguments, name) for name in ("steps", "window", "model")}
    chosen |= {"width": width, "height": height}
    return with_defaults(request, {key: value for key, value in chosen.items() if value is not None})


def _from_settings(arguments: argparse.Namespace) -> GenerationRequest:
    """The request inside a file, with what the options say in its place; its own seed makes the same video again."""
    held = read_settings_file(arguments.settings)
    names = ("seconds", "steps", "window", "model", "fit", "shortcut", "crf", "quality", "image", "video")
    given = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    if arguments.size:
        given["width"], given["height"] = parse_size(arguments.size)
    if arguments.image or arguments.video:  # one takes the place of the other
        given = {"image": None, "video": None, **given}
    if arguments.endless:
        given["seconds"] = None
    if arguments.preset != "auto":
        given["preset"] = arguments.preset
    return replace(
        held,
        timeline=newer_words(arguments, held.timeline),
        seed=held.seed if arguments.seed == -1 else arguments.seed,
        nearly_clean=held.nearly_clean and not arguments.lean,
        tokens=tokens_given(arguments, held.tokens),
        models_folder=arguments.models,
        overrides=replace(held.overrides, **overrides_given(arguments)),
        out=arguments.out,
        embed_settings=not arguments.no_metadata,
        **given,
    )


@contextmanager
def _stop_on_interrupt(control: RunControl) -> Iterator[None]:
    """The first Ctrl-C stops after the current step and keeps what is finished; the second one interrupts at once."""

    def handle(_signal: int, _frame: object) -> None:
        if control.stop_requested:
            raise KeyboardInterrupt
        control.stop()
        with suppress(RuntimeError):  # the signal came in the middle of another print, which cannot be entered twice
            print("\nStopping after this step; press Ctrl-C again to quit at once.", file=sys.stderr)

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
