"""Videos made on the machines of a Ray cluster: every job is one Ray task; placing and retrying it is Ray's own work.

The run's folder lives with whoever submits. A small actor on that machine, the desk, gives a task what is finished of
its video, takes every second as soon as it is done, with the state behind it, and hands the events on. So a node that
dies costs the second in the making: Ray runs the task again elsewhere, it asks the desk and goes on to the same bits.
Embeddings of prompts go through the desk, too, and are made once.

The road not taken, a pool of our own actors with our own health checks, would be a second scheduler.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from magi_lite import events
from magi_lite.control import RunControl
from magi_lite.errors import InputError, Interrupted, MagiLiteError
from magi_lite.jobs.job import Job
from magi_lite.machine.cards import Device
from magi_lite.models import MODELS
from magi_lite.request import presets
from magi_lite.request.json import request_from_json, request_to_json
from magi_lite.request.request import GenerationRequest
from magi_lite.timeline import Segment, Timeline
from magi_lite.timeline.edit import with_pictures
from magi_lite.workers import wire

log = logging.getLogger(__name__)
TICK = 0.1
"""Seconds in which events and orders go their way."""
RETRIES = 5
"""Nodes that a job may lose."""
MOST = 64
"""Jobs that are handed to the cluster at a time."""
ENCODING_PATIENCE = 600.0
"""Seconds to wait for an embedding that another task is making."""
LOOK_PATIENCE = 120.0
"""Seconds to wait for a node that says what it is."""
ENDED = "the connection to the cluster has ended"
Files = dict[str, bytes]


@dataclass
class _Ticket:
    """A job at the desk."""

    request: dict[str, Any]
    source: str | None
    from_chunk: int | None
    folder: Path | None = None
    """The run's folder, once it has one."""
    lock: Any = None
    begun: str = ""
    """The device that it was begun on."""
    frames: list[tuple[wire.Message, bytes]] = field(default_factory=list)
    orders: list[wire.Message] = field(default_factory=list)


class Desk:
    """Where the submitter's disk meets the cluster; a Ray actor that stays on the submitter's machine."""

    def __init__(self, projects: str) -> None:
        self._projects = Path(projects)
        self._tickets: dict[str, _Ticket] = {}
        self._embeddings: Files = {}
        self._encoding: dict[str, tuple[str, float]] = {}

    # --- asked by the submitter

    def open(self, job: str, request: dict[str, Any], source: str | None, from_chunk: int | None) -> None:
        """A job is about to be handed out."""
        self._tickets[job] = _Ticket(request, source, from_chunk)
        if source and from_chunk is None:
            self._own(self._tickets[job], Path(source))

    def take(self, job: str) -> list[tuple[wire.Message, bytes]]:
        """Events since the last call."""
        ticket = self._tickets[job]
        found, ticket.frames = ticket.frames, []
        return found

    def order(self, job: str, command: wire.Message) -> None:
        """Send something to the job's task, as to a worker."""
        self._tickets[job].orders.append(command)

    def close(self, job: str) -> None:
        """The job has ended."""
        ticket = self._tickets.pop(job, None)
        if ticket and ticket.lock:
            ticket.lock.release()

    # --- asked by a task

    def begin(self, job: str, device: str) -> dict[str, Any]:
        """What the task shall do, with what is there of it; asked again after a node was lost."""
        ticket = self._tickets[job]
        folder = ticket.folder or (Path(ticket.source) if ticket.source else None)
        if ticket.begun:
            words = "A node of the cluster was lost; another goes on from the last finished second."
            if device != ticket.begun:
                words += f" It has another device ({device}, not {ticket.begun}); a seam may show."
            ticket.frames.append(({"event": "Notice", "message": words, "level": "warning"}, b""))
        ticket.begun = device
        self._encoding = {name: held for name, held in self._encoding.items() if held[0] != job}
        inputs = [Path(ticket.request[name]) for name in ("image", "video") if ticket.request.get(name)]
        return {
            "request": ticket.request,
            "from_chunk": None if ticket.folder else ticket.from_chunk,
            "folder": folder.name if folder else None,
            "files": _contents(folder) if folder else {},
            "inputs": {path.name: path.read_bytes() for path in inputs if path.is_file()} if folder is None else {},
            "pictures": _pictures(Timeline.from_json(ticket.request["timeline"])),
        }

    def deliver(
        self, job: str, folder: str | None, files: Files, gone: list[str], frame: tuple[wire.Message, bytes] | None
    ) -> list[wire.Message]:
        """Take files of the run, whole or (name, offset) behind what is there, and an event; answers the orders."""
        ticket = self._tickets[job]
        if folder and ticket.folder is None:
            self._own(ticket, self._projects / folder)
        if ticket.folder:
            for name in sorted(files, key=_order):
                _write(ticket.folder, name, files[name])
            for name in gone:
                (ticket.folder / name).unlink(missing_ok=True)
        if frame:
            message, data = frame
            if ticket.folder:
                message |= {"project": str(ticket.folder)} if message.get("project") else {}
                message |= {"video": str(ticket.folder / "video.mp4")} if message.get("video") else {}
            ticket.frames.append((message, data))
        orders, ticket.orders = ticket.orders, []
        return orders

    def embeddings(self, job: str, names: list[str]) -> tuple[Files, list[str]]:
        """Those that are known, and the names that another task is making; the rest is the asker's to make."""
        found = {name: self._embeddings[name] for name in names if name in self._embeddings}
        waiting, now = [], time.monotonic()
        for name in names:
            maker, since = self._encoding.get(name, (job, now))
            if name not in found and maker != job and now - since < ENCODING_PATIENCE:
                waiting.append(name)
            elif name not in found:
                self._encoding[name] = (job, now)
        return found, waiting

    def keep(self, files: Files) -> None:
        """Embeddings that a task has made."""
        self._embeddings |= files
        for name in files:
            self._encoding.pop(name, None)

    def _own(self, ticket: _Ticket, folder: Path) -> None:
        from magi_lite.project.project import LOCK_NAME
        from quant.storage.lock import FileLock

        _make_parts(folder)
        ticket.lock = FileLock(folder / LOCK_NAME, folder.name)
        ticket.folder = folder


def make(desk: Any, job: str) -> wire.Message | None:
    """The task: make a job's video in a scratch folder, delivering as it goes; an error of ours, packed, or None."""
    import ray

    from magi_lite import pipeline
    from magi_lite.machine import devices
    from magi_lite.pipeline import prompts

    def ask(method: str, *arguments: Any) -> Any:
        return ray.get(getattr(desk, method).remote(job, *arguments))

    with tempfile.TemporaryDirectory(prefix="magi-lite-") as scratch:
        given = ask("begin", devices.detect().name)
        projects, resume = Path(scratch) / "projects", None
        request = replace(request_from_json(given["request"]), out=None)
        if given["folder"]:
            resume = projects / given["folder"]
            _make_parts(resume)
            for name, data in given["files"].items():
                _write(resume, name, data)
        for name, data in given["inputs"].items():
            _write(Path(scratch) / "inputs", name, data)
            fields = {kind: getattr(request, kind) for kind in ("image", "video")}
            own = {kind: Path(scratch) / "inputs" / name for kind, path in fields.items() if path and path.name == name}
            request = replace(request, **own)
        pictures = Path(scratch) / "pictures"
        request = replace(request, timeline=_with_files(request.timeline, given["pictures"], pictures))
        prompts.EMBEDDINGS_FOLDER = Path(scratch) / "embeddings"
        control, sent = RunControl(), _Known()
        folder = resume if given["from_chunk"] is None else None
        if folder:
            _changes(folder, sent)  # what came from the desk is there already
        try:
            had = _share_embeddings(ask, request, prompts.EMBEDDINGS_FOLDER)
            for event in pipeline.generate(
                request, control=control, projects_folder=projects, resume=resume, from_chunk=given["from_chunk"]
            ):
                if isinstance(event, events.Opened):
                    folder = event.project
                if isinstance(event, (events.PhaseStarted, events.Finished, events.Stopped)):
                    made = {p.name: p.read_bytes() for p in prompts.EMBEDDINGS_FOLDER.glob("*") if p.name not in had}
                    if made:
                        ray.get(desk.keep.remote(made))
                        had |= made.keys()
                files, gone = _changes(folder, sent) if folder else ({}, [])
                for order in ask("deliver", folder and folder.name, files, gone, wire.pack(event)):
                    _obey(order, control, pictures)
        except Exception as error:
            if folder and folder.is_dir():
                ask("deliver", folder.name, *_changes(folder, sent), None)
            return wire.pack_error(error) | {"message": f"On the node {ray.util.get_node_ip_address()}: {error}"}
    return None


def look_around(models_folder: Path | None) -> tuple[Device, tuple[str, ...]]:
    """A task: this node's device, and the published models on its disk."""
    from magi_lite.machine import devices
    from magi_lite.request.build import models_on_disk

    return devices.detect(), models_on_disk(models_folder)


def _share_embeddings(ask: Callable[..., Any], request: Any, folder: Path) -> set[str]:
    """Bring the prompts' embeddings that are known; wait for those that another task is making."""
    from magi_lite.pipeline.engine import plan_for
    from magi_lite.text.cache import EmbeddingCache
    from magi_lite.weights.opening import open_model
    from magi_lite.weights.t5 import fingerprint

    files = open_model(request.model, request.models_folder)
    made_by = fingerprint(files.text_encoder, plan_for(files, request).execution.t5)
    cache = EmbeddingCache(folder)
    prompts = request.timeline.prompts_from(0, request.seconds)
    names = list(dict.fromkeys(cache.path(made_by, prompt).name for prompt in prompts))
    while True:
        found, waiting = ask("embeddings", names)
        if not waiting:
            break
        time.sleep(0.2)
    for name, data in found.items():
        _write(folder, name, data)
    return set(found)


class Cluster:
    """A Ray cluster as workers; offers what `Fleet` does.

    Args:
        projects: folder of the runs, on this machine.
        address: of the cluster; "auto": the one that runs here.

    Raises:
        InputError: Ray is not installed, or no cluster answers there; says what to do.
    """

    def __init__(self, projects: Path, address: str = "auto") -> None:
        try:
            import ray
        except ImportError:
            raise InputError("--ray needs the package ray; install it with: pip install magi-lite[ray]") from None
        root = str(Path(__file__).resolve().parents[2])
        try:
            _knock(address)
            if not ray.is_initialized():
                ray.init(
                    address=address,
                    namespace="magi-lite",
                    runtime_env={"env_vars": {"PYTHONPATH": root}},
                    log_to_driver=False,
                    logging_level=logging.WARNING,
                )
        except (OSError, ValueError, RuntimeError) as error:
            raise InputError(
                f"No Ray cluster answers at {address} ({error}); start one with: ray start --head, "
                "or give its address as HOST:6379."
            ) from None
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        desk = ray.remote(Desk).options(num_cpus=0, scheduling_strategy=here, max_restarts=-1)
        self._desk: Any = desk.remote(str(projects))
        self._task = ray.remote(make)
        self._ended = False
        found = ray.cluster_resources()
        self._cards = int(found.get("GPU", 0))
        self.places = max(1, min(MOST, self._cards or int(found.get("CPU", 1))))
        """Jobs that can be made side by side."""

    @property
    def runners(self) -> dict[str, Callable[[Job, RunControl], Iterator[events.Event]]]:
        """What makes a job's events, by place; which node that is, is Ray's to choose."""
        return {f"ray-{number}": self.run for number in range(self.places)}

    def run(self, job: Job, control: RunControl) -> Iterator[events.Event]:
        """Make a job's video on the cluster.

        Yields:
            As `Worker.run`.

        Raises:
            MagiLiteError: as `pipeline.generate`.
            Interrupted: more nodes were lost than a job may lose, or the cluster has gone.
        """
        import ray
        from ray.exceptions import RayError

        yield events.PhaseStarted("check", "Waiting for a free node of the cluster")
        wanted: dict[str, Any] = {"num_gpus": 1} if self._cards else {"num_cpus": 1}
        if needed := _memory(job):
            wanted["memory"] = needed
        source = str(job.source) if job.source else None
        begun, ended, sent, task = False, False, set[str](), None
        try:
            self._ask("open", job.id, request_to_json(self._for_nodes(job.request)), source, job.from_chunk)
            task = self._call(self._task.options(max_retries=RETRIES, **wanted).remote, self._desk, job.id)
            while True:
                ended = bool(self._call(ray.wait, [task], timeout=TICK)[0])
                for message, data in self._ask("take", job.id):
                    begun = True
                    yield wire.unpack(message, data)
                if ended:
                    failure = self._call(ray.get, task)
                    if failure:
                        raise wire.unpack_error(failure)
                    return
                for verb, asked in (("stop", control.stop_requested), ("pause", control.pause_requested)):
                    if asked and not begun:
                        reason: Literal["stopped", "paused"] = "stopped" if verb == "stop" else "paused"
                        yield events.Stopped(job.video, job.project, job.done, reason)
                        return
                    if asked and verb not in sent:
                        sent.add(verb)
                        self._ask("order", job.id, {"do": verb})
                if (timeline := control.take_timeline()) is not None:
                    order = {"do": "redirect", "timeline": timeline.to_json(), "pictures": _pictures(timeline)}
                    self._ask("order", job.id, order)
        except RayError as error:
            log.warning("Ray gave up on a video: %s", error)
            first = (str(error).strip().splitlines() or [""])[-1]
            raise Interrupted(
                f"The cluster could not finish this video ({type(error).__name__}: {first}). Look at `ray status`, "
                "then press Resume to go on from the last finished step."
            ) from None
        finally:
            with contextlib.suppress(RayError):
                if task is not None and not ended:  # nobody follows it any more
                    self._call(ray.cancel, task, force=True)
                self._ask("close", job.id)

    def _for_nodes(self, request: GenerationRequest) -> GenerationRequest:
        """The request without this machine's profile where that keeps the work from the nodes' cards."""
        return replace(request, preset="auto") if self._cards and request.preset == presets.CPU else request

    def _ask(self, method: str, *arguments: Any) -> Any:
        """Call the desk.

        Raises:
            RayError: as `_call`.
        """
        import ray

        return self._call(lambda: ray.get(getattr(self._desk, method).remote(*arguments)))

    def _call(self, call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """What a function of Ray answers.

        Raises:
            RayError: what was asked for failed, or the connection has ended. Ray itself raises others then, SystemExit
                among them, with which a thread ends without a word; a call after that ends the whole program.
        """
        import ray
        from ray.exceptions import RayError

        if self._ended or not ray.is_initialized():  # a call would join whatever cluster it finds
            raise RayError(ENDED)
        try:
            return call(*arguments, **options)
        except RayError:
            raise
        except SystemExit:
            self._ended = True
            raise RayError(ENDED) from None
        except Exception as error:
            raise RayError(str(error)) from None

    def look(self, models_folder: Path | None = None) -> tuple[Device, tuple[str, ...]]:
        """The device of a node, and the published models on its disk, which may not be on this one.

        Raises:
            InputError: no node is free to say so.
        """
        import ray
        from ray.exceptions import RayError

        wanted: dict[str, Any] = {"num_gpus": 1} if self._cards else {"num_cpus": 1}
        try:
            task = self._call(ray.remote(look_around).options(**wanted).remote, models_folder)
            if self._call(ray.wait, [task], timeout=LOOK_PATIENCE)[0]:
                found: tuple[Device, tuple[str, ...]] = self._call(ray.get, task)
                return found
            self._call(ray.cancel, task, force=True)
        except RayError as error:
            log.warning("A node could not be looked at: %s", error)
        raise InputError(
            "No node of the cluster is free to say which models and what card it has; name --model and --preset, or "
            "look at `ray status`."
        )

    def free(self) -> int:
        """Nothing is held here."""
        return 0

    def report(self) -> list[dict[str, Any]]:
        """No worker of this machine's own."""
        return []

    def close(self, patience: float = 0.0) -> None:  # as a fleet's
        """Leave the cluster."""
        import ray

        ray.shutdown()


def _knock(address: str) -> None:
    """Raise OSError where nobody listens; Ray itself goes on asking for many minutes."""
    host, colon, port = address.rpartition(":")
    if colon and port.isdigit() and "/" not in host:
        socket.create_connection((host, int(port)), timeout=10).close()


def _memory(job: Job) -> int:
    """RAM that a job's plan asks for on a machine without a card, bytes; 0: no plan can be made here."""
    from magi_lite import planner
    from magi_lite.machine.devices import detect
    from magi_lite.weights.opening import open_model

    try:
        spec = MODELS.get(job.request.model) or open_model(job.request.model, job.request.models_folder).spec
        return int(planner.plan(job.request, job.request.preset, detect(), spec).peak_ram_bytes)
    except MagiLiteError:
        return 0


def _obey(order: wire.Message, control: RunControl, pictures: Path) -> None:
    if order["do"] == "stop":
        control.stop()
    elif order["do"] == "pause":
        control.pause()
    elif order["do"] == "redirect":
        control.redirect(_with_files(Timeline.from_json(order["timeline"]), order["pictures"], pictures))


def _pictures(timeline: Timeline) -> Files:
    """The pictures of a timeline's blocks by their paths here."""
    return {str(path): path.read_bytes() for path in timeline.pictures if path.is_file()}


def _with_files(timeline: Timeline, files: Files, folder: Path) -> Timeline:
    """The timeline with the pictures as files of this node."""

    def own(segment: Segment) -> Segment:
        data = files.get(str(segment.image))
        if data is None or segment.image is None:
            return segment
        name = f"{hashlib.sha256(data).hexdigest()[:12]}/{segment.image.name}"
        _write(folder, name, data)
        return replace(segment, image=folder / name)

    return with_pictures(timeline, own)


# --- files -----------------------------------------------------------------------------------------------------------

class _Known(dict[str, tuple[int, int, int]]):
    """Name -> inode, size and time of what was delivered."""


def _make_parts(folder: Path) -> None:
    """The folders of a run, which may still be empty."""
    for part in ("chunks", "states", "inputs"):
        (folder / part).mkdir(parents=True, exist_ok=True)


def _contents(folder: Path) -> Files:
    """Every file of a run but its lock and what is being written."""
    return {name: path.read_bytes() for name, path in _listing(folder).items()}


def _listing(folder: Path) -> dict[str, Path]:
    found = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    return {path.relative_to(folder).as_posix(): path for path in found}


def _changes(folder: Path, sent: _Known) -> tuple[Files, list[str]]:
    """What is new or other in a run's folder since the last call, and what is gone.

    The video grows at its end, and only its new end is sent, under its name with the offset.
    """
    files: Files = {}
    listing = _listing(folder)
    for name, path in listing.items():
        with contextlib.suppress(FileNotFoundError):  # replaced just now; the next call finds it
            status = path.stat()
            mark = (status.st_ino, status.st_size, status.st_mtime_ns)
            before = sent.get(name)
            if before == mark:
                continue
            grown = before is not None and before[0] == mark[0] and before[1] < mark[1] and name.endswith(".mp4")
            with path.open("rb") as file:
                file.seek(before[1] if grown and before else 0)
                files[f"{name}\0{before[1]}" if grown and before else name] = file.read()
            sent[name] = mark
    gone = [name for name in sent if name not in listing]
    for name in gone:
        del sent[name]
    return files, gone


def _order(name: str) -> tuple[int, str]:
    """Seconds before their states, and the record that names them last."""
    kind = 0 if name.startswith("chunks/") else 1 if name.startswith("states/") else 2
    last = {".safetensors": 0, ".jpg": 1, ".m4s": 2, ".mp4": 3, ".json": 9}
    return kind + (name == "project.json"), f"{last.get(Path(name).suffix, 5)}{name}"


def _write(folder: Path, name: str, data: bytes) -> None:
    """One file, whole or not at all; with an offset behind a zero byte, which no name has, it is continued."""
    from magi_lite.files import write_atomic

    name, _, offset = name.partition("\0")
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"{name} lies outside the run")
    path.parent.mkdir(parents=True, exist_ok=True)
    if offset:
        with path.open("r+b") as file:
            file.seek(int(offset))
            file.write(data)
        return
    write_atomic(path, data)
