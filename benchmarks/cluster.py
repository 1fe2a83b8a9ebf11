"""Six videos on two nodes of a Ray cluster, one of which is killed in the middle: `python benchmarks/cluster.py`.

The same videos are made before without Ray, by one worker process, and compared bit for bit. Both nodes are on this
machine and have one processor each: what the wall times show is what the cluster costs, not what it gains.
"""

from __future__ import annotations

import argparse
import collections
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.figures import RESULTS, latents, rounded, save
from magi_lite import events
from magi_lite.control import RunControl
from magi_lite.jobs import JobQueue
from magi_lite.jobs.job import Job
from magi_lite.jobs.queue import Run
from magi_lite.request.build import build
from magi_lite.request.request import GenerationRequest
from magi_lite.workers.cluster import Cluster
from magi_lite.workers.fleet import Fleet
from magi_lite.workers.worker import Settings

VIDEOS, SECONDS = 6, 5
PROMPTS = ("a large red ball moves right", "a small blue box falls")
DONE_BEFORE = 2
"""Finished seconds of a video when a node is killed."""
PATIENCE = 1800.0
ENDED = ("finished", "failed", "interrupted")


def requests() -> list[GenerationRequest]:
    """Six videos over two prompts, of the demo model at its fastest."""
    small = {"preset": "demo", "quality": "draft", "size": "32x32", "seconds": SECONDS}
    return [build(prompt=PROMPTS[number % 2], seed=number, **small) for number in range(VIDEOS)]


def measure() -> dict[str, Any]:
    """All figures; `finished`, `bits_equal` and `seconds_made_again` say whether all was well."""
    os.environ.setdefault("RAY_worker_niceness", "0")  # else nodes yield to all else, and the run without Ray does not
    import ray
    from ray.cluster_utils import Cluster as Local

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        fleet = Fleet(Settings(folder / "alone", threads=1))
        alone, alone_s = work_off(folder / "alone", fleet.runners, lambda queue, ids: None)
        fleet.close()
        local = Local(initialize_head=True, head_node_args={"num_cpus": 0})
        made, notices = collections.Counter[tuple[str, int]](), list[str]()
        try:
            cluster = Cluster(folder / "ray", local.address)  # from the head, which nobody takes away
            victim = local.add_node(num_cpus=1)
            local.add_node(num_cpus=1)
            local.wait_for_nodes()
            lost_at: list[float] = []

            def lose_one(queue: JobQueue, ids: list[str]) -> None:
                if not lost_at and any(queue.get(one).done >= DONE_BEFORE for one in ids[:2]):
                    lost_at.append(time.monotonic())
                    local.remove_node(victim, allow_graceful=False)
                    local.add_node(num_cpus=1)

            counted = _counting(cluster.run, made, notices)
            shared, ray_s = work_off(folder / "ray", dict.fromkeys(("one", "two"), counted), lose_one)
        finally:
            ray.shutdown()
            local.shutdown()
    return {
        "cores": os.cpu_count(), "load_average": os.getloadavg()[0], "ray": ray.__version__, "videos": VIDEOS,
        "seconds_of_video": VIDEOS * SECONDS, "nodes": 2, "nodes_killed": len(lost_at),
        "nodes_lost_reported": sum("A node of the cluster was lost" in notice for notice in notices),
        "finished": len(shared), "bits_equal": shared == alone, "seconds_made": len(made),
        "seconds_made_again": sum(made.values()) - len(made), "wall_s": ray_s, "wall_without_ray_s": alone_s,
    }  # fmt: skip


def work_off(
    folder: Path, runners: dict[str, Run], meanwhile: Callable[[JobQueue, list[str]], None]
) -> tuple[list[list[bytes]], float]:
    """The latents of all videos that were finished, in their order, and the seconds that it took."""
    queue = JobQueue(folder / ".queue", runners)
    ids = [queue.add(request).id for request in requests()]
    began = time.monotonic()
    queue.start()
    while not all(queue.get(one).state in ENDED for one in ids):
        if time.monotonic() - began > PATIENCE:
            raise TimeoutError("the videos were not made in time")
        meanwhile(queue, ids)
        time.sleep(0.05)
    took = time.monotonic() - began
    jobs = [queue.get(one) for one in ids]
    queue.close()
    return [latents(job.project) for job in jobs if job.state == "finished" and job.project], took


def _counting(run: Run, made: collections.Counter[tuple[str, int]], notices: list[str]) -> Run:
    """A runner that notes which seconds were made, and the notices."""

    def follow(job: Job, control: RunControl) -> Iterator[events.Event]:
        for event in run(job, control):
            if isinstance(event, events.ChunkFinished):
                made[job.id, event.chunk] += 1
            elif isinstance(event, events.Notice):
                notices.append(event.message)
            yield event

    return follow


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=RESULTS / "cluster.json")
    arguments = parser.parse_args()
    print(save(arguments.out, rounded(measure())))


if __name__ == "__main__":
    main()
