"""Caption cleaning: every golden caption, and what the rules promise on captions nobody has seen."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from magi_lite.errors import InputError
from magi_lite.text.cleaning import clean_once, clean_prompt

GOLDENS = Path(__file__).parents[1] / "goldens" / "text" / "clean_caption.json"
CASES = json.loads(GOLDENS.read_text(encoding="utf-8"))["cases"]
WORDS = ["river", "stone", "lantern", "orchard", "violin", "harbour", "marble", "willow", "copper", "thunder", "meadow"]


@pytest.fixture
def words() -> list[str]:
    """A fresh sentence of plain words each run."""
    return random.SystemRandom().sample(WORDS, 6)


def test_golden_captions() -> None:
    for case in CASES:
        assert clean_once(case["caption"]) == case["clean_caption"], case["caption"]
        assert clean_prompt(case["caption"]) == case["text_preprocessing"], case["caption"]
    assert len(CASES) == 92


def test_plain_words_stay(words: list[str]) -> None:
    text = " ".join(words)
    assert clean_prompt(text) == text
    assert clean_prompt(text.upper()) == text


@pytest.mark.parametrize(
    "noise",
    [
        "https://a.site.org/page",
        "www.place.com/x-y",
        "@somebody_42",
        "漢字",
        "㋿",
        "10.20.30.40",
        "#12",
        "#123456",
        "1234567",
        "holiday_photo.jpeg",
        "(((",
        "***",
        "ab1234",
        "ab12cd",
        "12ab34",
        "640x480",
        "page 7",
        "click for offers",
        "free shipping",
        "<br/>",
    ],
)
def test_noise_between_words_goes(noise: str, words: list[str]) -> None:
    before, after = " ".join(words[:3]), " ".join(words[3:])
    glue = " " if noise == "<br/>" else ""
    assert clean_prompt(f"{before} {noise} {after}").replace("  ", " ") == f"{before} {glue}{after}".replace("  ", " ")


def test_twice_is_not_once() -> None:
    """The second pass matters: it sees the spaces that the first put behind full stops."""
    changed = [case["caption"] for case in CASES if case["clean_caption"] != case["text_preprocessing"]]
    assert changed
    assert all(clean_prompt(text) == clean_once(clean_once(text)) for text in changed)


def test_a_word_without_end_is_refused_before_it_costs_minutes() -> None:
    with pytest.raises(InputError, match="holds a word of 10000 characters; 3000 is the most"):
        clean_prompt("a cat " + "a." * 5000)
    assert clean_prompt("cat " * 5000).count("cat") == 5000


def test_many_joints_become_spaces_but_few_stay() -> None:
    assert clean_prompt("a-b-c-d") == "a-b-c-d"
    assert clean_prompt("a-b-c-d-e") == "a b c d e"
