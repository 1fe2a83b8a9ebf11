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

from magi_lite.config import GenerationRequest, Overrides, SpecialTokens
from magi_lite.control import RunControl
from magi_lite.errors import InputError
from magi_lite.events import ChunkFinished, Event, Finished, Notice, PlanReady, Progress, StageStarted, Stopped
from magi_lite.planner import Plan
from magi_lite.timeline import Segment, Timeline

DEFAULT_SECONDS = 4
SEED_LIMIT = 2**31


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `generate`."""
    what = parser.add_argument_group("what to make")
    what.add_argument("--prompt", default="", help="said in every second (in front of a timeline's own words)")
    what.add_argument("--timeline", help='a JSON or text file, or shorthand: "[0s-2s: a cat walks] [2s-5s: it jumps]"')
    what.add_argument("--blend", type=int, help="seconds over which prompts fade into each other at a seam")
    what.add_argument("--image", type=Path, help="start with this picture")
    what.add_argument("--video", type=Path, help="continue this clip")
    what.add_argument(
        "--seconds", type=int, help=f"new seconds to make (default: the timeline's, or {DEFAULT_SECONDS})"
    )
    what.add_argument("--endless", action="store_true", help="go on until Ctrl-C")
    what.add_argument("--size", metavar="WxH", help="width and height, multiples of 16 (default: the preset's)")
    what.add_argument("--fit", choices=("crop", "pad", "stretch"), default="crop", help="how a picture fills the frame")
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
    how.add_argument("--shortcut", choices=("8,16,16", "16,16,8"), default="8,16,16", help="where 12 steps are spent")
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
    where.add_argument("--projects", type=Path, default=Path("outputs"), help="where runs are kept (default: outputs)")
    where.add_argument("--crf", type=int, default=18, help="H.264 quality, 1 (best) to 51")
    where.add_argument("--no-metadata", action="store_true", help="do not write the settings into the video")

    again = parser.add_argument_group("going on")
    again.add_argument("--resume", type=Path, metavar="PROJECT", help="finish an interrupted run, to the same bits")
    again.add_argument("--redo-from", type=int, metavar="N", help="with --resume: make second N and later again")


def run(arguments: argparse.Namespace) -> int:
    """Make the video; prints progress to stderr and the file's name to stdout."""
    from magi_lite.pipeline import generate  # torch comes in here

    if arguments.redo_from is not None and not arguments.resume:
        raise InputError("--redo-from needs the project to make again; name it with --resume.")
    request = changed_request(arguments) if arguments.resume else build_request(arguments)
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


def build_request(arguments: argparse.Namespace) -> GenerationRequest:
    """The request that the options ask for; sizes, steps and window default to the preset's.

    Raises:
        InputError: an option cannot be read, or options contradict each other.
    """
    from magi_lite.defaults import with_defaults

    timeline = read_timeline(arguments.timeline, arguments.prompt, arguments.blend)
    if arguments.endless and arguments.seconds is not None:
        raise InputError("--endless and --seconds contradict each other; give one of them.")
    seconds = arguments.seconds if arguments.seconds is not None else timeline.end or DEFAULT_SECONDS
    width, height = parse_size(arguments.size) if arguments.size else (None, None)
    request = GenerationRequest(
        timeline=timeline,
        seconds=None if arguments.endless else seconds,
        image=arguments.image,
        video=arguments.video,
        fit=arguments.fit,
        shortcut=arguments.shortcut,
        nearly_clean=not arguments.lean,
        seed=random.SystemRandom().randrange(SEED_LIMIT) if arguments.seed == -1 else arguments.seed,
        tokens=SpecialTokens(not arguments.no_quality_token, not arguments.no_duration_token, tuple(arguments.style)),
        image_prefix=arguments.image_prefix,
        models_folder=arguments.models,
        preset=arguments.preset,
        quality=arguments.quality,
        overrides=Overrides(
            device=arguments.device,
            scheme=arguments.scheme,
            layers=arguments.layers,
            kv_dtype=arguments.kv_dtype,
            kv_place=arguments.kv_place,
            vae=arguments.vae,
            t5=arguments.t5,
            t5_device=arguments.t5_device,
            attention=arguments.attention,
            vram_gb=arguments.vram_gb,
        ),
        out=arguments.out,
        crf=arguments.crf,
        embed_settings=not arguments.no_metadata,
    )
    chosen = {name: getattr(arguments, name) for name in ("steps", "window", "model")}
    chosen |= {"width": width, "height": height}
    return with_defaults(request, {key: value for key, value in chosen.items() if value is not None})


def changed_request(arguments: argparse.Namespace) -> GenerationRequest:
    """The request of the project to resume, with the words, length and seed that the options change.

    Raises:
        InputError: there is no such project, or the words do not fit it.
    """
    from magi_lite.project import Project
    from magi_lite.timeline_edit import splice

    with Project.open(arguments.resume) as project:
        request, finished = project.request, project.chunks
    _refuse_changes(arguments, request)
    old, first = request.timeline, arguments.redo_from or 0
    if arguments.timeline:
        newer = read_timeline(arguments.timeline, arguments.prompt or old.global_prompt, arguments.blend)
    elif arguments.prompt and arguments.prompt != old.global_prompt:
        end = request.seconds if request.seconds is not None else first + 1
        newer = replace(old, segments=(Segment(first, max(end, first + 1), arguments.prompt),))
    else:
        newer = old
    request = replace(request, timeline=splice(old, first, newer))
    if arguments.endless:
        request = replace(request, seconds=None)
    if arguments.seconds is not None:
        asked = finished if request.seconds is None else request.seconds
        if arguments.redo_from is None and arguments.seconds < asked:
            raise InputError(
                f"{arguments.resume} cannot be cut to {arguments.seconds} seconds; ask for {asked} or more, "
                "or leave --seconds out."
            )
        request = replace(request, seconds=arguments.seconds)
    if arguments.seed != -1:
        request = replace(request, seed=arguments.seed)
    return replace(request, out=arguments.out) if arguments.out else request


def _refuse_changes(arguments: argparse.Namespace, request: GenerationRequest) -> None:
    """Refuse options that a run which goes on would not obey; those that say what holds anyway are welcome."""
    if arguments.endless and arguments.seconds is not None:
        raise InputError("--endless and --seconds contradict each other; give one of them.")
    size = parse_size(arguments.size) if arguments.size else None
    given = {
        "size": (size, (request.width, request.height)),
        "steps": (arguments.steps, request.steps),
        "window": (arguments.window, request.window),
        "image": (arguments.image and arguments.image.name, request.image and request.image.name),
        "video": (arguments.video and arguments.video.name, request.video and request.video.name),
    }
    if arguments.redo_from is None:
        given["seed"] = (None if arguments.seed == -1 else arguments.seed, request.seed)
    for option, (wanted, held) in given.items():
        if wanted is not None and wanted != held:
            raise InputError(f"--{option} cannot change in a video that goes on; start a new one without --resume.")


def read_timeline(source: str | None, prompt: str, blend: int | None) -> Timeline:
    """A timeline from a file or from shorthand, with `prompt` in front of all its segments."""
    from magi_lite.timeline_text import parse

    timeline = Timeline()
    if source is not None:
        text = _file_text(source)
        if text is None and "[" not in source and "\n" not in source:
            raise InputError(f'There is no timeline file "{source}"; write shorthand as "[0s-2s: a cat walks]".')
        timeline = parse(source if text is None else text)
    if prompt:
        timeline = replace(timeline, global_prompt=prompt)
    return timeline if blend is None else replace(timeline, blend=blend)


def _file_text(source: str) -> str | None:
    """What a timeline file says; None where `source` is no file, as shorthand of any length is none."""
    path = Path(source)
    try:
        if not path.is_file():
            return None
    except (OSError, ValueError):  # longer than a name can be, or with characters that none has
        return None
    try:
        return path.read_text(encoding="utf-8-sig")  # some editors put a mark in front
    except (OSError, UnicodeDecodeError):
        raise InputError(f"The timeline file {path} cannot be read; save it as UTF-8 text.") from None


def parse_size(text: str) -> tuple[int, int]:
    """ "720x480" to (720, 480)."""
    width, separator, height = text.lower().replace("×", "x").partition("x")
    if not separator or not width.strip().isdigit() or not height.strip().isdigit():
        raise InputError(f'The size "{text}" cannot be read; write WIDTHxHEIGHT, such as 720x720.')
    return int(width), int(height)


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


def show(events: Iterator[Event]) -> int:
    """Print a run: what is decided, a progress bar, finished seconds as they come, the video's name at the end."""
    from tqdm import tqdm

    bar = None
    try:
        for event in events:
            match event:
                case PlanReady(plan=plan):
                    print(_plan_sentence(plan), file=sys.stderr)
                case StageStarted(detail=detail) if detail:
                    print(detail, file=sys.stderr)
                case Notice(message=message, level=level):
                    print(f"{level}: {message}", file=sys.stderr)
                case Progress():
                    bar = bar or tqdm(total=None, unit="step", file=sys.stderr, bar_format="{desc} {bar} {elapsed}")
                    _advance(bar, event)
                case ChunkFinished(chunk=chunk, frames=frames, seconds_taken=taken):
                    tqdm.write(
                        f"second {chunk + 1} is finished: {len(frames)} frames in {taken:.1f} s", file=sys.stderr
                    )
                case Finished(video=video):
                    print(video)
                case Stopped(video=video, reason=reason, chunks=chunks):
                    print(f"{reason} after {chunks} finished seconds", file=sys.stderr)
                    if video:
                        print(video)
    finally:
        if bar is not None:
            bar.close()
    return 0


def _plan_sentence(plan: Plan) -> str:
    """The plan in a line."""
    on_card = plan.execution.device == "cuda"
    used = plan.needed_vram_bytes if on_card else plan.peak_ram_bytes
    where = plan.device.name if on_card else "CPU"
    return (
        f"{plan.model.name}, {plan.request.width}x{plan.request.height}, {plan.execution.scheme}, "
        f"window {plan.window} on {where}: {used / 2**30:.1f} GiB, "
        f"about {plan.seconds_per_chunk:.1f} s for a second of video"
    )


def _advance(bar, progress: Progress) -> None:
    """Move the bar to where the run is, with the time that is left in words."""
    left = "" if progress.eta_seconds is None else f", {_clock(progress.eta_seconds)} left"
    of = "" if progress.chunks is None else f"/{progress.chunks}"
    bar.set_description_str(
        f"second {progress.chunk + 1}{of}, step {progress.step}/{progress.steps}{left}", refresh=False
    )
    if progress.fraction is not None:
        bar.total, bar.n = 1000, int(progress.fraction * 1000)
    bar.refresh()


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds + 0.5), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
