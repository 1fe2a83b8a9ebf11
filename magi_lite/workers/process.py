"""The worker itself: takes jobs from its pipe one after the other and sends back what happens.

Whoever started it may die. Then its pipe ends, and so does the worker: a running job stops at its next stage boundary
with its state saved, as if it had been paused.
"""

from __future__ import annotations

import faulthandler
import gc
import importlib
import logging
import os
import queue
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any, BinaryIO

from magi_lite import events
from magi_lite.control import RunControl
from magi_lite.errors import MagiLiteError
from magi_lite.machine import devices
from magi_lite.request.json import request_from_json
from magi_lite.request.request import GenerationRequest
from magi_lite.timeline import Timeline
from magi_lite.workers import wire

log = logging.getLogger(__name__)
MEMORY_EVERY = 2.0
"""Seconds between two reports of the card's memory."""
WRITER_PATIENCE = 120.0
"""Seconds to wait for another process that still writes the run's folder: a worker outlives its app for a second."""


def pipes() -> tuple[BinaryIO, BinaryIO]:
    """The pipes from and to the app, moved away from where libraries print and read."""
    commands, reports = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    os.close(nothing)
    return commands, reports


class WorkerProcess:
    """The loop of a worker.

    Args:
        commands, reports: the pipes.
        silence: seconds without an event after which a run that nobody waits for any more is given up.
        cuda: whether there must be a CUDA card.
    """

    def __init__(self, commands: BinaryIO, reports: BinaryIO, silence: float, *, cuda: bool = False) -> None:
        self._cuda = cuda
        self._commands, self._out, self._silence = commands, wire.Sender(reports), silence
        self._jobs: queue.SimpleQueue[wire.Message | None] = queue.SimpleQueue()
        self._control: RunControl | None = None
        self._lock = threading.Lock()
        self._alone = False
        self._sign = time.monotonic()

    def run(self) -> None:
        """Work until asked to end, or until the app has gone."""
        threading.Thread(target=self._listen, daemon=True).start()
        if devices.cuda_driver():
            threading.Thread(target=self._report_memory, daemon=True).start()
        importlib.import_module("magi_lite.pipeline.run")  # torch: seconds, in which the first job may already wait
        gc.freeze()  # libraries stay to the end: not looked at again when a run's memory is freed, thrice a run
        self._out.send({"ready": os.getpid()})
        while True:
            job = self._jobs.get()
            if job is None:
                return
            self._work(job)
            self._out.send({"done": True})
            devices.free_memory()

    def _listen(self) -> None:
        try:
            while (frame := wire.read_frame(self._commands)) is not None:
                self._obey(frame[0])
        except wire.BrokenFrame:
            log.error("The app sent what is no command; the worker ends.")
        self._alone = True
        with self._lock:
            if self._control:
                self._control.pause()
        self._jobs.put(None)
        while time.monotonic() - self._sign < self._silence:
            time.sleep(1.0)
        os._exit(1)  # it hangs, and nobody is left to notice

    def _obey(self, command: wire.Message) -> None:
        verb = command.get("do")
        if verb == "run":
            with self._lock:
                self._control = RunControl()
            self._jobs.put(command)
        elif verb == "end":
            self._jobs.put(None)
        with self._lock:
            if self._control is None:
                return
            if verb == "stop":
                self._control.stop()
            elif verb == "pause":
                self._control.pause()
            elif verb == "redirect":
                self._control.redirect(Timeline.from_json(command["timeline"]))

    def _work(self, job: wire.Message) -> None:
        from magi_lite import pipeline

        control = self._control
        assert control is not None
        resume = Path(job["resume"]) if job["resume"] else None
        self._sign = time.monotonic()
        try:
            if self._alone:  # the app may still listen for a moment: nothing was begun, and it goes on as it is
                self._report(_unbegun(resume if job["from_chunk"] is None else None))
                return
            request = request_from_json(job["request"])
            self._check_card(request)
            self._wait_for_writer(resume, control)
            for event in pipeline.generate(
                request,
                control=control,
                projects_folder=Path(job["projects"]),
                resume=resume,
                from_chunk=job["from_chunk"],
            ):
                self._sign = time.monotonic()
                self._report(event)
                if self._out.broken:
                    control.pause()
        except Exception as error:
            message = wire.pack_error(error)
            if not message["ours"]:
                log.exception("A run failed")
            self._out.send(message)
        finally:
            with self._lock:
                self._control = None

    def _report(self, event: events.Event) -> None:
        packed = wire.pack(event)
        if packed is not None:
            self._out.send(*packed)

    def _check_card(self, request: GenerationRequest) -> None:
        """Refuse what would be computed without the card that the app has found: it would take days unasked."""
        if self._cuda and request.overrides.device != "cpu" and not devices.cuda_available():
            raise MagiLiteError(
                "The graphics card cannot be used any more: it was removed, or its driver has failed. Restart the "
                "computer, then press Resume; or choose the CPU as device under Advanced."
            )

    def _wait_for_writer(self, folder: Path | None, control: RunControl) -> None:
        """Where a worker of an app that died still ends its second, wait for it."""
        from magi_lite.project import Project

        until = time.monotonic() + WRITER_PATIENCE
        while folder is not None and time.monotonic() < until:
            if control.stop_requested or control.pause_requested or Project.open(folder).status != "running":
                return
            time.sleep(0.1)

    def _report_memory(self) -> None:
        while not self._out.broken:
            if "torch" in sys.modules and (memory := devices.memory_info()):
                self._out.send({"memory": {"free": memory[0], "total": memory[1]}})
            time.sleep(MEMORY_EVERY)


def _unbegun(folder: Path | None) -> events.Stopped:
    """What is reported of a job that was not begun because the app ends; `folder` is its run, if it has one."""
    from magi_lite.project import Project

    chunks = Project.open(folder).chunks if folder else 0
    return events.Stopped(folder / "video.mp4" if folder and chunks else None, folder, chunks, "paused")


def main(arguments: dict[str, Any]) -> int:
    """Run as a worker; see `__main__`."""
    commands, reports = pipes()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s worker: %(message)s", stream=sys.stderr)
    faulthandler.enable()
    if hasattr(signal, "SIGUSR1"):
        faulthandler.register(signal.SIGUSR1)  # where it hangs, asked for before it is ended
    WorkerProcess(commands, reports, arguments["silence"], cuda=arguments["cuda"]).run()
    return 0
