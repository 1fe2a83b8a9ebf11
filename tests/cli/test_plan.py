"""`python -m magi_lite plan`: tables, JSON and exit codes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from magi_lite.cli import main
from magi_lite.weights.layout import DEMO_FOLDER
from quant import convert_folder, scheme_named


def run(capsys: pytest.CaptureFixture[str], *flags: str) -> tuple[int, str, str]:
    code = main(["plan", *flags])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_a_table_and_a_bar_picture(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "--gpu", "RTX 4090", "--size", "720x720", "--model", "4.5B-distill")
    assert code == 0
    assert "DiT layers" in out and "▕█" in out and "s per second of video" in out


def test_json_has_the_promised_names(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "--vram-gb", "12", "--size", "480x832", "--window", "2", "--steps", "16", "--json")
    data = json.loads(out)
    assert code == 0
    assert {"peak_vram_bytes", "peak_ram_bytes", "seconds_per_chunk", "items"} <= data.keys()
    assert (data["width"], data["height"], data["window"], data["steps"]) == (480, 832, 2, 16)
    assert data["device"]["vram_bytes"] == 12 << 30


def test_nothing_fits_is_2_with_the_nearest_choices(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--vram-gb", "6", "--size", "1280x720", "--window", "4", "--scheme", "bf16", "--layers", "resident")
    code, out, err = run(capsys, *flags)
    assert code == 2 and out == "" and "These would fit" in err
    code, out, _ = run(capsys, *flags, "--json")
    data = json.loads(out)
    assert code == 2 and data["choices"] and data["error"]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--gpu", "Voodoo 2"), "No card called"),
        (("--vram-gb", "0"), "more than 0 GB"),
        (("--vram-gb", "12", "--size", "700x33"), "not a multiple of 16"),
        (("--vram-gb", "12", "--size", "big"), "cannot be read"),
        (("--vram-gb", "12", "--seconds", "0"), "A video cannot have 0 seconds; ask for 1 to"),
        (("--vram-gb", "12", "--steps", "6", "--window", "4"), "There is no schedule of 6 steps; use 4, 8"),
        (("--vram-gb", "12", "--steps", "8", "--window", "3"), "A window of 3 does not divide 8 steps; use 1, 2"),
        (("--vram-gb", "12", "--preset", "none"), "No preset"),
        (("--vram-gb", "12", "--model", "5B"), "5B"),
    ],
)
def test_mistakes_are_2_with_one_sentence(
    capsys: pytest.CaptureFixture[str], flags: tuple[str, ...], words: str
) -> None:
    code, out, err = run(capsys, *flags)
    assert code == 2 and out == "" and words in err and "Traceback" not in err


def test_presets_and_cards_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "--vram-gb", "8", "--preset", "8gb", "--quality", "quality", "--json")
    data = json.loads(out)
    assert code == 0 and (data["preset"], data["width"], data["window"], data["steps"]) == ("8gb", 720, 1, 16)
    code, out, _ = run(capsys, "--list-gpus")
    assert code == 0 and "RTX 4090" in out
    code, out, _ = run(capsys, "--cpu", "--ram-gb", "64", "--size", "192x192", "--json")
    assert code == 0 and json.loads(out)["peak_vram_bytes"] == 0


@pytest.mark.parametrize(("model", "steps"), [("4.5B-base", 64), ("4.5B-distill", 8)])
def test_a_model_is_planned_with_the_steps_that_it_needs(
    model: str, steps: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", "--model", model, "--gpu", "RTX 4090"]) == 0
    assert f"{steps} steps" in capsys.readouterr().out.splitlines()[0]


@pytest.mark.parametrize("scheme", ["fp8", "int8"])
def test_converted_weights_are_planned_as_they_are(
    scheme: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder that was converted offline weighs what it holds; a card without FP8 changes nothing about that."""
    shutil.copytree(DEMO_FOLDER, tmp_path / "model")
    family = tmp_path / "model" / "ckpt" / "magi" / "demo"
    convert_folder(family / "inference_weight.distill", family / "small", scheme_named(scheme))
    layers = []
    for flags in (("--model", str(family / "small")), ("--model", "demo", "--scheme", scheme)):
        code, out, _ = run(capsys, *flags, "--gpu", "RTX 4090", "--size", "64x64", "--json")
        assert code == 0
        assert json.loads(out)["execution"]["scheme"] == scheme
        layers.append([item for item in json.loads(out)["items"] if item["component"] == "DiT layers"])
    assert layers[0] == layers[1] != []
    code, out, _ = run(capsys, "--model", str(family / "small"), "--gpu", "RTX 3090", "--size", "64x64")
    assert code == 0 and f"weights {scheme}" in out
