"""Timelines as files of other programs, there and back; markers, which change nothing that is made."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

import opentimelineio
import pytest

from magi_lite.cli.reading import timeline_of
from magi_lite.errors import InputError, TimelineError
from magi_lite.library import read_timeline
from magi_lite.request.build import build
from magi_lite.timeline import Marker, Segment, Timeline
from magi_lite.timeline.edit import clip, splice
from magi_lite.timeline.files import KINDS, NO_LIBRARY, read, write
from magi_lite.ui.expose import for_page
from magi_lite.ui.timeline_editor import parsed

STORY = Timeline(
    (Segment(0, 2, "a cat walks"), Segment(2, 5, "it jumps, and\nlands"), Segment(8, 9, "it sleeps", cut=True)),
    "night",
    2,
    "hold",
    markers=(Marker(0.5, "start of the walk"), Marker(4, "")),
)


@pytest.mark.parametrize("kind", ["json", "otio"])
def test_all_of_a_timeline_comes_back(kind: str) -> None:
    again = read(write(STORY, kind))
    assert again == STORY and again.markers == STORY.markers


@pytest.mark.parametrize("kind", list(KINDS))
def test_random_timelines_come_back(kind: str) -> None:
    chance = random.Random(kind)
    for _ in range(30):
        edges = sorted(chance.sample(range(300), 2 * chance.randint(1, 12)))
        spans = list(zip(edges[::2], edges[1::2], strict=True))
        timeline = Timeline(tuple(Segment(a, b, f"p {chance.random():.6f}") for a, b in spans))
        assert read(write(timeline, kind)) == timeline


def test_subtitles_are_read_as_other_programs_write_them() -> None:
    content = (
        "\ufeff1\r\n00:00:00,400 --> 00:00:02,600\r\n<i>A cat</i>\r\nwalks\r\n\r\n"
        "2\r\n00:00:02.700 --> 00:00:04.1 X1:0\r\n{\\an8}it jumps\r\n\r\n\r\n"
        "3\r\n00:00:04,200 --> 00:00:04,300\r\nand lands\r\n"
        "4\r\n01:00:00,000 --> 01:00:02,000\r\n\r\n"
    )
    assert read(content).segments == (
        Segment(0, 3, "A cat walks"),
        Segment(3, 4, "it jumps"),
        Segment(4, 5, "and lands"),
        Segment(3600, 3602, ""),
    )


@pytest.mark.parametrize("kind", list(KINDS))
def test_the_flag_and_the_library_read_every_kind_of_file(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "timeline.of_any_ending"
    path.write_text(write(STORY, kind), encoding="utf-8")
    assert timeline_of(str(path)) == read_timeline(path) == read(write(STORY, kind))
    assert [(s.start, s.end) for s in read_timeline(path).segments] == [(s.start, s.end) for s in STORY.segments]


def test_subtitles_keep_cuts_and_the_blocks_own_prompts() -> None:
    """Read where the global prompt still stands, they would double it."""
    shots = (
        Segment(0, 2, "a"),
        Segment(2, 3, "b", cut=True),
        Segment(3, 4, "c", image=Path("c.png")),
        Segment(4, 5, "d"),
    )
    again = read(write(Timeline(shots, "night"), "srt"))
    assert [(s.prompt, s.cut) for s in again.segments] == [("a", False), ("b", True), ("c", True), ("d", False)]
    assert again.global_prompt == ""


def test_subtitles_closer_than_a_second_share_one() -> None:
    cue = "1\n00:00:0{},{} --> 00:00:0{},{}\n{}\n\n"
    content = cue.format(0, "000", 1, "000", "one") + cue.format(0, "300", 0, "400", "two")
    content += cue.format(0, "450", 2, "000", "three")
    assert read(content).segments == (Segment(0, 1, "one, two"), Segment(1, 2, "three"))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("1\n00:00:05,000 --> 00:00:01,000\nback\n", "ends before it starts"),
        ("1\n99:99:99,999 --> 99:99:99,999\nnever\n", "times '99:99:99,999 --> 99:99:99,999' cannot be read; write"),
        ("1\n00:00:00,000 --> 00:00:01,000\na\n\n2\n00:00:01,000 -->\nb\n", "times '00:00:01,000 -->' cannot"),
        ('{"OTIO_SCHEMA": "Timeline.1", "tracks": 3}', "cannot be read"),
        ('{"OTIO_SCHEMA": "Clip.1", "name": "x"}', "cannot be read|holds no timeline"),
        ('{"OTIO_SCHEMA": "Timeline.1", "name": "x"}', "cannot be read"),
        (opentimelineio.adapters.write_to_string(opentimelineio.schema.Timeline("x"), "otio_json"), "has no track"),
        ('{"segments": [], "markers": 3}', "must be a list"),
        ('{"segments": [], "markers": [{"at": -1}]}', "stands at -1"),
        ('{"segments": [], "markers": [{"at": true}]}', "stands at True"),
        ('{"segments": [], "markers": [{"at": 1e999}]}', "stands at inf"),
        ('{"segments": [], "markers": [{"at": 1, "name": 3}]}', "must be text"),
        ('{"segments": [], "markers": [{"name": "x"}]}', "lacks 'at'"),
        ('{"segments": [], "markers": [{"at": 1, "color": "red"}]}', "unknown key"),
    ],
)
def test_what_cannot_be_read_is_said(content: str, said: str) -> None:
    with pytest.raises(TimelineError, match=said):
        read(content)


def test_web_subtitles_are_read() -> None:
    content = "WEBVTT - a title\n\n00:00.000 --> 00:02.000 align:start\na cat\n\n01:00:02.000 --> 01:00:03.000\na dog\n"
    assert read(content).segments == (Segment(0, 2, "a cat"), Segment(3602, 3603, "a dog"))


@pytest.mark.parametrize("content", ["[0s-2s: an arrow --> there]", "a sign says 5 --> 6\nrain"])
def test_an_arrow_in_a_prompt_is_no_subtitle(content: str) -> None:
    assert "-->" in read(content).segments[0].prompt


@pytest.mark.parametrize("line", ["1" * 10**6, "1:" * 10**5 + " " * 10**5, "." * 10**6, " " * 10**6 + "1"])
def test_a_very_long_line_is_looked_at_once(line: str) -> None:
    """A pattern that tries it from every character on would take hours."""
    prompt = line.strip()
    if len(prompt) > 10_000:
        with pytest.raises(TimelineError, match=f"^The prompt at 0 s has {len(prompt)} characters; 10000 is the most"):
            read(line)
    else:
        assert read(line).segments == (Segment(0, 1, prompt),)


@pytest.mark.parametrize("start", ["[1", "[1 s -", "[1-2", "[0s-1s cut", "[0s-1s image="])
def test_very_many_spaces_are_looked_at_once(start: str) -> None:
    with pytest.raises(TimelineError):
        read(start + " " * 10**6 + "x]")


def test_zero_bytes_are_no_timeline(tmp_path: Path) -> None:
    (tmp_path / "a.srt").write_bytes(bytes(1000))
    with pytest.raises(InputError, match=r"a\.srt holds zero bytes, which no text has\.$"):
        read_timeline(tmp_path / "a.srt")


def test_without_the_library_one_sentence_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentimelineio", None)
    with pytest.raises(TimelineError, match="is not installed"):
        write(STORY, "otio")
    assert "pip install" in NO_LIBRARY
    with pytest.raises(TimelineError, match="choose one of json, srt, txt, otio"):
        write(STORY, "edl")


def test_markers_change_no_video_and_are_kept_by_edits() -> None:
    bare = Timeline(STORY.segments, "night", 2)
    assert bare == STORY and bare.compile(9) == STORY.compile(9)
    assert clip(STORY, 3).markers == STORY.markers
    assert splice(STORY, 2, bare).markers == STORY.markers
    newer = Timeline((), "night", markers=(Marker(1, "new"),))
    assert splice(STORY, 2, newer).markers == newer.markers


@pytest.mark.parametrize("value", [None, [None], [[]], {}, 3, "a", [{"a": 1}], [True]], ids=str)
@pytest.mark.parametrize("key", ["tracks", "children"])
def test_objects_that_are_none_do_not_end_the_program(key: str, value: object) -> None:
    """The library reads them without a word and crashes when they are looked at."""
    content = json.loads(write(STORY, "otio"))
    (content if key == "tracks" else content["tracks"])[key] = value
    with pytest.raises(TimelineError, match=r"\.$"):
        read(json.dumps(content))


def test_a_sentence_does_not_repeat_the_file() -> None:
    """The library quotes all of a text that it cannot take."""
    with pytest.raises(TimelineError, match=r"^This OpenTimelineIO file cannot be read \(.*\); export it") as found:
        read(write(STORY, "otio").replace("a cat walks", "a \ud800 walks"))
    assert len(str(found.value)) < 250 and str(found.value).isprintable()


LONG = "a red ball " * 82_000


@pytest.mark.parametrize(
    ("form", "which"),
    [
        ("{}", "prompt at 0 s"), ("a\nb\n{}", "prompt at 2 s"), ("[0s-1s: a] [1s-4s: {}]", "prompt at 1 s"),
        ("{} [0s-1s: a]", "global prompt"), ("00:01.000 --> 00:02.000\n{}", "prompt at 1 s"),
        ('{{"segments": [{{"start": 3, "end": 4, "prompt": "{}"}}]}}', "prompt at 3 s"),
    ],
)  # fmt: skip
def test_a_prompt_longer_than_any_is_refused_where_it_is_read(tmp_path: Path, form: str, which: str) -> None:
    """By the page, the command line and the functions alike, and not only when the video is to be made."""
    content, path = form.format(LONG.strip()), tmp_path / "a.txt"
    path.write_text(content)
    sentence = (
        f"The {which} has {len(LONG.strip())} characters; 10000 is the most that can be given: shorten it, or write "
        "one line or block for each second."
    )
    assert for_page(parsed)({"text": content}) == {"error": sentence}
    for read_it in (lambda: read_timeline(path), lambda: timeline_of(str(path)), lambda: read(content)):
        with pytest.raises(TimelineError) as caught:
            read_it()
        assert str(caught.value) == sentence
    if "-->" not in form:  # text of an API call, which names no file
        with pytest.raises(TimelineError) as caught:
            build(timeline=content)
        assert str(caught.value) == sentence


def test_the_longest_prompt_is_read() -> None:
    (segment,) = read("b" * 10_000).segments
    assert len(segment.prompt) == 10_000
