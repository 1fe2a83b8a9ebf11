"""Many timelines with one command: what fails is named, what is interrupted goes on, nothing is made twice."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from PIL import Image

from magi_lite.cli import main
from magi_lite.cli.table import Row, lines
from magi_lite.library import read_settings
from magi_lite.project import Project
from magi_lite.request.json import request_to_json
from quant.__main__ import main as quant_main
from tests.workers.conftest import request

REPOSITORY = Path(__file__).parents[2]
SECONDS = 12
"""Of a video that is interrupted: still in the making when its first second is heard of, on a fast machine, too."""
SMALL = ("--preset", "demo", "--size", "32x32", "--window", "1")


@pytest.fixture
def timelines(tmp_path: Path) -> dict[str, Path]:
    """One file of each form."""
    files = {
        "lines.txt": "a large red ball moves right\na large red ball falls\n",
        "shorthand.txt": "[0s-1s: a small blue box falls] [1s-2s: it rises]",
        "blocks.json": json.dumps({"segments": [{"start": 0, "end": 1, "prompt": "a green ball moves up"}]}),
        "settings.json": json.dumps(request_to_json(request("a yellow ball", 1, seed=77))),
        "broken.json": '{"segments": [{"start": 3, "prompt": "a ball"}]}',
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    return {name.partition(".")[0]: tmp_path / name for name in files}


def arguments(folder: Path, *files: Path | str) -> list[str]:
    return ["render", *map(str, files), *SMALL, "--out", str(folder / "videos"), "--projects", str(folder / "runs")]


def runs(folder: Path) -> list[Project]:
    return [Project.open(path.parent) for path in sorted((folder / "runs").glob("*/project.json"))]


def latents(folder: Path) -> dict[str, list[bytes]]:
    """Finished seconds by the prompts of their runs."""
    found = {}
    for project in runs(folder):
        prompts = str(project.request.timeline.to_json())
        assert prompts not in found, "made twice"
        found[prompts] = [project.read_latents(second).numpy().tobytes() for second in range(project.chunks)]
    return found


def test_every_form_is_made_once_and_what_fails_is_named(
    tmp_path: Path, timelines: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    command = arguments(tmp_path, *timelines.values(), tmp_path / "nothing.txt")
    assert main(command) == 2
    shown = capsys.readouterr()
    made = {name: tmp_path / "videos" / f"{name}.mp4" for name in ("lines", "shorthand", "blocks", "settings")}
    assert sorted(shown.out.split()) == sorted(map(str, made.values()))
    assert "broken: The segment 1 lacks 'end'" in shown.err and "nothing: There is no file" in shown.err
    assert "2 of 6 videos could not be made" in shown.err and "lines: finished, 2 of 2 seconds" in shown.err
    assert {name: read_settings(path).seconds for name, path in made.items()} == {
        "lines": 2, "shorthand": 2, "blocks": 1, "settings": 1,
    }  # fmt: skip
    assert read_settings(made["settings"]).seed == 77
    before = latents(tmp_path), {name: path.stat().st_mtime_ns for name, path in made.items()}

    timelines["broken"].write_text("a ball", encoding="utf-8")
    made["blocks"].unlink()
    assert main(command) == 2  # the same again: one is mended, one video is gone
    assert {name: path.stat().st_mtime_ns for name, path in made.items() if name != "blocks"} == {
        name: changed for name, changed in before[1].items() if name != "blocks"
    }
    assert made["blocks"].is_file() and (tmp_path / "videos" / "broken.mp4").is_file()
    after = latents(tmp_path)
    assert len(after) == 5 and before[0].items() <= after.items()


def test_other_files_of_the_same_name_are_kept(
    tmp_path: Path, timelines: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    dear = tmp_path / "videos" / "blocks.mp4"
    dear.parent.mkdir()
    dear.write_bytes(b"dear to someone")
    command = arguments(tmp_path, timelines["blocks"])
    assert main(command) == 4 and dear.read_bytes() == b"dear to someone"
    assert "add --overwrite" in capsys.readouterr().err
    assert main([*command, "--overwrite"]) == 0 and read_settings(dear).seconds == 1
    timelines["blocks"].write_text("another prompt", encoding="utf-8")
    assert main(command) == 4 and len(runs(tmp_path)) == 1


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([], "nothing to make"),
        (["a/x.txt", "b/x.json"], "both become x.mp4"),
        (["x.txt", "--size", "7"], "write WIDTHxHEIGHT"),
        (["\0"], "TIMELINE"),
    ],
)
def test_what_cannot_be_made_is_said_before_anything_starts(
    given: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("x.txt").write_text("a ball", encoding="utf-8")
    assert main(["render", *given]) == 2
    assert said in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["x.txt"]


def start(folder: Path, *files: Path | str, code: str = "") -> subprocess.Popen[str]:
    call = [sys.executable, "-c", f"import sys; {code}\nfrom magi_lite.cli import main\nsys.exit(main(sys.argv[1:]))"]
    return subprocess.Popen(
        [*call, *arguments(folder, *files)], cwd=REPOSITORY, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip


def read_until(run: subprocess.Popen[str], pattern: str) -> str:
    assert run.stderr
    seen = ""
    for line in run.stderr:
        seen += line
        if re.search(pattern, line):
            return seen
    raise AssertionError(seen)


@pytest.mark.parametrize("how", ["SIGINT", "SIGTERM", "SIGKILL"])
def test_interrupted_it_goes_on_to_the_same_bits(tmp_path: Path, how: str) -> None:
    files = [tmp_path / "a.txt", tmp_path / "b.txt"]
    for file in files:
        file.write_text(f"[0s-{SECONDS}s: {file.stem} red ball]", encoding="utf-8")
    run = start(tmp_path, *files)
    read_until(run, f"a: [0-9]+ of {SECONDS} seconds made")
    run.send_signal(getattr(signal, how))
    _, err = run.communicate(timeout=120)
    assert run.returncode == (-9 if how == "SIGKILL" else 130), err
    (first,) = runs(tmp_path)
    kept = first.read_latents(0).numpy().tobytes()
    again = start(tmp_path, *files)
    out, err = again.communicate(timeout=600)
    assert again.returncode == 0, err
    assert out.split() == [str(tmp_path / "videos" / f"{name}.mp4") for name in "ab"]
    made = runs(tmp_path)
    assert [project.chunks for project in made] == [SECONDS, SECONDS]
    assert made[0].read_latents(0).numpy().tobytes() == kept
    seeds = [project.request.seed for project in made]
    for file, seed in zip(files, seeds, strict=True):
        call = ["generate", "--timeline", str(file), *SMALL, "--seed", str(seed), "--projects", str(tmp_path / "whole")]
        assert main(call) == 0
    whole = [Project.open(path.parent) for path in sorted((tmp_path / "whole").glob("*/project.json"))]
    for one, other in zip(made, whole, strict=True):
        last = SECONDS - 1
        assert one.read_latents(last).numpy().tobytes() == other.read_latents(last).numpy().tobytes()


def test_a_damaged_queue_file_loses_no_run(tmp_path: Path, timelines: dict[str, Path]) -> None:
    picture = tmp_path / "first.png"
    Image.new("RGB", (32, 32), "red").save(picture)
    long = tmp_path / "long.txt"
    long.write_text(f"[0s-{SECONDS}s: a red ball]", encoding="utf-8")
    command = [timelines["blocks"], timelines["lines"], long, "--image", picture]
    run = start(tmp_path, *command)
    read_until(run, f"long: [0-9]+ of {SECONDS} seconds made")
    run.kill()
    run.communicate(timeout=120)
    before = {name: kept[0] for name, kept in latents(tmp_path).items()}
    (tmp_path / "videos" / "lines.mp4").unlink()
    queue = tmp_path / "videos" / ".queue" / "queue.sqlite"
    for beside in queue.parent.glob("queue.sqlite-*"):
        beside.unlink()
    queue.write_bytes(os.urandom(20_000))
    again = start(tmp_path, *command)
    out, err = again.communicate(timeout=600)
    assert again.returncode == 0, err
    assert "The queue's file was damaged" in err and len(out.split()) == 3
    assert len(list(queue.parent.glob("queue.sqlite.damaged-*"))) == 1
    made = latents(tmp_path)  # none was made twice
    assert {name: kept[0] for name, kept in made.items()} == before and len(before) == 3
    assert sorted(len(kept) for kept in made.values()) == [1, 2, SECONDS]
    assert (tmp_path / "videos" / "lines.mp4").is_file()


def test_a_new_folder_asks_nothing_of_other_folders_runs(tmp_path: Path, timelines: dict[str, Path]) -> None:
    assert main(arguments(tmp_path, timelines["blocks"])) == 0
    elsewhere = ["render", str(timelines["blocks"]), *SMALL, "--out", str(tmp_path / "b"), "--projects"]
    assert main([*elsewhere, str(tmp_path / "runs")]) == 0
    assert len(runs(tmp_path)) == 2


def test_a_worker_that_dies_is_replaced(tmp_path: Path, timelines: dict[str, Path]) -> None:
    file = tmp_path / "long.txt"
    file.write_text(f"[0s-{SECONDS}s: a red ball]", encoding="utf-8")
    run = start(tmp_path, file, timelines["blocks"])
    read_until(run, f"long: [0-9]+ of {SECONDS} seconds made")
    (worker,) = psutil.Process(run.pid).children()
    os.kill(worker.pid, signal.SIGKILL)
    out, err = run.communicate(timeout=600)
    assert run.returncode == 0, err
    assert len(out.split()) == 2 and [project.chunks for project in runs(tmp_path)] == [SECONDS, 1]


def test_names_of_files_are_shown_on_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a\nb\x1b[2J.txt").write_text("a ball", encoding="utf-8")
    assert main([*arguments(tmp_path, tmp_path / "a\nb\x1b[2J.txt"), "--image", str(tmp_path / "no\n.png")]) == 2
    assert capsys.readouterr().err.splitlines() == [
        f"a\\nb\\x1b[2J: There is no file {tmp_path}/no\\n.png; give the path of an image.",
        "1 of 1 video could not be made.",
    ]
    assert quant_main([str(tmp_path / "no\n"), str(tmp_path / "o"), "--scheme", "int8"]) == 1
    assert capsys.readouterr().err.startswith(f"{tmp_path}/no\\n does not exist;")


def test_without_ray_it_says_what_to_install(tmp_path: Path, timelines: dict[str, Path]) -> None:
    run = start(tmp_path, timelines["blocks"], Path("--ray"), code="sys.modules['ray'] = None")
    _, err = run.communicate(timeout=60)
    assert (run.returncode, err) == (
        2,
        "error: --ray needs the package ray; install it with: pip install magi-lite[ray]\n",
    )
    assert not (tmp_path / "videos").exists()


@pytest.mark.thorough
def test_a_batch_on_a_cluster(
    tmp_path: Path,
    timelines: dict[str, Path],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("ray")
    monkeypatch.setenv("RAY_worker_niceness", "0")  # else a busy machine keeps its tasks waiting
    from ray.cluster_utils import Cluster as Local

    local = Local(initialize_head=True, head_node_args={"num_cpus": 0})
    try:
        for _ in range(2):
            local.add_node(num_cpus=1)
        local.wait_for_nodes()
        assert main([*arguments(tmp_path, *timelines.values()), "--ray", local.address]) == 2
    finally:
        local.shutdown()
    assert len(capsys.readouterr().out.split()) == 4 and len(latents(tmp_path)) == 4
    assert main(arguments(tmp_path, *timelines.values())) == 2 and len(latents(tmp_path)) == 4  # and none again here


def test_a_table_fits_its_terminal() -> None:
    states = ["finished"] * 40 + ["running"] * 2 + ["waiting"] * 60 + ["failed"]
    rows = [Row(f"video number {n} {'x' * 200}", state, state, state) for n, state in enumerate(states)]
    drawn = lines(rows, 80, 24)
    assert len(drawn) < 24 and max(map(len, drawn)) < 80
    assert sum("running" in line for line in drawn[:-1]) == 2 and sum("failed" in line for line in drawn[:-1]) == 1
    assert drawn[-1] == "103 videos: 2 running, 1 failed, 60 waiting, 40 finished"
    assert lines(rows[:2], 80, 24)[-1] == "2 videos: 2 finished"


def test_a_terminal_is_drawn_anew_in_place(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from magi_lite.cli import table

    monkeypatch.setattr(table, "_can_move_up", lambda: True)
    shown = table.Table()
    shown.show([Row("a", "waiting", "waiting", "")])
    shown.show([Row("a", "running", "step 1", "")])
    assert capsys.readouterr().err.split("\x1b[2A\r\x1b[J")[1].startswith("a  step 1\n1 video: 1 running")


def test_two_batches_in_one_folder_and_two_apps_on_one_queue_are_refused(
    tmp_path: Path, timelines: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    with contextlib.closing(_Held(tmp_path / "videos" / ".queue")):
        assert main(arguments(tmp_path, timelines["blocks"])) == 4
        said = rf"Another MAGI Lite \(process \d+\) works in {tmp_path / 'videos'}; end it, or choose another folder"
        assert re.search(said, capsys.readouterr().err)
    assert main(arguments(tmp_path, timelines["blocks"])) == 0
    with contextlib.closing(_Held(tmp_path / "app" / ".queue")):
        assert main(["app", "--projects", str(tmp_path / "app"), "--port", "1"]) == 4
        assert f"works in {tmp_path / 'app'}; end it" in capsys.readouterr().err


class _Held:
    """Another process that works in a folder."""

    def __init__(self, folder: Path) -> None:
        code = "import sys; from pathlib import Path; from magi_lite.jobs.queue import alone_in\n"
        code += "lock = alone_in(Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"
        self._process = subprocess.Popen(
            [sys.executable, "-c", code, str(folder)], cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self._process.stdout and self._process.stdout.readline() == b"held\n"

    def close(self) -> None:
        self._process.communicate()
