"""What the app does about models whose files are not whole: nothing is queued, and what is missing is offered."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from magi_lite.errors import CheckpointError, InputError
from magi_lite.jobs import JobQueue
from magi_lite.request.request import GenerationRequest
from magi_lite.timeline import Timeline
from magi_lite.ui.actions import Actions
from magi_lite.ui.library import Library
from magi_lite.ui.machine import Machine
from magi_lite.weights import hub
from magi_lite.weights.opening import open_model


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model of somebody's own in the models folder."""
    shutil.copytree(open_model("demo").vae.parents[1], tmp_path / "models" / "own")
    return tmp_path / "models" / "own"


@pytest.fixture
def queue(tmp_path: Path) -> Iterator[JobQueue]:
    made = JobQueue(tmp_path / "queue", lambda job, control: iter(()))
    yield made
    made.close()


@pytest.fixture
def actions(tmp_path: Path, queue: JobQueue) -> Actions:
    return Actions(queue, Library(tmp_path / "outputs"), Machine(tmp_path / "models"))


def asked(model: Path) -> GenerationRequest:
    return GenerationRequest(Timeline((), "a ball"), 1, 32, 32, model=str(model), preset="demo", seed=1)


@pytest.mark.parametrize("part", ["ckpt/magi", "ckpt/vae", "ckpt/t5"])
def test_what_is_not_whole_is_not_queued(actions: Actions, queue: JobQueue, model: Path, part: str) -> None:
    (path,) = (model / part).rglob("*.safetensors")
    whole = path.read_bytes()
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}  # off the file, which is cut below
    name = next(name for name in tensors if tensors[name].ndim == 2)
    damages: list[Any] = [
        whole[: len(whole) // 2],
        b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n",
        {other: tensors[other] for other in tensors if other != name},
        tensors | {name: torch.zeros(3, 5)},
    ]
    for damage in damages:
        if isinstance(damage, bytes):
            path.write_bytes(damage)
        else:
            save_file(damage, path)
        with pytest.raises(CheckpointError, match=str(path.parent)):
            actions.submit(asked(model))
        assert queue.jobs() == []
    path.write_bytes(whole)
    assert actions.submit(asked(model))["job"] == queue.jobs()[0].id


def test_the_special_tokens_alone_are_brought_at_once(
    actions: Actions, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also for a folder that no list names, and for nothing outside the models folder."""
    tokens = model / "special_tokens.safetensors"
    content, brought = tokens.read_bytes(), list[Path]()
    tokens.unlink()

    def bring(root: Path) -> None:
        brought.append(root)
        tokens.write_bytes(content)

    monkeypatch.setattr(hub, "download_special_tokens", bring)
    with pytest.raises(CheckpointError, match="no special-token file"):
        actions.submit(asked(model))
    assert "are here now" in actions.download(str(model))["message"]
    assert brought == [model] and actions.submit(asked(model))
    with pytest.raises(InputError, match="no model"):
        actions.download(str(model))  # nothing is missing, and it is none of the published ones
    with pytest.raises(InputError, match="no model"):
        actions.download(str(model.parents[1]))
