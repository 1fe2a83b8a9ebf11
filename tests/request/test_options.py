"""The table of options: one declaration is all that a new option needs, and no front end repeats one."""

from __future__ import annotations

import argparse
import ast
import inspect
import json
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from magi_lite.cli import generate, plan
from magi_lite.errors import InputError
from magi_lite.request.build import build, change
from magi_lite.request.checks import check
from magi_lite.request.request import OPTIONS, PARTS, GenerationRequest
from magi_lite.sentences import memory_size, size
from magi_lite.ui import form

ROOT = Path(__file__).parents[2]
DECLARED = """    sharpness: int = option(
        "whole", 3, least=0, most=9, group="what", help="how sharp the picture is", noun="sharpness"
    )
"""
"""One more option, as it would be written into the table."""
USED = """
import argparse, inspect, json, tempfile
from magi_lite.cli import generate
from magi_lite.errors import InputError
from magi_lite.request.build import build, change
from magi_lite.request.checks import check
from magi_lite.request.checks import check
from magi_lite.request.json import request_from_json, request_to_json
from magi_lite.ui.actions import Actions

def sentence(work, *values, **named):
    try:
        work(*values, **named)
    except InputError as error:
        return str(error)

parser = argparse.ArgumentParser()
generate.add_arguments(parser)
asked = ["--prompt", "a", "--preset", "demo"]
request = generate.request_of(parser.parse_args([*asked, "--sharpness", "7"]))
old = request_to_json(request)
del old["sharpness"]
print(json.dumps({
    "help": "how sharp the picture is" in parser.format_help(),
    "command line": request.sharpness,
    "left out": build(prompt="a", preset="demo").sharpness,
    "json": request_from_json(json.loads(json.dumps(request_to_json(request)))).sharpness,
    "settings of before": request_from_json(old).sharpness,
    "json refuses": sentence(request_from_json, request_to_json(request) | {"sharpness": "x"}),
    "check refuses": sentence(build, prompt="a", preset="demo", sharpness=12),
    "kind": sentence(build, prompt="a", preset="demo", sharpness=[1]),
    "resume refuses": sentence(change, request, "resume", sharpness=1),
    "api": "sharpness" in inspect.signature(Actions.generate).parameters,
}))
"""


def test_one_declaration_is_all_that_an_option_needs(tmp_path: Path) -> None:
    """A copy of the program with one declaration more: command line, JSON, checks, resume and API know it."""
    shutil.copytree(ROOT / "magi_lite", tmp_path / "magi_lite", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("presets", "quant"):
        (tmp_path / name).symlink_to(ROOT / name)
    table = tmp_path / "magi_lite" / "request" / "request.py"
    before = table.read_text(encoding="utf-8")
    place = "    tokens: SpecialTokens = field("
    assert before.count(place) == 1
    table.write_text(before.replace(place, DECLARED + place), encoding="utf-8")
    done = subprocess.run([sys.executable, "-c", USED], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


    assert json.loads(done.stdout) == {
        "help": True,
        "command line": 7,
        "left out": 3,
        "json": 7,
        "settings of before": 3,
        "json refuses": "The setting 'sharpness' must be a whole number, not 'x'.",
        "check refuses": "The sharpness 12 is out of range; use 0 to 9.",
        "kind": "sharpness must be a whole number, not [1].",
        "resume refuses": "--sharpness cannot change in a video that goes on; start a new one without --resume.",
        "api": True,
    }


def literals(path: Path) -> list[set[object]]:
    """The constants of every list, tuple and set written out in a file."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.List | ast.Tuple | ast.Set):
            found.append({item.value for item in node.elts if isinstance(item, ast.Constant)})
    return found


FRONT = [
    path
    for folder in ("request", "cli", "ui", "jobs", "pipeline", "project", "timeline")
    for path in sorted((ROOT / "magi_lite" / folder).rglob("*.py"))
    if path != ROOT / "magi_lite" / "request" / "request.py"
] + [ROOT / "magi_lite" / "library.py"]


@pytest.mark.parametrize("name", [name for name, option in OPTIONS.items() if len(option.offered) > 1])
def test_no_other_file_repeats_an_options_choices(name: str) -> None:
    choices = set(OPTIONS[name].offered) - {"auto"}
    shapes = (choices, {str(choice) for choice in choices}, {str(choice).capitalize() for choice in choices})
    repeated = [path for path in FRONT for found in literals(path) if any(shape <= found for shape in shapes)]
    assert not repeated


def test_the_search_for_repetitions_finds_one(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("x = ['crop', 'pad', 'stretch', 'Auto']", encoding="utf-8")
    assert any(set(OPTIONS["fit"].choices) <= found for found in literals(tmp_path / "a.py"))


def parser_of(command: object) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)  # type: ignore[attr-defined]
    return parser


def test_generate_and_plan_take_the_same_values() -> None:
    made, planned = (set(parser_of(command)._option_string_actions) for command in (generate, plan))
    assert {o.option_string for o in OPTIONS.values() if o.option_string} <= made
    assert {o.option_string for o in OPTIONS.values() if o.planned and o.option_string} <= planned
    for scheme in OPTIONS["scheme"].choices:
        arguments = parser_of(generate).parse_args(["--prompt", "a", "--preset", "demo", "--scheme", scheme])
        assert generate.request_of(arguments).overrides.scheme == scheme


def test_every_field_of_the_request_is_declared_and_explained() -> None:
    declared = {(option.part, option.field) for option in OPTIONS.values()}
    for part, cls in {"": GenerationRequest, **PARTS}.items():
        for field in fields(cls):
            assert (part, field.name) in declared or field.name in PARTS
    assert not [name for name, option in OPTIONS.items() if not option.help]
    assert not [name for name in form.FIELDS if name in OPTIONS and not OPTIONS[name].label]


SAMPLES = {
    "seconds": 9, "width": 128, "height": 64, "steps": 16, "window": 2, "model": "4.5B-base", "seed": 8, "crf": 30,
    "styles": ["anime"], "mlp_slice": 512, "vram_gb": 9.5, "fit": "pad", "shortcut": "16,16,8", "quality": "draft",
    "image_prefix": "published", "preset": "24gb", "models_folder": "elsewhere", "out": "b.mp4", "image": "b.png",
    "video": "b.mp4", "source_sha256": "0",
}  # fmt: skip
"""A value other than the default's for each option that is no switch or choice with one."""


@pytest.mark.parametrize("name", [name for name, option in OPTIONS.items() if option.field and name != "timeline"])
def test_what_may_change_in_a_run_is_what_the_table_says(name: str) -> None:
    option, request = OPTIONS[name], build(prompt="a", preset="demo", seed=5, seconds=4)
    other = next((c for c in option.choices if c not in (option.default, "auto")), None)
    value = SAMPLES.get(name, not option.default if option.kind == "switch" else other)
    for purpose in ("resume", "redo"):
        if option.changes in ("resume", purpose):
            changed = option.of(change(request, purpose, **{name: value}))
            assert changed == option.read(value) != option.of(request)
        else:
            with pytest.raises(InputError, match="cannot change in a video that goes on"):
                change(request, purpose, **{name: value})
    held = option.of(request)
    if held is not None:
        assert change(request, "resume", **{name: list(held) if isinstance(held, tuple) else held}) == request


def test_the_form_asks_for_the_native_size_and_refuses_others_in_words() -> None:
    values = form.defaults() | {"prompt": "a", "width": 1440, "height": 2560}
    request = form.to_request(values)
    assert (request.width, request.height) == (1440, 2560)
    with pytest.raises(InputError, match="A height of 1080 is not a multiple of 16; use 1088"):
        form.to_request(values | {"width": 2048, "height": 1080})
    assert form.shaped("Tall 9:16", 1920, 1920) == (1440, 2560)


def test_the_form_shows_a_request_and_reads_it_back() -> None:
    asked = build(
        prompt="rain", timeline="[0s-2s: a cat] [2s-4s: a dog]", preset="24gb", steps=16, window=2, seed=3, fit="pad",
        styles=["anime"], quality="draft", scheme="nf4", vae="cpu", vram_gb=7.5, crf=30, embed_settings=False,
        nearly_clean=False, reuse="low", model="demo", width=64, height=96,
    )  # fmt: skip
    assert form.to_request(form.from_request(asked)) == asked


def test_illegal_values_are_refused_alike_wherever_they_come_from() -> None:
    """Keywords, the command line and the form: the same sentence."""
    for name, value in (("seed", "-4"), ("steps", "7"), ("window", "3"), ("vram_gb", "-2"), ("seconds", "0")):
        flag = OPTIONS[name].option_string
        arguments = parser_of(generate).parse_args(["--prompt", "a", "--preset", "demo", flag, value])
        said = set()
        for ask in (
            lambda n=name, v=value: build(prompt="a", preset="demo", **{n: v}),
            lambda a=arguments: generate.request_of(a),
            lambda n=name, v=value: form.to_request(form.defaults() | {"prompt": "a", "preset": "demo", n: v}),
            lambda n=name, v=value: form.asked({"prompt": "a", "preset": "demo", n: v}, None),
        ):
            with pytest.raises(InputError) as caught:
                check(ask())
            said.add(str(caught.value))
        assert len(said) == 1 and said.pop().endswith("."), (name, said)


def test_the_apis_arguments_begin_in_the_order_that_programs_count_on() -> None:
    from magi_lite.ui.actions import Actions

    names = list(inspect.signature(Actions.generate).parameters)
    assert names[1:8] == ["prompt", "seconds", "timeline", "image", "video", "width", "height"]
    assert not {"out", "models_folder", "source_sha256"} & set(names)


@pytest.mark.parametrize("prompt", ["a red\0 ball", "a \x07 red ball\x1b[31m", "\ufeffa red ball"])
def test_a_prompt_may_hold_what_cleaning_takes_out(prompt: str) -> None:
    """As the prompt of the whole video and as a block's, in the same way; a name with a zero byte is none."""
    whole = build(prompt=prompt, seconds=1, model="demo")
    check(whole)
    check(build(timeline={"segments": [{"start": 0, "end": 1, "prompt": prompt}]}, seconds=1, model="demo"))
    with pytest.raises(InputError, match="no name has"):
        check(build(prompt="a", image="a\0b.png", seconds=1, model="demo"))


@pytest.mark.parametrize(
    ("number", "shown"), [(90_112, "90 kB"), (1_000_000, "1 MB"), (96 << 20, "101 MB"), (8 << 30, "8.6 GB")]
)
def test_bytes_are_read_as_people_write_them(number: int, shown: str) -> None:
    assert size(number) == shown


@pytest.mark.parametrize(
    ("number", "shown"), [(90 << 10, "90 kB"), (1 << 20, "1 MB"), (96 << 20, "96 MB"), (24 << 30, "24.0 GB")]
)
def test_memory_is_counted_as_cards_are_sold(number: int, shown: str) -> None:
    assert memory_size(number) == shown
