"""The timeline: which prompt holds in which second.

A second is a chunk of the model. Times count the NEW seconds of a video from 0, are whole, and a segment covers
[start, end). The prompt of a second:

- the global prompt stands in front of every segment's prompt;
- a gap holds: a second that no segment covers repeats the segment before it, so a scene goes on until the next
  segment, past the last one too. A gap before the first segment has the global prompt alone and is refused where there
  is none. With `gaps="refuse"` every gap is refused;
- a seam is a second whose prompt differs from that of the second before it. With `blend` = N the first N seconds from
  the seam on mix the old prompt in, old : new = N : 1, N-1 : 2, ..., 1 : N; a prompt that lasts less than N seconds is
  cut off on its way. Blending looks back, never ahead: later segments leave every earlier second as it is;
- the blend may have been another one before some second: a video that is redirected keeps what its seconds began with;
- a segment with a cut, or with a picture, begins a new shot: nothing that came before is seen by it. It starts from the
  picture, or from nothing, and no prompt blends over its start. Second 0 begins a shot in any case.

`text` reads and prints timelines as text, `edit` changes them.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from magi_lite.errors import TimelineError
from magi_lite.sentences import has_half_character, shown
from magi_lite.timeline import markers
from magi_lite.timeline.markers import Marker
from quant.storage.files import parse_json

JSON_VERSION = 1
MAX_SECONDS = 1_000_000
"""No segment ends later: eleven days."""
MAX_PROMPT = 10_000
"""Characters; the text encoder reads the first 800 tokens at most, which a run says of prompts that have more."""
MAX_BLEND = 600
"""Seconds over which prompts are mixed at most."""
_NAME_LENGTH = 40
_MAX_PATH = 4096
_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)
_SENTENCE_ENDS = ".!?,;:…。！？"


@dataclass(frozen=True)
class PromptMix:
    """The prompts of one second: (prompt, weight) pairs, weights positive and summing to 1; several only near a seam.

    Whoever embeds the prompts mixes their embeddings with these weights.
    """

    parts: tuple[tuple[str, float], ...]

    @property
    def prompts(self) -> tuple[str, ...]:
        return tuple(prompt for prompt, _ in self.parts)

    @property
    def text(self) -> str:
        """The prompt of the largest weight, the newer one of equals."""
        return max(reversed(self.parts), key=lambda part: part[1])[0]


@dataclass(frozen=True)
class Shot:
    """The seconds [start, end) that are made without a look at any other; `end` None: without end."""

    start: int
    end: int | None
    image: Path | None = None
    """The picture that its first second starts from."""
    image_sha256: str | None = None

    @property
    def length(self) -> int | None:
        """Its seconds; None: endless."""
        return None if self.end is None else self.end - self.start

    def until(self, second: int) -> int:
        """A second, or the shot's end where that comes first."""
        return second if self.end is None else min(second, self.end)


@dataclass(frozen=True)
class Segment:
    """A prompt for the whole seconds [start, end).

    Raises:
        TimelineError: times are not whole, negative, the segment does not end after it starts, or its picture is no
            path.
    """

    start: int
    end: int
    prompt: str
    cut: bool = False
    """Whether a new shot begins with it, in which nothing before is seen."""
    image: Path | None = None
    """A picture that its first second starts from, which begins a new shot as well."""
    image_sha256: str | None = None
    """Of the picture's content; None: not known (yet). A file of other content is refused."""

    def __post_init__(self) -> None:
        if not isinstance(self.prompt, str):
            raise TimelineError(f"Segment {self} has a prompt that is not text; put it in quotes.")
        for name, value in (("starts", self.start), ("ends", self.end)):
            if isinstance(value, bool) or not isinstance(value, int):
                raise TimelineError(f"Segment {self} {name} at {shown(value)}; times are whole seconds, such as 2.")
        if self.start < 0:
            raise TimelineError(f"Segment {self} starts before the video; the first second is 0.")
        if self.end <= self.start:
            raise TimelineError(f"Segment {self} must end after it starts; it lasts at least one second.")
        if self.end > MAX_SECONDS:
            raise TimelineError(f"Segment {self} ends later than any video; the last second is {MAX_SECONDS}.")
        self._check_marks()

    def _check_marks(self) -> None:
        if not isinstance(self.cut, bool):
            raise TimelineError(f"Segment {self} has a cut of {shown(self.cut)}; it is true or false.")
        if not isinstance(self.image, Path | None):
            raise TimelineError(f"Segment {self} has a picture that is no path; name the file.")
        path = "" if self.image is None else str(self.image)
        if len(path) > _MAX_PATH or has_half_character(path) or any(ord(character) < 32 for character in path):
            raise TimelineError(f"Segment {self} names a picture that no file can be called; name another file.")
        if self.image_sha256 is not None and (
            self.image is None or not isinstance(self.image_sha256, str) or not _SHA256.fullmatch(self.image_sha256)
        ):
            raise TimelineError(f"Segment {self} has a checksum that belongs to no picture; leave it out.")

    @property
    def begins_shot(self) -> bool:
        """Whether nothing before it is seen from its start on."""
        return self.cut or self.image is not None

    def __str__(self) -> str:
        prompt = str(self.prompt)
        short = prompt if len(prompt) <= _NAME_LENGTH else prompt[: _NAME_LENGTH - 1] + "…"
        return f"[{shown(self.start)}s-{shown(self.end)}s: {' '.join(short.split())}]"


@dataclass(frozen=True)
class Timeline:
    """Segments in order, with a global prompt in front of each; `blend` chunks are mixed at a seam.

    Segments are put in order of their start. The module's text states what gaps and seams mean.

    Raises:
        TimelineError: segments overlap, or a field is of the wrong kind; the message names the segment.
    """

    segments: tuple[Segment, ...] = ()
    global_prompt: str = ""
    blend: int = 0
    gaps: Literal["hold", "refuse"] = "hold"
    earlier_blends: tuple[tuple[int, int], ...] = ()
    """(second, blend), in order: the seconds before `second` are mixed with that blend instead. See `edit.splice`."""
    markers: tuple[Marker, ...] = field(default=(), compare=False)
    """Named moments; timelines that differ in nothing else make the same video, and are equal."""

    def __post_init__(self) -> None:
        if not isinstance(self.global_prompt, str):
            raise TimelineError("The global prompt is not text; put it in quotes.")
        if isinstance(self.blend, bool) or not isinstance(self.blend, int) or self.blend < 0:
            found = shown(self.blend)
            raise TimelineError(f"A blend of {found} is not possible; give whole seconds, 0 for no fade.")
        seconds = [0]
        for second, blend in self.earlier_blends:
            if not all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in (second, blend)):
                raise TimelineError("An earlier blend must be two whole numbers: its last second's end, and a blend.")
            seconds.append(second)
        if any(later <= earlier for earlier, later in pairwise(seconds)):
            raise TimelineError("Earlier blends must stand in order of their seconds, each second once, from 1 on.")
        if self.gaps not in ("hold", "refuse"):
            raise TimelineError(f"Gaps can be 'hold' or 'refuse', not {shown(self.gaps)}.")
        if not all(isinstance(segment, Segment) for segment in self.segments):
            raise TimelineError("The timeline holds something that is not a segment; give start, end and prompt.")
        ordered = tuple(sorted(self.segments, key=lambda segment: segment.start))
        for before, after in pairwise(ordered):
            if after.start < before.end:
                raise TimelineError(
                    f"Segment {after} overlaps segment {before}; "
                    f"start it at {before.end}s or end the other one at {after.start}s."
                )
        object.__setattr__(self, "segments", ordered)

    @property
    def pictures(self) -> tuple[Path, ...]:
        """The pictures of all blocks, each once."""
        return tuple(dict.fromkeys(segment.image for segment in self.segments if segment.image))

    @property
    def end(self) -> int:
        """The second after the last segment; 0 without segments."""
        return self.segments[-1].end if self.segments else 0

    def check(self, seconds: int | None) -> None:
        """Refuse what a video of `seconds` (None: endless) cannot show.

        Raises:
            TimelineError: a segment ends after the video, a gap is outside the policy, or the blend is longer than any.
        """
        longest = max([self.blend, *(blend for _, blend in self.earlier_blends)])
        if longest > MAX_BLEND:
            blend = shown(longest)
            raise TimelineError(f"A blend of {blend} s is too long; give at most {MAX_BLEND}, 0 for no fade.")
        if seconds is not None and self.end > seconds:
            raise TimelineError(
                f"Segment {self.segments[-1]} ends after the video's {seconds} s; "
                f"shorten it or ask for {self.end} second{'s' * (self.end != 1)}."
            )
        covered = 0
        for segment in self.segments:
            if segment.start > covered:
                self._check_gap(covered, segment.start)
            covered = segment.end
        if self.segments and (seconds or 0) > covered:
            self._check_gap(covered, seconds or 0)

    def blend_at(self, second: int) -> int:
        """Over how many seconds the prompts are mixed that hold in `second`."""
        return next((blend for until, blend in self.earlier_blends if second < until), self.blend)

    def prompt_for(self, chunk: int, seconds: int | None = None) -> PromptMix:
        """What second `chunk` (0-based) of a video of `seconds` (None: endless) has as its prompt.

        Raises:
            TimelineError: the second lies outside the video or in a gap that the policy refuses.
        """
        if chunk < 0 or (seconds is not None and chunk >= seconds):
            raise TimelineError(f"There is no second {chunk} in a video of {seconds} s; the first is 0.")
        index = bisect_right(self.segments, chunk, key=lambda segment: segment.start) - 1
        if not self.segments or index < 0:
            if self.segments:
                self._check_gap(0, self.segments[0].start)
            return PromptMix(((self.global_prompt.strip(), 1.0),))
        if chunk >= self.segments[index].end:
            self._check_gap(self.segments[index].end, chunk + 1)
        return self._mix(chunk)

    def prompts_from(self, chunk: int, seconds: int | None = None) -> tuple[str, ...]:
        """All prompts of second `chunk` and later, each once, in the order in which they hold.

        Args:
            seconds: of the video; None: endless.
        """
        starts, prompts = self._stretches
        found: list[str] = []
        for index in range(max(0, bisect_right(starts, chunk) - 1), len(starts)):
            first = max(chunk, starts[index])
            if seconds is not None and first >= seconds:
                break
            end = starts[index + 1] if index + 1 < len(starts) else MAX_SECONDS
            end = end if seconds is None else min(end, seconds)
            seam, blended = starts[index], index > 0 and self._mixes(starts[index], first, end)
            pair = [prompts[index - 1], prompts[index]] if blended else [prompts[index]]
            found += pair if self._mixes(seam, first, first + 1) else reversed(pair)  # an edit may have begun a blend
        return tuple(dict.fromkeys(found))

    def compile(self, seconds: int) -> tuple[PromptMix, ...]:
        """One prompt per second of a video of `seconds`.

        Raises:
            TimelineError: see `check`.
        """
        self.check(seconds)
        return tuple(self.prompt_for(chunk, seconds) for chunk in range(seconds))

    def shots(self, seconds: int | None) -> tuple[Shot, ...]:
        """The shots of a video of `seconds` (None: endless), in order; the first begins at 0, the last ends with it."""
        if seconds not in self._known_shots:
            self._known_shots[seconds] = self._divided(seconds)
        return self._known_shots[seconds]

    def shot_lengths(self, seconds: int | None) -> tuple[int | None, ...]:
        """Seconds of each shot; None: endless."""
        if seconds not in self._known_lengths:
            self._known_lengths[seconds] = tuple(shot.length for shot in self.shots(seconds))
        return self._known_lengths[seconds]

    @cached_property
    def _known_shots(self) -> dict[int | None, tuple[Shot, ...]]:
        """Shots by the video's length: a plan asks for them many times."""
        return {}

    @cached_property
    def _known_lengths(self) -> dict[int | None, tuple[int | None, ...]]:
        return {}

    def _divided(self, seconds: int | None) -> tuple[Shot, ...]:
        firsts = [s for s in self.segments if s.start and s.begins_shot and (seconds is None or s.start < seconds)]
        opening = self.segments[0] if self.segments and not self.segments[0].start else Segment(0, 1, "")
        begun = [opening, *firsts]
        ends = [segment.start for segment in firsts] + [seconds]
        return tuple(Shot(s.start, end, s.image, s.image_sha256) for s, end in zip(begun, ends, strict=True))

    def shot_of(self, second: int, seconds: int | None) -> Shot:
        """The shot that a second of a video of `seconds` (None: endless) belongs to; behind the end, the last one."""
        return [shot for shot in self.shots(seconds) if shot.start <= max(0, second)][-1]

    def full_prompt(self, segment: Segment) -> str:
        """The segment's prompt with the global prompt in front."""
        front, own = self.global_prompt.strip(), segment.prompt.strip()
        if not front or not own:
            return front or own
        return f"{front} {own}" if front[-1] in _SENTENCE_ENDS else f"{front}. {own}"

    def to_json(self) -> dict[str, Any]:
        """A JSON-able dict that `from_json` reads back to an equal timeline."""
        found: dict[str, Any] = {
            "version": JSON_VERSION,
            "global_prompt": self.global_prompt,
            "blend": self.blend,
            "gaps": self.gaps,
            "segments": [_segment_to_json(segment) for segment in self.segments],
        }
        if self.earlier_blends:
            found["earlier_blends"] = [list(pair) for pair in self.earlier_blends]
        if self.markers:
            found["markers"] = markers.to_json(self.markers)
        return found

    @classmethod
    def from_json(cls, data: dict[str, Any] | str) -> Timeline:
        """Read what `to_json` wrote, as a dict or as JSON text. Only `segments` is required.

        Raises:
            TimelineError: not JSON, another version, an unknown or missing key, or a contradiction.
        """
        if isinstance(data, str):
            try:
                data = parse_json(data)
            except (ValueError, RecursionError) as error:
                raise TimelineError(f"The timeline is not valid JSON ({error}); export one to see the form.") from None
        if not isinstance(data, dict):
            raise TimelineError("A timeline in JSON is an object with a list of segments; export one to see the form.")
        version = data.get("version", JSON_VERSION)
        if version != JSON_VERSION:
            found = shown(version)
            raise TimelineError(f"The timeline has version {found}; this program reads version {JSON_VERSION}.")
        optional = {"version", "global_prompt", "blend", "gaps", "earlier_blends", "markers"}
        _check_keys("timeline", data, {"segments"}, optional)
        if not isinstance(data["segments"], list):
            raise TimelineError("The timeline's segments must be a list of objects with start, end and prompt.")
        options: dict[str, Any] = {name: data[name] for name in ("global_prompt", "blend", "gaps") if name in data}
        earlier = data.get("earlier_blends", [])
        if not isinstance(earlier, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in earlier):
            raise TimelineError("The timeline's earlier_blends must be a list of pairs, such as [[4, 2]].")
        options["earlier_blends"] = tuple(tuple(pair) for pair in earlier)
        options["markers"] = markers.from_json(data.get("markers", []))
        return cls(tuple(_segment_from_json(item, n) for n, item in enumerate(data["segments"], 1)), **options)

    def _check_gap(self, start: int, end: int) -> None:
        """Raise if the policy refuses the gap [start, end)."""
        if self.gaps == "refuse":
            raise TimelineError(f"No segment covers {start}s-{end}s; add one there or let gaps hold the prompt before.")
        if start == 0 and not self.global_prompt.strip():
            raise TimelineError(
                f"Segment {self.segments[0]} comes first, and no prompt covers the time before it; "
                "start it at 0s or write a global prompt."
            )

    @cached_property
    def _stretches(self) -> tuple[list[int], list[str]]:
        """The seconds where the prompt changes, and the prompts; the first begins at 0, the last holds for ever."""
        front = self.global_prompt.strip()
        starts, prompts = ([0], [front]) if not self.segments or self.segments[0].start else ([], [])
        for segment in self.segments:
            own = self.full_prompt(segment)
            if not prompts or own != prompts[-1]:
                starts.append(segment.start)
                prompts.append(own)
        return starts, prompts

    def _mixes(self, seam: int, first: int, end: int) -> bool:
        """Whether any second of [first, end) behind `seam` still has the prompt before it; no other seam between."""
        begins = [first, *(until for until, _ in self.earlier_blends if first < until < end)]
        return any(second - seam < self._blend_behind(seam, second) for second in begins)

    def _blend_behind(self, seam: int, second: int) -> int:
        """Over how many seconds behind a seam the prompts are mixed, as `second` sees it: none where a shot began."""
        cut = bisect_right(self._cuts, second)
        return 0 if cut and self._cuts[cut - 1] >= seam else self.blend_at(second)

    @cached_property
    def _cuts(self) -> list[int]:
        """The seconds where shots begin, without second 0."""
        return [segment.start for segment in self.segments if segment.begins_shot and segment.start]

    def _mix(self, chunk: int) -> PromptMix:
        """The prompt of second `chunk`, blended with the prompt before its seam."""
        starts, prompts = self._stretches
        index = bisect_right(starts, chunk) - 1
        own, position = prompts[index], chunk - starts[index]
        blend = self._blend_behind(starts[index], chunk)
        if index == 0 or position >= blend:
            return PromptMix(((own, 1.0),))
        share = (position + 1) / (blend + 1)
        return PromptMix(((prompts[index - 1], 1.0 - share), (own, share)))


def _segment_to_json(segment: Segment) -> dict[str, Any]:
    """Marks that are not set are left out, so that a timeline without them reads as it always did."""
    data: dict[str, Any] = {"start": segment.start, "end": segment.end, "prompt": segment.prompt}
    if segment.cut:
        data["cut"] = True
    if segment.image is not None:
        data["image"] = str(segment.image)
    if segment.image_sha256 is not None:
        data["image_sha256"] = segment.image_sha256
    return data


def _segment_from_json(item: Any, number: int) -> Segment:
    if not isinstance(item, dict):
        raise TimelineError(f"Segment {number} is not an object with start, end and prompt.")
    _check_keys(f"segment {number}", item, {"start", "end", "prompt"}, {"cut", "image", "image_sha256"})
    image = item.get("image")
    if not isinstance(image, str | None) or image == "":
        raise TimelineError(f"Segment {number} has the picture {shown(image)}, which is no path; name the file.")
    path = None if image is None else Path(image)
    return Segment(item["start"], item["end"], item["prompt"], item.get("cut", False), path, item.get("image_sha256"))


def _check_keys(what: str, data: dict[str, Any], required: set[str], optional: set[str]) -> None:
    for key in required - data.keys():
        raise TimelineError(f"The {what} lacks {key!r}; export a timeline to see the form.")
    for key in data.keys() - required - optional:
        allowed = ", ".join(sorted(required | optional))
        raise TimelineError(f"The {what} has an unknown key {shown(key)}; allowed are {allowed}.")
