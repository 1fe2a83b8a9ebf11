"""`generate --resume` and `--redo-from`: what changes in a project's request, and what cannot."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from magi_lite import pipeline
from magi_lite.cli import generate
from magi_lite.errors import InputError
from magi_lite.pipeline.prepare import prepare_project
from magi_lite.project import Project
from tests.cli.test_cli import parsed


def changed(folder: Path, *arguments: str):
    parser = argparse.ArgumentParser()
    generate.add_arguments(parser)
    return generate.request_of(parser.parse_args(["--resume", str(folder), *arguments]))


def test_the_same_command_with_resume_behind_it_changes_nothing(tmp_path: Path) -> None:
    command = ("--prompt", "a cat", "--seed", "5", "--size", "64x64", "--preset", "demo", "--seconds", "4")
    with Project.create(tmp_path, parsed(*command)) as project:
        assert changed(project.folder, *command) == project.request


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--size", "32x32"), "--size cannot change"),
        (("--steps", "16"), "--steps cannot change"),
        (("--image", "other.png"), "--image cannot change"),
        (("--seed", "6"), "--seed cannot change"),
        (("--crf", "30"), "--crf cannot change"),
        (("--fit", "pad"), "--fit cannot change"),
        (("--style", "anime"), "--style cannot change"),
        (("--lean",), "--lean cannot change"),
        (("--model", "4.5B-distill"), "--model cannot change"),
        (("--seconds", "2"), "cannot be cut to 2 seconds"),
        (("--seconds", "9", "--endless"), "contradict"),
    ],
)
def test_what_a_run_that_goes_on_would_not_obey_is_refused(
    arguments: tuple[str, ...], words: str, tmp_path: Path
) -> None:
    with Project.create(tmp_path, parsed("--prompt", "a cat", "--seed", "5", "--preset", "demo")) as project:
        with pytest.raises(InputError, match=words):
            changed(project.folder, *arguments)
        assert changed(project.folder, "--endless").seconds is None
        assert changed(project.folder, "--seed", "6", "--redo-from", "0").seed == 6


def test_redo_starts_from_the_project_and_changes_what_is_said(tmp_path: Path) -> None:
    old = parsed("--timeline", "[0s-4s: a cat walks]", "--preset", "demo", "--seed", "5", "--steps", "16")
    with Project.create(tmp_path, old) as project:
        folder = project.folder
    request = changed(folder, "--redo-from", "2", "--prompt", "it jumps", "--seed", "9")
    assert [mix.text for mix in request.timeline.compile(4)] == ["a cat walks"] * 2 + ["it jumps"] * 2
    assert (request.seed, request.steps, request.seconds) == (9, 16, 4)


def test_redo_replaces_what_was_said_everywhere(tmp_path: Path) -> None:
    with Project.create(tmp_path, parsed("--prompt", "a cat walks", "--preset", "demo")) as project:
        request = changed(project.folder, "--redo-from", "2", "--prompt", "it jumps", "--style", "anime")
    assert [mix.text for mix in request.timeline.compile(4)] == ["a cat walks"] * 2 + ["it jumps"] * 2
    assert request.tokens.styles == ("anime",)


def test_a_run_that_goes_on_may_run_elsewhere(tmp_path: Path) -> None:
    """Another precision or placement, as after memory ran out; the project remembers it."""
    with Project.create(tmp_path, parsed("--prompt", "a cat", "--seed", "5", "--preset", "demo")) as project:
        folder = project.folder
    request = changed(folder, "--scheme", "int8", "--vae", "cpu", "--vram-gb", "8", "--models", str(tmp_path))
    assert (request.overrides.scheme, request.overrides.vae, request.overrides.vram_gb) == ("int8", "cpu", 8)
    prepare_project(request, tmp_path, folder, None).close()
    with Project.open(folder) as project:
        assert project.request == request


def test_a_redo_that_makes_nothing_is_refused(tmp_path: Path) -> None:
    with Project.create(tmp_path, parsed("--prompt", "a cat", "--preset", "demo", "--seconds", "4")) as project:
        with pytest.raises(InputError, match="Nothing of 4 seconds comes after second 4"):
            changed(project.folder, "--redo-from", "4")
        assert changed(project.folder, "--redo-from", "4", "--seconds", "6").seconds == 6


def test_a_redo_leaves_the_delivered_file_of_the_first_version_alone(tmp_path: Path) -> None:
    old = parsed("--prompt", "a cat", "--preset", "demo", "--out", str(tmp_path / "a.mp4"))
    with Project.create(tmp_path, old) as project:
        assert changed(project.folder).out == tmp_path / "a.mp4"
        assert changed(project.folder, "--redo-from", "1").out is None


def test_the_picture_is_known_by_what_it_shows_and_not_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "a.png").write_bytes(b"one")
    (tmp_path / "b.png").write_bytes(b"one")
    (tmp_path / "other" / "a.png").write_bytes(b"two")
    old = parsed("--image", str(tmp_path / "a.png"), "--preset", "demo")
    with Project.create(tmp_path / "runs", old) as project:
        assert changed(project.folder, "--image", str(tmp_path / "b.png")) == project.request
        with pytest.raises(InputError, match="--image cannot change"):
            changed(project.folder, "--image", str(tmp_path / "other" / "a.png"))


def test_words_that_come_too_late_change_nothing(tmp_path: Path) -> None:
    """Every second of a finished video has begun; it can be made longer afterwards, with the new words."""
    command = ("--prompt", "a red ball", "--preset", "demo", "--size", "32x32", "--seconds", "1", "--seed", "3")
    list(pipeline.generate(parsed(*command), projects_folder=tmp_path))
    (folder,) = (path.parent for path in tmp_path.glob("*/project.json"))
    list(pipeline.generate(changed(folder, "--prompt", "it falls"), resume=folder))
    with Project.open(folder) as project:
        assert [mix.text for mix in project.request.timeline.compile(1)] == ["a red ball"]
    list(pipeline.generate(changed(folder, "--prompt", "it falls", "--seconds", "3"), resume=folder))
    with Project.open(folder) as project:
        assert project.chunks == 3
        assert [mix.text for mix in project.request.timeline.compile(3)] == ["a red ball", "it falls", "it falls"]


def test_a_project_that_goes_on_replaces_no_other_file(tmp_path: Path) -> None:
    from magi_lite.cli import main

    own, other = tmp_path / "own.mp4", tmp_path / "other.mp4"
    old = parsed("--prompt", "a cat", "--preset", "demo", "--out", str(own))
    with Project.create(tmp_path / "runs", old) as project:
        folder = project.folder
    other.write_bytes(b"dear to someone")
    assert main(["generate", "--resume", str(folder), "--out", str(other)]) == 4
    assert other.read_bytes() == b"dear to someone"
