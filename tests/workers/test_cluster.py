"""A Ray cluster of two nodes on this machine: one dies in the middle, and every video is finished to the same bits."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from magi_lite.control import RunControl
from magi_lite.errors import InputError
from magi_lite.jobs import JobQueue
from magi_lite.project import Project
from magi_lite.timeline import Timeline
from magi_lite.workers import cluster
from magi_lite.workers.cluster import Cluster
from tests.jobs.test_queue import eventually
from tests.workers.conftest import PATIENCE, request

ray = pytest.importorskip("ray")


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A head that computes nothing; tasks of its nodes do not yield to whatever else a busy machine does."""
    monkeypatch.setenv("RAY_worker_niceness", "0")
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
def test_a_node_that_dies_costs_the_second_in_the_making() -> None:
    """`benchmarks/results/cluster.json` keeps the figures."""
    from benchmarks import cluster

    found = cluster.measure()
    assert found["finished"] == cluster.VIDEOS and found["bits_equal"], found
    assert found["seconds_made"] == cluster.VIDEOS * cluster.SECONDS and not found["seconds_made_again"], found
    assert found["nodes_killed"] == 1 and found["nodes_lost_reported"] == 1, found


def test_a_node_gets_the_pictures_of_blocks_as_files_of_its_own(tmp_path: Path) -> None:
    """As a job is handed out and as it is redirected; equal names stay apart, and orders are plain data."""
    for number in (1, 2):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "start.png").write_bytes(b"picture %d" % number)
    paths = [tmp_path / "1" / "start.png", tmp_path / "2" / "start.png", tmp_path / "gone.png"]
    blocks = [{"start": n, "end": n + 1, "prompt": "a", "image": str(path)} for n, path in enumerate(paths)]
    timeline = Timeline.from_json({"segments": blocks})
    order = {"do": "redirect", "timeline": timeline.to_json(), "pictures": cluster._pictures(timeline)}
    control = RunControl()
    shutil.rmtree(tmp_path / "1")
    cluster._obey(order, control, tmp_path / "node")
    taken = control.take_timeline()
    assert taken is not None
    first, second, third = (segment.image for segment in taken.segments)
    assert first is not None and second is not None and third == paths[2]
    assert (first.read_bytes(), second.read_bytes()) == (b"picture 1", b"picture 2")
    assert first.is_relative_to(tmp_path / "node") and first.name == second.name == "start.png"


def test_what_a_run_has_grown_by_is_sent_alone_and_names_may_hold_anything(tmp_path: Path) -> None:
    here, there, sent = tmp_path / "here", tmp_path / "there", cluster._Known()
    for name in ("inputs/cat@2x.png", "exports/a@1.mp4", "video.mp4"):
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).write_bytes(b"first")
    sizes = []
    for _ in range(3):
        files, gone = cluster._changes(here, sent)
        sizes.append(sum(map(len, files.values())))
        for name, data in files.items():
            cluster._write(there, name, data)
        for name in ("exports/a@1.mp4", "video.mp4"):
            with (here / name).open("ab") as file:
                file.write(b" more")
    cluster._write(there, "inputs/cat@2x.png", b"first")
    files, gone = cluster._changes(here, sent)
    for name, data in files.items():
        cluster._write(there, name, data)
    assert sizes == [15, 10, 10] and gone == []
    assert cluster._contents(there) == cluster._contents(here)


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
    ray.kill(cluster._desk, no_restart=False)  # whatever ends it: it comes back, and the next job is made
    after = queue.add(request(seconds=1)).id
    eventually(lambda: queue.get(after).state in ("finished", "interrupted", "failed"), PATIENCE)
    if queue.get(after).state == "interrupted":
        queue.resume(after)
    eventually(lambda: queue.get(after).state == "finished", PATIENCE)
    eventually(lambda: not queue.running, PATIENCE)  # else the end of the connection may be that of the program
    ray.shutdown()
    late = queue.add(request(seconds=1)).id
    eventually(lambda: queue.get(late).state == "interrupted", PATIENCE)
    assert "connection to the cluster has ended" in queue.get(late).error
    queue.close()
