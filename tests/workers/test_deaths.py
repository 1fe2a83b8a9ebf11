"""Workers that die, hang, and outlive their app: nothing finished is lost, and the page can say what happened."""

from __future__ import annotations

import contextlib
import io
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from magi_lite import events
from magi_lite.machine import devices
from magi_lite.project import Project
from magi_lite.request.json import request_to_json
from magi_lite.timeline import Segment, Timeline
from magi_lite.workers import deaths, wire, worker
from tests.jobs.test_queue import eventually
from tests.workers.conftest import PATIENCE, Studio, request

SIGNALS = (signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT)
SAYS = {
    signal.SIGKILL: "ended the worker with SIGKILL",
    signal.SIGSEGV: r"crashed \(SIGSEGV\)",
    signal.SIGABRT: r"gave up \(SIGABRT",
}
ROOT = Path(__file__).parents[2]


@pytest.mark.thorough
def test_the_app_bears_two_dozen_deaths() -> None:
    """The same with the app itself, as a user meets it; `benchmarks/results/worker_deaths.json` keeps the figures."""
    from benchmarks import worker_deaths

    found = worker_deaths.measure(24)
    assert found["kills"] >= 24 and found["bits_equal"] and found["in_order"], found
    assert not found["seconds_lost"] and not found["orphans"] and found["answer_calls"], found
    assert set(found["sentences"]) == {sent.name for sent in SIGNALS}, found


def test_killed_at_random_moments_it_resumes_to_the_same_bits(studio: Callable[..., Studio], kills: int = 4) -> None:
    """Two jobs wait behind; they are made in their order, in fresh workers, whatever becomes of the first."""
    here = studio()
    queue = here.queue
    unbroken = queue.add(request(seconds=8)).id
    eventually(lambda: queue.get(unbroken).state == "finished", PATIENCE)
    job = queue.add(request(seconds=8)).id
    behind = [queue.add(request(f"number {n}", 1)).id for n in range(2)]
    given, finished = 0, 0
    while queue.get(job).state != "finished":
        assert queue.get(job).state in ("waiting", "running"), queue.get(job)
        eventually(lambda: queue.get(job).state == "running" and here.pid(), PATIENCE)
        sent = SIGNALS[given % len(SIGNALS)]
        time.sleep(random.uniform(0, 6))
        pid = here.pid()
        if given == kills or pid is None or queue.get(job).state != "running":
            eventually(lambda: queue.get(job).state not in ("running", "waiting"), PATIENCE)
        else:
            os.kill(pid, sent)
            eventually(lambda: queue.get(job).state != "running", PATIENCE)
            given += 1
            if queue.get(job).state in ("interrupted", "failed"):
                assert re.search(SAYS[sent], queue.get(job).error), queue.get(job).error
        project = queue.get(job).project
        if project is not None:
            assert Project.open(project).chunks >= finished
            finished = Project.open(project).chunks
        if queue.get(job).state != "finished":
            queue.resume(job)
    eventually(lambda: all(queue.get(one).state == "finished" for one in behind), PATIENCE)
    assert queue.get(behind[0]).ended <= queue.get(behind[1]).ended
    assert here.latents(job) == here.latents(unbroken)


@contextlib.contextmanager
def time_flies() -> Iterator[None]:
    """Silence counts tenfold."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker.Watch, "silent", property(lambda self: 10 * (time.monotonic() - self._last)))
        yield


def test_what_hangs_is_ended_and_said(studio: Callable[..., Studio]) -> None:
    here = studio(silence=20.0)
    queue = here.queue
    job, other = queue.add(request(seconds=30)).id, queue.add(request("other", 1)).id
    eventually(lambda: queue.get(job).done >= 1, PATIENCE)
    hung = here.pid()
    assert hung is not None
    os.kill(hung, signal.SIGSTOP)
    with time_flies():
        eventually(lambda: queue.get(job).state == "interrupted", PATIENCE)
    assert "gave no sign for" in queue.get(job).error and queue.get(job).done >= 1
    assert not psutil.pid_exists(hung)
    eventually(lambda: queue.get(other).state == "finished", PATIENCE)
    assert here.pid() != hung


def test_slow_is_no_hang_while_a_model_is_read() -> None:
    """A process that gets a hundredth of a busy processor works all the same; one that gets nothing hangs."""

    class Slow:
        spent = 0.0

        def cpu_times(self) -> object:
            return type("Times", (), {"user": self.spent, "system": 0.0})

        def io_counters(self) -> object:
            return type("Counters", (), {"read_bytes": 0})

    watch = worker.Watch(os.getpid(), limit=0.2)
    process = Slow()
    watch._process = process  # type: ignore[assignment]
    until = time.monotonic() + 1.5
    while time.monotonic() < until:
        process.spent += 0.02
        assert not watch.hangs()
        time.sleep(0.02)
    eventually(watch.hangs)


def test_what_hangs_holds_up_nobody_who_sends(studio: Callable[..., Studio]) -> None:
    """More than a pipe holds: a hanging worker reads none of it."""
    here = studio(silence=20.0)
    queue = here.queue
    job = queue.add(request(seconds=30)).id
    eventually(lambda: queue.get(job).done >= 1, PATIENCE)
    hung = here.pid()
    assert hung is not None
    os.kill(hung, signal.SIGSTOP)
    queue.redirect(job, Timeline(tuple(Segment(n, n + 1, f"{n} " + 1_900 * "word ") for n in range(30))))
    with time_flies():
        eventually(lambda: queue.get(job).state == "interrupted", PATIENCE)
    assert "gave no sign for" in queue.get(job).error


@pytest.mark.parametrize("printed", ["hello " * 99, "\\2\\0\\0\\0\\0\\0\\0\\0{}", "\\5\\0\\0\\0\\0\\0\\0\\0[1,2]"])
def test_a_worker_that_prints_what_is_no_report_is_replaced(
    studio: Callable[..., Studio], monkeypatch: pytest.MonkeyPatch, printed: str
) -> None:
    here = studio()
    with monkeypatch.context() as patched:
        code = f"import sys, time; sys.stdout.write('{printed}'); sys.stdout.write('x' * 999); sys.stdout.flush(); "
        patched.setattr(worker, "_BEGIN", code + "time.sleep(600)")
        job = here.queue.add(request(seconds=1)).id
        eventually(lambda: here.queue.get(job).state == "interrupted", PATIENCE)
    assert "sent what could not be read" in here.queue.get(job).error
    assert here.pid() is None
    here.queue.resume(job)
    eventually(lambda: here.queue.get(job).state == "finished", PATIENCE)


def test_a_card_that_is_gone_is_said_and_nothing_is_computed_without_it(studio: Callable[..., Studio]) -> None:
    """The tests' machine has none, whatever its app had found."""
    if devices.detect().kind == "cuda":
        pytest.skip("there is a card here, and it cannot be taken out")
    here = studio(cuda=True)
    job = here.queue.add(request(seconds=1)).id
    eventually(lambda: here.queue.get(job).state == "failed", PATIENCE)
    assert "card cannot be used any more" in here.queue.get(job).error
    asked = replace(request(seconds=1), overrides=replace(request().overrides, device="cpu"))
    on_processor = here.queue.add(asked).id
    eventually(lambda: here.queue.get(on_processor).state == "finished", PATIENCE)


def test_the_idle_end_never_takes_a_job_with_it(studio: Callable[..., Studio]) -> None:
    """A worker that is to end whenever it has nothing to do, while jobs come."""
    here = studio(idle=0.0)
    lane, ends = here.fleet.workers[""], threading.Event()

    def keep_freeing() -> None:
        while not ends.wait(0.01):
            lane.free()

    thread = threading.Thread(target=keep_freeing)
    thread.start()
    try:
        jobs = [here.queue.add(request(seconds=1, seed=n)).id for n in range(2)]
        eventually(lambda: all(here.queue.get(job).state not in ("waiting", "running") for job in jobs), PATIENCE)
    finally:
        ends.set()
        thread.join()
    assert [here.queue.get(job).state for job in jobs] == ["finished"] * 2


def test_a_job_that_comes_as_the_app_ends_is_paused_and_not_failed() -> None:
    """The app asks for a video and closes the pipe while the worker still starts."""
    pipe = io.BytesIO()
    job = {"do": "run", "request": request_to_json(request()), "projects": "x", "resume": None, "from_chunk": None}
    wire.Sender(pipe).send(job)
    done = subprocess.run(
        [sys.executable, "-m", "magi_lite.workers"], cwd=ROOT, input=pipe.getvalue(), capture_output=True, check=True
    )
    reports = io.BytesIO(done.stdout)
    frames = list(iter(lambda: wire.read_frame(reports), None))
    happened = [wire.unpack(*frame) for frame in frames if "event" in frame[0]]
    assert happened == [events.Stopped(None, None, 0, "paused")] and frames[-1][0] == {"done": True}


def test_a_worker_is_kept_warm_and_ended_when_idle_or_freed(studio: Callable[..., Studio]) -> None:
    here = studio(idle=5.0)
    queue = here.queue
    assert here.pid() is None  # nothing to do yet
    pids = []
    for n in range(2):
        job = queue.add(request(seed=n, seconds=1) if n else request(seconds=1)).id
        eventually(lambda: queue.get(job).state == "finished", PATIENCE)  # noqa: B023
        pids.append(here.pid())
    assert pids[0] is not None and pids[0] == pids[1]
    eventually(lambda: here.pid() is None, 60)
    job = queue.add(request(seconds=1)).id
    eventually(lambda: queue.get(job).state == "finished", PATIENCE)
    eventually(lambda: queue.running is None)
    fresh = here.pid()
    assert fresh not in (None, pids[0])
    assert here.fleet.free() == 1 and not psutil.pid_exists(fresh or 0)


def test_stop_pause_and_redirect_reach_it(studio: Callable[..., Studio]) -> None:
    here = studio()
    queue = here.queue
    job = queue.add(request(seconds=30)).id
    eventually(lambda: queue.get(job).done >= 1, PATIENCE)
    queue.redirect(job, Timeline((), "a small blue box falls"))
    eventually(lambda: queue.live(job).snapshot()["redirected"], PATIENCE)  # type: ignore[union-attr]
    queue.pause(job)
    eventually(lambda: queue.get(job).state == "paused", PATIENCE)
    queue.resume(job)
    eventually(lambda: queue.get(job).state == "running", PATIENCE)
    queue.stop(job)
    eventually(lambda: queue.get(job).state == "stopped", PATIENCE)
    project = Project.open(queue.get(job).project or "")
    assert project.status == "stopped" and project.chunks == queue.get(job).done


def test_what_fails_there_fails_here_with_the_same_sentence(studio: Callable[..., Studio]) -> None:
    here = studio()
    job = here.queue.add(request(seconds=1, model="4.5B-distill")).id
    eventually(lambda: here.queue.get(job).state == "failed", PATIENCE)
    assert "no weights of 4.5B-distill" in here.queue.get(job).error and here.pid() is not None


@pytest.fixture
def small_group() -> Iterator[tuple[Path, Path]]:
    """A control group of its own: its folder, and the file that limits its memory in bytes."""
    for root, limit in (
        (Path("/sys/fs/cgroup"), "memory.max"),
        (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"),
    ):
        group = root / f"magi-lite-test-{os.getpid()}"
        with contextlib.suppress(OSError):
            group.mkdir()
            if os.access(group / limit, os.W_OK):
                break
            group.rmdir()
    else:
        pytest.skip("control groups cannot be written here, so the system's out-of-memory killer cannot be provoked")
    yield group, group / limit
    eventually(lambda: not (group / "cgroup.procs").read_text().split(), PATIENCE)
    group.rmdir()


def test_the_out_of_memory_killer_is_named(studio: Callable[..., Studio], small_group: tuple[Path, Path]) -> None:
    """The worker may take less than its libraries need; with more, it goes on."""
    group, limit = small_group
    limit.write_text(str(96 << 20))
    here = studio()
    queue = here.queue
    job = queue.add(request(seconds=1)).id
    eventually(lambda: here.pid(), PATIENCE)
    (group / "cgroup.procs").write_text(str(here.pid()))
    eventually(lambda: queue.get(job).state == "interrupted", PATIENCE)
    said = queue.get(job).error
    assert re.search(r"Memory ran out and the system ended the worker \(96 MB are allowed here[,)]", said), said
    assert all(int(free) < 96 for free in re.findall(r"(\d+) MB were free", said)) and "GB" not in said, said
    queue.resume(job)
    eventually(lambda: queue.get(job).state == "finished", PATIENCE)


SERVER = """
import sys, time
from pathlib import Path
from tests.workers.conftest import Studio, request
studio = Studio(Path(sys.argv[1]))
job = studio.queue.add(request(seconds=40)).id
while studio.queue.get(job).done < 1:
    time.sleep(0.05)
print(studio.pid(), studio.queue.get(job).project, flush=True)
time.sleep(600)
"""


def serve(folder: Path) -> subprocess.Popen[str]:
    """An app's queue at work, which heeds hang-ups also where the tests do not, as under nohup."""
    return subprocess.Popen(
        [sys.executable, "-c", SERVER, str(folder)], cwd=ROOT, stdout=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),
    )  # fmt: skip


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
def test_a_worker_whose_app_died_ends_its_second_and_itself(tmp_path: Path, how: signal.Signals) -> None:
    server = serve(tmp_path)
    assert server.stdout
    pid, folder = server.stdout.readline().split(" ", 1)
    server.send_signal(how)
    server.wait()
    eventually(lambda: has_ended(int(pid)), PATIENCE)
    project = Project.open(folder.strip())
    assert project.status == "paused" and 1 <= project.chunks < 40


def has_ended(pid: int) -> bool:
    """Whether a process that is nobody's child any more is gone; some systems' first process leaves a zombie."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_a_resume_waits_for_the_worker_of_an_app_that_died(studio: Callable[..., Studio], tmp_path: Path) -> None:
    server = serve(tmp_path)
    assert server.stdout
    pid = int(server.stdout.readline().split()[0])
    os.kill(pid, signal.SIGSTOP)  # it takes long to end its second
    server.kill()
    server.wait()
    here = studio()
    (job,) = here.queue.jobs()
    assert job.state == "interrupted"
    here.queue.resume(job.id)
    eventually(lambda: here.pid(), PATIENCE)
    time.sleep(2)
    os.kill(pid, signal.SIGCONT)
    eventually(lambda: here.queue.get(job.id).done > job.done + 1, PATIENCE)
    here.queue.stop(job.id)
    eventually(lambda: here.queue.get(job.id).state == "stopped", PATIENCE)
    eventually(lambda: has_ended(pid), PATIENCE)


MEMORY = deaths.Memory(8_100 << 20, 200 << 20)


@pytest.mark.parametrize(
    ("status", "options", "said"),
    [
        (
            -9,
            {"for_memory": True},
            "Memory ran out and the system ended the worker (it held 7.9 GB and 200 MB were free)",
        ),
        (-9, {}, "Another program or the system ended the worker with SIGKILL"),
        (-15, {}, "SIGTERM"),
        (-11, {}, "crashed (SIGSEGV)"),
        (-7, {}, "A file that the worker was reading was cut short, or its disk failed (SIGBUS)"),
        (-6, {}, "A library in the worker gave up (SIGABRT"),
        (0xC0000005, {}, "crashed (SIGSEGV)"),
        (3, {}, "ended unexpectedly (exit code 3"),
        (-62, {}, "ended unexpectedly (signal 62"),
        (None, {}, "ended unexpectedly"),
    ],
)
def test_what_is_said_of_a_death(status: int | None, options: dict[str, bool], said: str) -> None:
    sentence = deaths.describe(status, MEMORY, **options)
    assert said in sentence and "Press Resume" in sentence and "\n" not in sentence
    assert "7.9 GB" in sentence


@pytest.mark.parametrize(
    ("memory", "limit", "said"),
    [
        (deaths.Memory(), None, "the worker; close"),  # nobody has looked yet
        (deaths.Memory(30_000_000, 23_000_000_000), None, "the worker; close"),  # a look before it took memory
        (deaths.Memory(30_000_000, 23_000_000_000), 96 << 20, "the worker (96 MB are allowed here); close"),
        (MEMORY, 8 << 30, "the worker (8.0 GB are allowed here, it held 7.9 GB and 200 MB were free); close"),
    ],
)
def test_figures_that_contradict_the_cause_are_left_out(memory: deaths.Memory, limit: int | None, said: str) -> None:
    sentence = deaths.describe(-9, memory, for_memory=True, limit=limit)
    assert f"Memory ran out and the system ended {said} other programs" in sentence
