"""Processes that die at every single step of writing, and what is found afterwards."""

import contextlib
import errno
import os
import re
import signal
import subprocess
import sys
import textwrap
import time

import av
import pytest

from magi_lite.errors import InputError, OutputError
from magi_lite.project import Project

from .conftest import folders, in_child, run

STEPS = ("open", "write", "fsync", "replace", "rename", "unlink", "link", "mkdir", "ftruncate", "lseek", "close")


def die_at(step, torn):
    """Make the `step`th change of the disk (from 0) the end of this process; a torn write gets half through."""
    count = 0

    def wrap(name, real):
        def wrapped(*arguments, **keywords):
            nonlocal count
            if count == step:
                if name == "write" and torn:
                    real(arguments[0], bytes(arguments[1])[: len(arguments[1]) // 2])
                os._exit(9)
            count += 1
            return real(*arguments, **keywords)

        return wrapped

    for name in STEPS:
        setattr(os, name, wrap(name, getattr(os, name)))


def frames_in(path):
    """Frames that a player shows before the file ends or is torn."""
    count = 0
    with av.open(str(path)) as container, contextlib.suppress(av.InvalidDataError):
        container.streams.video[0].thread_type = "NONE"
        for _ in container.decode(video=0):
            count += 1
    return count


def content(project):
    kinds = ("safetensors", "m4s")
    return [project.seconds.path(i, kind).read_bytes() for i in range(project.chunks) for kind in kinds]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("torn", [False, True], ids=["clean", "torn"])
def test_a_run_that_dies_at_any_step_goes_on_to_the_same_bits(tmp_path, ask, torn):
    asked = ask("[0s-1s: a] [1s-2s: b]", seconds=2)
    with Project.create(tmp_path / "whole", asked) as project:
        run(project)
    wanted, video = content(project), project.video.read_bytes()
    step = 3 if torn else 0
    while True:
        root = tmp_path / f"{step}"

        def work(root=root, step=step):
            die_at(step, torn)
            with Project.create(root, asked) as project:
                run(project)

        code = in_child(work)
        for folder in folders(root):
            again = Project.open(folder)
            done = again.chunks
            assert again.status in ("interrupted", "finished")
            assert content(again) == wanted[: 2 * done]
            if done:
                assert frames_in(again.video) >= 24 * (done - 1), "all but a second still on its way into the video"
            with again:
                run(again)
            assert content(again) == wanted and again.video.read_bytes() == video
            assert not [p for p in again.folder.rglob("*") if ".tmp" in p.name]
        if code == 0:
            break
        assert code == 9
        step += 6 if torn else 3
    assert step > 60, "the run has that many steps to die at"


def refused_from(step, patch, why, *, once):
    """Let the disk refuse the `step`th change (from 0): that one, or all from then on; returns how many were asked."""
    count = [0]

    def wrap(name, real):
        def wrapped(*arguments, **keywords):
            reads = name == "open" and not arguments[1] & os.O_CREAT
            number, count[0] = count[0], count[0] + (not reads)
            if not reads and (number == step if once else number >= step):
                if name == "write" and why != errno.EROFS:
                    real(arguments[0], bytes(arguments[1])[: len(arguments[1]) // 2])
                raise OSError(why, os.strerror(why))
            return real(*arguments, **keywords)

        return wrapped

    for name in ("open", "write", "fsync", "replace", "rename", "link", "mkdir"):
        patch.setattr(os, name, wrap(name, getattr(os, name)))
    return count


@pytest.mark.parametrize(
    ("why", "once", "sentence"),
    [
        (errno.ENOSPC, True, r"The disk is full or limited at [^;]*; free some space or .*\."),
        (errno.ENOSPC, False, r"The disk is full or limited at [^;]*; free some space or .*\."),
        (errno.EROFS, False, r"The disk of [^;]* can only be read; choose another folder, or look whether it failed\."),
        (errno.EIO, True, r"[^;]* cannot be written \([^;]*\); choose another folder\."),
    ],
    ids=["full once", "full from then on", "read-only from then on", "broken once"],
)
def test_a_disk_that_refuses_at_any_step_is_one_sentence_and_loses_nothing(tmp_path, ask, why, once, sentence):
    asked = ask("[0s-1s: a] [1s-2s: b]", seconds=2)
    with Project.create(tmp_path / "whole", asked) as project:
        run(project)
    wanted, video = content(project), project.video.read_bytes()
    step, refused = 0, 0
    while True:
        root, made = tmp_path / f"{step}", []
        with pytest.MonkeyPatch.context() as patch:
            count = refused_from(step, patch, why, once=once)
            try:
                with Project.create(root, asked) as project:
                    made.append(project)
                    run(project)
            except OutputError as error:
                refused += 1
                assert re.fullmatch(sentence, str(error)), error
                assert ".tmp" not in str(error), "what a user never sees has no name"
        for folder in folders(root) if root.exists() else []:
            again = Project.open(folder)
            assert content(again) == wanted[: 2 * again.chunks] and again.chunks >= (project.chunks if made else 0)
            with again:
                run(again)
            assert content(again) == wanted and again.video.read_bytes() == video
            assert not [path for path in again.folder.rglob("*") if ".tmp" in path.name]
        if count[0] <= step:
            break
        step += 2
    assert refused > 30 and step > 60, "the run has that many steps to be refused at"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("change", ["branch", "extend", "edit", "delete"])
def test_changes_that_die_at_any_step_leave_a_project_that_works(tmp_path, ask, change):
    step = 0
    with Project.create(tmp_path / "fresh", ask(seconds=3, text="[0s-3s: a]")) as fresh:
        run(fresh)
    wanted = content(fresh)
    while True:
        with Project.create(tmp_path / f"{step}", fresh.request) as project:
            run(project)

        def work(folder=project.folder, step=step):
            project = Project.open(folder)
            die_at(step, torn=False)
            if change == "branch":
                project.branch(2, ask("[0s-3s: new]", seconds=3))
            elif change == "extend":
                project.extend(1)
            elif change == "edit":
                project.edit_timeline(ask("[0s-3s: new]").timeline, 2)
            else:
                project.delete()

        code = in_child(work)
        for folder in folders(project.folder.parent):
            with Project.open(folder) as again:
                assert content(again) == wanted[: 2 * again.chunks]
                assert again.chunks >= {"branch": 2}.get(change, 3)
                run(again)
                assert again.chunks == again.request.seconds and frames_in(again.video) == 24 * again.chunks
        if code == 0:
            break
        assert code == 9
        step += 2 if change in ("extend", "edit") else 5
    assert step >= 6


KILLED = """
    import sys
    from pathlib import Path
    from magi_lite.project import Project
    from magi_lite.request.json import request_from_json
    from tests.project.conftest import run
    import json
    with Project.create(Path(sys.argv[1]), request_from_json(json.loads(sys.argv[2]))) as project:
        print(project.folder, flush=True)
        run(project)
"""


def test_sigkill_in_the_middle(tmp_path, ask, request):
    """A real process, killed from outside at a moment nobody chose, three times in a row."""
    import json

    from magi_lite.request.json import request_to_json

    asked = ask("[0s-60s: a]", seconds=60)
    command = [sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path), json.dumps(request_to_json(asked))]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=request.config.rootpath)
    project = Project.open(process.stdout.readline().strip())
    deadline = time.monotonic() + 60
    while project.chunks < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert project.status == "running"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert project.status == "interrupted" and 3 <= project.chunks < 60
    done = project.chunks
    assert frames_in(project.video) >= 24 * (done - 1)
    before = content(project)
    with project:
        run(project, stop_after=done)
    assert project.chunks == done + 1 and content(project)[: 2 * done] == before
    with Project.create(tmp_path / "whole", asked) as whole:
        run(whole, stop_after=done)
    assert content(whole) == content(project)


def test_a_folder_that_is_no_project(tmp_path):
    with pytest.raises(InputError, match=r"is not a project; it holds no project\.json"):
        Project.open(tmp_path)
