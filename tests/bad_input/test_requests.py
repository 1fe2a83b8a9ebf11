"""Requests that contradict themselves: one sentence each, before anything is loaded."""

from pathlib import Path

import pytest

from magi_lite.errors import InputError, MediaError, OutputError, PresetError, TimelineError
from magi_lite.request.checks import check
from magi_lite.request.json import request_from_json, request_to_json
from magi_lite.request.request import STEPS, GenerationRequest, Overrides, SpecialTokens
from magi_lite.sampling.schedule import PUBLISHED_STEPS
from magi_lite.timeline import Segment, Timeline
from magi_lite.timeline.text import parse


def ask(text="[0s-4s: a cat]", **settings):
    return GenerationRequest(**({"timeline": parse(text), "seconds": 4, "width": 64, "height": 64} | settings))


STYLE_LIST = "static, dynamic, borders, 3d, anime, transition, caption or logo"
MODEL_LIST = "demo, 4.5B-base, 4.5B-distill, 4.5B-distill-fp8, 24B-base, 24B-distill or 24B-distill-fp8"

REFUSED = {
    # sizes
    "odd width": ({"width": 65}, InputError, "A width of 65 is not a multiple of 16; use 64."),
    "odd height": ({"height": 719}, InputError, "A height of 719 is not a multiple of 16; use 720."),
    "tiny": ({"width": 16}, InputError, "A width of 16 is out of range; use 32 to 4096."),
    "nothing": ({"height": 0}, InputError, "A height of 0 is out of range; use 32 to 4096."),
    "negative size": ({"width": -64}, InputError, "A width of -64 is out of range; use 32 to 4096."),
    "giant": ({"height": 8192}, InputError, "A height of 8192 is out of range; use 32 to 4096."),
    "size is a float": ({"width": 64.0}, InputError, "width must be a whole number, not 64.0."),
    "size is text": ({"height": "720"}, InputError, "height must be a whole number, not '720'."),
    # lengths
    "no seconds": (
        {"seconds": 0},
        InputError,
        "A video cannot have 0 seconds; ask for 1 to 1000000, or for an endless one.",
    ),
    "negative seconds": (
        {"seconds": -3},
        InputError,
        "A video cannot have -3 seconds; ask for 1 to 1000000, or for an endless one.",
    ),
    "half a second": ({"seconds": 1.5}, InputError, "seconds must be a whole number, not 1.5."),
    "true seconds": ({"seconds": True}, InputError, "seconds must be a whole number, not True."),
    # steps and windows
    "steps": ({"steps": 10}, InputError, "There is no schedule of 10 steps; use 4, 8, 12, 16, 32 or 64."),
    "no steps": ({"steps": 0}, InputError, "There is no schedule of 0 steps; use 4, 8, 12, 16, 32 or 64."),
    "window": ({"window": 3}, InputError, "A window of 3 does not divide 8 steps; use 1, 2, 4 or 8."),
    "reuse of few steps": (
        {"reuse": "low", "steps": 12},
        InputError,
        "Reuse between steps needs 16 steps or more, and at least 4 for each second of the window; with 12 steps in a "
        "window of 4 use reuse off.",
    ),
    "reuse in a wide window": ({"reuse": "high", "steps": 16, "window": 8}, InputError, "Reuse between steps needs 16"),
    "unknown reuse": ({"reuse": "much"}, InputError, "reuse cannot be 'much'; use off, low or high."),
    "no window": ({"window": 0}, InputError, "A window of 0 does not divide 8 steps; use 1, 2, 4 or 8."),
    "wide window": ({"window": 16}, InputError, "A window of 16 does not divide 8 steps; use 1, 2, 4 or 8."),
    "shortcut": ({"shortcut": "16,8,16"}, InputError, "shortcut cannot be '16,8,16'; use 8,16,16 or 16,16,8."),
    # seeds and quality
    "minus one": ({"seed": -1}, InputError, "The seed -1 is out of range; use 0 to 9007199254740991."),
    "large seed": (
        {"seed": 2**53},
        InputError,
        "The seed 9007199254740992 is out of range; use 0 to 9007199254740991.",
    ),
    "seed is text": ({"seed": "lucky"}, InputError, "seed must be a whole number, not 'lucky'."),
    "crf": ({"crf": 52}, InputError, "The quality (crf) 52 is out of range; use 1 (best) to 51 (smallest file)."),
    "fit": ({"fit": "zoom"}, InputError, "fit cannot be 'zoom'; use crop, pad or stretch."),
    "quality": ({"quality": "best"}, InputError, "quality cannot be 'best'; use draft, balanced or quality."),
    "image prefix": ({"image_prefix": "near"}, InputError, "image_prefix cannot be 'near'; use exact or published."),
    # names
    "style": (
        {"tokens": SpecialTokens(styles=("animé",))},
        InputError,
        f"There is no style 'animé' (did you mean anime?); use {STYLE_LIST}.",
    ),
    "model": (
        {"model": "4.5B-distil"},
        InputError,
        f"There is no model '4.5B-distil' (did you mean 4.5B-distill?); use {MODEL_LIST}, or a folder.",
    ),
    "model folder": (
        {"model": "/no/such/folder"},
        InputError,
        f"There is no model '/no/such/folder'; use {MODEL_LIST}, or a folder.",
    ),
    "preset": ({"preset": "48tb"}, PresetError, 'No preset is called "48tb"; choose auto or one of '),
    "preset without letters": ({"preset": "../"}, PresetError, '"../" is not the name of a preset; choose one of '),
    "preset is a number": ({"preset": 24}, PresetError, "A preset has a name, not 24; use auto."),
    "scheme": (
        {"overrides": Overrides(scheme="int4")},
        InputError,
        "scheme cannot be 'int4'; use float32, bf16, fp8, int8, nf4 or published.",
    ),
    "device": ({"overrides": Overrides(device="tpu")}, InputError, "device cannot be 'tpu'; use cuda or cpu."),
    "slices": (
        {"overrides": Overrides(mlp_slice=0)},
        InputError,
        "mlp_slice cannot be 0; give a number of tokens, such as 4096.",
    ),
    "memory": (
        {"overrides": Overrides(vram_gb=float("nan"))},
        InputError,
        "A card with nan GB of memory cannot be planned; give a number such as 12.",
    ),
    "no memory": (
        {"overrides": Overrides(vram_gb=-8)},
        InputError,
        "A card with -8 GB of memory cannot be planned; give a number such as 12.",
    ),
    # words
    "no words": (
        {"timeline": Timeline()},
        InputError,
        "There is neither a prompt nor a picture; write a prompt, or start with an image or a clip.",
    ),
    "blank words": (
        {"timeline": Timeline((Segment(0, 2, " \n"),), "  ")},
        InputError,
        "There is neither a prompt nor a picture; write a prompt, ",
    ),
    "half a character": (
        {"timeline": Timeline(global_prompt="a \ud83d cat")},
        InputError,
        "A prompt holds half a character (a lone surrogate); paste the text again.",
    ),
    "a book": (
        {"timeline": Timeline(global_prompt="word " * 3000)},
        InputError,
        "A prompt has 15000 characters; 10000 is the most that can be given.",
    ),
    "words that are cleaned away": (
        {"timeline": parse("[0s-1s: 一只猫在跑] [1s-2s: #12345]")},
        InputError,
        '"一只猫在跑" says nothing to the model: Chinese characters, ',
    ),
    "one word that is": ({"timeline": Timeline(global_prompt="download")}, InputError, '"download" says nothing '),
    "words that are too long": (
        {"timeline": parse(f"[0s-1s: a cat] [1s-2s: {'x' * 4000}]")},
        InputError,
        "The prompt holds a word of 4000 characters; 3000 is the most, take it out.",
    ),
    "timeline is text": (
        {"timeline": "[0s-2s: a]"},
        InputError,
        "The timeline is str; read it with magi_lite.timeline.text.parse.",
    ),
    "timeline too long": (
        {"timeline": parse("[0s-2s: a] [2s-9s: a dog runs]")},
        TimelineError,
        "Segment [2s-9s: a dog runs] ends after the video's 4 s; shorten it or ask for 9 seconds.",
    ),
    "gap in front": (
        {"timeline": parse("[1s-2s: a]")},
        TimelineError,
        "Segment [1s-2s: a] comes first, and no prompt covers the time before it; "
        "start it at 0s or write a global prompt.",
    ),
    "refused gap": (
        {"timeline": parse("[gaps: refuse] [0s-1s: a] [3s-4s: b]")},
        TimelineError,
        "No segment covers 1s-3s; add one there or let gaps hold the prompt before.",
    ),
    # blocks' pictures
    "no such picture": (
        {"timeline": parse("[0s-2s: a] [2s-4s image=/no/such/cat.png: b]")},
        MediaError,
        "There is no file /no/such/cat.png",
    ),
    "a folder as a picture": ({"timeline": parse("[0s-2s: a] [2s-4s image=/tmp: b]")}, MediaError, ""),
    "two pictures at the start": (
        {"timeline": parse("[0s-4s image=/no/such/cat.png: a]"), "image": Path("/no/such/dog.png")},
        InputError,
        "The video starts from a picture, its first block from a picture; keep one of them.",
    ),
    "a clip and a picture at the start": (
        {"timeline": parse("[0s-4s image=/no/such/cat.png: a]"), "video": Path("/no/such/dog.mp4")},
        InputError,
        "The video starts from a clip, its first block from a picture; keep one of them.",
    ),
    # outputs
    "output folder missing": (
        {"out": Path("/no/such/folder/a.mp4")},
        OutputError,
        "The folder /no/such/folder does not exist; create it or choose another.",
    ),
    "output ending": (
        {"out": Path("film.avi")},
        OutputError,
        "'film.avi' does not end in .mp4; give a name such as film.mp4.",
    ),
    "output without a name": (
        {"out": Path("/tmp")},
        OutputError,
        "'tmp' does not end in .mp4; give a name such as tmp.mp4.",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_requests_that_are_refused(name):
    settings, kind, sentence = REFUSED[name]
    with pytest.raises(kind) as caught:
        check(ask(**settings))
    assert type(caught.value) is kind
    assert str(caught.value).startswith(sentence) and str(caught.value).endswith(".")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"seconds": None},
        {"seed": 2**53 - 1, "crf": 51, "steps": 12, "window": 4, "width": 32, "height": 4096},
        {"steps": 64, "window": 2, "preset": "24gb", "quality": "draft", "model": "24B-base"},
        {
            "overrides": Overrides(scheme="fp8", vram_gb=7.5, mlp_slice=4096),
            "tokens": SpecialTokens(styles=("anime", "3d")),
        },
        {"timeline": Timeline((Segment(1, 2, "a"),), "rain", blend=9)},
    ],
)
def test_legal_requests_pass(settings):
    check(ask(**settings))


def test_words_are_not_needed_behind_an_image_or_a_clip(folder):
    check(ask("", image=folder / "good.png"))
    check(ask("", video=folder / "good.mp4"))


def test_every_published_schedule_is_legal():
    assert set(PUBLISHED_STEPS) < set(STEPS)


SETTINGS = {
    "a list": ([], "Settings must be a JSON object; export some to see the form."),
    "version": ({"version": 7}, "The settings have version 7; this program reads version 1."),
    "no timeline": ({"seed": 1}, "The settings have no timeline; export some to see the form."),
    "unknown key": (
        {"steps_count": 8},
        "The settings have an unknown key 'steps_count'; known are timeline, seconds, ",
    ),
    "text for a number": (
        {"timeline": {"segments": []}, "seed": "1"},
        "The setting 'seed' must be a whole number, not '1'.",
    ),
    "no size": (
        {"timeline": {"segments": []}, "width": None},
        "The setting 'width' must be a whole number, not None.",
    ),
    "number for a name": ({"timeline": {"segments": []}, "model": 4}, "The setting 'model' must be text, not 4."),
    "number for a switch": (
        {"timeline": {"segments": []}, "nearly_clean": 1},
        "The setting 'nearly_clean' must be true or false, not 1.",
    ),
    "tokens": (
        {"timeline": {"segments": []}, "tokens": []},
        "The setting 'tokens' must be an object; export some settings to see the form.",
    ),
    "styles": (
        {"timeline": {"segments": []}, "tokens": {"styles": "anime"}},
        "The setting 'styles' must be a list of names.",
    ),
    "unknown token": (
        {"timeline": {"segments": []}, "tokens": {"speed": True}},
        "The tokens have an unknown key 'speed'; known are quality, duration, styles.",
    ),
    "override": (
        {"timeline": {"segments": []}, "overrides": {"vram_gb": "12"}},
        "The setting 'vram_gb' must be a number, not '12'.",
    ),
    "timeline": (
        {"timeline": {"segments": 3}},
        "The timeline's segments must be a list of objects with start, end and prompt.",
    ),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_that_cannot_be_read(name):
    data, sentence = SETTINGS[name]
    with pytest.raises(InputError) as caught:
        request_from_json(data)
    assert str(caught.value).startswith(sentence) and str(caught.value).endswith(".")


def test_settings_come_back_equal_and_leave_home_without_paths():
    picture = f'[3s-4s cut image="/elsewhere/secret/dog.png" sha256={"a" * 64}: b]'
    request = ask(
        f"[blend: 1] [0s-1s: a] {picture}",
        image=Path("/elsewhere/secret/cat.png"),
        models_folder=Path("/elsewhere/models"),
        out=Path("/elsewhere/a.mp4"),
        tokens=SpecialTokens(False, True, ("anime",)),
        overrides=Overrides(scheme="nf4", vram_gb=7.5),
    )
    assert request_from_json(request_to_json(request)) == request
    outside = request_to_json(request, paths=False)
    assert "/elsewhere" not in str(outside) and outside["timeline"]["segments"][1]["image"] == "dog.png"
    assert (outside["image"], outside["out"], outside["models_folder"]) == ("cat.png", None, None)
    assert request_from_json({"timeline": {"segments": []}}) == GenerationRequest(Timeline())
