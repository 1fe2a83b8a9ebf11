"""MAGI Lite from Python: `magi_lite.generate`, `stream` and `plan`, over the same builder and pipeline as the app.

Keywords are the options' names (`magi_lite.request.request.OPTIONS`), what is left out is resolved as in the app.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from magi_lite.errors import CheckpointError, InputError, OutputError
from magi_lite.models import MODELS
from magi_lite.request import settings as foreign
from magi_lite.request.build import build, change
from magi_lite.request.checks import check
from magi_lite.request.request import GenerationRequest
from magi_lite.text_files import decode, read_text
from magi_lite.timeline import Segment, Timeline
from magi_lite.timeline.edit import with_pictures
from quant.storage.files import open_plain, read_now

if TYPE_CHECKING:
    import numpy as np

    from magi_lite.control import RunControl
    from magi_lite.events import Event
    from magi_lite.machine.cards import Device
    from magi_lite.planner import Plan


@dataclass(frozen=True)
class Result:
    """A video that was made."""

    path: Path
    """The MP4 file."""
    project: Path
    """The run's folder: every second with its latents; give it as `resume` or to `export`."""
    seed: int
    seconds: int
    """Finished seconds of video, without the picture or clip it starts from."""
    request: GenerationRequest
    """All that decided it, with every choice made."""

    def frames(self) -> Iterator[np.ndarray]:
        """The video's frames in order, decoded as they are asked for, each (height, width, 3) uint8."""
        from magi_lite.video.containers import open_media

        with open_media(self.path) as container:
            for frame in container.decode(video=0):
                yield frame.to_ndarray(format="rgb24")


def generate(prompt: str = "", **options: Any) -> Result:
    """Make a video and wait for it; see `stream` for the arguments.

    Raises:
        MagiLiteError: what was asked for cannot be made here; one sentence. Finished seconds are kept.
    """
    from magi_lite.events import Finished, Opened, Stopped
    from magi_lite.project import Project

    folder, video = None, None
    for event in stream(prompt, **options):
        if isinstance(event, Opened):
            folder = event.project
        elif isinstance(event, Finished | Stopped):
            video = event.video
    if folder is None or video is None:
        raise InputError("The run was stopped before its first second was finished.")
    with Project.open(folder) as project:
        request, seconds = project.request, project.chunks
    return Result(video, folder, request.seed, seconds, request)


def stream(
    prompt: str = "",
    *,
    settings: Path | str | None = None,
    resume: Path | str | None = None,
    redo_from: int | None = None,
    projects: Path | str | None = None,
    overwrite: bool = False,
    control: RunControl | None = None,
    record: Path | str | None = None,
    **options: Any,
) -> Iterator[Event]:
    """Make a video, as a stream of `magi_lite.events`; the last one is `Finished` or `Stopped`.

    Args:
        prompt: holds in every second.
        settings: begin with the settings inside a video of ours, or in JSON as `info` prints it.
        resume: the folder of a run to go on with.
        redo_from: with `resume`: make this second (from 0) and all later ones again, as a new version.
        projects: where runs are kept; None: `outputs` in the current folder.
        overwrite: let `out` replace a file that is there.
        control: to stop, pause and redirect from another thread.
        record: a file for what the linears see, to calibrate static FP8 with.
        options: by their names: seconds, endless, timeline, size, image, video, seed, steps, window, model, ...
            `image` may be a path, a PIL image or an array, (height, width) or (height, width, 3 or 4), uint8. So may
            "image" of a block, where `timeline` is a dict as `Timeline.to_json` makes it.

    Raises:
        MagiLiteError: what was asked for cannot be made here; one sentence. Finished seconds are kept.
    """
    from magi_lite import pipeline

    with ExitStack() as stack:
        if "image" in options and not isinstance(options["image"], str | Path | None):
            inputs = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="magi-lite-")))
            options["image"] = save_image(options["image"], inputs)  # the run keeps a copy
        if isinstance(options.get("timeline"), dict):
            inputs = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="magi-lite-")))
            options["timeline"] = _with_saved_pictures(options["timeline"], inputs)
        run = None if resume is None else Path(resume)
        request = ask(prompt=prompt, settings=settings, resume=run, redo_from=redo_from, **options)
        check_free(request, run, redo_from, options.get("out"), overwrite=overwrite)
        yield from pipeline.generate(
            request,
            control=control,
            projects_folder=None if projects is None else Path(projects),
            resume=run,
            from_chunk=redo_from,
            record=None if record is None else Path(record),
        )


def plan(prompt: str = "", **options: Any) -> Plan:
    """Memory and time that a video would take on this machine, before anything is loaded.

    Args:
        options: as in `stream`, with `settings` but without `resume`.

    Raises:
        PlanError: it does not fit; `choices` holds the nearest settings that would.
        InputError: a setting cannot be used.
    """
    return plan_request(ask(prompt=prompt, **options), free_window=options.get("window") is None)


def plan_request(request: GenerationRequest, machine: Device | None = None, *, free_window: bool = False) -> Plan:
    """The plan of a request; its prompts need not be there yet.

    Args:
        machine: None: this one.
        free_window: take a smaller window where the request's own does not fit.

    Raises:
        PlanError: it does not fit; `choices` holds the nearest settings that would.
        InputError: a setting cannot be used.
    """
    from magi_lite import planner
    from magi_lite.weights.opening import open_model

    check(request, prompts=False)
    try:
        spec = open_model(request.model, request.models_folder).spec
    except CheckpointError:
        if request.model not in MODELS:
            raise
        spec = MODELS[request.model]
    return planner.plan(request, request.preset, machine, spec, free_window=free_window)


def ask(
    *,
    settings: Path | str | None = None,
    resume: Path | None = None,
    redo_from: int | None = None,
    **options: Any,
) -> GenerationRequest:
    """The request that keywords make: a new one, one with a file's settings, or that of a run with changes.

    Raises:
        InputError: (or one of its kinds) one sentence.
    """
    from magi_lite.project import Project

    if isinstance(options.get("timeline"), Path):
        options["timeline"] = read_timeline(options["timeline"])
    if resume is not None:
        if settings is not None:
            raise InputError("A run has settings of its own; give a settings file or a run to resume, not both.")
        with Project.open(resume) as project:
            if redo_from is not None:
                project.check_whole(redo_from)
            held, finished = project.request, project.chunks
        if redo_from is None:
            return change(held, "resume", finished=finished, **options)
        return change(held, "redo", finished=finished, second=redo_from, **options)
    if redo_from is not None:
        raise InputError("--redo-from needs the project to make again; name it with --resume.")
    if settings is None:
        return build(**options)
    request = change(read_settings(Path(settings)), "new", **options)
    known = request if not _gives_source(options) else replace(request, image=None, video=None)
    foreign.check_source_is_known(known if options.get("timeline") is None else replace(known, timeline=Timeline()))
    return request


def _gives_source(options: dict[str, Any]) -> bool:
    return options.get("image") is not None or options.get("video") is not None


def check_free(
    request: GenerationRequest, resume: Path | None, redo_from: int | None, out: Any, *, overwrite: bool
) -> None:
    """Refuse an output file that is there already and is not the one that the run to resume has written.

    Raises:
        OutputError: it is.
    """
    from magi_lite.project import Project

    if out is None or overwrite or request.out is None or not _exists(request.out):
        return
    if resume is not None and redo_from is None:
        with Project.open(resume) as project:
            held = project.request.out
        if held is not None and held.exists() and held.samefile(request.out):
            return
    raise OutputError(f"{request.out} exists; give another name, or add --overwrite.")


def save_image(image: Any, folder: Path) -> Path:
    """Write a PIL image or an array losslessly into a folder; returns the file.

    Raises:
        InputError: it is neither, or of another shape or type.
    """
    import numpy as np
    from PIL import Image

    if not isinstance(image, Image.Image):
        try:
            array = np.asarray(image)
        except (TypeError, ValueError):
            raise InputError(f"An image is a path, a PIL image or an array, not {type(image).__name__}.") from None
        colour = array.ndim == 3 and array.shape[2] in (3, 4)
        if array.dtype != np.uint8 or not (array.ndim == 2 or colour) or not array.size:
            raise InputError(
                f"An image array is (height, width) or (height, width, 3 or 4) in uint8, not {array.shape} in "
                f"{array.dtype}."
            )
        image = Image.fromarray(array)
    path = folder / ("image.png" if image.mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16") else "image.tif")
    try:
        image.save(path)
    except (OSError, ValueError) as error:
        raise InputError(f"The image cannot be kept as a file ({error}); convert it to RGB first.") from None
    return path


def _with_saved_pictures(timeline: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A timeline in JSON whose blocks carry paths; pictures in memory are written into a folder."""
    segments = timeline.get("segments")
    if not isinstance(segments, list):
        return timeline
    saved = []
    for number, segment in enumerate(segments):
        image = segment.get("image") if isinstance(segment, dict) else None
        if image is not None and not isinstance(image, str | Path):
            (folder / str(number)).mkdir()
            image = save_image(image, folder / str(number))
        saved.append(segment if image is None else segment | {"image": str(image)})
    return timeline | {"segments": saved}


def read_timeline(path: Path) -> Timeline:
    """The timeline in a file, of any form that `timeline.files` reads. Its pictures may lie beside the file.

    Raises:
        InputError: the file cannot be read.
        TimelineError: it holds no timeline.
    """
    from magi_lite.timeline.files import read

    try:
        text = read_text(path, foreign.LIMIT_BYTES)
    except (OSError, ValueError) as error:
        reason = "save it as UTF-8 text" if isinstance(error, UnicodeDecodeError | OSError) else str(error)
        raise InputError(f"The timeline file {str(path)[:200]} cannot be read; {reason}.") from None

    def found(segment: Segment) -> Segment:
        beside = path.parent / (segment.image or "")
        return replace(segment, image=beside) if beside.is_file() else segment

    return with_pictures(read(text), found)


def read_settings(path: Path) -> GenerationRequest:
    """The request inside a video of ours, or in JSON as `info` prints it, every value of it checked.

    Raises:
        InputError: the file holds no settings, or some that cannot be used.
    """
    from magi_lite.video.writer import read_settings as settings_inside

    unreadable = f"{str(path)[:200]} cannot be read as settings"
    cure = f"write it with `info VIDEO > {path.name[:80]}`."
    if path.suffix.lower() == ".json" or _begins_as_json(path):
        try:
            text = read_text(path, foreign.LIMIT_BYTES)
        except (OSError, ValueError) as error:
            reason = f" ({error})" if not isinstance(error, OSError | UnicodeDecodeError) else ""
            raise InputError(f"{unreadable}{reason}; {cure}") from None
        try:
            return foreign.settings_from_text(text)
        except InputError as error:
            if "not JSON" not in str(error):
                raise
            raise InputError(f"{unreadable}; {cure}") from None
    held = settings_inside(path)
    if held is None:
        raise InputError(f"{path} carries no settings; only videos made by magi_lite with metadata on do.")
    return foreign.settings_from_data(held)


def _exists(path: Path) -> bool:
    """Whether there is a file; False for a name that none can have, which is refused elsewhere."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def _begins_as_json(path: Path) -> bool:
    """Whether a file of any name holds text that begins with a brace."""
    try:
        with open_plain(path) as file:
            return decode(read_now(file, 64)).lstrip().startswith("{")
    except (OSError, ValueError):
        return False
