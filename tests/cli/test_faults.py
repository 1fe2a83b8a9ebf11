"""Weights that are cut while they are mapped: a sentence and exit code 3, with everything finished kept."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from magi_lite import library
from magi_lite.cli import build_parser, faults
from magi_lite.errors import CheckpointError
from magi_lite.events import ChunkFinished, Event, Finished
from magi_lite.project import Project
from quant.storage import tensors

REPOSITORY = Path(__file__).parents[2]
OPTIONS = {"preset": "demo", "size": "32x32", "scheme": "float32", "t5": "float32", "seed": 3}
"""float32, of which the files are: others are converted while they are read, and not mapped."""
PATIENCE = 120
posix = pytest.mark.skipif(not hasattr(signal, "SIGBUS"), reason="Windows lets nobody cut a mapped file")
PRODUCT = """
import sys
from pathlib import Path
import torch
from magi_lite.cli import faults
from quant.storage.shards import Checkpoint
torch.set_num_threads(int(sys.argv[2]))
weight, given = Checkpoint.open(Path(sys.argv[1])).read("a"), torch.ones(64, 1024)
with faults.sentence("it is kept", ours=True):
    given @ weight.T
    print("ready", flush=True)
    while True:
        given @ weight.T
"""


def transformer(model: Path) -> Path:
    (file,) = model.glob("ckpt/magi/*/*/*.safetensors")
    return file


def autoencoder(model: Path) -> Path:
    (file,) = model.glob("ckpt/vae/*.safetensors")
    return file


def made(model: Path, folder: Path, at_first_second: Callable[[], object]) -> list[Event]:
    """A video made in this process, with something done to the files once its first second is finished."""
    events = []
    for event in library.stream("a ball", seconds=3, model=str(model), projects=folder, **OPTIONS):
        if isinstance(event, ChunkFinished) and event.chunk == 0:
            at_first_second()
        events.append(event)
    return events


def latents(run: Path, second: int) -> bytes:
    with Project.open(run) as project:
        return project.read_latents(second).numpy().tobytes()


@pytest.mark.parametrize("part", [transformer, autoencoder])
@pytest.mark.parametrize(
    ("how", "said"), [(lambda file: os.truncate(file, 3000), "was cut short"), (Path.touch, "was changed")]
)
def test_a_file_that_is_written_to_is_a_sentence_in_python(
    how: Callable[[Path], object],
    said: str,
    part: Callable[[Path], Path],
    own_model: Path,
    tiny_model: Path,
    tmp_path: Path,
) -> None:
    file = part(own_model)
    with pytest.raises(CheckpointError) as caught:
        made(own_model, tmp_path / "runs", lambda: how(file))
    assert str(caught.value).startswith(f"{file} {said} while it was in use; ")
    (run,) = (tmp_path / "runs").glob("2*")
    first = latents(run, 0)
    shutil.copyfile(part(tiny_model), file)
    events = [*library.stream(resume=run)]
    assert isinstance(events[-1], Finished) and latents(run, 0) == first


def test_a_file_that_is_replaced_or_taken_away_does_no_harm(own_model: Path, tmp_path: Path) -> None:
    def replace() -> None:
        file = transformer(own_model)
        file.with_suffix(".new").write_bytes(b"other")
        file.with_suffix(".new").replace(file)
        autoencoder(own_model).unlink()

    copy = shutil.copytree(own_model, tmp_path / "copy")
    changed = made(own_model, tmp_path / "runs", replace)[-1]
    kept = made(copy, tmp_path / "others", lambda: None)[-1]
    assert isinstance(changed, Finished) and isinstance(kept, Finished)
    assert [latents(changed.project, n) for n in range(3)] == [latents(kept.project, n) for n in range(3)]


def command(model: Path, folder: Path) -> list[str]:
    named = [word for name, value in OPTIONS.items() for word in (f"--{name}", str(value))]
    where = ["--model", str(model), "--projects", str(folder)]
    return ["generate", "--prompt", "a ball", "--seconds", "60", *where, *named]


def python(code: str, *arguments: str, **more: object) -> subprocess.Popen[str]:
    call = [sys.executable, "-c", code, *arguments]
    return subprocess.Popen(call, cwd=REPOSITORY, text=True, stdout=-1, stderr=-1, **more)  # type: ignore[call-overload]


PROGRAM = "import sys; from magi_lite.cli import main; sys.exit(main())"
BLIND = "from quant.storage.tensors import MappedFile; MappedFile.check = lambda self: None\n"
"""Files are not looked at between steps, so that the cut is met inside one."""


@posix
@pytest.mark.parametrize("code", [PROGRAM, BLIND + PROGRAM], ids=["between steps", "inside a step"])
def test_the_command_line_says_a_sentence_and_keeps_what_is_finished(
    code: str, own_model: Path, tiny_model: Path, tmp_path: Path
) -> None:
    run = python(code, *command(own_model, tmp_path / "runs"))
    assert run.stderr
    for line in run.stderr:
        if "is finished" in line:
            break
    os.truncate(transformer(own_model), 3000)
    out, err = run.communicate(timeout=PATIENCE)
    assert run.returncode == 3, err
    (sentence,) = [line for line in err.splitlines() if "error:" in line]
    if code == PROGRAM:
        assert " was cut short while it was in use" in sentence
    else:
        assert "cut short while it was in use, or its disk failed (SIGBUS); every finished second is kept" in sentence
    assert not out
    (folder,) = (tmp_path / "runs").glob("2*")
    with Project.open(folder) as project:
        chunks = project.chunks
    assert 1 <= chunks < 60
    kept = latents(folder, chunks - 1)
    shutil.copyfile(transformer(tiny_model), transformer(own_model))
    going_on = library.stream(resume=folder)
    assert next(event for event in going_on if isinstance(event, ChunkFinished)).chunk == chunks
    del going_on
    assert latents(folder, chunks - 1) == kept


def test_a_call_in_somebodys_program_leaves_its_signals_alone(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = build_parser().parse_args(["export", "nothing", "--to", "x.mp4"])
    assert not arguments.ours
    install = ctypes.CDLL(None).signal
    install.restype, install.argtypes = ctypes.c_void_p, (ctypes.c_int, ctypes.c_void_p)
    held = install(signal.SIGBUS, None)
    install(signal.SIGBUS, held)
    with faults.sentence("it is kept", ours=False):
        assert install(signal.SIGBUS, held) == held
    with faults.sentence("it is kept", ours=True):
        other = install(signal.SIGBUS, held)
        assert other != held
        install(signal.SIGBUS, other)
    assert install(signal.SIGBUS, held) == held


@posix
@pytest.mark.parametrize("threads", [1, 3])
def test_threads_of_products_may_meet_it(threads: int, tmp_path: Path) -> None:
    """The fault comes in whichever thread reads the page."""
    file = tmp_path / "model.safetensors"
    tensors.write_tensors(file, {"a": torch.ones(4096, 1024)})
    run = python(PRODUCT, str(file), str(threads))
    assert run.stdout and run.stdout.readline() == "ready\n"
    os.truncate(file, 4096)
    out, err = run.communicate(timeout=PATIENCE)
    assert (out, run.returncode) == ("", 3)
    assert err == (
        "\nerror: A file of the model was cut short while it was in use, or its disk failed (SIGBUS); it is kept. "
        "Download the model again.\n"
    )
