"""What a small model says of words, characters and pictures that it does not know."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from magi_lite.errors import CheckpointError
from magi_lite.events import Notice
from magi_lite.pipeline import generate
from magi_lite.request.request import GenerationRequest
from magi_lite.sentences import shortened
from magi_lite.text.vocabulary import FILE, Vocabulary, characters_taken_out
from magi_lite.timeline.text import parse
from magi_lite.weights.layout import DEMO_FOLDER
from training.text_model import SPARE_WORDS

WORDS = Vocabulary(
    frozenset(["a", "red", "ball", "moves", "left", "square", "on", "dark", "background"]),
    {"circle": "ball", "goes": "moves", "night falls": "dark"},
    {"colours": ("red",), "shapes": ("ball", "square")},
)


@pytest.fixture
def shipped() -> Vocabulary:
    made = Vocabulary.beside(DEMO_FOLDER / "ckpt" / "t5" / "demo")
    assert made is not None
    return made


def test_known_words_and_those_that_count_as_them_pass_without_a_notice() -> None:
    assert WORDS.notice(["a red circle goes left", "The RED ball, moves left.", "night falls with a ball"]) is None


def test_unknown_words_are_named_once_in_order_with_what_is_known() -> None:
    message = WORDS.notice(["a green zebra moves", "a zebra waits"])
    assert message is not None
    assert '"green", "zebra" and "waits"' in message
    assert "colours: red; shapes: ball, square" in message


def test_of_many_unknown_words_some_are_named_and_the_rest_counted() -> None:
    message = WORDS.notice([" ".join(f"word{'abcdefghij'[n]}" for n in range(10))])
    assert message is not None and '"wordf"' in message and "wordg" not in message and "4 more words" in message


def test_a_word_without_end_is_cut() -> None:
    message = WORDS.notice(["a ball " + "x" * 3000])
    assert message and "…" in message and len(message) < 400


def test_what_turns_the_direction_of_text_is_written_out() -> None:
    assert shortened("a \u202e ball\u2066") == '"a \\u202e ball\\u2066"'


def test_other_scripts_count_as_unknown_words() -> None:
    assert WORDS.unknown(["a red мяч moves", "красный ball"]) == ["мяч", "красный"]


@pytest.mark.parametrize(
    ("prompt", "lost"),
    [
        ("a red ball 红球", "红球"),
        ("红 ball 球 red", "红 球"),
        ("a red ball", ""),
        ("un café crème", ""),
        ("a red мяч", ""),
        ("红球", ""),
    ],
)
def test_characters_that_cleaning_takes_out_are_found_where_something_is_left(prompt: str, lost: str) -> None:
    assert characters_taken_out(prompt) == lost


def test_a_folder_without_a_vocabulary_reads_everything(tmp_path: Path) -> None:
    assert Vocabulary.beside(tmp_path) is None


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"words": 3, "same": {}, "kinds": {}}'])
def test_a_damaged_vocabulary_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / FILE).write_text(content)
    with pytest.raises(CheckpointError, match="vocabulary"):
        Vocabulary.beside(tmp_path)


def test_the_shipped_vocabulary_is_the_shipped_tokenizers(shipped: Vocabulary) -> None:
    """Every word that the tokenizer knows passes, every other does not, and replacements agree."""
    from transformers import AutoTokenizer

    folder = DEMO_FOLDER / "ckpt" / "t5" / "demo"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    known = {word for word in tokenizer.get_vocab() if not word.startswith("<")}
    assert set(shipped.words) == known - set(SPARE_WORDS.split())
    for phrase in shipped.same:
        assert tokenizer.unk_token_id not in tokenizer(phrase)["input_ids"]
        assert shipped.unknown([phrase]) == []
    for word in ("black", "zebra", "dog"):
        assert tokenizer.unk_token_id in tokenizer(word)["input_ids"]
        assert shipped.unknown([f"a {word} ball"]) == [word]
    for kind in shipped.kinds.values():
        assert shipped.unknown(kind) == []


def notices(request: GenerationRequest, tmp_path: Path) -> list[str]:
    return [event.message for event in generate(request, projects_folder=tmp_path) if isinstance(event, Notice)]


def request(prompt: str, **options: object) -> GenerationRequest:
    return GenerationRequest(
        timeline=parse(prompt),
        model="demo",
        seconds=1,
        width=64,
        height=64,
        steps=8,
        **options,  # type: ignore[arg-type]
    )


def test_a_run_names_what_the_demo_model_does_not_know(tmp_path: Path) -> None:
    said = " ".join(notices(request("a red zebra 红球 moves left in a meadow"), tmp_path))
    assert '"zebra"' in said and "红球" in said and "colours: red" in said
    assert notices(request("a red ball moves left in a meadow"), tmp_path / "other") == []


def test_a_run_says_when_the_picture_is_too_much_for_the_autoencoder(tmp_path: Path) -> None:
    rng = np.random.default_rng()
    Image.fromarray(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(tmp_path / "noise.png")
    Image.fromarray(np.full((64, 64, 3), 112, np.uint8)).save(tmp_path / "plain.png")
    words = "a red ball moves left in a meadow"
    said = notices(request(words, image=tmp_path / "noise.png"), tmp_path / "one")
    assert any("cannot hold the picture" in message and " dB" in message for message in said)
    assert notices(request(words, image=tmp_path / "plain.png"), tmp_path / "two") == []


def test_the_vocabulary_is_written_as_json_with_its_kinds(shipped: Vocabulary) -> None:
    content = json.loads((DEMO_FOLDER / "ckpt" / "t5" / "demo" / FILE).read_text(encoding="utf-8"))
    assert set(content) == {"words", "same", "kinds", "picture_decibels"} and shipped.picture_decibels == 24
