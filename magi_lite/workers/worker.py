"""One worker process as the app sees it: started when its first job comes, kept warm, replaced when it has died."""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import psutil

from magi_lite import events
from magi_lite.control import RunControl
from magi_lite.errors import Interrupted
from magi_lite.jobs.job import Job
from magi_lite.planner import learned
from magi_lite.request.json import request_to_json
from magi_lite.workers import deaths, wire

log = logging.getLogger(__name__)
TICK = 0.05
"""Seconds in which a stop, a death or a hang is noticed."""
LOOK_EVERY, LOOK_AT_READING_EVERY = 1.0, 0.2
"""Seconds between two looks at the memory of a worker that computes, and of one that starts or reads a model."""
SLOWEST = 20
"""A run hangs when it is silent for so many times its longest silence so far, if that is more than the usual limit."""
READING = ("check", "text", "load")
"""Phases that may be silent for as long as they read or compute: a large model comes from a slow disk."""


_ROOT = Path(__file__).resolve().parents[2]
_BEGIN = (
    "import sys; sys.path.insert(0, sys.argv.pop(1)); from magi_lite.workers.__main__ import main; sys.exit(main())"
)
"""As `python -m magi_lite.workers` from any folder: a request's relative paths are meant from the app's."""


@dataclass(frozen=True)
class Settings:
    """How workers are run.

    Args:
        projects: folder of the runs.
        silence: seconds without an event after which a run that computes is taken to hang.
        idle: seconds after its last job that a worker is kept.
        threads: for products on the processor; None: as many as there are cores.
        cuda: whether the app has found a CUDA card; a worker that finds none then refuses to compute without one.
    """

    projects: Path
    silence: float = 900.0
    idle: float = 600.0
    threads: int | None = None
    cuda: bool = False


class Worker:
    """A process for one card, or for the processor.

    Args:
        settings: see there.
        card: number of its CUDA card; None: whatever there is.
    """

    def __init__(self, settings: Settings, card: int | None = None) -> None:
        self._settings, self._card = settings, card
        self._lock = threading.RLock()
        self._process: subprocess.Popen[bytes] | None = None
        self._inbox: queue.SimpleQueue[tuple[wire.Message, bytes] | wire.BrokenFrame | None] = queue.SimpleQueue()
        self._out: wire.Outbox | None = None
        self._began = 0.0
        self._busy = False
        self._idle_timer: threading.Timer | None = None
        self.memory = deaths.Memory()
        self.card_memory: tuple[int, int] | None = None
        """(free, total) bytes of its card, as it last reported."""

    # --- the process

    @property
    def pid(self) -> int | None:
        """Of the process, while there is one."""
        process = self._process
        return process.pid if process and process.poll() is None else None

    def _start(self) -> None:
        """A process at work; the one that is there, if it lives."""
        with self._lock:
            if self._idle_timer:
                self._idle_timer.cancel()
            if self.pid is not None and self._out and not self._out.broken:
                return
            self._discard()
            command = [sys.executable, "-c", _BEGIN, str(_ROOT), "--silence", str(self._settings.silence)]
            command += [] if self._card is None else ["--card", str(self._card)]
            command += ["--cuda"] if self._settings.cuda else []
            command += [] if self._settings.threads is None else ["--threads", str(self._settings.threads)]
            self._began = time.monotonic()
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                **_apart(),
            )
            assert self._process.stdin and self._process.stdout
            self._out = wire.Outbox(cast(BinaryIO, self._process.stdin))
            inbox = self._inbox = queue.SimpleQueue()
            self.memory, self.card_memory = deaths.Memory(), None
            threading.Thread(target=_read, args=(self._process.stdout, inbox), daemon=True).start()

    def _discard(self) -> None:
        """What is left of a process that ended, or is to end at once."""
        process, self._process = self._process, None
        if process is None:
            return
        _kill(process)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
        if self._out:
            self._out.close()
        if process.stdout:
            with contextlib.suppress(OSError):
                process.stdout.close()

    def free(self) -> bool:
        """End the process if it has nothing to do, which frees all that it holds; whether there was one."""
        with self._lock:
            if self._busy or self._process is None:
                return False
            self._discard()
            self.memory, self.card_memory = deaths.Memory(), None
            return True

    def close(self, patience: float = 10.0) -> None:
        """Let the process end; one that is still in the middle of a second ends after it by itself."""
        with self._lock:
            if self._idle_timer:
                self._idle_timer.cancel()
            process, self._process = self._process, None
        if process is None:
            return
        if self._out:
            self._out.send({"do": "end"})
            self._out.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience)

    # --- a job

    def run(self, job: Job, control: RunControl) -> Iterator[events.Event]:
        """Make a job's video there.

        Yields:
            The run's events, but for its plan; a finished second comes without its frames.

        Raises:
            MagiLiteError: as `pipeline.generate`.
            Interrupted: the process died or hung; says why and what to try.
        """
        with self._lock:
            self._start()
            self._busy = True
            process, inbox, out = self._process, self._inbox, self._out
        assert process is not None and out is not None
        try:
            out.send(
                {
                    "do": "run",
                    "request": request_to_json(job.request),
                    "projects": str(self._settings.projects),
                    "resume": str(job.source) if job.source else None,
                    "from_chunk": job.from_chunk,
                }
            )
            yield from self._follow(process, inbox, out, control)
        except wire.BrokenFrame:
            self._discard()
            raise Interrupted(f"The worker sent what could not be read and was ended. {deaths.RESUME}.") from None
        except GeneratorExit:  # whoever followed the run has turned away from it
            self._discard()
            raise
        finally:
            with self._lock:
                self._busy = False
                self._idle_timer = threading.Timer(self._settings.idle, self.free)
                self._idle_timer.daemon = True
                self._idle_timer.start()

    def _follow(
        self, process: subprocess.Popen[bytes], inbox: queue.SimpleQueue[Any], out: wire.Outbox, control: RunControl
    ) -> Iterator[events.Event]:
        kills, sent, looked = deaths.KillsForMemory(process.pid), set[str](), 0.0
        watch = Watch(process.pid, self._settings.silence)
        failure: Exception | None = None
        while True:
            for verb, wanted in (("stop", control.stop_requested), ("pause", control.pause_requested)):
                if wanted and verb not in sent:
                    sent.add(verb)
                    out.send({"do": verb})
            if (timeline := control.take_timeline()) is not None:
                out.send({"do": "redirect", "timeline": timeline.to_json()})
            if time.monotonic() - looked > (LOOK_AT_READING_EVERY if watch.reading else LOOK_EVERY):
                looked = time.monotonic()
                kills.look(process.pid)
                self.memory = deaths.memory_of(process.pid) or self.memory
                if watch.hangs():
                    self._end_hanging(process)
                    raise Interrupted(deaths.describe_hang(watch.silent, self.memory))
            try:
                frame = inbox.get(timeout=TICK)
            except queue.Empty:
                continue
            if isinstance(frame, wire.BrokenFrame):
                raise frame
            if frame is None:
                raise Interrupted(self._died(process, kills))
            message, data = frame
            if "ready" in message:
                learned.learn_start(time.monotonic() - self._began)
            elif "memory" in message:
                self.card_memory = (message["memory"]["free"], message["memory"]["total"])
            elif "event" in message:
                event = wire.unpack(message, data)
                watch.sign(event)
                yield event
            elif "error" in message:
                failure = wire.unpack_error(message)
            elif message.get("done"):
                if failure is not None:
                    raise failure
                return

    def _died(self, process: subprocess.Popen[bytes], kills: deaths.KillsForMemory) -> str:
        try:
            status = process.wait(5)
        except subprocess.TimeoutExpired:  # it closed its pipe and lives: it is of no use any more
            _kill(process)
            status = None
        log.warning("worker %s ended with status %s", process.pid, status)
        return deaths.describe(status, self.memory, for_memory=kills.grew, limit=kills.limit)

    def _end_hanging(self, process: subprocess.Popen[bytes]) -> None:
        """Let it say on the terminal where it hangs, then end it."""
        if hasattr(signal, "SIGUSR1"):
            with contextlib.suppress(OSError):
                process.send_signal(signal.SIGUSR1)
                time.sleep(0.3)
        _kill(process)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)


class Watch:
    """Tells a run that hangs from one that is slow.

    Computing gives an event with every step, so silence is measured against the longest so far. Reading a model gives
    none for long; there a process hangs that neither computes nor reads.
    """

    def __init__(self, pid: int, limit: float) -> None:
        self._limit, self._longest = limit, 0.0
        self._last = time.monotonic()
        self.reading = True
        """Whether it starts or reads a model, which may be silent for long and takes memory fast."""
        self._work = -1.0
        with contextlib.suppress(psutil.Error):
            self._process: psutil.Process | None = psutil.Process(pid)

    @property
    def silent(self) -> float:
        """Seconds since the last sign."""
        return time.monotonic() - self._last

    def sign(self, event: events.Event) -> None:
        """An event came."""
        if not self.reading:
            self._longest = max(self._longest, self.silent)
        self._last = time.monotonic()
        if isinstance(event, events.PhaseStarted):
            self.reading = event.phase in READING

    def hangs(self) -> bool:
        """Whether it is to be given up."""
        if self.reading and self._works():
            self._last = time.monotonic()
        return self.silent > max(self._limit, SLOWEST * self._longest)

    def _works(self) -> bool:
        """Whether it has computed or read since it last had; little by little counts, as on a busy machine."""
        process = getattr(self, "_process", None)
        if process is None:
            return False
        try:
            times = process.cpu_times()
            work = 10.0 * (times.user + times.system)
            with contextlib.suppress(AttributeError, psutil.Error):
                work += process.io_counters().read_bytes / 1e6
        except psutil.Error:
            return False
        if work <= self._work + 0.5:
            return False
        self._work = work
        return True


def _read(pipe: Any, inbox: queue.SimpleQueue[Any]) -> None:
    """Frames of a worker, until it ends; then None."""
    try:
        while (frame := wire.read_frame(pipe)) is not None:
            inbox.put(frame)
    except wire.BrokenFrame as broken:
        inbox.put(broken)
    inbox.put(None)


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End it at once, and what it has started."""
    with contextlib.suppress(OSError):
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()


def _apart() -> dict[str, Any]:
    """In a group of its own: Ctrl-C is the app's, which lets its workers end their second."""
    if sys.platform == "win32":
        return {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
    return {"start_new_session": True}
