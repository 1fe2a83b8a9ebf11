"""The one builder of requests: from keywords, as the command line, the API, the app and the library give them.

`build` makes a new request, `change` makes one of an earlier request: to use its settings again, to resume its run, or
to make seconds of it again. Keywords are the names of `OPTIONS`; None and "auto" leave a choice to the preset.

What is left out is filled up: the preset that fits this machine, with its size, steps, window and model. Where neither
the preset's weights nor any other are on this disk, the demo model stands in, so that a first run works without a
download.
"""

from __future__ import annotations

import filecmp
import random
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from magi_lite.errors import CheckpointError, InputError, MagiLiteError
from magi_lite.files import is_folder
from magi_lite.machine.cards import Device
from magi_lite.machine.devices import detect
from magi_lite.models import MODELS
from magi_lite.request import presets
from magi_lite.request.presets import Preset
from magi_lite.request.request import OPTIONS, PARTS, GenerationRequest
from magi_lite.sentences import count, did_you_mean, shortened, shown
from magi_lite.timeline import Timeline
from magi_lite.timeline.edit import splice
from magi_lite.timeline.text import parse
from magi_lite.weights.contents import check_contents
from magi_lite.weights.layout import find_model

DEMO = "demo"
PREFERRED_MODELS = ("4.5B-distill-fp8", "4.5B-distill", "4.5B-base", "24B-distill-fp8", "24B-distill", "24B-base")
"""Published models in the order in which a machine with several would want them."""
DRAW = -1
"""The seed that stands for a random one."""
SEED_LIMIT = 2**31
"""Random seeds are below it: short enough to be typed again."""
DEFAULT_SECONDS: int = OPTIONS["seconds"].default
_SHORTHAND = re.compile(r"\[\s*\d+(?:\.\d+)?\s*(?:s\s*)?[-–—]\s*\d+(?:\.\d+)?\s*(?:s\s*)?:[^\]]{0,60}\]?")
_SIZE = re.compile(r"\s*(\d{1,5})\s*[x×]\s*(\d{1,5})\s*", re.ASCII)


def build(*, machine: Device | None = None, demo: bool = True, **values: Any) -> GenerationRequest:
    """A request from keywords; a seed of -1 or None is drawn here once, and then part of the request.

    Args:
        machine: what the preset is chosen for; None: this machine.
        demo: whether the demo model stands in where no weights are on the disk.
        values: by the names of `OPTIONS`. A timeline may be one, its JSON, or its text.

    Raises:
        InputError: no such option, a value that cannot be read or is not legal, or two that contradict each other.
        TimelineError: the timeline cannot be read.
        PresetError: no such preset.
    """
    given = read(values)
    timeline = _prompts(given, Timeline())
    request = GenerationRequest(
        timeline=timeline,
        seconds=None if given.get("endless") else given.get("seconds", timeline.end or DEFAULT_SECONDS),
        seed=given.pop("seed", new_seed()),
    )
    request = _replaced(request, {name: value for name, value in given.items() if not OPTIONS[name].preset})
    chosen = {name: value for name, value in given.items() if OPTIONS[name].preset}
    return with_defaults(request, chosen, machine, demo=demo)


def new_seed() -> int:
    """A seed that nobody chose."""
    return random.SystemRandom().randrange(SEED_LIMIT)


def change(
    request: GenerationRequest, purpose: Literal["new", "resume", "redo"], /, *, finished: int = 0, second: int = 0,
    **values: Any,
) -> GenerationRequest:  # fmt: skip
    """An earlier request with what keywords change in it; what is left out stays.

    Args:
        purpose: "new": another video with these settings; "resume": its run goes on; "redo": a new version of its run
            with the seconds from `second` on made again.
        finished: seconds of the run that are finished.

    Raises:
        InputError: as in `build`, or an option that finished seconds depend on.
    """  # fmt: skip
    given = read(values)
    if purpose != "new":
        _refuse_changes(request, given, purpose)
        _check_length(request, given, purpose, finished, second)
    timeline = splice(request.timeline, second, _prompts(given, request.timeline))
    seconds = None if given.pop("endless", False) else given.get("seconds", request.seconds)
    changed = replace(request, timeline=timeline, seconds=seconds)
    if purpose == "new":
        changed = replace(changed, models_folder=None, out=None)
        if "image" in given or "video" in given:  # one takes the place of the other
            changed = replace(changed, image=None, video=None, source_sha256=None)
    else:
        given = {name: value for name, value in given.items() if name not in ("image", "video", "model")}
    if purpose == "redo":
        changed = replace(changed, out=None)  # the first version keeps its file
    if purpose == "new" and ("preset" in given or "quality" in given):
        chosen = {"model": changed.model} | {name: given.pop(name) for name in [*given] if OPTIONS[name].preset}
        return with_defaults(_replaced(changed, given), chosen)
    return _replaced(changed, given)


def read(values: Mapping[str, Any]) -> dict[str, Any]:
    """Keywords as any front end gives them, each in its option's kind and legal; what is left out is not there.

    Raises:
        InputError: (or TimelineError, PresetError) one sentence.
    """
    given: dict[str, Any] = {}
    for name, value in values.items():
        option = OPTIONS.get(name)
        if option is None:
            raise InputError(f"There is no option {shown(name)}{did_you_mean(name, OPTIONS)}.")
        value = _timeline(value) if option.kind == "timeline" else option.read(value)
        if value is None or (name == "seed" and value == DRAW) or (name == "endless" and not value):
            continue
        if name not in ("timeline", "size"):
            option.check(value)
        given[name] = value
    if "size" in given:
        if "width" in given or "height" in given:
            raise InputError("A size and a width or height contradict each other; give one of them.")
        given["width"], given["height"] = read_size(given.pop("size"))
    if "endless" in given and "seconds" in given:
        raise InputError("--endless and --seconds contradict each other; give one of them.")
    return given


def read_size(text: str) -> tuple[int, int]:
    """ "720x480" to (720, 480), both legal; raises InputError."""
    found = _SIZE.fullmatch(text.lower())
    if found is None:
        raise InputError(f'The size "{text[:40]}" cannot be read; write WIDTHxHEIGHT, such as 720x720.')
    for name, side in (("width", int(found[1])), ("height", int(found[2]))):
        OPTIONS[name].check(side)
    return int(found[1]), int(found[2])


def _timeline(value: Any) -> Timeline | None:
    """A timeline, its JSON or its text; None where nothing is given."""
    if value is None or isinstance(value, Timeline):
        return value
    if isinstance(value, str):
        return parse(value) if value.strip() else None
    return Timeline.from_json(value)


def _prompts(given: dict[str, Any], old: Timeline) -> Timeline:
    """The timeline that keywords ask for: blocks, or a prompt for all seconds in the place of all that was there."""
    prompt: str = given.pop("prompt", "").strip()
    timeline: Timeline | None = given.pop("timeline", None)
    blend: int | None = given.pop("blend", None)
    times = _SHORTHAND.search(prompt)
    if times:
        raise InputError(
            f"The prompt holds times as a timeline has, {shortened(times[0])}; write them in the timeline instead "
            "(--timeline on the command line)."
        )
    if timeline is not None:
        timeline = replace(timeline, global_prompt=prompt or timeline.global_prompt or old.global_prompt)
    elif prompt and prompt != old.global_prompt:
        timeline = replace(old, segments=(), global_prompt=prompt)
    else:
        timeline = old
    return timeline if blend is None else replace(timeline, blend=blend)


def _replaced(request: GenerationRequest, given: Mapping[str, Any]) -> GenerationRequest:
    """The request with values by option name, in itself and in its parts; those without a field are passed over."""
    fields: dict[str, dict[str, Any]] = {"": {}, **{part: {} for part in PARTS}}
    for name, value in given.items():
        if OPTIONS[name].field:
            fields[OPTIONS[name].part][OPTIONS[name].field] = value
    own = fields.pop("")
    parts = {part: replace(getattr(request, part), **values) for part, values in fields.items() if values}
    return replace(request, **own, **parts)


# --- a run that goes on --------------------------------------------------------------------------------------------


def _refuse_changes(request: GenerationRequest, given: Mapping[str, Any], purpose: str) -> None:
    """Refuse options that finished seconds depend on; those that repeat what holds anyway are welcome."""
    allowed = ("resume", "redo") if purpose == "redo" else ("resume",)
    for name, value in given.items():
        option = OPTIONS[name]
        if option.changes in allowed:
            continue
        held = option.of(request)
        if option.kind == "path" and held is not None:
            same = _same_file(value, held)
        else:
            same = (absolute_model(value) if name == "model" else value) == held
        if not same:
            called = OPTIONS["size"].called if name in ("width", "height") else option.called
            raise InputError(f"{called} cannot change in a video that goes on; start a new one without --resume.")


def _check_length(
    request: GenerationRequest, given: Mapping[str, Any], purpose: str, finished: int, second: int
) -> None:
    asked = finished if request.seconds is None else request.seconds
    wanted = None if given.get("endless") else given.get("seconds", request.seconds)
    if purpose == "resume" and wanted is not None and "seconds" in given and wanted < asked:
        raise InputError(
            f"The video cannot be cut to {count(wanted, 'second')}; ask for {asked} or more, or leave --seconds out."
        )
    if purpose == "redo" and wanted is not None and second >= wanted:
        raise InputError(f"Nothing of {count(wanted, 'second')} comes after second {second}; add --seconds.")


def _same_file(given: Path, held: Path) -> bool:
    """Whether a picture or clip has the content of the one that the project keeps a copy of."""
    try:
        return filecmp.cmp(given, held, shallow=False)
    except (OSError, ValueError):
        return False


def absolute_model(model: str) -> str:
    """A model's name as it is; a folder with its absolute path."""
    return str(Path(model).absolute()) if model not in MODELS and is_folder(model) else model


# --- what is left to the preset --------------------------------------------------------------------------------------


def with_defaults(
    request: GenerationRequest, chosen: Mapping[str, Any], machine: Device | None = None, *, demo: bool = True
) -> GenerationRequest:
    """Fill a request from its preset: model, size, steps and window as far as they are not `chosen`.

    Args:
        request: its preset, quality and models folder are read.
        chosen: width, height, steps, window and model as far as the user chose them; they win.
        machine: None: this one.
        demo: whether the demo model stands in where no weights are on the disk.

    Raises:
        PresetError: no preset or quality of that name.
    """
    named = chosen.get("model")
    if request.preset != "auto":
        preset = presets.load(request.preset)
    elif named is None:
        preset = choose_preset("auto", machine, request.models_folder, demo=demo)
    else:
        preset = presets.load(DEMO) if named == DEMO else preset_of(machine or detect())
    settings: dict[str, Any] = {
        **preset.quality(request.quality).settings(),
        "model": named or choose_model(preset, request.models_folder),
    }
    steps = own_steps(settings["model"], request.models_folder)
    if steps is not None:
        settings["steps"] = steps
    return replace(request, preset=preset.name, **{**settings, **chosen})


def models_on_disk(models_folder: Path | None = None) -> tuple[str, ...]:
    """Names of the published models whose files are complete and theirs, as headers tell; the preferred one first."""
    found = []
    for name in PREFERRED_MODELS:
        try:
            check_contents(find_model(name, models_folder))
        except CheckpointError:
            continue
        found.append(name)
    return tuple(found)


def choose_preset(
    name: str, machine: Device | None = None, models_folder: Path | None = None, *, demo: bool = True
) -> Preset:
    """The preset called `name`; "auto": the one for a machine, or the demo's where no weights are on the disk.

    Raises:
        PresetError: no preset of that name.
    """
    if name != "auto":
        return presets.load(name)
    if demo and not models_on_disk(models_folder):
        return presets.load(DEMO)
    return preset_of(machine or detect())


def preset_of(machine: Device) -> Preset:
    """The preset for a machine."""
    return presets.for_memory(machine.vram_gb if machine.kind == "cuda" else 0)


def choose_model(preset: Preset, models_folder: Path | None = None) -> str:
    """The preset's model, or the nearest one on the disk; its own where none is, so that it is asked for."""
    if preset.model not in MODELS:
        return preset.model
    present = models_on_disk(models_folder)
    return preset.model if preset.model in present or not present else present[0]


def own_steps(model: str, models_folder: Path | None = None) -> int | None:
    """Steps of a model that was not distilled, whatever a preset says; None: the preset's few steps will do."""
    try:
        spec = find_model(model, models_folder).spec
    except (MagiLiteError, OSError, ValueError):  # not here: refused with all that is missing when it is loaded
        if model not in MODELS:
            return None
        spec = MODELS[model]
    return None if spec.distilled else spec.sampler.steps
