"""A video is continued only with the autoencoder that can read its seconds."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from magi_lite.errors import InputError
from magi_lite.pipeline.export import export
from magi_lite.project import Project
from tests.pipeline.conftest import latents_of, same_bits

RED = "[0s-1s: a red ball]"


def change_autoencoder(model: Path) -> None:
    """Put other weights of the same names and shapes in its place."""
    (path,) = (model / "ckpt" / "vae").glob("*.safetensors")
    tensors = load_file(path)
    name = next(name for name, tensor in sorted(tensors.items()) if tensor.is_floating_point())
    save_file({key: tensor + 0.5 if key == name else tensor.clone() for key, tensor in tensors.items()}, path)


def test_another_autoencoder_is_refused_and_nothing_is_touched(
    request_for: Callable, run: Callable, own_model: Path, tmp_path: Path
) -> None:
    done = run(request_for(RED, seconds=2, model=str(own_model)))[-1]
    before, record = latents_of(done.project), (done.project / "project.json").read_bytes()
    change_autoencoder(own_model)
    longer = request_for(RED, seconds=3, model=str(own_model))
    for how in ({"resume": done.project}, {"resume": done.project, "from_chunk": 1}):
        with pytest.raises(InputError, match=r"another autoencoder .* export its MP4 as it is"):
            run(longer, **how)
    assert same_bits(latents_of(done.project), before)
    assert (done.project / "project.json").read_bytes() == record  # no other length, and no version that cannot be made
    assert list((tmp_path / "projects").glob("*/project.json")) == [done.project / "project.json"]
    assert export(done.project, tmp_path / "copy.mp4").stat().st_size
    with pytest.raises(InputError, match="another autoencoder"):
        export(done.project, tmp_path / "new.gif")
    anew = run(longer, resume=done.project, from_chunk=0)[-1]
    assert len(latents_of(anew.project)) == 3


def test_other_files_beside_the_weights_change_nothing(request_for: Callable, run: Callable, own_model: Path) -> None:
    done = run(request_for(RED, seconds=1, model=str(own_model)))[-1]
    (own_model / "ckpt" / "vae" / "README.md").write_text("A model.")
    assert len(latents_of(run(request_for(RED, seconds=2, model=str(own_model)), resume=done.project)[-1].project)) == 2


def test_what_is_not_on_record_is_taken_as_it_is_but_of_the_demo_model(
    request_for: Callable, run: Callable, own_model: Path
) -> None:
    """The demo model of 0.1.0 was another one; no other has changed."""
    done = run(request_for(RED, seconds=1, model=str(own_model)))[-1]
    path = done.project / "project.json"
    data = json.loads(path.read_text())
    identity = data.pop("autoencoder")
    del data["checksum"]  # which 0.1.0 did not write either
    path.write_text(json.dumps(data))
    with Project.open(done.project) as project:
        project.check_autoencoder("another")
        project._record = replace(project._record, request=replace(project.request, model="demo"))
        with pytest.raises(InputError, match="another autoencoder"):
            project.check_autoencoder(identity)
    run(request_for(RED, seconds=2, model=str(own_model)), resume=done.project)
    assert json.loads(path.read_text())["autoencoder"] == identity


def test_a_damaged_record_is_named(request_for: Callable, run: Callable) -> None:
    done = run(request_for(RED, seconds=1))[-1]
    path = done.project / "project.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"autoencoder": 7}))
    with pytest.raises(InputError, match="damaged"):
        Project.open(done.project)
