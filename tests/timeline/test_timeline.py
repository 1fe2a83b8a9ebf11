"""What a timeline says in each second, and what it refuses."""

import random
import re
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from magi_lite.errors import TimelineError
from magi_lite.timeline import PromptMix, Segment, Timeline
from magi_lite.timeline.edit import clip, splice
from magi_lite.timeline.text import parse, parse_lines, parse_shorthand, print_shorthand

AWKWARD = st.sampled_from(
    ["a [b]: c", "\\", "\\n", "line\nbreak", " spaces ", "", "é 猫 😀", "\x85x\u2028", "[0s-2s: x]", "\r", "]"]
)
PROMPTS = st.one_of(AWKWARD, st.text(max_size=12))


PATHS = st.one_of(
    st.sampled_from(
        ["a cat.png", "C:\\pics\\a.png", '"q".png', "a[1]: b.png", "x=1.jpg", "é 猫.webp", " a ", "a\x85b"]
    ),
    st.text(st.characters(codec="utf-8", min_codepoint=32), min_size=1, max_size=9),
).map(Path)
NO_MARKS = st.just({})
MARKS = st.one_of(
    NO_MARKS,
    st.just({"cut": True}),
    st.builds(lambda path: {"image": path}, PATHS),
    st.builds(
        lambda path, cut, n: {"image": path, "cut": cut, "image_sha256": f"{n:064x}"},
        PATHS,
        st.booleans(),
        st.integers(0, 9),
    ),
)


@st.composite
def timelines(draw, prompts=PROMPTS, gapless=False, edited=False, marks=NO_MARKS):
    segments, second = [], 0
    for prompt in draw(st.lists(prompts, max_size=5)):
        start = second + (0 if gapless else draw(st.integers(0, 2)))
        second = start + draw(st.integers(1, 3))
        segments.append(Segment(start, second, prompt, **draw(marks)))
    gaps = draw(st.sampled_from(["hold", "refuse"]))
    earlier = draw(st.dictionaries(st.integers(1, 9), st.integers(0, 4), max_size=2)) if edited else {}
    return Timeline(tuple(segments), draw(prompts), draw(st.integers(0, 4)), gaps, tuple(sorted(earlier.items())))


@settings(max_examples=60, deadline=None)
@given(timelines(edited=True, marks=MARKS))
def test_shorthand_and_json_come_back_equal(timeline):
    assert parse_shorthand(print_shorthand(timeline)) == timeline
    assert Timeline.from_json(timeline.to_json()) == timeline
    if timeline.segments:
        assert parse(print_shorthand(timeline)) == timeline


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(["a", "b", "", "  ", "a cat\\[s\\]"]), max_size=9), st.booleans())
def test_lines_are_the_prompts_of_their_seconds(lines, blended):
    timeline = parse_lines("\n".join(["[blend: 2]"] * blended + lines))
    expected = {second: line.replace("\\", "") for second, line in enumerate(lines) if line.strip()}
    assert _picture(timeline) == expected and timeline.blend == 2 * blended
    assert all(a.end < b.start or a.prompt != b.prompt for a, b in pairwise(timeline.segments))
    if timeline.segments:
        assert parse(print_shorthand(timeline)) == timeline


@settings(max_examples=60, deadline=None)
@given(timelines(st.text("ab", min_size=1, max_size=3)), st.integers(0, 3))
def test_blend_is_a_ramp_behind_each_seam(timeline, more):
    """Weights against the stated rule, worked out from the hard-cut timeline second by second."""
    timeline = replace(timeline, gaps="hold")
    seconds = timeline.end + more + 1
    words = [mix.text for mix in replace(timeline, blend=0).compile(seconds)]
    for second, mix in enumerate(timeline.compile(seconds)):
        seam = second
        while seam and words[seam - 1] == words[second]:
            seam -= 1
        length = timeline.blend
        new = (second - seam + 1) / (length + 1) if seam and second - seam < length else 1.0
        weights = dict.fromkeys(mix.prompts, 0.0)
        for prompt, weight in mix.parts:
            weights[prompt] += weight
        assert sum(weights.values()) == pytest.approx(1)
        assert weights[words[second]] == pytest.approx(new)
        if new < 1:
            assert weights[words[seam - 1]] == pytest.approx(1 - new)


@settings(max_examples=60, deadline=None)
@given(
    timelines(st.text("ab", min_size=1, max_size=3), edited=True), st.integers(0, 12), st.integers(1, 15), st.booleans()
)
@example(
    Timeline((Segment(0, 4, "a"), Segment(6, 7, "aa")), blend=2, earlier_blends=((1, 0), (7, 0))), 6, 8, False
)
def test_prompts_that_come_are_those_of_every_second(timeline, first, seconds, endless):
    timeline = replace(timeline, gaps="hold")
    last = max(first, timeline.end + 9 + timeline.blend) + 1 if endless else seconds
    mixes = [timeline.prompt_for(second) for second in range(first, last)]
    expected = dict.fromkeys(prompt for mix in mixes for prompt in mix.prompts)
    assert timeline.prompts_from(first, None if endless else seconds) == tuple(expected)


def test_many_equal_neighbours_and_a_long_way_to_go_cost_next_to_nothing():
    began = time.perf_counter()
    same = Timeline(tuple(Segment(n, n + 1, "a") for n in range(20_000)), blend=3)
    assert {mix.text for mix in same.compile(20_000)} == {"a"}
    far = Timeline((Segment(0, 1, "a"), Segment(999_999, 1_000_000, "b")), blend=600)
    assert far.prompts_from(0) == ("a", "b")
    assert time.perf_counter() - began < 10


def test_a_blend_has_an_end():
    """Said when a video is asked for; a saved one still opens."""
    timeline = parse("[blend: 300000] [0s-1s: a]")
    with pytest.raises(TimelineError, match="A blend of 300000 s is too long; give at most 600, 0 for no fade"):
        timeline.check(2)


@settings(max_examples=60, deadline=None)
@given(timelines(st.text("abc", min_size=1, max_size=2)), st.text("abc", min_size=1, max_size=2), st.integers(0, 12))
def test_what_comes_later_never_changes_an_earlier_second(timeline, prompt, second):
    timeline = replace(timeline, gaps="hold")
    later = Segment(max(second, 1), max(second, 1) + 2, prompt)
    changed = replace(clip(timeline, second), segments=(*clip(timeline, second).segments, later))
    for earlier in range(second):
        assert changed.prompt_for(earlier).parts == timeline.prompt_for(earlier).parts


def test_global_prompt_stands_in_front_and_gaps_hold():
    timeline = parse("rain [1s-2s: a cat] [4s-5s: a dog]")
    words = [mix.text for mix in timeline.compile(6)]
    assert words == ["rain", "rain. a cat", "rain. a cat", "rain. a cat", "rain. a dog", "rain. a dog"]
    assert Timeline(global_prompt="Rain!", segments=(Segment(0, 1, "a cat"),)).prompt_for(0).text == "Rain! a cat"
    assert Timeline().prompt_for(7) == PromptMix((("", 1.0),))
    assert timeline.prompt_for(10**5).text == "rain. a dog"


def test_text_of_a_mix_is_the_heavier_prompt_and_the_newer_of_equals():
    mixes = parse("[blend: 3] [0s-1s: a] [1s-9s: b]").compile(9)
    assert [mix.text for mix in mixes] == ["a", "a", "b", "b", "b", "b", "b", "b", "b"]
    assert mixes[2].parts == (("a", 0.5), ("b", 0.5))


def test_segments_are_put_in_order():
    assert parse("[2s-3s: b] [0-2: a]") == Timeline((Segment(0, 2, "a"), Segment(2, 3, "b")))


def test_a_clipped_timeline_against_a_second_by_second_picture():
    """Random timelines keep what lies before the end, and nothing behind it."""
    rng = random.Random(5)
    for _ in range(200):
        timeline = parse_lines("\n".join(rng.choice(["a", "b", "", "c"]) for _ in range(8)))
        end = rng.randrange(0, 10)
        assert _picture(clip(timeline, end)) == {s: text for s, text in _picture(timeline).items() if s < end}


def _picture(timeline):
    return {second: s.prompt for s in timeline.segments for second in range(s.start, s.end)}


def test_changes_by_example():
    timeline = parse("[0s-2s: a] [3s-5s: b]")
    assert clip(timeline, 4) == parse("[0s-2s: a] [3s-4s: b]")
    assert splice(timeline, 1, parse("[0s-6s: a]")) == parse("[0s-6s: a]")
    assert splice(timeline, 4, parse("[0s-6s: c]")) == parse("[0s-2s: a] [3s-4s: b] [4s-6s: c]")


def said(timeline: Timeline, second: int) -> str:
    try:
        return timeline.prompt_for(second).text
    except TimelineError:  # nothing is said before the first segment
        return ""


@settings(max_examples=300, deadline=None)
@given(timelines(), timelines(), st.integers(0, 12))
def test_splice_keeps_what_was_said_and_obeys_what_is_new(old, new, second):
    """Second by second, whatever the global prompts and gaps were."""
    old, new = replace(old, blend=0, gaps="hold"), replace(new, blend=0, gaps="hold")
    both = splice(old, second, new)
    assert [said(both, n) for n in range(16)] == [said(old if n < second else new, n) for n in range(16)]


@settings(max_examples=400, deadline=None)
@given(timelines(edited=True), timelines(edited=True), timelines(), st.integers(0, 9), st.integers(0, 4))
def test_settled_seconds_keep_their_mix_whatever_comes_later(old, new, newest, second, later):
    """Blends, gaps and global prompts of newer timelines, twice over, change no second before the one they begin at."""
    old, new = replace(old, gaps="hold"), replace(new, gaps="hold")
    once = splice(old, second, new)
    twice = splice(once, second + later, newest)
    assert [mix(once, n) for n in range(second)] == [mix(old, n) for n in range(second)]
    assert [mix(twice, n) for n in range(second + later)] == [mix(once, n) for n in range(second + later)]
    assert parse_shorthand(print_shorthand(twice)) == twice == Timeline.from_json(twice.to_json())
    if second:
        assert once.blend == new.blend and all(until <= max(second, 9) for until, _ in once.earlier_blends)


def mix(timeline, second):
    """A second's prompts and weights; before the first segment those of the global prompt, as a gap held."""
    try:
        return timeline.prompt_for(second).parts
    except TimelineError:
        return (("", 1.0),)


def test_a_newer_blend_begins_where_it_is_asked_for():
    edited = splice(parse("[0s-1s: a] [1s-8s: b]"), 2, parse("[blend: 3] [0s-4s: b] [4s-8s: c]"))
    assert print_shorthand(edited) == "[blend: 0 until 2s, 3] [0s-1s: a] [1s-4s: b] [4s-8s: c]"
    assert [len(edited.prompt_for(n).parts) for n in range(8)] == [1, 1, 2, 2, 2, 2, 2, 1]
    assert edited.prompts_from(2) == ("a", "b", "c") and edited.prompts_from(7) == ("c",)


def test_splice_into_a_timeline_that_refuses_gaps_fills_the_earlier_ones():
    strict = replace(parse("[0s-6s: c]"), gaps="refuse")
    assert splice(parse("[0s-2s: a] [3s-5s: b]"), 4, strict).compile(6)[2].text == "a"


REFUSED = {
    "overlap": (
        "[0s-3s: a cat] [2s-5s: a dog]",
        "Segment [2s-5s: a dog] overlaps segment [0s-3s: a cat]; start it at 3s or end the other one at 2s.",
    ),
    "reversed": ("[3s-1s: a cat]", "Segment [3s-1s: a cat] must end after it starts; it lasts at least one second."),
    "empty": ("[3s-3s: a cat]", "Segment [3s-3s: a cat] must end after it starts; it lasts at least one second."),
    "fraction": (
        "[0s-1.5s: a cat]",
        "Segment [0s-1.5s: a cat] uses the time 1.5; times are whole seconds, such as 2s.",
    ),
    "negative": ("[-1s-2s: a cat]", "Segment [-1s-2s: a cat] starts before the video; the first second is 0."),
    "late": ("[0s-2000000s: a]", "Segment [0s-2000000s: a] ends later than any video; the last second is 1000000."),
    "endless digits": (f"[0s-{'9' * 5000}s: a]", "Segment [0s-"),
    "no times": (
        "[a cat]",
        "Segment [a cat] does not begin with its times; write [0s-2s: a cat walks] [2s-5s: it jumps].",
    ),
    "words as times": ("[now-later: a cat]", "Segment [now-later: a cat] does not begin with its times; write "),
    "open": ("[0s-2s: a cat", "The bracket of [0s-2s: a cat is not closed; write "),
    "nested": (
        "[0s-2s: a [big] cat]",
        "A bracket opens inside [0s-2s: a; write \\[ and \\] for brackets in a prompt.",
    ),
    "closing": ("a cat] [0s-1s: x]", "A bracket closes after a cat that was not opened; write "),
    "between": (
        "[0s-1s: a] then [1s-2s: b]",
        "The text then stands between segments; put it in a bracket or in front.",
    ),
    "escape": (r"[0s-1s: a \q]", "The escape '\\\\q' is unknown; write \\\\ for a backslash."),
    "huge code point": (r"[0s-1s: \u{ffffff}]", "The escape '\\\\u{ffffff}' is unknown; write \\\\ for a backslash."),
    "blend": ("[blend: some] [0s-1s: a]", "A blend of 'some' is not possible; give whole seconds, 0 for no fade."),
    "earlier blend": ("[blend: 2 till 4s, 0] [0s-1s: a]", "A blend of '2 till 4s, 0' is not possible; give whole"),
    "earlier blends out of order": (
        "[blend: 2 until 4s, 1 until 3s, 0] [0s-1s: a]",
        "Earlier blends must stand in order of their seconds, each second once, from 1 on.",
    ),
    "JSON earlier blends": (
        '{"segments": [], "earlier_blends": [4, 2]}',
        "The timeline's earlier_blends must be a list of pairs, such as [[4, 2]].",
    ),
    "JSON earlier blend": (
        '{"segments": [], "earlier_blends": [["4", 2]]}',
        "An earlier blend must be two whole numbers: its last second's end, and a blend.",
    ),
    "blend twice": ("[blend: 1] [blend: 2] [0s-1s: a]", "The timeline gives 'blend' twice; keep one."),
    "gaps": ("[gaps: fill] [0s-1s: a]", "Gaps can be 'hold' or 'refuse', not 'fill'."),
    "broken JSON": ('{"segments": [', "The timeline is not valid JSON ("),
    "JSON version": ('{"version": 9, "segments": []}', "The timeline has version 9; this program reads version 1."),
    "JSON without segments": ("{}", "The timeline lacks 'segments'; export a timeline to see the form."),
    "JSON unknown key": (
        '{"segments": [], "fps": 24}',
        "The timeline has an unknown key 'fps'; allowed are blend, earlier_blends, gaps, global_prompt,",
    ),
    "JSON segment": ('{"segments": [{"start": 0, "end": 2}]}', "The segment 1 lacks 'prompt'; export a timeline"),
    "JSON float": (
        '{"segments": [{"start": 0.5, "end": 2, "prompt": "a"}]}',
        "Segment [0.5s-2s: a] starts at 0.5; times are whole seconds, such as 2.",
    ),
    "JSON bool": (
        '{"segments": [{"start": 0, "end": true, "prompt": "a"}]}',
        "Segment [0s-Trues: a] ends at True; times are ",
    ),
    "JSON prompt": (
        '{"segments": [{"start": 0, "end": 2, "prompt": 3}]}',
        "Segment [0s-2s: 3] has a prompt that is not text;",
    ),
    "JSON list": (
        '{"segments": {"0": "a"}}',
        "The timeline's segments must be a list of objects with start, end and prompt.",
    ),
    "JSON item": ('{"segments": ["a"]}', "Segment 1 is not an object with start, end and prompt."),
    "JSON global": ('{"segments": [], "global_prompt": 3}', "The global prompt is not text; put it in quotes."),
}


@pytest.mark.parametrize("name", REFUSED)
def test_text_that_is_refused(name):
    text, sentence = REFUSED[name]
    with pytest.raises(TimelineError) as caught:
        parse(text)
    assert str(caught.value).startswith(sentence)
    assert str(caught.value).endswith(".") and "\n" not in str(caught.value)


LENGTH = {
    "too long": (
        "[0s-2s: a] [2s-9s: b]",
        4,
        "Segment [2s-9s: b] ends after the video's 4 s; shorten it or ask for 9 seconds.",
    ),
    "gap in front": (
        "[2s-4s: a]",
        4,
        "Segment [2s-4s: a] comes first, and no prompt covers the time before it; "
        "start it at 0s or write a global prompt.",
    ),
    "gap refused": (
        "[gaps: refuse] [0s-1s: a] [2s-4s: b]",
        4,
        "No segment covers 1s-2s; add one there or let gaps hold the prompt before.",
    ),
    "end refused": (
        "[gaps: refuse] [0s-1s: a]",
        3,
        "No segment covers 1s-3s; add one there or let gaps hold the prompt before.",
    ),
}


@pytest.mark.parametrize("name", LENGTH)
def test_lengths_that_are_refused(name):
    text, seconds, sentence = LENGTH[name]
    with pytest.raises(TimelineError) as caught:
        parse(text).compile(seconds)
    assert str(caught.value) == sentence


@pytest.mark.parametrize("second", [-1, 3, 100])
def test_a_second_outside_the_video_is_refused(second):
    with pytest.raises(TimelineError, match=f"There is no second {second} in a video of 3 s"):
        parse("[0s-3s: a]").prompt_for(second, 3)


def test_refused_gaps_also_stop_a_single_second():
    timeline = parse("[gaps: refuse] [0s-1s: a] [2s-3s: b]")
    assert timeline.prompt_for(2).text == "b"
    with pytest.raises(TimelineError, match="No segment covers 1s-2s"):
        timeline.prompt_for(1)


# --- cuts and pictures -----------------------------------------------------------------------------------------------


@settings(max_examples=80, deadline=None)
@given(timelines(marks=MARKS), st.integers(0, 12), st.booleans())
def test_shots_divide_the_video_at_cuts_and_pictures(timeline, seconds, endless):
    seconds = None if endless else max(1, seconds)
    shots = timeline.shots(seconds)
    assert shots[0].start == 0 and shots[-1].end == seconds
    assert all(a.end == b.start and a.start < b.start for a, b in pairwise(shots))
    begins = {s.start: s for s in timeline.segments if s.begins_shot and (seconds is None or s.start < seconds)}
    assert {shot.start for shot in shots} == {0, *begins}
    for shot in shots:
        held = begins.get(shot.start)
        assert shot.image == (held.image if held else None)
        assert timeline.shot_of(shot.start, seconds) == shot
        if shot.end is not None:
            assert timeline.shot_of(shot.end - 1, seconds) == shot


@settings(max_examples=80, deadline=None)
@given(timelines(st.text("ab", min_size=1, max_size=3), marks=MARKS), st.integers(0, 3))
def test_no_prompt_blends_over_the_start_of_a_shot(timeline, more):
    """Each shot's prompts are those of a timeline that begins there and knows no other."""
    timeline = replace(timeline, gaps="hold", global_prompt="g")
    seconds = timeline.end + more + 1
    for shot in timeline.shots(seconds):
        own = splice(Timeline(global_prompt="x"), 0, replace(timeline, segments=_of_shot(timeline, shot)))
        for second in range(shot.start, shot.end):
            assert timeline.prompt_for(second, seconds) == own.prompt_for(second - shot.start), (second, shot)
    mixes = timeline.compile(seconds)
    for first in range(seconds):
        assert set(timeline.prompts_from(first, seconds)) == {p for mix in mixes[first:] for p in mix.prompts}


def _of_shot(timeline, shot):
    """A shot's blocks, moved to second 0; what holds when it begins is a block as well."""
    held = [s for s in timeline.segments if s.start < shot.start][-1:]
    inside = [s for s in timeline.segments if shot.start <= s.start < shot.end]
    if held and (not inside or inside[0].start > shot.start):
        inside.insert(0, replace(held[0], start=shot.start, end=inside[0].start if inside else shot.end))
    return tuple(Segment(s.start - shot.start, min(s.end, shot.end) - shot.start, s.prompt) for s in inside)


@settings(max_examples=80, deadline=None)
@given(timelines(marks=MARKS), timelines(marks=MARKS), st.integers(1, 9))
def test_a_splice_takes_the_shots_before_from_the_old_and_the_rest_from_the_new(old, new, second):
    spliced = splice(old, second, new)
    wanted = [s for s in old.shots(None) if s.start < second] + [s for s in new.shots(None) if s.start >= second]
    found = spliced.shots(None)
    assert [(s.start, s.image, s.image_sha256) for s in found] == [(s.start, s.image, s.image_sha256) for s in wanted]


@pytest.mark.parametrize(
    ("text", "image", "cut"),
    [
        ("[0s-2s: a] [2s-5s cut: b]", None, True),
        ("[0s-2s: a] [2-5 CUT: b]", None, True),
        ("[0s-2s: a] [2s-5s image=cat.png: b: c]", "cat.png", False),
        (
            '[0s-2s: a] [2s-5s cut image="C:/my pics/a [1].png" : b]'.replace("[1]", "\\[1\\]"),
            "C:/my pics/a [1].png",
            True,
        ),
    ],
)
def test_a_block_in_text_can_carry_a_cut_or_a_picture(text, image, cut):
    block = parse(text).segments[1]
    assert (block.cut, block.image) == (cut, None if image is None else Path(image))
    assert parse(print_shorthand(parse(text))) == parse(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[0s-2s fade: a]", "the mark fade"),
        ("[0s-2s cut=yes: a]", "the mark cut=yes"),
        ("[0s-2s cut cut: a]", "twice"),
        ("[0s-2s image: a]", "the mark image"),
        ('[0s-2s image="": a]', "names no picture"),
        ("[0s-2s image=a b.png: a]", "the mark b.png"),
        ("[0s-2s sha256=abc: a]", "belongs to no picture"),
        ("[0s-2s cut]", "no colon"),
    ],
)
def test_an_unknown_mark_gives_one_sentence(text, words):
    with pytest.raises(TimelineError, match=re.escape(words)) as raised:
        parse_shorthand(text)
    assert str(raised.value).count(". ") == 0 and "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "marks",
    [{"cut": 1}, {"image": 3}, {"image": ""}, {"image": "a\nb"}, {"image": "a.png", "image_sha256": "x"}, {"shot": 1}],
)
def test_marks_of_a_wrong_kind_in_json_are_refused(marks):
    with pytest.raises(TimelineError):
        Timeline.from_json({"segments": [{"start": 0, "end": 1, "prompt": "a"} | marks]})


def test_a_timeline_without_cuts_is_written_as_before():
    assert Timeline((Segment(0, 1, "a"),)).to_json()["segments"] == [{"start": 0, "end": 1, "prompt": "a"}]
