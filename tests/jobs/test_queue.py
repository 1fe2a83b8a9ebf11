"""The queue: order, states, failures, restarts. The runner is a generator of events that the test steers."""

from __future__ import annotations

import gc
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from magi_lite import events
from magi_lite.control import RunControl
from magi_lite.errors import InputError, Interrupted, OutOfMemory, TimelineError
from magi_lite.jobs import JobQueue
from magi_lite.jobs.job import Job
from magi_lite.jobs.live import Live
from magi_lite.request.request import GenerationRequest
from magi_lite.timeline import Segment, Timeline


def request(prompt: str = "a ball", seconds: int | None = 3, **fields: object) -> GenerationRequest:
    return GenerationRequest(Timeline((), prompt), seconds=seconds, **fields)  # type: ignore[arg-type]


class Runner:
    """Makes a second per `step`, obeys its control, fails where the prompt says so, and remembers what it was given."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.jobs: list[Job] = []
        self.go = threading.Semaphore(0)
        self.timelines: list[Timeline] = []

    def __call__(self, job: Job, control: RunControl) -> Iterator[events.Event]:
        self.jobs.append(job)
        project = job.source if job.source and job.from_chunk is None else self.folder / job.id
        project.mkdir(exist_ok=True)
        video = project / "video.mp4"
        yield events.Opened(project, video)
        if "out of memory" in job.title:
            raise OutOfMemory("Memory ran out; choose a smaller size.")
        if "mistake" in job.title:
            raise ZeroDivisionError("oops")
        for chunk in range(job.done, job.request.seconds or 10**6):
            self.go.acquire(timeout=20)
            newer = control.take_timeline()
            if newer:
                self.timelines.append(newer)
            yield events.Progress(chunk, job.request.seconds, 1, 2, None, 1.0, 1.0)
            if control.stop_requested or control.pause_requested:
                reason = "paused" if control.pause_requested else "stopped"
                yield events.Stopped(video, project, chunk, reason)
                return
            video.write_bytes(bytes(chunk + 1))
            yield events.ChunkFinished(chunk, np.zeros((2, 8, 8, 3), np.uint8), 1.0)
        yield events.Finished(video, project, job.request.seconds or 0, 1.0)

    def step(self, count: int = 1) -> None:
        for _ in range(count):
            self.go.release()


def eventually(what: Callable[[], object], seconds: float = 20) -> None:
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until, "it did not happen in time"
        time.sleep(0.005)


@pytest.fixture
def runner(tmp_path: Path) -> Runner:
    return Runner(tmp_path)


@pytest.fixture
def queue(tmp_path: Path, runner: Runner) -> Iterator[JobQueue]:
    fresh = JobQueue(tmp_path / "queue", runner)
    yield fresh
    runner.step(1000)
    fresh.close()


def states(queue: JobQueue) -> list[str]:
    return [job.state for job in queue.jobs()]


def test_jobs_run_in_order_and_one_at_a_time(queue: JobQueue, runner: Runner) -> None:
    added = [queue.add(request(f"number {n}", 2)) for n in range(4)]
    queue.start()
    eventually(lambda: queue.running)
    assert states(queue) == ["running", "waiting", "waiting", "waiting"]
    runner.step(8)
    eventually(lambda: states(queue) == ["finished"] * 4)
    assert [job.id for job in runner.jobs] == [job.id for job in added]
    done = queue.get(added[2].id)
    assert done.done == 2 and done.video == runner.folder / done.id / "video.mp4" and done.ended >= done.started


def test_a_failure_never_stops_the_worker(queue: JobQueue, runner: Runner) -> None:
    for words in ("out of memory", "a mistake", "fine"):
        queue.add(request(words, 1))
    runner.step(1)
    queue.start()
    eventually(lambda: states(queue) == ["failed", "failed", "finished"])
    first, second, _ = queue.jobs()
    assert first.error == "Memory ran out; choose a smaller size."
    assert "ZeroDivisionError: oops" in second.error and "\n" not in second.error


def test_pause_and_resume_go_on_in_the_same_project(queue: JobQueue, runner: Runner) -> None:
    job = queue.add(request(seconds=3))
    queue.start()
    runner.step()
    eventually(lambda: queue.get(job.id).done == 1)
    queue.pause(job.id)
    runner.step()
    eventually(lambda: queue.get(job.id).state == "paused")
    project = queue.get(job.id).project
    queue.set_paused(True)
    queue.add(request("another"))
    queue.resume(job.id)
    assert queue.jobs()[0].id == job.id  # before all others
    queue.set_paused(False)
    runner.step(2)
    eventually(lambda: queue.get(job.id).state == "finished")
    assert runner.jobs[-1].source == project or runner.jobs[-2].source == project
    assert queue.get(job.id).done == 3


def test_stop_keeps_what_is_finished(queue: JobQueue, runner: Runner) -> None:
    job = queue.add(request(seconds=None))
    queue.start()
    runner.step(2)
    eventually(lambda: queue.get(job.id).done == 2)
    queue.stop(job.id)
    runner.step()
    eventually(lambda: queue.get(job.id).state == "stopped")
    assert queue.get(job.id).done == 2


def test_waiting_jobs_can_be_reordered_edited_cloned_and_deleted(queue: JobQueue) -> None:
    ids = [queue.add(request(f"number {n}")).id for n in range(5)]
    shuffled = list(ids)
    for _ in range(30):
        identity, place = random.choice(shuffled), random.randrange(5)
        queue.move(identity, place)
        shuffled.remove(identity)
        shuffled.insert(place, identity)
        assert [job.id for job in queue.jobs()] == shuffled
    queue.edit(ids[1], request("edited", 7))
    assert queue.get(ids[1]).title == "edited" and queue.get(ids[1]).request.seconds == 7
    clone = queue.clone(ids[1])
    assert clone.request == queue.get(ids[1]).request and queue.jobs()[-1].id == clone.id
    queue.delete(ids[0])
    with pytest.raises(InputError, match="no job"):
        queue.get(ids[0])


def test_everything_is_there_after_a_restart(tmp_path: Path, runner: Runner) -> None:
    image = tmp_path / "start.png"
    image.write_bytes(b"x")
    first = JobQueue(tmp_path / "queue", runner)
    timeline = Timeline((Segment(0, 2, 'a "quoted" — word'),), "global", blend=1)
    wanted = [request("plain"), GenerationRequest(timeline, image=image, seed=7), request("endless", None)]
    ids = [first.add(item).id for item in wanted]
    first.move(ids[2], 0)
    first.set_paused(True)
    first.set_setting("saved", {"mine": {"steps": "8"}})
    second = JobQueue(tmp_path / "queue", runner)
    assert [job.id for job in second.jobs()] == [ids[2], ids[0], ids[1]]
    assert second.get(ids[1]).request == wanted[1]
    assert second.paused and second.setting("saved") == {"mine": {"steps": "8"}}


def test_a_job_that_the_power_cut_is_interrupted_and_resumes(tmp_path: Path, runner: Runner) -> None:
    first = JobQueue(tmp_path / "queue", runner)
    job = first.add(request(seconds=3))
    first.start()
    runner.step()
    eventually(lambda: first.get(job.id).done == 1)
    later = Runner(tmp_path)
    second = JobQueue(tmp_path / "queue", later)  # the first one's process is as good as dead
    cut = second.get(job.id)
    assert cut.state == "interrupted" and cut.done == 1 and cut.project == tmp_path / job.id
    second.resume(job.id)
    later.step(2)
    second.start()
    eventually(lambda: second.get(job.id).state == "finished")
    assert later.jobs[0].source == tmp_path / job.id
    second.close()
    runner.step(10)
    first.close()


def test_close_pauses_what_runs(tmp_path: Path, runner: Runner) -> None:
    queue = JobQueue(tmp_path / "queue", runner)
    job = queue.add(request(seconds=None))
    queue.start()
    eventually(lambda: queue.running)
    runner.step(3)
    queue.close()
    assert JobQueue(tmp_path / "queue", runner).get(job.id).state in ("paused", "interrupted")


def test_redirect_reaches_the_run_and_is_kept(queue: JobQueue, runner: Runner) -> None:
    job = queue.add(request(seconds=4))
    with pytest.raises(InputError, match="not being made"):
        queue.redirect(job.id, Timeline((), "new"))
    queue.start()
    eventually(lambda: queue.running)
    newer = Timeline((Segment(2, 4, "other"),), "new")
    queue.redirect(job.id, newer)
    with pytest.raises(TimelineError, match="ends after"):
        queue.redirect(job.id, Timeline((Segment(0, 9, "too long"),)))
    runner.step()
    eventually(lambda: runner.timelines == [newer])
    assert queue.get(job.id).request.timeline == newer


@pytest.mark.parametrize(
    ("deed", "sentence"),
    [
        (lambda queue, running, ended: queue.delete(running), "being made right now; stop it first"),
        (lambda queue, running, ended: queue.edit(running, request()), "only a waiting one can be edited"),
        (lambda queue, running, ended: queue.move(ended, 0), "only a waiting one can be moved"),
        (lambda queue, running, ended: queue.resume(running), "only a paused, stopped or interrupted one goes on"),
        (lambda queue, running, ended: queue.pause(ended), "not being made right now"),
        (lambda queue, running, ended: queue.resume("nobody"), "There is no job 'nobody'"),
    ],
)
def test_refusals_say_why(queue: JobQueue, runner: Runner, deed: Callable[..., object], sentence: str) -> None:
    ended, running = queue.add(request(seconds=1)), queue.add(request(seconds=None))
    runner.step()
    queue.start()
    eventually(lambda: getattr(queue.running, "id", None) == running.id)  # asked once: between two jobs there is none
    with pytest.raises(InputError, match=sentence):
        deed(queue, running.id, ended.id)


def test_a_worker_that_dies_interrupts_its_job_and_a_second_time_sets_it_aside(tmp_path: Path) -> None:
    deaths: list[str] = []

    def run(job: Job, control: RunControl) -> Iterator[events.Event]:
        yield events.Opened(tmp_path, tmp_path / "video.mp4")
        if job.title == "fine":
            yield events.Finished(tmp_path / "video.mp4", tmp_path, 1, 0.1)
            return
        if job.title == "moves" and len(deaths) == 1:
            yield events.ChunkFinished(0, None, 0.1)
        deaths.append(job.id)
        raise Interrupted("The worker crashed.")

    queue = JobQueue(tmp_path / "queue", run)
    queue.start()
    job, other = queue.add(request("stays")), queue.add(request("fine"))
    eventually(lambda: queue.get(other.id).state == "finished")
    assert queue.get(job.id).state == "interrupted" and queue.get(job.id).error == "The worker crashed."
    queue.resume(job.id)
    eventually(lambda: queue.get(job.id).state == "failed")
    assert "2 times and is set aside. The worker crashed." in queue.get(job.id).error
    deaths.clear()
    moves = queue.add(request("moves"))
    for count in (1, 2):
        eventually(lambda: queue.get(moves.id).state == "interrupted")
        assert len(deaths) == count
        queue.resume(moves.id)
        eventually(lambda: len(deaths) > count)  # noqa: B023
    eventually(lambda: queue.get(moves.id).state == "failed")
    queue.close()


def test_each_card_takes_the_next_job_and_a_tied_one_waits_for_its_own(tmp_path: Path) -> None:
    runners = {name: Runner(tmp_path) for name in ("0", "1")}
    queue = JobQueue(tmp_path / "queue", runners)
    tied = [queue.add(request(f"tied {n}", 1)) for n in range(2)]
    free = [queue.add(request(f"free {n}", 1)) for n in range(2)]
    for job in tied:
        queue.tie(job.id, "1")
    queue.start()
    eventually(lambda: len(queue.running_jobs) == 2)
    assert queue.running_jobs == {"0": queue.get(free[0].id), "1": queue.get(tied[0].id)}
    runners["0"].step()
    eventually(lambda: queue.running_jobs.get("0") == queue.get(free[1].id))
    assert queue.get(tied[1].id).state == "waiting"
    queue.stop(free[1].id)
    runners["0"].step()
    eventually(lambda: queue.get(free[1].id).state == "stopped")
    assert queue.get(tied[0].id).state == "running"  # a stop reaches one run alone
    runners["1"].step(2)
    eventually(lambda: [queue.get(job.id).state for job in tied] == ["finished"] * 2)
    assert [job.id for job in runners["1"].jobs] == [job.id for job in tied]
    with pytest.raises(InputError, match="no card '7'"):
        queue.tie(queue.add(request("later")).id, "7")
    queue.close()


def test_locked_seconds_follow_the_window() -> None:
    live = Live(window=2, seconds=5)
    assert live.locked == 1
    for stage, oldest in enumerate((0, 0, 1, 2, 3, 4)):
        live.take(events.Progress(oldest, 5, 1, 4, None, None, None))
        live.take(events.Progress(oldest, 5, 2, 4, None, None, None))
        assert live.locked == min(5, stage + 1), stage
    resumed = Live(window=4, seconds=None, done=3)
    assert resumed.locked == 7
    resumed.take(events.Progress(3, None, 1, 4, None, None, None, started=5))  # a shot ends there
    assert resumed.locked == 5


def test_the_run_tells_from_which_second_on_new_words_hold() -> None:
    live = Live(window=2, seconds=9)
    assert live.snapshot()["redirected"] is None
    for count, second in enumerate((3, 5, 5), start=1):
        live.take(events.Redirected(second))
        assert live.snapshot()["redirected"] == {"count": count, "second": second}


def test_previews_are_sent_once_and_throttled() -> None:
    live = Live(window=1, seconds=1)
    picture = np.random.default_rng().integers(0, 255, (16, 16, 3)).astype(np.uint8)
    began = time.monotonic()
    for _ in range(200):
        live.take(events.Preview(0, picture))
    allowed = 1 + (time.monotonic() - began) / 0.4
    first = live.snapshot()
    assert 1 <= first["preview_version"] <= allowed and first["preview"].startswith("data:image/jpeg")
    assert live.snapshot(preview_after=first["preview_version"])["preview"] is None


def test_memory_stays_flat_over_50_runs(tmp_path: Path) -> None:
    """Whatever a run leaves behind (threads, pictures, rows) does not add up."""

    def run(job: Job, control: RunControl) -> Iterator[events.Event]:
        yield events.Opened(tmp_path, tmp_path / "video.mp4")
        for chunk in range(3):
            frames = np.full((24, 512, 512, 3), chunk, np.uint8)  # 19 MB: one that is kept would show
            yield events.Preview(chunk, frames[0])
            yield events.ChunkFinished(chunk, frames, 0.1)
        yield events.Finished(tmp_path / "video.mp4", tmp_path, 3, 0.3)

    queue = JobQueue(tmp_path / "queue", run)
    queue.start()
    process, used = psutil.Process(), []
    for _ in range(5):
        ids = [queue.add(request()).id for _ in range(10)]
        eventually(lambda: all(queue.get(i).state == "finished" for i in ids), 60)  # noqa: B023
        gc.collect()
        used.append(process.memory_info().rss)
    queue.close()
    assert max(used[1:]) - used[1] < 30e6, used


def test_a_job_that_is_resumed_at_once_waits_for_its_last_run_to_end(tmp_path: Path) -> None:
    """Another card is free, but two runs would write into one folder."""
    ends, runs = threading.Event(), list[str]()

    def run(job: Job, control: RunControl) -> Iterator[events.Event]:
        runs.append(job.title)
        if runs.count(job.title) == 1 and job.title == "first":
            yield events.Stopped(None, None, 0, "paused")
            ends.wait(20)
        else:
            yield events.Finished(tmp_path / "v.mp4", tmp_path, 1, 1.0)

    queue = JobQueue(tmp_path / "queue", {"0": run, "1": run})
    queue.start()
    job = queue.add(request("first", 1)).id
    eventually(lambda: queue.get(job).state == "paused")
    queue.resume(job)
    other = queue.add(request("other", 1)).id
    eventually(lambda: queue.get(other).state == "finished")
    assert queue.get(job).state == "waiting" and runs == ["first", "other"]
    ends.set()
    eventually(lambda: queue.get(job).state == "finished")
    queue.close()


def test_a_job_may_be_deleted_while_its_worker_dies(tmp_path: Path) -> None:
    """Its result has come, it is taken off the list, and only then the worker falls over."""
    deleted = threading.Event()

    def run(job: Job, control: RunControl) -> Iterator[events.Event]:
        if job.title == "dies":
            yield events.Stopped(None, None, 0, "stopped")
            deleted.wait(20)
            raise Interrupted("The worker crashed.")
        yield events.Finished(tmp_path / "v.mp4", tmp_path, 1, 1.0)

    queue = JobQueue(tmp_path / "queue", run)
    queue.start()
    job = queue.add(request("dies", 1)).id
    eventually(lambda: queue.get(job).state == "stopped")
    queue.delete(job)
    deleted.set()
    after = queue.add(request("after", 1)).id
    eventually(lambda: queue.get(after).state == "finished")
    queue.close()


def test_a_second_whose_event_was_lost_is_no_death_in_a_row(tmp_path: Path) -> None:
    """A worker that is killed between writing a second and telling of it has made one all the same."""
    import torch

    from magi_lite.project import Project

    latents, frames = torch.zeros(1, 16, 6, 4, 4), np.zeros((24, 32, 32, 3), np.uint8)
    project = Project.create(tmp_path, request("a ball", 4, width=32, height=32))
    project.close()

    def run(job: Job, control: RunControl) -> Iterator[events.Event]:
        with Project.open(project.folder) as here:
            here.lock()
            yield events.Opened(here.folder, here.video)
            here.write_chunk(here.chunks, latents, frames)
        raise Interrupted("The worker crashed.")

    queue = JobQueue(tmp_path / "queue", run)
    queue.start()
    job = queue.add(request("a ball", 4, width=32, height=32)).id
    for made in (1, 2, 3):
        eventually(lambda: queue.get(job).state == "interrupted")
        assert (queue.get(job).done, queue.get(job).deaths) == (made, 1)
        queue.resume(job)
    queue.close()


@pytest.mark.parametrize("jump", [-10**6, 10**6])
def test_a_clock_that_is_set_changes_neither_order_nor_durations(
    tmp_path: Path, runner: Runner, monkeypatch: pytest.MonkeyPatch, jump: int
) -> None:
    """While a job runs, and while the app is not open."""
    really, by = time.time, 0
    monkeypatch.setattr(time, "time", lambda: really() + by)
    queue = JobQueue(tmp_path / "queue", runner, kept=2)
    queue.start()
    added = [queue.add(request("first", 1)).id]
    eventually(lambda: queue.running)
    by = jump
    runner.step()
    eventually(lambda: queue.get(added[0]).state == "finished")
    first = queue.get(added[0])
    assert first.started is not None and first.ended is not None and 0 <= first.ended - first.started < 1000
    queue.close()
    by = -jump
    again = JobQueue(tmp_path / "queue", runner, kept=2)
    again.start()
    runner.step(3)
    for n in range(3):  # the third takes the first's place
        added.append(again.add(request(f"number {n}", 1)).id)
        eventually(lambda: again.get(added[-1]).state == "finished")
    assert [job.id for job in again.jobs()] == added[1:]
    ended = [again.get(one).ended or 0 for one in added[1:]]
    assert ended == sorted(ended) and ended[0] >= first.ended
    again.close()
