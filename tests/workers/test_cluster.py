"""A Ray cluster of two nodes on this machine: one dies in the middle, and every video is finished to the same bits."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from magi_lite.cli import render
from magi_lite.control import RunControl
from magi_lite.errors import InputError
from magi_lite.jobs import JobQueue
from magi_lite.machine import cards
from magi_lite.machine.cards import Device
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


class Nodes(Cluster):
    """A cluster whose nodes are only described."""

    def __init__(self, device: Device, models: tuple[str, ...]) -> None:
        self._cards, self.seen, self._found = int(device.kind == "cuda"), [], (device, models)

    def look(self, models_folder: Path | None = None) -> tuple[Device, tuple[str, ...]]:
        self.seen.append(models_folder)
        return self._found


CARD = cards.known_card("RTX 4090")


@pytest.mark.parametrize(
    "options, device, present, model, preset",
    [
        ({}, CARD, ("4.5B-distill", "4.5B-base"), "4.5B-distill", "24gb"),
        ({}, CARD, ("4.5B-base",), "4.5B-base", "24gb"),
        ({}, CARD, (), "demo", "demo"),
        ({}, cards.cpu_device(), (), "demo", "demo"),
        ({"preset": "12gb"}, CARD, ("4.5B-base",), "4.5B-base", "12gb"),
        ({"model": "4.5B-base"}, CARD, (), "4.5B-base", "24gb"),
        ({"model": "/of/the/nodes"}, CARD, (), "/of/the/nodes", "24gb"),
        ({"model": "4.5B-distill", "preset": "8gb"}, CARD, (), "4.5B-distill", "8gb"),
    ],
)
def test_the_nodes_disk_and_card_decide_not_this_machines(
    options: dict[str, str], device: Device, present: tuple[str, ...], model: str, preset: str, tmp_path: Path
) -> None:
    """There are no weights and no card here."""
    (tmp_path / "a.txt").write_text("a red ball")
    nodes = Nodes(device, present)
    here = {"models_folder": str(tmp_path / "none")}
    wanted, errors = render.read([tmp_path / "a.txt"], options | here, render.node_of(nodes, options | here))
    assert not errors and (wanted["a"].request.model, wanted["a"].request.preset) == (model, preset)
    assert nodes.seen == ([] if len(options) == 2 else [tmp_path / "none"])


def test_a_folder_of_the_nodes_is_named_in_full(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a red ball")
    for model, node in (("weights", {}), ("/of/the/nodes", None), ("4.5B-distil", {})):
        _, errors = render.read([tmp_path / "a.txt"], {"model": model, "preset": "24gb"}, node)
        said = str(errors["a"])
        assert said.startswith(f"There is no model '{model}'") and ("of the nodes" in said) == (node is not None)


def test_a_profile_without_a_card_keeps_no_work_from_the_nodes_cards() -> None:
    asked = replace(request(), preset="cpu")
    assert Nodes(CARD, ())._for_nodes(asked).preset == "auto"
    assert Nodes(cards.cpu_device(), ())._for_nodes(asked) == asked
    assert Nodes(CARD, ())._for_nodes(request()) == request()


@pytest.mark.thorough
def test_orders_reach_a_job_on_the_cluster_and_it_resumes(nodes: Any, tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, nodes.address)
    nodes.add_node(num_cpus=1)
    nodes.wait_for_nodes()
    device, present = cluster.look(tmp_path / "models")
    assert (device.kind, present) == ("cpu", ())
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
    error = queue.get(failing).error
    assert re.match(r"On the node [\d.]+: There are no weights of 4.5B-distill", error), error
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
