"""A plan shown: as JSON, table, bars and picture; and what presets refuse."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

import pytest

from magi_lite import planner
from magi_lite.cli import plan_table
from magi_lite.errors import PresetError
from magi_lite.machine import cards
from magi_lite.machine.cards import GIB
from magi_lite.planner.plan import PHASES, spoken
from magi_lite.request import presets
from magi_lite.ui.plan_picture import svg
from tests.plan.asked import plan, request


def test_the_json_adds_up() -> None:
    found = plan("RTX 4070", 720, 720, 4)
    data = json.loads(json.dumps(found.to_json()))
    for phase in PHASES:
        parts = [i["bytes"] for i in data["items"] if i["phase"] == phase and i["place"] == "vram"]
        assert sum(parts) == data["peak_per_phase"][phase]
    assert data["peak_vram_bytes"] == max(data["peak_per_phase"].values())
    assert data["needed_vram_bytes"] == data["peak_vram_bytes"] + data["allowance_bytes"]
    assert data["peak_ram_bytes"] > 0 and data["seconds_per_chunk"] > 0 and data["time_to_first_chunk"] > 0


@pytest.mark.parametrize("card", ["RTX 4090", "RTX 4050 Laptop", None])
def test_table_bars_and_picture_show_every_item(card: str | None) -> None:
    device = cards.known_card(card) if card else cards.cpu_device(64 * GIB)
    odd = replace(device, name="<card> & \"friends\"")
    found = planner.plan(request(256, 256, 1), "auto", odd)
    text = plan_table.text(found)
    for item in found.items:
        assert item.component in text
    assert all(len(line.split("▏")[0]) <= 60 for line in plan_table.bars(found))
    assert found.summary().count("\n") == 0
    root = ElementTree.fromstring(svg(found))
    names = "".join(root.itertext())
    places = ("vram",) if card else ("ram", "pinned")
    for item in found.items:
        if item.place in places:
            assert item.component in names
    assert "<card>" in names


def test_presets_say_what_is_wrong_with_them(tmp_path: Path) -> None:
    with pytest.raises(PresetError, match="choose auto or one of"):
        presets.load("9000gb")
    good = (presets.FOLDER / "12gb.toml").read_text()
    for number, (old, new, words) in enumerate(
        [
            ("window = 4", "window = 3", "window must be 1, 2 or 4"),
            ("width = 720", "width = 725", "multiples of 16"),
            ("steps = 16", 'steps = "many"', "must be a number"),
            ("steps = 16", 'steps = 16\nscheme = "fp7"', "not legal"),
            ("steps = 16", "steps = 16\ncolour = 3", "not a setting"),
            ("title", "title = = 3 #", "not valid TOML"),
        ]
    ):
        (tmp_path / f"bad{number}.toml").write_text(good.replace(old, new))
        with pytest.raises(PresetError, match=words):
            presets.load(f"bad{number}", tmp_path)


def test_a_preset_is_found_for_a_card() -> None:
    expected = {25.0: "24gb", 23.6: "24gb", 15.9: "16gb", 11.6: "12gb", 7.8: "8gb", 6.0: "6gb", 4.0: "cpu"}
    for gigabytes, name in expected.items():
        assert presets.for_memory(gigabytes).name == name
    assert presets.load("12 GB").name == "12gb"


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.21, "0.2 s"), (9.96, "10 s"), (59.4, "59 s"), (59.6, "1 min"), (128, "2 min 8 s"), (3599.7, "1 h"),
     (61387, "17 h 3 min"), (1170, "19 min 30 s")],
)  # fmt: skip
def test_times_are_said_as_people_say_them(seconds: float, said: str) -> None:
    assert spoken(seconds) == said


def test_the_table_explains_its_words() -> None:
    explained = plan_table.text(plan("RTX 4060", 720, 720, 4)).casefold()
    for word in ("dit:", "keys and values:", "vae:", "activations:", "pinned:", "window:"):
        assert word in explained
