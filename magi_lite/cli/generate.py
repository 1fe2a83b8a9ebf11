"""Make a video: from text, from an image (--image) or continuing a clip (--video), with a prompt for every second."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from magi_lite import library
from magi_lite.cli import faults
from magi_lite.cli.reading import add_options, options_given
from magi_lite.cli.show import show
from magi_lite.control import RunControl
from magi_lite.errors import MagiLiteError, OutputError
from magi_lite.events import Event, Opened
from magi_lite.request.request import OPTIONS, GenerationRequest

GROUPS = {"what": "what to make", "how": "how to make it", "where": "where it goes"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `generate`."""
    groups = {name: parser.add_argument_group(title) for name, title in GROUPS.items()}
    for name, group in groups.items():
        add_options(group, (option for option in OPTIONS.values() if option.group == name))
    groups["what"].add_argument(
        "--settings", type=Path, metavar="FILE", help="begin with those inside a video of ours, or printed by info"
    )
    groups["how"].add_argument(
        "--record-activations", type=Path, metavar="FILE", help="write what the linears see, to calibrate FP8 with"
    )
    groups["where"].add_argument("--overwrite", action="store_true", help="replace a file of that name that is there")
    groups["where"].add_argument(
        "--projects", type=Path, default=Path("outputs"), help="where runs are kept (default: outputs)"
    )
    again = parser.add_argument_group("going on")
    again.add_argument("--resume", type=Path, metavar="PROJECT", help="finish an interrupted run, to the same bits")
    again.add_argument(
        "--redo-from",
        type=int,
        metavar="N",
        help="with --resume: make second N (from 0) and later again, as a new version; --prompt: what is shown there",
    )


def run(arguments: argparse.Namespace) -> int:
    """Make the video; prints progress to stderr and the file's name to stdout."""
    from magi_lite.pipeline import generate  # torch comes in here

    request = request_of(arguments)
    library.check_free(
        request, arguments.resume, arguments.redo_from, arguments.out, overwrite=arguments.overwrite
    )
    recorded = arguments.record_activations
    if recorded is not None and recorded.exists() and not arguments.overwrite:
        raise OutputError(f"{recorded} exists; give another name, or add --overwrite.")
    bring_special_tokens(request)
    control, opened = RunControl(), threading.Event()
    with stop_on_interrupt(control, opened.is_set), faults.sentence(arguments.kept, ours=arguments.ours):
        events = generate(
            request,
            control=control,
            projects_folder=arguments.projects,
            resume=arguments.resume,
            from_chunk=arguments.redo_from,
            record=arguments.record_activations,
        )
        return show(_noting(events, opened))


def _noting(events: Iterator[Event], opened: threading.Event) -> Iterator[Event]:
    """The events; `opened` is set once the run's folder is there."""
    for event in events:
        if isinstance(event, Opened):
            opened.set()
        yield event


def bring_special_tokens(request: GenerationRequest) -> None:
    """Fetch the one small file (3 MB) that a download of the weights by other tools does not bring, if it is missing.

    Raises:
        DownloadError, OutputError: it cannot be fetched or written.
    """
    from magi_lite.weights.hub import download_special_tokens
    from magi_lite.weights.layout import SpecialTokensMissing, find_model

    try:
        find_model(request.model, request.models_folder)
    except SpecialTokensMissing as missing:
        print(f"Fetching the special tokens (3 MB) to {missing.root}", file=sys.stderr)
        download_special_tokens(missing.root)
    except MagiLiteError:  # reported, with all that is wrong, when the model is opened
        pass


def request_of(arguments: argparse.Namespace) -> GenerationRequest:
    """The request that the options ask for: a new one, one with a file's settings, or that of a run with changes.

    Raises:
        InputError: an option cannot be read, or options contradict each other.
    """
    return library.ask(
        settings=arguments.settings,
        resume=arguments.resume,
        redo_from=arguments.redo_from,
        **options_given(arguments),
    )


@contextmanager
def stop_on_interrupt(control: RunControl, begun: Callable[[], bool] = lambda: True) -> Iterator[None]:
    """The first Ctrl-C stops after the current step and keeps what is finished; the second one interrupts at once.

    A request to terminate, and a terminal that closes, stop the run in the same way. Until a run has `begun` there is
    nothing to keep: libraries that are being loaded are not waited for.
    """

    def handle(_signal: int, _frame: object) -> None:
        if control.stop_requested or not begun():
            raise KeyboardInterrupt
        control.stop()
        # RuntimeError: the signal came in the middle of another print; OSError: the terminal is gone
        with suppress(RuntimeError, OSError):
            print("\nStopping after this step; press Ctrl-C again to quit at once.", file=sys.stderr)

    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    ignored = [n for n in numbers if n != signal.SIGINT and signal.getsignal(n) is signal.SIG_IGN]  # nohup wants it so
    heeded = [number for number in numbers if number not in ignored]
    before = {number: signal.signal(number, handle) for number in heeded}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
