"""A Ray cluster of two nodes on this machine: one dies in the middle, and every video is finished to the same bits."""

from __future__ import annotations

import collections
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from magi_lite import events
from magi_lite.control import RunControl
from magi_lite.errors import InputError
from magi_lite.jobs import JobQueue
from magi_lite.jobs.job import Job
from magi_lite.project import Project
from magi_lite.workers.cluster import Cluster
from tests.jobs.test_queue import eventually
from tests.workers.conftest import PATIENCE, Studio, request

ray = pytest.importorskip("ray")
VIDEOS, SECONDS = 6, 5
PROMPTS = ("a large red ball moves right", "a small blue box falls")


def latents(folder: Path) -> list[bytes]:
    project = Project.open(folder)
    return [project.read_latents(second).numpy().tobytes() for second in range(project.chunks)]


@pytest.fixture
def nodes() -> Iterator[Any]:
    """A head that computes nothing, and two nodes for one job each."""
    from ray.cluster_utils import Cluster as Local

    local = Local(initialize_head=True, head_node_args={"num_cpus": 0})
    yield local
    ray.shutdown()
    local.shutdown()


def test_without_the_package_or_a_cluster_it_says_what_to_do(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['ray'] = None\n"
        "from pathlib import Path\n"
        "from magi_lite.workers.cluster import Cluster\n"
        "try: Cluster(Path('x'))\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "InputError --ray needs the package ray; install it with: pip install magi-lite[ray]"
    with pytest.raises(InputError, match="ray start --head"):
        Cluster(tmp_path, "127.0.0.1:1")


@pytest.mark.thorough
def test_a_node_that_dies_costs_the_second_in_the_making(
    nodes: Any, tmp_path: Path, studio: Callable[..., Studio]
) -> None:
    here = studio()
    wanted = {}
    for number in range(VIDEOS):
        job = here.queue.add(request(PROMPTS[number % 2], SECONDS, seed=number)).id
        eventually(lambda: here.queue.get(job).state == "finished", PATIENCE)  # noqa: B023
        wanted[number] = here.latents(job)
    here.close()

    cluster = Cluster(tmp_path / "cluster", nodes.address)  # from the head, which nobody takes away
    victim = nodes.add_node(num_cpus=1)
    nodes.add_node(num_cpus=1)
    nodes.wait_for_nodes()
    made: collections.Counter[tuple[str, int]] = collections.Counter()
    notices: list[str] = []

    def counted(job: Job, control: RunControl) -> Iterator[events.Event]:
        for event in cluster.run(job, control):
            if isinstance(event, events.ChunkFinished):
                made[job.id, event.chunk] += 1
            elif isinstance(event, events.Notice):
                notices.append(event.message)
            yield event

    assert Cluster(tmp_path, nodes.address).places == 2
    queue = JobQueue(tmp_path / "cluster" / ".queue", dict.fromkeys(("one", "two"), counted))
    ids = [queue.add(request(PROMPTS[number % 2], SECONDS, seed=number)).id for number in range(VIDEOS)]
    queue.start()
    eventually(lambda: any(queue.get(one).done >= 2 for one in ids[:2]), PATIENCE)
    nodes.remove_node(victim, allow_graceful=False)
    nodes.add_node(num_cpus=1)
    eventually(lambda: all(queue.get(one).state in ("finished", "failed", "interrupted") for one in ids), 3 * PATIENCE)
    assert [queue.get(one).state for one in ids] == ["finished"] * VIDEOS, [queue.get(one).error for one in ids]
    for number, one in enumerate(ids):
        assert latents(queue.get(one).project or Path()) == wanted[number]
    assert set(made.values()) == {1} and len(made) == VIDEOS * SECONDS  # no finished second was made again
    assert sum("A node of the cluster was lost" in notice for notice in notices) == 1
    queue.close()


@pytest.mark.thorough
def test_orders_reach_a_job_on_the_cluster_and_it_resumes(nodes: Any, tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, nodes.address)
    nodes.add_node(num_cpus=1)
    nodes.wait_for_nodes()
    queue = JobQueue(tmp_path / ".queue", cluster.runners)
    queue.start()
    job = queue.add(request(seconds=20)).id
    eventually(lambda: queue.get(job).done >= 1, PATIENCE)
    assert Project.open(queue.get(job).project or Path()).status == "running"
    queue.pause(job)
    eventually(lambda: queue.get(job).state == "paused", PATIENCE)
    done = queue.get(job).done
    video = queue.get(job).video
    assert video is not None and video.is_relative_to(tmp_path) and video.stat().st_size > 0
    queue.resume(job)
    eventually(lambda: queue.get(job).done > done, PATIENCE)
    queue.stop(job)
    eventually(lambda: queue.get(job).state == "stopped", PATIENCE)
    failing = queue.add(request(seconds=1, model="4.5B-distill")).id
    eventually(lambda: queue.get(failing).state == "failed", PATIENCE)
    assert "no weights of 4.5B-distill" in queue.get(failing).error
    time.sleep(0.1)
    queue.close()
