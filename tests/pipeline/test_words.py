"""Words that the model will not see: what is refused, and what a run says of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from magi_lite.control import RunControl
from magi_lite.errors import InputError
from magi_lite.events import Notice, Progress
from magi_lite.pipeline import generate
from magi_lite.pipeline.prompts import PromptBank, prompt_bank
from magi_lite.planner.execution import Execution
from magi_lite.request.request import SpecialTokens
from magi_lite.timeline import PromptMix
from magi_lite.timeline.text import parse
from magi_lite.weights.layout import find_model

LIMIT = 64
"""Tokens that the tiny model reads of a caption; each word is one."""
PLAIN = SpecialTokens(quality=False, duration=False)


@pytest.fixture
def bank(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PromptBank:
    monkeypatch.setattr("magi_lite.pipeline.prompts.EMBEDDINGS_FOLDER", tmp_path / "embeddings")
    return prompt_bank(find_model(tiny_model), Execution())


def losses(bank: PromptBank, prompts: list[str], tokens: SpecialTokens = PLAIN, front: str = "") -> list[str]:
    bank.prepare(prompts)
    return list(bank.losses(prompts, tokens, front))


@pytest.mark.parametrize(
    ("tokens", "pushed"), [(PLAIN, 1), (SpecialTokens(), 2), (SpecialTokens(styles=("anime",)), 3)]
)
def test_the_words_that_are_seen_are_counted(tokens: SpecialTokens, pushed: int, bank: PromptBank) -> None:
    seen = LIMIT - pushed
    whole, cut = " ".join(["ball"] * seen), " ".join(["ball"] * (seen + 1))
    assert losses(bank, [whole], tokens) == []
    (message,) = losses(bank, [whole, cut], tokens)
    assert f"reads the first {seen} of {seen + 1} words" in message
    shorter, longer = (bank.caption(PromptMix(((text, 1.0),)), tokens, 1).embeddings for text in (cut, cut + " red"))
    assert shorter.shape == longer.shape  # the word more is not there for the model
    assert len(shorter) == LIMIT


def test_a_long_global_prompt_that_hides_what_is_said_is_named(bank: PromptBank) -> None:
    front = " ".join(["tree"] * (LIMIT + 5))
    timeline = parse(f"{front} [0s-1s: a red ball] [1s-2s: a blue box]")
    messages = losses(bank, list(timeline.prompts_from(0)), PLAIN, front)
    assert len(set(messages)) == 1
    assert "so long that no prompt behind it is read" in messages[0]
    assert f"the first {LIMIT - 1} words" in messages[0]


def test_many_long_prompts_are_counted(bank: PromptBank) -> None:
    messages = losses(bank, [" ".join(["ball"] * (LIMIT + n)) for n in range(6)])
    assert len(messages) == 4
    assert messages[-1].startswith("3 more prompts are longer")


def test_a_prompt_that_cleaning_takes_away_is_named_and_a_strange_one_is_not(bank: PromptBank) -> None:
    (message,) = losses(bank, ["一只猫", "a ball", "qwertz", ""])
    assert message.startswith('"一只猫" says nothing')


def test_a_run_says_it_once_and_obeys_the_rest(request_for: Callable, run: Callable, tmp_path: Path) -> None:
    control, said = RunControl(), []
    request = request_for("[0s-1s: a red ball] [1s-2s: 一只猫]", seconds=2, window=1)
    for event in generate(request, control=control, projects_folder=tmp_path / "projects"):
        if isinstance(event, Progress) and event.chunk == 0 and event.step == 1:
            control.redirect(parse("[0s-1s: a red ball] [1s-2s: 一只猫]"))
        if isinstance(event, Notice):
            said.append(event.message)
    assert len(said) == 1
    assert "一只猫" in said[0]


def test_new_words_that_say_nothing_are_not_taken(request_for: Callable, run: Callable, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="says nothing to the model"):
        run(request_for("[0s-1s: #12345]", seconds=1))
