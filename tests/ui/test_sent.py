"""Whatever a request sends to a handler of the page: one sentence, and nothing in the console. No browser is needed."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
from gradio.components.api_component import Api
from gradio.state_holder import SessionState
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from magi_lite.jobs import JobQueue
from magi_lite.request.build import build
from magi_lite.ui import events, form, page
from magi_lite.ui.actions import Actions
from magi_lite.ui.expose import Refusal, checked
from magi_lite.ui.library import Library
from magi_lite.ui.machine import Machine
from magi_lite.ui.saved import Saved
from magi_lite.ui.sent import FormEvent, Source

ODD: tuple[Any, ...] = (
    None, [], {}, "", "x", "\0", "9" * 5000, 0, -1, 1.5, 1e308, -1e308, 2**64 - 1, True,
    [None], [1], ["x"], [[]], {"a": 1}, {"example": []}, {"use": ["x"]}, {"use": "../.."}, {"edit": {}},
    {"job": [1]}, {"job": "x", "open": 3},
    {"pictures": [None]}, {"pictures": "x"}, {"pictures": [{"path": "/etc/passwd"}]}, {"segments": [[1]]},
    {"kind": "image"}, {"kind": [], "path": "a", "name": "a", "width": "1", "height": 0},
    {"kind": "image", "path": "/etc/passwd", "name": "a", "width": 0, "height": 0},
)  # fmt: skip
DEEP: Any = []
for _ in range(500):
    DEEP = [DEEP]
WHOLE = st.characters(exclude_categories=["Cs"])
TEXTS = st.one_of(st.text(WHOLE, max_size=8), st.sampled_from(["auto", "demo", "/etc"]))
NUMBERS = st.one_of(st.integers(-(2**63), 2**64 - 1), st.floats(allow_nan=False, allow_infinity=False))
KEYS = st.one_of(
    st.sampled_from(["kind", "path", "name", "width", "height", "settings", "segments", "start", "end", "prompt"]),
    TEXTS,
)
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(KEYS, inner, max_size=6)),
    max_leaves=8,
)


class Served:
    """The whole page with its handlers, called as its server calls them."""

    def __init__(self, folder: Path) -> None:
        self.library = Library(folder / "outputs")
        machine = Machine(folder / "models")
        self.queue = JobQueue(folder / "outputs" / ".queue", {})
        self.actions = Actions(self.queue, self.library, machine)
        self.page = page.build(self.actions, self.library, machine, Saved(self.queue))
        self.state = SessionState(self.page)
        self.asked = [fn for fn in self.page.fns.values() if any(not isinstance(one, Api) for one in fn.inputs)]

    def call(self, fn: Any, values: list[Any]) -> dict[str, Any] | str:
        """What a handler answers, or the sentence with which it refuses; anything else is an error."""
        try:
            with ThreadPoolExecutor(1) as beside:  # a browser that other tests left open keeps this thread's loop
                return beside.submit(asyncio.run, self.page.process_api(fn, values, self.state)).result()
        except Refusal as refusal:
            assert not refusal.print_exception
            return str(refusal.message)

    def named(self, name: str) -> Any:
        return next(fn for fn in self.asked if fn.name == name)

    def first(self, fn: Any) -> list[Any]:
        """The values that a page has at its start."""
        values = {one["id"]: one["props"].get("value") for one in self.page.config["components"]}
        return [values.get(block._id) for block in fn.inputs]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    made = Served(tmp_path_factory.mktemp("served"))
    yield made
    made.queue.close()


@pytest.fixture
def quiet(caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> Iterator[None]:
    """Nothing of the kind of a program's error is shown meanwhile."""
    yield
    assert not [one for one in caplog.records if one.levelno >= logging.ERROR]
    assert "Traceback" not in "".join(capfd.readouterr())


def is_fine(answer: dict[str, Any] | str) -> bool:
    return isinstance(answer, dict) or (answer[-1] == "." and "\n" not in answer and len(answer) < 700)


def test_every_handler_bears_odd_values_in_every_place(served: Served, quiet: None) -> None:
    """Handlers of the whole form get an eighth of the values in each place, the others all."""
    seen = 0
    for fn in served.asked:
        usual = served.first(fn)
        for place in range(len(usual)):
            for odd in (*ODD, DEEP)[place % 8 :: 8 if len(usual) > 8 else 1]:
                answer = served.call(fn, [*usual[:place], odd, *usual[place + 1 :]])
                assert is_fine(answer), (fn.name, place, odd, answer)
                seen += 1
        for count in range(0, len(usual), 5):
            assert is_fine(served.call(fn, usual[:count]))
    assert seen > 1_000 and {"generate", "plan", "example_card", "several", "save", "dropped"} <= {
        fn.name for fn in served.asked
    }


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_any_values_at_once(served: Served, quiet: None, data: st.DataObject) -> None:
    fn = data.draw(st.sampled_from(served.asked), "handler")
    values = served.first(fn)
    for place in data.draw(st.sets(st.integers(0, max(0, len(values) - 1)), max_size=4), "places"):
        values[place] = data.draw(VALUES, "value")
    assert is_fine(served.call(fn, values))


@pytest.mark.parametrize(
    ("handler", "values", "sentence"),
    [
        ("example_card", [["x"]], "watch must be an object, not ['x']."),
        ("example_card", [{"example": ["x"]}], "example of watch must be text, not ['x']."),
        ("use_settings", [{"use": 3}], "use of "),
        ("generate", [], "generate takes "),
        ("quality", ["Best", "auto", "Auto"], "A value is none of those that the page offers; load the "),
    ],
)  # fmt: skip
def test_the_sentence_names_what_is_wrong(
    served: Served, quiet: None, handler: str, values: list[Any], sentence: str
) -> None:
    fn = served.named(handler)
    rest = served.first(fn)[len(values) :] if values else []
    assert str(served.call(fn, values + rest)).startswith(sentence)


def test_a_mistake_of_the_program_is_shown_in_the_console(
    served: Served, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    fn = served.named("cleared")

    def broken(*_values: Any) -> Any:
        raise KeyError("a mistake of ours")

    monkeypatch.setattr(fn, "fn", broken)
    with pytest.raises(gr.Error, match="The program made a mistake") as caught:
        served.call(fn, served.first(fn))
    assert not isinstance(caught.value, Refusal) and not caught.value.print_exception
    assert any(one.exc_info and "a mistake of ours" in str(one.exc_info[1]) for one in caplog.records)


def test_values_of_known_keys() -> None:
    picture = {"kind": "image", "path": "a", "name": "a", "width": 2.0, "height": 3, "more": [1]}
    assert checked("source", picture, Source) == {**picture, "width": 2}
    assert checked("form", {"job": None, "pictures": [picture]}, FormEvent) == {"pictures": [{**picture, "width": 2}]}
    for wrong, sentence in (
        ({**picture, "width": None}, "source lacks width."),
        ({**picture, "name": 7}, "name of source must be text, not 7."),
        ([picture], "source must be an object, not "),
        ({**picture, "settings": []}, "settings of source must be an object, not []."),
    ):
        with pytest.raises(Exception, match=sentence.replace("[]", r"\[\]")):
            checked("source", wrong, Source)


def test_what_the_form_shows_as_the_file_that_a_video_starts_from(served: Served, tmp_path: Path) -> None:
    """One of the projects folder that a page can show; of a file elsewhere, gone or without an address: nothing."""
    folder = served.library.folder / "v01" / "inputs"
    folder.mkdir(parents=True, exist_ok=True)
    names = {"plain": "a b+ü.png", "half": os.fsdecode(b"old\xff.png")}
    places = {name: folder / file for name, file in names.items()} | {"elsewhere": tmp_path / "a.png"}
    for place in places.values():
        Image.new("RGB", (48, 32)).save(place)
    (folder / "link.png").symlink_to(places["elsewhere"])
    places |= {"gone": folder / "gone.png", "link": folder / "link.png"}
    handlers = events.Handlers(
        {"model": gr.Dropdown()}, served.actions, served.library, Machine(tmp_path / "models"), {}
    )

    def shown(path: Path) -> Any:
        return handlers.fill(build(prompt="a ball", preset="demo", image=path))[form.FIELDS.index("source")]

    plain = shown(places["plain"])
    assert (plain["kind"], plain["name"], plain["width"], plain["height"]) == ("image", "a b+ü.png", 48, 32)
    assert plain["path"] == str(places["plain"]) and plain["url"].endswith("inputs/a%20b%2B%C3%BC.png")
    assert {name: shown(place) for name, place in places.items() if name != "plain"} == dict.fromkeys(
        ("half", "elsewhere", "gone", "link")
    )
