"""Make the videos of many timelines: here one after the other, on several cards, or on a Ray cluster (--ray).

A timeline is a file with prompts (JSON, shorthand, or a line for every second), with the settings of a video, or a
video of ours, whose settings are used again. The same command given again goes on where it was.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from magi_lite import library
from magi_lite.cli.app import workers
from magi_lite.cli.generate import GROUPS, bring_special_tokens, stop_on_interrupt
from magi_lite.cli.reading import add_options, options_given
from magi_lite.cli.show import clock
from magi_lite.cli.table import Row, Table
from magi_lite.control import RunControl
from magi_lite.errors import InputError, MagiLiteError
from magi_lite.files import is_file
from magi_lite.models import MODELS
from magi_lite.request.build import choose_preset
from magi_lite.request.checks import check, content_hash
from magi_lite.request.options import Option
from magi_lite.request.request import OPTIONS
from magi_lite.request.settings import LIMIT_BYTES
from magi_lite.sentences import count
from magi_lite.text_files import read_text
from magi_lite.workers.cluster import Cluster
from quant.errors import one_line
from quant.storage.files import parse_json

if TYPE_CHECKING:
    from magi_lite.jobs.batch import Batch, Wanted
    from magi_lite.jobs.job import Job
    from magi_lite.jobs.live import Live

LEFT_OUT = ("timeline", "endless", "out")
"""Options of a single video that a batch has not."""
TICK = 0.25
"""Seconds between two looks at the queue."""
WORKER_PATIENCE = 10.0
"""Seconds in which workers may end."""
PATIENCE = 86400.0
"""Seconds in which what runs may end its step after Ctrl-C; a second Ctrl-C ends the wait."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `render`: its own, and those of `generate` that hold for many videos."""
    parser.add_argument("timelines", nargs="*", metavar="TIMELINE", help="a file of prompts or settings, or a video")
    groups = {name: parser.add_argument_group(title) for name, title in GROUPS.items()}
    for name, group in groups.items():
        add_options(group, (one for one in OPTIONS.values() if one.group == name and one.name not in LEFT_OUT))
    groups["where"].add_argument(
        "--out", dest="folder", type=Path, default=Path("rendered"), metavar="FOLDER",
        help="the folder of the videos, each named after its timeline (default: rendered)",
    )  # fmt: skip
    groups["where"].add_argument("--overwrite", action="store_true", help="replace videos that are there")
    groups["where"].add_argument(
        "--projects", type=Path, default=Path("outputs"), help="where runs are kept (default: outputs)"
    )
    places = parser.add_argument_group("by what")
    places.add_argument("--cards", metavar="all|0,1", help="CUDA cards to use, a worker each (default: the first)")
    places.add_argument(
        "--ray", nargs="?", const="auto", metavar="auto|ADDRESS",
        help="make them on a Ray cluster (needs: pip install magi-lite[ray])",
    )  # fmt: skip


def run(arguments: argparse.Namespace) -> int:
    """Make the videos; a table of their progress goes to stderr, each file's name to stdout when it is finished.

    Returns the exit code of the first failure.
    """
    from magi_lite.jobs.batch import Batch

    files, options = timelines(arguments), options_given(arguments)
    fleet = workers(arguments, arguments.projects.resolve())
    patience = WORKER_PATIENCE
    try:
        wanted, errors = read(files, options, node_of(fleet, options) if isinstance(fleet, Cluster) else None)
        if wanted:
            projects = arguments.projects.resolve()
            batch = Batch(arguments.folder.absolute(), fleet.runners, wanted, projects, overwrite=arguments.overwrite)
            if not arguments.ray:
                models = {(one.request.model, one.request.models_folder): one.request for one in wanted.values()}
                for request in models.values():
                    bring_special_tokens(request)
            work_off(batch)
            errors |= batch.errors
    except KeyboardInterrupt:
        patience = 0.0  # a worker in the middle of a step ends after it by itself
        raise
    finally:
        fleet.close(patience)
    for name, error in errors.items():
        print(f"{one_line(name)}: {error}", file=sys.stderr)
    if errors:
        number = len(wanted.keys() | errors.keys())
        print(f"{len(errors)} of {count(number, 'video')} could not be made.", file=sys.stderr)
    return next((error.exit_code for error in errors.values()), 0)


def work_off(batch: Batch) -> None:
    """Make what is missing, and show it.

    Raises:
        KeyboardInterrupt: after Ctrl-C, when what ran has been saved; at once after a second one.
    """
    control, table, named, noted = RunControl(), Table(), set[str](), dict[str, int]()
    with stop_on_interrupt(control):
        try:
            batch.queue.start()
            if batch.queue.notice:
                table.say(one_line(batch.queue.notice))
            while True:
                found = batch.look()
                for name, job, _ in found:
                    if job.state == "finished" and name not in named:
                        named.add(name)
                        table.clear()
                        print(batch.path(name), flush=True)
                for name, _, live in found:
                    for notice in live.snapshot()["notices"][noted.get(name, 0) :] if live else ():
                        noted[name] = noted.get(name, 0) + 1
                        table.say(one_line(f"{name}: {notice['message']}"))
                table.show([row(*one) for one in found])
                if control.stop_requested or all(job.state in ("finished", "failed") for _, job, _ in found):
                    break
                time.sleep(TICK)
        finally:
            batch.close(PATIENCE)
    if control.stop_requested:
        raise KeyboardInterrupt


def row(name: str, job: Job, live: Live | None) -> Row:
    """A job's line of the table."""
    done = f"{job.done} of {count(job.request.seconds or 0, 'second')}"
    if job.state != "running" or live is None:
        words = f"failed: {job.error.split(';')[0]}" if job.state == "failed" else f"{job.state}, {done}"
        return Row(one_line(name), job.state, words, words)
    shown = live.snapshot()
    progress, detail = shown["progress"], shown["detail"]
    if progress:
        left = "" if progress["eta"] is None else f", {clock(progress['eta'])} left"
        detail = f"second {progress['chunk'] + 1} of {progress['chunks']}, "
        detail += f"step {progress['step']} of {progress['steps']}{left}"
    return Row(one_line(name), job.state, detail, f"{done} made" if job.done else "begun")


# --- what is wanted --------------------------------------------------------------------------------------------------


def timelines(arguments: argparse.Namespace) -> list[Path]:
    """The files that are named, each once.

    Raises:
        InputError: none is.
    """
    files = [Path(one) for one in dict.fromkeys(arguments.timelines)]
    if arguments.ray and (is_file(arguments.ray) or Path(arguments.ray).suffix == ".json"):
        files, arguments.ray = [Path(arguments.ray), *files], "auto"  # --ray TIMELINE: the address was left out
    if not files:
        raise InputError("There is nothing to make; name one timeline or more.")
    return files


def node_of(cluster: Cluster, options: dict[str, Any]) -> dict[str, Any]:
    """The machine and the model of the cluster's nodes where options leave them open: this one's disk does not count.

    Raises:
        InputError: as `Cluster.look`.
    """
    if options.get("model") and options.get("preset"):
        return {}
    device, present = cluster.look(options.get("models_folder") and Path(options["models_folder"]).absolute())
    preset = choose_preset(options.get("preset") or "auto", device, demo=False)
    nearest = preset.model if preset.model not in MODELS or preset.model in present else (*present, "demo")[0]
    return {"machine": device, "model": options.get("model") or nearest}


def read(
    files: list[Path], options: dict[str, Any], node: dict[str, Any] | None
) -> tuple[dict[str, Wanted], dict[str, MagiLiteError]]:
    """The videos that the timelines ask for, and why some cannot be made, by name.

    Args:
        node: of a cluster that makes them, as `node_of` finds it; None: they are made here.

    Raises:
        InputError: two would have the same name, or an option cannot be read.
    """
    wanted: dict[str, Wanted] = {}
    errors: dict[str, MagiLiteError] = {}
    first: dict[str, Path] = {}
    for file in files:
        name = file.stem
        if name in first:
            raise InputError(f"{first[name]} and {file} would both become {name}.mp4; rename one of them.")
        first[name] = file
        try:
            wanted[name] = read_one(file, options, node)
        except MagiLiteError as error:
            errors[name] = error
    return wanted, errors


def read_one(file: Path, options: dict[str, Any], node: dict[str, Any] | None) -> Wanted:
    """The video that a file and the options ask for.

    Raises:
        InputError: the file cannot be read, or what it says cannot be made.
    """
    from magi_lite.jobs.batch import Wanted
    from magi_lite.request.build import absolute_model

    Option(kind="path", name="TIMELINE").check(file)
    if not is_file(file):
        raise InputError(f"There is no file {file}.")
    settings = _carries_settings(file)
    given = {"settings": file} if settings else {"timeline": file, **(node or {})}
    request = library.ask(**options | given)
    if request.seconds is None:
        raise InputError("It is endless; say how long it is to be with --seconds.")
    check(request, weights=node is None)
    source = request.image or request.video
    request = replace(
        request,
        out=None,
        image=request.image and request.image.absolute(),
        video=request.video and request.video.absolute(),
        source_sha256=request.source_sha256 or (content_hash(source) if source else None),
        models_folder=request.models_folder and request.models_folder.absolute(),
        model=absolute_model(request.model),
    )
    return Wanted(request, any_seed="seed" not in options and not settings)


def _carries_settings(file: Path) -> bool:
    """Whether a file is a video, or JSON that says more than a timeline does."""
    try:
        text = read_text(file, LIMIT_BYTES).lstrip()
    except (OSError, ValueError):
        return file.suffix.lower() not in (".txt", ".json")
    if not text.startswith("{"):
        return False
    try:
        data = parse_json(text)
    except (ValueError, RecursionError):
        return False
    return "timeline" in data and "width" in data
