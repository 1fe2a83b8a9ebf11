"""Everything that can be done, free of widgets: the panels' scripts and the API call the same functions."""

from __future__ import annotations

import contextlib
import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any

from magi_lite.errors import InputError, MagiLiteError
from magi_lite.jobs import JobQueue
from magi_lite.jobs.job import Job
from magi_lite.models import MODELS
from magi_lite.project import Project
from magi_lite.request.build import new_seed
from magi_lite.request.checks import check
from magi_lite.request.request import OPTIONS, GenerationRequest
from magi_lite.sentences import shortened, shown
from magi_lite.timeline import Segment, Timeline
from magi_lite.timeline.edit import clip, splice
from magi_lite.ui import form, uploads
from magi_lite.ui.exports import Exports, order_of
from magi_lite.ui.given import Given
from magi_lite.ui.library import Library
from magi_lite.ui.machine import Machine
from magi_lite.ui.report import Console, report
from magi_lite.ui.saved import Saved
from magi_lite.ui.signature import takes_options
from magi_lite.ui.status import state, summary
from magi_lite.video.formats import FORMATS


class Actions:
    """What the app can do, over its queue, its videos and this machine.

    Every public method takes plain values and answers a JSON-able dict; errors are `MagiLiteError`s.
    """

    def __init__(
        self, queue: JobQueue, library: Library, machine: Machine, console: Console | None = None, alone: bool = True
    ) -> None:
        """`console`: for reports. `alone`: whether only this computer's own pages reach the app."""
        self._console, self._alone = console, alone
        self._queue, self._library, self._machine = queue, library, machine
        self.given = Given(library)
        self._exports = Exports(library)

    # --- looking

    def status(self, job: str | None = "", version: int = 0, preview: int = 0) -> dict[str, Any]:
        """The state of the app: what runs, the queue (if newer than `version`), and one job in detail.

        `job` may be a video of the gallery that no job stands for any more. Give the preview version that you have, so
        that a picture is sent only once.
        """
        shown = None
        if job:
            with contextlib.suppress(MagiLiteError):  # it may have been deleted
                shown = self._job(job)
        return state(self._queue, self._machine, self._library.version(), shown, version, preview)

    def queue(self) -> dict[str, Any]:
        """All jobs in queue order."""
        return {"jobs": [summary(job) for job in self._queue.jobs()], "held": self._queue.paused}

    def gallery(
        self, search: str = "", show: str = "all", model: str = "", sort: str = "newest", grouped: bool = False,
        offset: int = 0, limit: int | None = None, versions_of: str = "",
    ) -> dict[str, Any]:  # fmt: skip
        """Videos, the newest first, `limit` of them from `offset` on; "total" counts all that fit.

        `search`: words that the prompts, seed, model or name must hold. `show`: all, starred, finished or unfinished.
        `sort`: newest, oldest, name, longest or largest. `grouped`: one of the versions of a video stands for all.
        `versions_of`: only the versions of this video.
        """
        found = self._library.page(search, show, model, sort, grouped, max(0, offset), limit, versions_of)
        return found | {"folder": str(self._library.folder)}

    def binned(self) -> dict[str, Any]:
        """The videos in the bin."""
        return {"videos": self._library.binned()}

    def exports(self) -> dict[str, Any]:
        """All exports with their progress, and the formats that can be asked for."""
        formats = [
            {"name": name, "summary": one.summary, "kind": one.kind, "sound": bool(one.sound), "least": one.least}
            for name, one in FORMATS.items()
        ]
        signing = importlib.util.find_spec("c2pa") is not None
        return {"exports": self._exports.all(), "formats": formats, "credentials": signing}

    def details(self, video: str) -> dict[str, Any]:
        """A video's address, settings, and what can be done with it."""
        return self._library.details(self._project(video).name)

    def versions(self, video: str) -> dict[str, Any]:
        """A video and its versions made by redo, the oldest first, each with the job that shows it (or None)."""
        jobs = {job.project.name: job.id for job in self._queue.jobs() if job.project}
        found = self._library.versions(self._project(video).name)
        return {"versions": [{**version, "job": jobs.get(version["name"])} for version in found]}

    def system(self) -> dict[str, Any]:
        """What this computer has, which models are here, and downloads under way."""
        report = self._machine.report()
        making = {card: job.title for card, job in self._queue.running_jobs.items()}
        return report | {"machine": report["machine"] + self._machine.workers(making)}

    def plan_for(
        self, card: str, model: str = "", ram_gb: float | None = None, seconds: int | None = None,
        width: int | None = None, height: int | None = None,
    ) -> dict[str, Any]:  # fmt: skip
        """The plan that another machine would get: `card` is a known card's name, such as RTX 4090, or cpu.

        What is left out is chosen by that machine's profile. Answers as the plan of this machine does.
        """
        values = {"prompt": "a video", "seconds": seconds, "width": width, "height": height}
        given = {name: value for name, value in values.items() if value is not None}
        return self._machine.plan_for(card, model, ram_gb, given)

    def cards(self) -> dict[str, Any]:
        """Cards and models that can be planned for."""
        return {"cards": self._machine.known_cards, "models": list(MODELS)}

    def report(self, with_paths: bool = False) -> dict[str, Any]:
        """A text for bug reports: versions, this computer, and what the console shows; paths only if asked for."""
        console = self._console.text() if self._console else ""
        own = (self._library.folder, self._machine.models_folder, Path.cwd())
        return {"text": report(console, self._machine.report()["machine"], own, with_paths)}

    def use_models_folder(self, folder: str) -> dict[str, Any]:
        """Look for models in another folder of the app's computer, now and after a restart."""
        if not self._alone:
            raise InputError("The app can be reached from other computers; choose the folder with --models instead.")
        if not folder.strip():
            raise InputError("Give the folder of the models, such as ~/models.")
        self._machine.use_models_folder(Path(folder.strip()).expanduser())
        self._queue.set_setting("models_folder", str(self._machine.models_folder))
        return {"folder": str(self._machine.models_folder)}

    def plan(self, request: GenerationRequest) -> dict[str, Any]:
        """Memory and time that a request would take, as a sentence and a picture, before anything is loaded.

        Raises:
            InputError: a setting cannot be used.
        """
        check(request, prompts=False, files=False)
        return self._machine.plan(request)

    # --- making

    def submit(self, request: GenerationRequest) -> dict[str, Any]:
        """Put a request into the queue."""
        self.given.check_pictures(request.timeline)
        self.given.check_there(request)
        check(request)
        return {"job": self._add(request).id, "seed": request.seed}

    def is_made(self, request: GenerationRequest) -> bool:
        """Whether a video of the gallery or the queue is, or will be, just what a request asks for."""

        def what(one: GenerationRequest) -> GenerationRequest:
            return replace(one, models_folder=None, out=None)

        coming = [
            job.request
            for job in self._queue.jobs()
            if job.state in ("waiting", "running") and job.from_chunk is None and job.source is None
        ]
        whole = [one.request for one in self._library.entries() if one.status == "finished" and one.parent is None]
        return what(request) in map(what, coming + whole)

    @takes_options
    def generate(self, prompt: str = "", **options: Any) -> dict[str, Any]:
        """Put a video into the queue and answer its job's id and seed; poll `status` for the rest.

        Every option of the command line is an argument; what is left out (or null, or "auto") is chosen as in the app.
        `timeline` is shorthand such as "[0s-2s: a cat walks] [2s-4s: it jumps]"; a block may begin a new shot, with a
        cut ("[2s-4s cut: it jumps]") or a picture of the projects folder ("[2s-4s image=PATH: it jumps]").
        `image` or `video` is a file of yours to start from, uploaded by `gradio_client.handle_file`, or the path of one
        in the app's projects folder.
        `seconds` 0 is endless; width, height and vram_gb 0 are as good as left out.
        """
        for name in ("width", "height", "vram_gb"):
            if _is_zero(options.get(name)):
                options[name] = None
        if _is_zero(options.get("seconds")):
            options |= {"seconds": None, "endless": True}
        for kind in ("image", "video"):
            file = options.get(kind)
            options[kind] = self.given.source(file, kind)["path"] if file else None
        return self.submit(form.asked({"prompt": prompt, **options}, self._machine.models_folder))

    def extend(self, video: str, seconds: int = 2) -> dict[str, Any]:
        """Make more seconds after a video's last one, from its saved latents."""
        if seconds < 1:
            raise InputError(f"A video cannot be extended by {shown(seconds)} seconds; ask for at least 1.")
        project = self._project(video)
        request = project.request
        length = request.seconds or project.chunks + request.window
        longer = replace(_reachable(request), seconds=length + seconds)
        OPTIONS["seconds"].check(longer.seconds)
        return {"job": self._add(longer, source=project.folder, done=project.chunks).id}

    def redo(
        self, video: str, second: int, prompt: str = "", seed: int | None = None, timeline: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Make a video again from a second on; earlier seconds stay bit for bit, the old version is kept.

        `prompt` holds from there on (empty: the same prompts), or `timeline` (JSON) replaces all prompts from there on;
        a timeline without a global prompt keeps the video's. Without a `seed` the video's own is used where the prompts
        change, else another one, since its own would make the same seconds again.
        """
        project = self._project(video)
        request = project.request
        project.check_whole(second + 1)
        if not 0 <= second < project.chunks:
            raise InputError(f"There is no finished second {shown(second)}; choose 0 to {project.chunks - 1}.")
        end = request.seconds or project.chunks
        prompts = request.timeline
        if timeline is not None:
            newer = Timeline.from_json({"global_prompt": prompts.global_prompt} | timeline)
            self.given.check_pictures(newer)
            prompts = splice(prompts, second, newer)
        if prompt:
            rest = Timeline((Segment(second, end, prompt),), prompts.global_prompt, prompts.blend, prompts.gaps)
            prompts = splice(prompts, second, rest)
        prompts = clip(prompts, end)  # an endless video's blocks may reach beyond what was made
        if seed is None:
            seed = new_seed() if prompts == clip(request.timeline, end) else request.seed
        # Without `out`: the first version keeps its file.
        changed = replace(request, timeline=prompts, seconds=end, seed=seed, out=None)
        self.given.check_there(changed, shown=False)
        check(changed)
        return {"job": self._add(changed, source=project.folder, from_chunk=second).id, "seed": changed.seed}

    def _add(self, request: GenerationRequest, **more: Any) -> Job:
        """Put a job into the queue whose model is whole."""
        self._machine.check_files(request)
        return self._queue.add(request, **more)

    # --- steering

    def stop(self, job: str) -> dict[str, Any]:
        """End a job after its current step; finished seconds are kept. A waiting one is taken off the list."""
        self._queue.stop(job)
        return {}

    def pause(self, job: str) -> dict[str, Any]:
        """Save a running job's state and free the device; `resume` goes on to the same bits."""
        self._queue.pause(job)
        return {}

    def resume(self, job: str) -> dict[str, Any]:
        """Let a paused, stopped, interrupted or failed job (or a video of the gallery) go on."""
        if any(job == known.id for known in self._queue.jobs()):
            return {"job": self._queue.resume(job).id}
        project = self._project(job)
        request = _reachable(project.request)
        return {"job": self._add(request, source=project.folder, done=project.chunks).id}

    def redirect(self, job: str, timeline: dict[str, Any] | None = None, prompt: str | None = None) -> dict[str, Any]:
        """Change the prompts of all seconds of a running job that have not begun.

        `timeline` (JSON) replaces the blocks, `prompt` the prompt for every second; what is left out stays. Answers
        the first second that can change; `status` shows under "redirected" from which on the new prompts hold.
        """
        old = self._queue.get(job).request.timeline
        newer = old if timeline is None else Timeline.from_json(timeline)
        self.given.check_pictures(newer)
        front = prompt if prompt is not None else newer.global_prompt or old.global_prompt
        self._queue.redirect(job, replace(newer, global_prompt=front.strip()))
        live = self._queue.live(job)
        return {"from_second": live.locked if live else 0}

    # --- the queue

    def move(self, job: str, place: int) -> dict[str, Any]:
        """Put a waiting job at a place among the waiting ones, 0 first."""
        self._queue.move(job, place)
        return {}

    def tie(self, job: str, card: str = "") -> dict[str, Any]:
        """Let a job be made on one card only; an empty name: on whichever is free first."""
        self._queue.tie(job, str(card))
        return {}

    def clone(self, job: str) -> dict[str, Any]:
        """Put the same request at the end of the queue once more, with a new seed: it becomes another video."""
        self.given.check_there(self._queue.get(job).request, shown=False)
        seed = new_seed()
        return {"job": self._queue.clone(job, seed).id, "seed": seed}

    def edit(self, job: str, request: GenerationRequest) -> dict[str, Any]:
        """Give a waiting job another request."""
        self.given.check_pictures(request.timeline)
        self.given.check_there(request)
        return {"job": self._queue.edit(job, request).id}

    def remove(self, job: str) -> dict[str, Any]:
        """Take a job off the list; its video stays in the gallery."""
        self._queue.delete(job)
        return {}

    def clear_ended(self) -> dict[str, Any]:
        """Take all finished, stopped and failed jobs off the list; their videos stay in the gallery."""
        for job in self._queue.jobs():
            if job.state in ("finished", "stopped", "failed"):
                self._queue.delete(job.id)
        return {}

    def hold(self, held: bool) -> dict[str, Any]:
        """Start no further job (True) or go on (False); what runs is not touched."""
        self._queue.set_paused(held)
        return {}

    # --- videos, files, machine

    def label(
        self, video: str, name: str | None = None, starred: bool | None = None, main: bool | None = None
    ) -> dict[str, Any]:
        """Give a video a name of its own or a star, or make it the one of its versions to go on with."""
        labels = self._library.label(self._project(video).name, name=name, starred=starred, main=main)
        return vars(labels)

    def bin(self, videos: list[str]) -> dict[str, Any]:
        """Put videos into the bin, from where `restore` brings them back."""
        names = [self._free_to_go(video).name for video in _texts(videos)]
        for name in names:
            self._library.throw(name)
            self._forget_jobs(self._library.folder / name)
        return {"videos": names}

    def restore(self, videos: list[str]) -> dict[str, Any]:
        """Take videos out of the bin."""
        for name in _texts(videos):
            self._library.restore(name)
        return {}

    def empty_bin(self, videos: list[str] | None = None) -> dict[str, Any]:
        """Delete videos in the bin for good: those named, or all."""
        return {"deleted": self._library.empty(None if videos is None else _texts(videos))}

    def export(
        self, video: str, format: str, from_second: float | None = None, to_second: float | None = None,
        audio: str | dict[str, Any] | None = None, metadata: bool = True, credentials: bool = False,
        certificate: str = "", key: str = "", clip: bool = False,
    ) -> dict[str, Any]:  # fmt: skip
        """Write a video, or a part of it, as a file of another format; `exports` tells how far it is.

        `from_second` alone is the moment of a single frame. `audio`: an uploaded sound file to lay under it.
        `credentials`: put Content Credentials (C2PA) into the file, signed with the PEM files `certificate` (a chain)
        and `key` of the app's computer, or else with a certificate made for this file, which programs do not trust.
        `clip`: put the clip that the video continues in front, with its sound; `audio` then begins behind it.
        """
        if (certificate or key) and not self._alone:
            raise InputError("The app can be reached from other computers; certificates can be named on its own alone.")
        project = self._project(video)
        if isinstance(audio, dict):
            audio = str(audio.get("path", ""))
        sound = uploads.received(audio) if audio else None
        own = {"certificate": certificate, "key": key} if credentials else None
        order = order_of(format, from_second, to_second, sound, own, metadata=metadata, clip=clip)
        title = self._library.details(project.name)["title"]
        return {"export": self._exports.start(project.name, title, order)}

    def cancel_export(self, export: str) -> dict[str, Any]:
        """Stop an export; nothing is left of its file."""
        self._exports.cancel(export)
        return {}

    def delete_video(self, video: str) -> dict[str, Any]:
        """Delete a video with its latents for good."""
        project = self._free_to_go(video)
        self._library.delete(project.name)
        self._forget_jobs(project.folder)
        return {}

    def _free_to_go(self, video: str) -> Project:
        """The project, unless something is being made, or waits to be made, from it."""
        project = self._project(video)
        for job in self._queue.jobs():
            if job.state == "running" and project.folder in (job.project, job.source):
                raise InputError(f"{shortened(job.title)} is being made right now; stop it first.")
            if job.state == "waiting" and job.source == project.folder:
                raise InputError("A video in the queue goes on from this one; take it off the queue first.")
        return project

    def _forget_jobs(self, folder: Path) -> None:
        for job in self._queue.jobs():
            if job.project == folder and job.state != "running":
                self._queue.delete(job.id)

    def reveal(self, video: str) -> dict[str, Any]:
        """Show a video in the file manager of the computer that runs the app."""
        self._library.reveal(self._project(video).name)
        return {}

    def look_at(self, path: str | dict[str, Any], name: str = "") -> dict[str, Any]:
        """What an uploaded file is: an image to start from, a clip to continue, a video of ours with its settings."""
        return {"source": self.given.look_at(path, name)}

    def drawn(self, path: str) -> dict[str, Any]:
        """A kept picture, or a clip's last frame, as a small JPEG (a data URL): not every browser draws every kind."""
        return {"url": self.given.drawn(path)}

    def download(self, model: str) -> dict[str, Any]:
        """Fetch a model in the background, or go on with a download; `system` tells its progress.

        Where nothing but the special tokens is missing, also in a folder of the models folder, they come at once.
        """
        form.check_model(model, self._machine.models_folder)
        place = self._machine.without_tokens(model)
        if place is not None:
            from magi_lite.weights.hub import download_special_tokens

            download_special_tokens(place)
            return {"message": "The special tokens are here now; press Generate again."}
        self._machine.downloads.start(model)
        return {}

    def stop_download(self, model: str) -> dict[str, Any]:
        """End a download; what has arrived is kept."""
        self._machine.downloads.stop(model)
        return {}

    def free_memory(self) -> dict[str, Any]:
        """Hand unused memory back to the system and the card."""
        if self._queue.running:
            raise InputError("A video is being made; pause it first, which frees the memory by itself.")
        return {"message": self._machine.free_memory()}

    # --- for the form

    def saved_names(self) -> dict[str, Any]:
        """Names of the settings that are kept."""
        return {"names": Saved(self._queue).names()}

    def request_of(self, job: str) -> GenerationRequest:
        """What a job asks for; once it has ended, what its video was made with."""
        found = self._job(job)
        if found.project and found.state not in ("waiting", "running") and (found.project / "project.json").is_file():
            return Project.open(found.project).request
        return found.request

    # --- inside

    def _job(self, identity: str) -> Job:
        """A job by its id, or an ended one for a video of the gallery by its name.

        Raises:
            InputError: there is neither.
        """
        known = next((job for job in self._queue.jobs() if job.id == identity), None)
        return known or self._library.job(identity)

    def _project(self, video: str) -> Project:
        """The project of a job's id or of a name in the gallery."""
        for job in self._queue.jobs():
            if job.id == video:
                if job.project is None:
                    raise InputError("This video has not begun; there is nothing of it yet.")
                return Project.open(job.project)
        return self._library.open(video)


def _texts(values: list[str]) -> list[str]:
    """The values, each of which must be text. Raises: InputError."""
    if not all(isinstance(value, str) for value in values):
        raise InputError("The videos must be given by their names.")
    return list(dict.fromkeys(values))


def _is_zero(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == 0


def _reachable(request: GenerationRequest) -> GenerationRequest:
    """The request without a file to deliver to whose folder is gone; the project keeps the video anyway."""
    gone = request.out is not None and not request.out.parent.is_dir()
    return replace(request, out=None) if gone else request
