"""The command line: exit codes, one sentence per error, tracebacks only when asked for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from magi_lite.cli import main
from magi_lite.cli.generate import build_request
from magi_lite.cli.reading import parse_size, read_timeline
from magi_lite.errors import InputError


def sentence(capsys: pytest.CaptureFixture[str]) -> str:
    """What was printed to stderr, which is one line and no traceback."""
    text = capsys.readouterr().err.strip()
    assert "Traceback" not in text
    return text


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["generate", "--size", "720"], 2, "write WIDTHxHEIGHT"),
        (["generate", "--size", "100x100", "--prompt", "x"], 2, "16"),
        (["generate", "--timeline", "nothing.json"], 2, "no timeline file"),
        (["generate", "--timeline", "[0s-2s: a] [1s-3s: b]"], 2, "overlaps"),
        (["generate", "--prompt", "x", "--seconds", "2", "--endless"], 2, "contradict"),
        (["generate", "--prompt", "x", "--preset", "nope"], 2, "preset"),
        (["generate", "--prompt", "x", "--style", "nope"], 2, "style"),
        (["generate", "--prompt", "x", "--model", "/nowhere"], 2, "no model"),
        (["generate", "--prompt", "x", "--out", "/nowhere/at/all.mp4"], 4, "/nowhere/at"),
        (["generate", "--prompt", "x", "--image", "/nowhere.png"], 2, "/nowhere.png"),
        (["generate", "--resume", "/nowhere"], 2, "/nowhere"),
        (["generate", "--prompt", "x", "--redo-from", "1"], 2, "--resume"),
        (["info", "/nowhere.mp4"], 2, "no file"),
        (["plan", "--gpu", "RTX 3060", "--vram-gb", "2", "--size", "1280x720"], 2, "fit"),
        (["download", "4.5B-base", "--offline", "--models", "/nowhere"], 3, "/nowhere"),
    ],
)
def test_errors_are_one_sentence_and_a_code(
    arguments: list[str],
    code: int,
    words: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == code
    assert words in sentence(capsys)


def test_the_clip_that_is_continued_is_not_overwritten(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    clip = tmp_path / "my clip.mp4"
    clip.write_bytes(b"dear to someone")
    assert main(["generate", "--prompt", "x", "--preset", "demo", "--video", str(clip), "--out", str(clip)]) == 4
    assert "would overwrite" in sentence(capsys)
    assert clip.read_bytes() == b"dear to someone"


def test_debug_shows_where_an_error_came_from(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "--size", "720", "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_a_mistake_of_ours_is_named_and_ends_with_1(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: object) -> None:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr("magi_lite.cli.generate.build_request", broken)
    assert main(["generate", "--prompt", "x"]) == 1
    assert "unexpected ZeroDivisionError: oops" in sentence(capsys)


def parsed(*arguments: str):
    import argparse

    from magi_lite.cli import generate

    parser = argparse.ArgumentParser()
    generate.add_arguments(parser)
    return build_request(parser.parse_args(arguments))


def test_length_comes_from_the_timeline_unless_given() -> None:
    assert parsed("--timeline", "[0s-2s: a] [2s-7s: b]").seconds == 7
    assert parsed("--prompt", "a").seconds == 4
    assert parsed("--timeline", "[0s-2s: a]", "--seconds", "5").seconds == 5
    assert parsed("--prompt", "a", "--endless").seconds is None


def test_a_preset_fills_in_what_was_not_said() -> None:
    request = parsed("--prompt", "a", "--preset", "demo", "--quality", "quality", "--window", "1")
    assert (request.model, request.width, request.steps, request.window) == ("demo", 64, 16, 1)


def test_a_random_seed_is_recorded_as_drawn() -> None:
    seeds = {parsed("--prompt", "a").seed for _ in range(8)}
    assert len(seeds) == 8
    assert all(seed >= 0 for seed in seeds)


def test_timelines_are_read_from_files_and_shorthand(tmp_path: Path) -> None:
    shorthand = "[0s-2s: a cat walks] [2s-3s: it jumps]"
    timeline = read_timeline(shorthand, "", None)
    (tmp_path / "t.json").write_text(json.dumps(timeline.to_json()))
    assert read_timeline(str(tmp_path / "t.json"), "", None) == timeline
    assert read_timeline(shorthand, "at night", 2).full_prompt(timeline.segments[0]) == "at night. a cat walks"


def test_shorthand_may_be_longer_than_a_file_name() -> None:
    words = "a cat that walks very slowly " * 40
    assert read_timeline(f"[0s-2s: {words}]", "", None).segments[0].prompt == words.strip()


def test_timeline_files_of_windows_editors_are_read(tmp_path: Path) -> None:
    timeline = read_timeline("[0s-2s: ein Bär]", "", None)
    (tmp_path / "ein Film.json").write_text(json.dumps(timeline.to_json()), encoding="utf-8-sig", newline="\r\n")
    assert read_timeline(str(tmp_path / "ein Film.json"), "", None) == timeline
    (tmp_path / "old.txt").write_bytes("[0s-2s: ein Bär]".encode("latin-1"))
    with pytest.raises(InputError, match="UTF-8"):
        read_timeline(str(tmp_path / "old.txt"), "", None)


@pytest.mark.parametrize(("text", "size"), [("720x480", (720, 480)), ("64X64", (64, 64)), ("96×64", (96, 64))])
def test_sizes(text: str, size: tuple[int, int]) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "x", "12", "axb", "12x", "-1x5", "1.5x2"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(InputError, match="WIDTHxHEIGHT"):
        parse_size(text)


def changed(folder: Path, *arguments: str):
    import argparse

    from magi_lite.cli import generate

    parser = argparse.ArgumentParser()
    generate.add_arguments(parser)
    return generate.changed_request(parser.parse_args(["--resume", str(folder), *arguments]))


def test_the_same_command_with_resume_behind_it_changes_nothing(tmp_path: Path) -> None:
    from magi_lite.project import Project

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
    from magi_lite.project import Project

    with Project.create(tmp_path, parsed("--prompt", "a cat", "--seed", "5", "--preset", "demo")) as project:
        with pytest.raises(InputError, match=words):
            changed(project.folder, *arguments)
        assert changed(project.folder, "--endless").seconds is None
        assert changed(project.folder, "--seed", "6", "--redo-from", "0").seed == 6


def test_redo_starts_from_the_project_and_changes_what_is_said(tmp_path: Path) -> None:
    from magi_lite.project import Project

    old = parsed("--timeline", "[0s-4s: a cat walks]", "--preset", "demo", "--seed", "5", "--steps", "16")
    with Project.create(tmp_path, old) as project:
        folder = project.folder
    request = changed(folder, "--redo-from", "2", "--prompt", "it jumps", "--seed", "9")
    assert [mix.text for mix in request.timeline.compile(4)] == ["a cat walks"] * 2 + ["it jumps"] * 2
    assert (request.seed, request.steps, request.seconds) == (9, 16, 4)


def test_redo_replaces_what_was_said_everywhere(tmp_path: Path) -> None:
    from magi_lite.project import Project

    with Project.create(tmp_path, parsed("--prompt", "a cat walks", "--preset", "demo")) as project:
        request = changed(project.folder, "--redo-from", "2", "--prompt", "it jumps", "--style", "anime")
    assert [mix.text for mix in request.timeline.compile(4)] == ["a cat walks"] * 2 + ["it jumps"] * 2
    assert request.tokens.styles == ("anime",)


def test_a_run_that_goes_on_may_run_elsewhere(tmp_path: Path) -> None:
    """Another precision or placement, as after memory ran out; the project remembers it."""
    from magi_lite.opening import open_project
    from magi_lite.project import Project

    with Project.create(tmp_path, parsed("--prompt", "a cat", "--seed", "5", "--preset", "demo")) as project:
        folder = project.folder
    request = changed(folder, "--scheme", "int8", "--vae", "cpu", "--vram-gb", "8", "--models", str(tmp_path))
    assert (request.overrides.scheme, request.overrides.vae, request.overrides.vram_gb) == ("int8", "cpu", 8)
    open_project(request, tmp_path, folder, None).close()
    with Project.open(folder) as project:
        assert project.request == request


def test_an_interrupted_download_says_what_is_kept(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("magi_lite.hub.download", interrupted)
    assert main(["download", "4.5B-distill"]) == 130
    assert "what has come is kept" in capsys.readouterr().err
