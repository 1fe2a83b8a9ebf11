"""What comes from files and programs is shown as plain text, and cannot block the form. No browser is needed here."""

from __future__ import annotations

import html
import json
import re

import orjson
import pytest

from magi_lite.errors import InputError
from magi_lite.ui import form, saved
from magi_lite.ui.expose import for_api, for_page, in_json, in_markdown, in_toast, sentence

HOSTILE = ["![p](http://127.0.0.1/p.png)", "<img src=http://127.0.0.1/p.png>", "[a](javascript:alert(1))", "http://a.b"]


@pytest.mark.parametrize("text", HOSTILE)
def test_markup_in_a_message_stays_text(text: str) -> None:
    assert "<" not in in_toast(text) and html.unescape(in_toast(text)) == text
    assert not re.search(r"[!\[\]()<>:/]", in_markdown(text).replace("&#", "").replace(";", ""))
    assert html.unescape(in_markdown(text)) == text


def test_half_characters_can_be_sent_to_a_page() -> None:

    sentence(InputError("a \ud800 b")).encode()


@pytest.mark.parametrize("number", [10**30, -(10**30), 2**64, 12, 0.5])
def test_any_number_can_be_sent_to_a_page(number: float) -> None:
    assert json.loads(orjson.dumps(in_json(number))) == pytest.approx(number)


def test_saved_settings_that_the_form_cannot_show_are_left_out() -> None:
    """A profile that is gone, a style of another version: everything else is there."""
    values = {"preset": "gone", "fit": "zoom", "styles": ["anime", "cubist"], "scheme": "Auto", "crf": 20, "mode": "x"}
    assert saved.usable(values) == {"styles": ["anime"], "scheme": "Auto", "crf": 20}
    known = {name: value for name, value in form.defaults().items() if name in saved.KEPT}
    assert saved.usable(known) == known


def test_wrong_arguments_get_one_sentence() -> None:
    def action(job: str, place: int = 0) -> dict[str, object]:
        return {"job": job, "place": place}

    page = for_page(action)
    assert page({"job": "a", "place": 2.0}) == {"job": "a", "place": 2}
    assert page({"job": "a", "place": None}) == {"job": "a", "place": 0}
    for wrong, said in (
        ({"job": None}, "job is missing."),
        ({"job": ["a"]}, "job must be text, not ['a']."),
        ({"job": "a", "place": "b"}, "place must be a whole number, not 'b'."),
        ({"job": "a", "place": True}, "place must be a whole number, not True."),
        ({"job": "a\0"}, "job holds a character that no text has."),
    ):
        assert page(wrong) == {"error": said}

    def moment(second: float | None = None) -> dict[str, object]:
        return {"second": second}

    assert for_page(moment)({"second": 2}) == {"second": 2.0} and for_page(moment)({}) == {"second": None}
    assert for_page(moment)({"second": "2"}) == {"error": "second must be a number, not '2'."}
    assert "do not fit" in page({"other": 1})["error"] and "must be an object" in page([1])["error"]  # type: ignore
    with pytest.raises(Exception, match="place must be a whole number"):
        for_api(action)("a", "b")
