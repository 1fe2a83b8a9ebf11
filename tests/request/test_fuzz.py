"""Whatever is asked for, in whatever form, is made into a request or refused in one sentence: never a program error.

A longer run by hand: `python -m tests.request.test_fuzz 20000 > benchmarks/results/fuzz_requests.json`; names of tests
behind the number run these alone.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from magi_lite.cli import generate
from magi_lite.errors import MagiLiteError, PresetError
from magi_lite.request import presets
from magi_lite.request.build import build, change
from magi_lite.request.checks import check
from magi_lite.request.json import request_from_json, request_to_json
from magi_lite.request.request import OPTIONS, PARTS
from magi_lite.request.settings import settings_from_data
from magi_lite.timeline.text import parse, print_shorthand
from magi_lite.ui import form
from magi_lite.ui.expose import arguments

EXAMPLES = int(sys.argv[1]) if __name__ == "__main__" and len(sys.argv) > 1 else 60
"""Inputs of each test."""
QUICK = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
BASE = request_to_json(build(prompt="a ball", preset="demo", seed=1))
PUBLIC = [name for name, option in OPTIONS.items() if not option.local]
CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e]")
TEXTS = st.one_of(
    st.text(max_size=30),
    st.text(st.characters(categories=["Cs", "Cc", "Lo"]), max_size=8),
    st.sampled_from(
        ["", "auto", "Auto", "nan", "-1", "1e30", "9" * 5000, "x" * 5000, "a\0b", "[0s-1s: a]", "[", "{", "{}", "../..",
         "720x720", "0x0", "(a:1.3)", "\ud800", "\\\\host\\a", "demo", "24gb", "true", "[blend: 999999999] a"]
    ),
)  # fmt: skip
NUMBERS = st.one_of(
    st.integers(), st.floats(), st.sampled_from([0, -1, 10**30, -(10**30), 10**400, 1e30, 2**53, 0.5, 4.0, True])
)
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXTS, inner, max_size=3)),
    max_leaves=6,
)


def one_sentence(work: Any) -> Any:
    """What a piece of work makes, or None where it refuses as it should; anything else fails."""
    try:
        return work()
    except MagiLiteError as error:
        text = str(error)
        assert text.endswith(".") and len(text) < 700 and not CONTROLS.search(text), repr(text)
        return None


@QUICK
@given(st.dictionaries(st.sampled_from(PUBLIC), VALUES, max_size=4))
@example({"seconds": 1e30})
@example({"styles": [["a"]], "seed": None, "vram_gb": float("inf")})
def test_keywords(options: dict[str, Any]) -> None:
    """As the library and the API give them."""
    request = one_sentence(lambda: build(**({"preset": "demo", "prompt": "a ball"} | options)))
    if request is not None and one_sentence(lambda: (check(request, files=False), True)[1]):
        again = request_from_json(json.loads(json.dumps(request_to_json(request))))
        assert again == request
    one_sentence(lambda: form.asked({"preset": "demo", "prompt": "a ball"} | options, None))
    one_sentence(lambda: change(request_from_json(BASE), "redo", second=1, **options))


@QUICK
@given(st.lists(st.tuples(st.sampled_from(PUBLIC), TEXTS), max_size=4))
@example([("image", "0\n")])
@example([("video", "\x1b[2J\u202e4pm.a")])
@example([("image", "\ud800"), ("video", "x" * 300), ("models_folder", "\udcff" * 200)])
def test_the_command_line(flags: list[tuple[str, str]]) -> None:
    parser = argparse.ArgumentParser(exit_on_error=False)
    generate.add_arguments(parser)
    words = ["--preset", "demo"]
    for name, text in flags:
        option = OPTIONS[name]
        if option.option_string:
            words += [option.option_string] if option.kind == "switch" else [f"{option.option_string}={text}"]
    request = one_sentence(lambda: generate.request_of(parser.parse_args(words)))
    if request is not None:
        one_sentence(lambda: check(request))


PLACES = [(name,) for name in BASE] + [(part, name) for part in ("timeline", *PARTS) for name in BASE[part]]


@QUICK
@given(st.lists(st.tuples(st.sampled_from(PLACES), VALUES), min_size=1, max_size=3), VALUES)
def test_settings(changes: list[tuple[tuple[str, ...], Any]], other: Any) -> None:
    """As a file or a video carries them."""
    data = json.loads(json.dumps(BASE))
    for path, value in changes:
        place = data
        for name in path[:-1]:
            place = place[name] if isinstance(place, dict) and isinstance(place.get(name), dict) else {}
        place[path[-1]] = value
    for settings_given in (data, other):
        request = one_sentence(lambda: settings_from_data(settings_given))  # noqa: B023
        if request is not None:
            one_sentence(lambda: check(request, files=False))  # noqa: B023


@QUICK
@given(st.dictionaries(st.sampled_from([n for n in form.FIELDS if n != "timeline"]), VALUES, max_size=4))
def test_the_form(values: dict[str, Any]) -> None:
    request = one_sentence(lambda: form.to_request(form.defaults() | {"prompt": "a", "preset": "demo"} | values))
    if request is not None:
        one_sentence(lambda: check(request, files=False))


@QUICK
@given(TEXTS)
def test_timelines(text: str) -> None:
    timeline = one_sentence(lambda: parse(text))
    if timeline is not None and timeline.segments:
        assert parse(print_shorthand(timeline)) == timeline


SCALARS = st.one_of(st.integers(), st.floats(), st.booleans(), st.text(max_size=5), st.lists(st.integers(), max_size=2))
KEYS = st.sampled_from(["all", "draft", "vram_gb", "title", "model", "width", "steps", "window", "scheme", "colour"])


@QUICK
@given(
    table=st.dictionaries(KEYS, st.one_of(SCALARS, st.dictionaries(KEYS, SCALARS, max_size=4)), max_size=6),
    cut=st.booleans(),
)
def test_presets(table: dict[str, Any], cut: bool, tmp_path_factory: pytest.TempPathFactory) -> None:
    lines = [f"{key} = {toml(value)}" for key, value in table.items() if not isinstance(value, dict)]
    for key, inner in table.items():
        if isinstance(inner, dict):
            lines += [f"[{key}]", *(f"{name} = {toml(value)}" for name, value in inner.items())]
    text = "\n".join(lines)
    refused(tmp_path_factory.mktemp("presets"), text[: len(text) // 2] if cut else text)


def test_numbers_of_more_digits_than_python_prints() -> None:
    for name in PUBLIC:
        one_sentence(lambda n=name: check(build(**({"preset": "demo", "prompt": "a", n: 10**5000}))))
        one_sentence(lambda n=name: form.asked({"preset": "demo", "prompt": "a", n: -(10**5000)}, None))


def toml(value: Any) -> str:
    """A value as TOML."""
    return json.dumps(value) if not isinstance(value, float) else str(value).replace("inf", "inf")


def refused(folder: Path, text: str) -> None:
    (folder / "a.toml").write_bytes(text.encode("utf-8", "surrogatepass"))
    with contextlib.suppress(PresetError):
        presets.load("a", folder)


@pytest.mark.parametrize(
    "text",
    ["vram_gb = nan", "vram_gb = inf", "vram_gb = 8\nall = []", "vram_gb = 8\n[all]\nwidth = nan",
     "vram_gb = 8\n[all]\nwidth = 64\nheight = 64\nsteps = nan\nwindow = 1", "a = " + "[" * 5000, "\ufeffvram_gb = []",
     "vram_gb = 8\n[all]\nwidth = 64\nheight = 64\nsteps = 8\nwindow = 1\nmlp_slice = -1", "model = 3\nvram_gb = 1"],
    ids=range(9),
)  # fmt: skip
def test_presets_that_are_none(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(text, encoding="utf-8")
    with pytest.raises(PresetError) as caught:
        presets.load("a", tmp_path)
    assert str(caught.value).endswith(".") and "a.toml" in str(caught.value)


@QUICK
@given(st.lists(VALUES, max_size=4), st.dictionaries(st.sampled_from(["job", "place", "x"]), VALUES, max_size=3))
def test_arguments_of_actions(given_values: list[Any], named: dict[str, Any]) -> None:
    """Null, lists and numbers for what should be text, and the other way round."""

    def action(job: str, place: int = 0, timeline: dict[str, Any] | None = None, held: bool = False) -> None: ...

    found = one_sentence(lambda: arguments(action, tuple(given_values), named))
    if found is not None:
        assert isinstance(found["job"], str)
        assert isinstance(found.get("place", 0), int) and not isinstance(found.get("place", 0), bool)
        assert isinstance(found.get("timeline"), dict | None) and isinstance(found.get("held", False), bool)


if __name__ == "__main__":
    done = {}
    for name, test in [*globals().items()]:
        if name.startswith("test_") and hasattr(test, "hypothesis") and name != "test_presets":
            if sys.argv[2:] and name not in sys.argv[2:]:
                continue
            test()
            done[name] = EXAMPLES
    print(json.dumps({"inputs": done, "program errors": 0}, indent=2))
