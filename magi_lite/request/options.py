"""What an option is, and how one value of it is read and checked. The table of all options stands in `request`.

An `Option` says everything that any front end has to know of one thing that can be asked for. It is written where the
request's field is declared, so that a new option is one declaration: the command line's flags and help, JSON and its
refusals, the checks, the API's arguments and the widgets' choices are all read from it. (The road not taken, a table
beside the dataclasses, would name every option twice.)

Reading is one function for all front ends: `read` takes what they have (text of a command line, a number that JSON made
a float, a choice, "auto") and `check` refuses what is of the wrong kind or not legal, always in the same sentence.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from magi_lite.errors import InputError
from magi_lite.sentences import either, shown

Kind = Literal["whole", "number", "switch", "choice", "text", "path", "names", "timeline"]
Changes = Literal["never", "redo", "resume"]
AUTO = "auto"
"""What a user writes to leave a choice to the preset or the planner; the same as leaving it out."""
MAX_NAME = 1000
"""Characters of a name: models, presets, styles."""
MAX_PATH = 4096
"""Characters of a path: what Linux takes at most."""
_MAX_PART = 255
"""Of one file or folder in it: bytes on Linux, characters elsewhere."""
_KINDS: dict[str, str] = {
    "whole": "a whole number", "number": "a number", "switch": "true or false", "choice": "text", "text": "text",
    "path": "text", "names": "a list of names", "timeline": "a timeline",
}  # fmt: skip
_WHOLE_TEXT = re.compile(r"\s*[+-]?[0-9]{1,30}\s*", re.ASCII)


def _too_long(path: Path) -> str:
    """The first name in a path that is longer than any disk takes; empty: there is none."""
    return next((part for part in path.parts if _length(part) > _MAX_PART), "")


def _length(part: str) -> int:
    try:
        return len(os.fsencode(part) if sys.platform == "linux" else part)
    except UnicodeEncodeError:  # half a character: no name at all, as whoever opens it will find
        return 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Option:
    """One thing that can be asked for. `name`, `field` and `part` are filled in by the table."""

    kind: Kind
    help: str = ""
    """For the command line and the API, in plain English."""
    name: str = ""
    """Its keyword in `build`, in the library and in the API."""
    field: str = ""
    """The request's field; empty for those that only help to fill others (`size`, `prompt`, ...)."""
    part: Literal["", "tokens", "overrides"] = ""
    """The nested object of the request that holds the field."""
    default: Any = None
    optional: bool = False
    """Whether the request's field may be None."""

    choices: tuple[Any, ...] = ()
    """All legal values, of `names` each element."""
    suggestions: tuple[Any, ...] = ()
    """Values offered first where others are legal too."""
    meanings: Mapping[Any, str] = dataclasses.field(default_factory=dict)
    """What a choice stands for, where its name does not say it."""
    least: float | None = None
    most: float | None = None
    step: int = 1
    """A whole number is a multiple of this."""
    unit: str = ""
    noun: str = ""
    """Its name inside a sentence; empty: `name`."""
    refusal: str = ""
    """The sentence for a value that is not legal, with {value}, {legal}, {least} and {most}."""
    wrong_kind: str = ""
    """The sentence for a value of another kind, with {value}; empty: the usual one."""
    error: type[InputError] = InputError

    flag: str | None = None
    """On the command line; None: made of `name`; empty: none."""
    inverse: bool = False
    """The flag of this switch turns it off."""
    metavar: str | None = None
    group: Literal["what", "how", "where"] = "how"
    planned: bool = False
    """Whether it changes memory or time, so that `plan` takes it."""
    hidden: bool = False
    """Left out of the help and the form: for comparisons and experts."""
    local: bool = False
    """A place on this computer: never taken from a settings file, not offered by the app's API."""
    written: bool = False
    """A file that the run writes; how long its name may be, its disk says."""
    label: str = ""
    """In the app's form."""
    info: str = ""
    """Under the label."""

    preset: bool = False
    """Where it is left out, the preset decides."""
    changes: Changes = "never"
    """When it may change in a run that is there: `resume` (always), `redo` (for the seconds made again), or never."""

    @property
    def option_string(self) -> str:
        """The flag; empty where there is none."""
        return f"--{self.name.replace('_', '-')}" if self.flag is None else self.flag

    @property
    def called(self) -> str:
        """Its name in a message that is about the option itself: the flag where there is one."""
        return self.option_string or self.name

    @property
    def offered(self) -> tuple[Any, ...]:
        """What a list of choices shows."""
        return self.suggestions or self.choices

    def of(self, request: Any) -> Any:
        """Its value in a request."""
        return getattr(getattr(request, self.part) if self.part else request, self.field)

    # --- reading and refusing ----------------------------------------------------------------------------------------

    def read(self, value: Any) -> Any:
        """A value as any front end gives it, in the option's kind; None: not given, or "auto".

        Raises:
            InputError: it is of another kind. Whether it is legal is `check`'s affair.
        """
        if value is None or (isinstance(value, str) and value.strip().lower() in ("", AUTO) and self._may_be_left_out):
            return None
        if self.kind == "whole":
            text = isinstance(value, str) and _WHOLE_TEXT.fullmatch(value)
            if text or (isinstance(value, float) and value.is_integer() and abs(value) < 2**53):
                value = int(value)
        elif self.kind == "number" and isinstance(value, str):
            try:
                value = float(value)
            except ValueError:
                raise self.not_of_kind(value) from None
        elif self.kind == "path" and isinstance(value, str):
            value = Path(value)
        elif self.kind == "names":
            value = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value
        self.check_kind(value)
        return value

    @property
    def _may_be_left_out(self) -> bool:
        """Whether an empty text or "auto" stands for leaving it out; a preset is called "auto" itself."""
        return self.kind != "timeline" and self.default != AUTO

    def check(self, value: Any) -> None:
        """Refuse a value of the request that is of the wrong kind or not legal.

        Raises:
            InputError: (or `error`) one sentence.
        """
        if value is None and self.optional:
            return
        self.check_kind(value)
        if self.kind == "choice" and value not in self.choices:
            raise self.not_legal(value)
        if self.kind in ("whole", "number"):
            if self.step > 1 and value % self.step:
                raise self.error(
                    f"A {self.noun or self.name} of {shown(value)} is not a multiple of {self.step}; "
                    f"use {self.nearest(value)}."
                )
            below = self.least is not None and value < self.least
            above = self.most is not None and value > self.most
            endless = isinstance(value, float) and not math.isfinite(value)
            if below or above or endless or (self.choices and value not in self.choices):
                raise self.not_legal(value)

    def check_kind(self, value: Any, called: str = "") -> None:
        """Refuse a value that is of another kind; `called` begins the sentence.

        Raises:
            InputError: (or `error`) one sentence.
        """
        if not self._is_of_kind(value):
            raise self.not_of_kind(value, called)
        named_thing = self.kind in ("text", "path", "choice") and self.name != "prompt"  # cleaning sees to prompts
        if named_thing and not isinstance(value, bool | int | float):
            text, named = str(value), called or self.noun or self.name
            if "\0" in text:
                raise self.error(f"{named} {shown(text)} holds a character that no name has.")
            limit = MAX_PATH if self.kind == "path" else MAX_NAME
            if len(text) > limit:
                raise self.error(f"{named} has {len(text)} characters; {limit} is the most.")
            if self.kind == "path" and not self.written and (part := _too_long(Path(text))):
                raise self.error(f"The name {part[:40]}… is too long for a disk; choose a shorter one.")

    def _is_of_kind(self, value: Any) -> bool:
        if self.kind == "switch":
            return isinstance(value, bool)
        if self.kind == "whole":
            return isinstance(value, int) and not isinstance(value, bool)
        if self.kind == "number":
            return isinstance(value, int | float) and not isinstance(value, bool)
        if self.kind == "text":
            return isinstance(value, str)
        if self.kind == "path":
            return isinstance(value, Path)
        if self.kind == "names":
            return isinstance(value, tuple) and all(isinstance(name, str) for name in value)
        return True  # a choice is looked up, a timeline has its own checks

    def not_of_kind(self, value: Any, called: str = "") -> InputError:
        """The sentence for a value of another kind."""
        if self.wrong_kind and not called:
            return self.error(self.wrong_kind.format(value=shown(value)))
        instead = "" if self.kind == "names" else f", not {shown(value)}"
        return self.error(f"{called or self.name} must be {_KINDS[self.kind]}{instead}.")

    def not_legal(self, value: Any) -> InputError:
        """The sentence for a value that is not legal."""
        sentence = self.refusal or (
            "{name} cannot be {value}; use {legal}."
            if self.choices
            else "The {noun} {value} is out of range; use {least} to {most}."
        )
        return self.error(
            sentence.format(
                name=self.name,
                noun=self.noun or self.name,
                value=shown(value),
                legal=either(self.choices or self.suggestions or ("another",)),
                least=_plain(self.least),
                most=_plain(self.most),
            )
        )

    def nearest(self, value: float) -> int:
        """The nearest legal value of a whole number that is a multiple of `step`."""
        bounded = min(max(value, self.least or 0), self.most or value)
        return round(bounded / self.step) * self.step


def _plain(number: float | None) -> str:
    return "" if number is None else str(int(number)) if number == int(number) else str(number)


def option(kind: Kind, default: Any = dataclasses.MISSING, **about: Any) -> Any:
    """Declare a field of the request together with its option; see `Option` for the keywords."""
    declared = Option(kind=kind, default=None if default is dataclasses.MISSING else default, **about)
    return dataclasses.field(default=default, metadata={"option": declared})
