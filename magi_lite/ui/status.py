"""The app's state as pages and programs ask for it: what runs, the queue, and one job in detail."""

from __future__ import annotations

from typing import Any

from magi_lite.jobs import JobQueue
from magi_lite.jobs.job import Job
from magi_lite.ui.library import file_url
from magi_lite.ui.machine import Machine


def state(
    queue: JobQueue, machine: Machine, gallery: str, job: Job | None, version: int, preview: int
) -> dict[str, Any]:
    """What every page asks for twice a second.

    Args:
        gallery: what changes whenever the gallery does.
        job: the one that the page shows in detail.
        version: of the queue that the page has; its jobs are sent where there is a newer one.
        preview: version of the preview that the page has.
    """
    # A lane holds its job a moment longer than the job runs.
    making = {card: one for card, one in queue.running_jobs.items() if one.state == "running"}
    running = next(iter(making.values()), None)
    answer: dict[str, Any] = {
        "version": queue.version,
        "running": running.id if running else None,
        "cards": {card: one.id for card, one in making.items()},
        "paused": queue.paused,
        "trouble": queue.trouble,
        "notice": queue.notice,
        "lanes": _lanes(queue, machine, making),
        "gallery": gallery,
        "machine": machine.gauges(),
        "model": running.request.model if running else machine.model,
    }
    if version != queue.version:
        answer["jobs"] = [summary(one) for one in queue.jobs()]
    if job is not None:
        answer["shown"] = _detail(queue, job, preview)
    return answer


def summary(job: Job) -> dict[str, Any]:
    """A job as the queue lists it."""
    request = job.request
    length = "endless" if request.seconds is None else f"{request.seconds} s"
    words = [length, f"{request.width} × {request.height}", f"seed {request.seed}", request.model]
    if job.from_chunk is not None:
        words.insert(0, f"redo from second {job.from_chunk}")
    if job.done and job.state != "finished":
        words.insert(0, f"{job.done} s made")
    return {
        "id": job.id,
        "state": job.state,
        "title": job.title,
        "summary": ", ".join(words),
        "error": job.error,
        "ended": job.ended or 0,
        "project": job.project.name if job.project else None,
        "card": job.card,
    }


def _lanes(queue: JobQueue, machine: Machine, making: dict[str, Job]) -> list[dict[str, Any]]:
    """Each card's job and memory; none where there is but one card, which the rest of the state is about."""
    cards, lanes = machine.cards(), []
    for one in cards if len(cards) > 1 else ():
        job = making.get(one["card"])
        live = queue.live(job.id) if job else None
        now = live.snapshot(preview_after=live.preview_version) if live else None
        progress = now["progress"] if now else None
        lanes.append(
            one
            | {
                "job": job.id if job else None,
                "title": job.title if job else "",
                "done": job.done if job else 0,
                "fraction": progress["fraction"] if progress else None,
                "preview_version": now["preview_version"] if now else 0,
            }
        )
    return lanes


def _detail(queue: JobQueue, job: Job, preview: int) -> dict[str, Any]:
    live = queue.live(job.id)
    size = job.video.stat().st_size if job.video and job.video.exists() else 0
    view: dict[str, Any] = {
        "id": job.id,
        "state": job.state,
        "error": job.error,
        "started": job.started,
        "took": job.ended - job.started if job.ended and job.started else None,
        "project": job.project.name if job.project else None,
        "folder_url": file_url(job.project) if job.project else None,
        "video_url": file_url(job.video) if job.video else None,
        "video_size": size,
        "file_name": f"{job.project.name}.mp4" if job.project else None,
        "seconds": job.request.seconds,
        "continues": job.request.video.name if job.request.video else None,
        "timeline": job.request.timeline.to_json(),
        "done": job.done,
        "locked": 0,
        "notices": [],
        "progress": None,
        "preview": None,
        "moving": [],
        "preview_version": 0,
    }
    return view | live.snapshot(preview) if live else view
