"""The command line: exit codes, one sentence per error, tracebacks only when asked for."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from magi_lite.cli import main
from magi_lite.cli.app import check_address
from magi_lite.cli.generate import request_of
from magi_lite.cli.reading import timeline_of
from magi_lite.errors import InputError
from magi_lite.request.build import build, read_size
from tests.loopback import has_version_6

REPOSITORY = Path(__file__).parents[2]


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
        (["generate", "--prompt", "x", "--preset", "demo", "--device", "cuda"], 2, "no CUDA card"),
        (["generate", "--prompt", "x", "--preset", "demo", "--attention", "flash"], 2, "flash"),
        (["generate", "--settings", "/nowhere.json"], 2, "/nowhere.json"),
        (["download", "4.5B-base", "--offline", "--models", "/nowhere"], 3, "ckpt/vae/config.json"),
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
    assert not list(tmp_path.iterdir()), "what cannot be carried out leaves nothing behind"


def test_the_clip_that_is_continued_is_not_overwritten(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    clip = tmp_path / "my clip.mp4"
    clip.write_bytes(b"dear to someone")
    command = ["generate", "--prompt", "x", "--preset", "demo", "--video", str(clip), "--out", str(clip)]
    assert main([*command, "--overwrite"]) == 4
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

    monkeypatch.setattr("magi_lite.cli.generate.request_of", broken)
    assert main(["generate", "--prompt", "x"]) == 1
    assert "unexpected ZeroDivisionError: oops" in sentence(capsys)


def parsed(*arguments: str):
    import argparse

    from magi_lite.cli import generate

    parser = argparse.ArgumentParser()
    generate.add_arguments(parser)
    return request_of(parser.parse_args(arguments))


def test_length_comes_from_the_timeline_unless_given() -> None:
    assert parsed("--timeline", "[0s-2s: a] [2s-7s: b]").seconds == 7
    assert parsed("--prompt", "a").seconds == 4
    assert parsed("--timeline", "[0s-2s: a]", "--seconds", "5").seconds == 5
    assert parsed("--prompt", "a", "--endless").seconds is None


def test_a_model_that_was_not_distilled_takes_its_own_steps() -> None:
    assert parsed("--prompt", "a", "--model", "4.5B-base", "--preset", "24gb").steps == 64
    assert parsed("--prompt", "a", "--model", "4.5B-base", "--preset", "24gb", "--steps", "16").steps == 16
    assert parsed("--prompt", "a", "--model", "4.5B-distill", "--preset", "24gb").steps < 64


def test_a_model_that_is_named_is_not_shrunk_to_the_demo(tmp_path: Path) -> None:
    request = parsed("--prompt", "a", "--model", "4.5B-distill", "--models", str(tmp_path))
    assert request.preset != "demo" and request.width > 64
    assert parsed("--prompt", "a", "--models", str(tmp_path)).preset == "demo"


def test_a_preset_fills_in_what_was_not_said() -> None:
    request = parsed("--prompt", "a", "--preset", "demo", "--quality", "quality", "--window", "1")
    assert (request.model, request.width, request.steps, request.window) == ("demo", 96, 16, 1)


def test_a_random_seed_is_recorded_as_drawn() -> None:
    seeds = {parsed("--prompt", "a").seed for _ in range(8)}
    assert len(seeds) == 8
    assert all(seed >= 0 for seed in seeds)


def test_timelines_are_read_from_files_and_shorthand(tmp_path: Path) -> None:
    shorthand = "[0s-2s: a cat walks] [2s-3s: it jumps]"
    timeline = timeline_of(shorthand)
    (tmp_path / "t.json").write_text(json.dumps(timeline.to_json()))
    assert timeline_of(str(tmp_path / "t.json")) == timeline
    blended = build(timeline=shorthand, prompt="at night", blend=2).timeline
    assert blended.blend == 2 and blended.full_prompt(timeline.segments[0]) == "at night. a cat walks"


@pytest.mark.parametrize("example", sorted((REPOSITORY / "presets" / "timelines").glob("*.json")), ids=lambda p: p.stem)
def test_the_examples_are_timelines(example: Path) -> None:
    timeline = timeline_of(str(example))
    assert timeline.segments and timeline.end == json.loads(example.read_text())["seconds"]


def test_shorthand_may_be_longer_than_a_file_name() -> None:
    words = "a cat that walks very slowly " * 40
    assert timeline_of(f"[0s-2s: {words}]").segments[0].prompt == words.strip()


def test_timeline_files_of_windows_editors_are_read(tmp_path: Path) -> None:
    timeline = timeline_of("[0s-2s: ein Bär]")
    (tmp_path / "ein Film.json").write_text(json.dumps(timeline.to_json()), encoding="utf-8-sig", newline="\r\n")
    assert timeline_of(str(tmp_path / "ein Film.json")) == timeline
    (tmp_path / "old.txt").write_bytes("[0s-2s: ein Bär]".encode("latin-1"))
    with pytest.raises(InputError, match="UTF-8"):
        timeline_of(str(tmp_path / "old.txt"))


@pytest.mark.parametrize(("text", "size"), [("720x480", (720, 480)), ("64X64", (64, 64)), ("96×64", (96, 64))])
def test_sizes(text: str, size: tuple[int, int]) -> None:
    assert read_size(text) == size


@pytest.mark.parametrize("text", ["", "x", "12", "axb", "12x", "-1x5", "1.5x2", "²x²", f"{'9' * 5000}x16"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(InputError, match="WIDTHxHEIGHT"):
        read_size(text)


def test_an_interrupted_download_says_what_is_kept(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("magi_lite.weights.hub.download", interrupted)
    assert main(["download", "4.5B-distill"]) == 130
    assert "what has come is kept" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("server", "port", "words"),
    [
        ("127.0.0.1", -1, "There is no port -1; choose one from 1 to 65535 with --port."),
        ("127.0.0.1", 0, "There is no port 0;"),
        ("127.0.0.1", 65536, "There is no port 65536;"),
        ("999.1.1.1", 7860, "--server '999.1.1.1' is no address of this computer; use 127.0.0.1"),
        ("192.0.2.1", 7860, "--server '192.0.2.1' is no address of this computer;"),
        ("a..b", 7860, "--server 'a..b' is no address of this computer;"),
        ("a" * 300, 7860, "--server 'aaa"),
        ("\udcff", 7860, "--server '\\udcff' is no address of this computer;"),
        ("a\0b", 7860, "--server 'a\\x00b' is no address of this computer;"),
    ],
)
def test_an_address_that_cannot_be_listened_on(
    server: str, port: int, words: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["app", "--server", server, "--port", str(port), "--projects", str(tmp_path / "projects")]) == 2
    text = sentence(capsys)
    assert text.startswith(f"error: {words}") and "\n" not in text and text.endswith(".")
    assert not (tmp_path / "projects").exists()  # nothing was started


def test_a_port_that_is_taken(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert main(["app", "--port", str(port), "--projects", str(tmp_path)]) == 2
    assert sentence(capsys) == f"error: Port {port} is in use; choose another one with --port."
    check_address("127.0.0.1", port)  # which was just left


@pytest.mark.skipif(not has_version_6(), reason="this machine has no IPv6")
@pytest.mark.parametrize("server", ["::1", "[::1]"])
def test_addresses_of_version_6_are_taken_with_and_without_brackets(server: str) -> None:
    with socket.socket(socket.AF_INET6) as probe:
        probe.bind(("::1", 0))
        port = probe.getsockname()[1]
    check_address(server, port)
