"""The same refusals at the command line: the exit code, one sentence, no traceback."""

import pytest

from magi_lite.cli import main
from magi_lite.request.checks import notices
from magi_lite.timeline.text import parse

GENERATE = {
    "size": (["--prompt", "a", "--size", "65x64"], 2, "A width of 65 is not a multiple of 16; use 64."),
    "size words": (
        ["--prompt", "a", "--size", "large"],
        2,
        'The size "large" cannot be read; write WIDTHxHEIGHT, such as',
    ),
    "seed": (["--prompt", "a", "--seed", "-2"], 2, "The seed -2 is out of range; use 0 to 9007199254740991."),
    "steps": (["--prompt", "a", "--steps", "9"], 2, "There is no schedule of 9 steps; use 4, 8, 12, 16, 32 or 64."),
    "window": (
        ["--prompt", "a", "--steps", "8", "--window", "3"],
        2,
        "A window of 3 does not divide 8 steps; use 1, 2,",
    ),
    "seconds": (["--prompt", "a", "--seconds", "0"], 2, "A video cannot have 0 seconds; ask for 1 to 1000000,"),
    "no words": ([], 2, "There is neither a prompt nor a picture; write a prompt, or start with an image or a clip."),
    "timeline": (
        ["--timeline", "[0s-2s: a] [1s-3s: b]"],
        2,
        "Segment [1s-3s: b] overlaps segment [0s-2s: a]; start it at",
    ),
    "timeline times": (["--timeline", "[0s-1.5s: a]"], 2, "Segment [0s-1.5s: a] uses the time 1.5; times are whole"),
    "timeline length": (
        ["--timeline", "[0s-9s: a]", "--seconds", "4"],
        2,
        "Segment [0s-9s: a] ends after the video's 4 s;",
    ),
    "image": (
        ["--prompt", "a", "--image", "nowhere.png"],
        2,
        "There is no file nowhere.png; give the path of an image.",
    ),
    "video": (
        ["--prompt", "a", "--video", "nowhere.mp4"],
        2,
        "There is no file nowhere.mp4; give the path of a video.",
    ),
    "codes for a terminal in a name": (
        ["--prompt", "a", "--image", "a\x1b[2J\nb\u202egnp.exe"],
        2,
        "There is no file a\\x1b[2J\\nb\\u202egnp.exe; give the path of an image.",
    ),
    "out": (["--prompt", "a", "--out", "nowhere/a.mp4"], 4, "The folder nowhere does not exist; create it or choose"),
    "preset": (["--prompt", "a", "--preset", "99tb"], 2, 'No preset is called "99tb"; choose auto or one of'),
    "style": (["--prompt", "a", "--style", "cubist"], 2, "There is no style 'cubist'; use static, dynamic, borders,"),
    "timeline in the prompt": (
        ["--prompt", "rain [0s-1s: a cat] [1s-2s: a dog]"],
        2,
        'The prompt holds times as a timeline has, "[0s-1s: a cat]"; write them in the timeline instead '
        "(--timeline on the command line).",
    ),
    "endless memory": (["--prompt", "a", "--vram-gb", "inf"], 2, "A card with inf GB of memory cannot be planned;"),
    "memory in words": (["--prompt", "a", "--vram-gb", "much"], 2, "vram_gb must be a number, not 'much'."),
    "seed in words": (["--prompt", "a", "--seed", "lucky"], 2, "seed must be a whole number, not 'lucky'."),
    "zero in a path": (["--prompt", "a", "--image", "a\0b.png"], 2, "image 'a\\x00b.png' holds a character that no"),
    "zero in a folder": (["--prompt", "a", "--projects", "a\0b"], 2, "--projects 'a\\x00b' holds a character that no"),
    "long preset": (["--prompt", "a", "--preset", "x" * 5000], 2, "preset has 5000 characters; 1000 is the most."),
    "long model": (["--prompt", "a", "--model", "x" * 900], 2, "There is no model 'xxx"),
    "long path": (["--resume", "x" * 5000], 2, "--resume has 5000 characters; 4096 is the most."),
    "long output": (["--prompt", "a", "--preset", "demo", "--out", "x" * 300 + ".mp4"], 4, "The name xxx"),
    "long name": (["--resume", "x" * 300], 2, f"The name {'x' * 40}… is too long for a disk; choose a shorter one."),
    "long name of models": (["--prompt", "a", "--models", "x" * 300 + "/m"], 2, "The name xxx"),
    "quality": (["--prompt", "a", "--quality", "best"], 2, "quality cannot be 'best'; use draft, balanced or quality."),
    "scheme": (["--prompt", "a", "--scheme", "int4"], 2, "scheme cannot be 'int4'; use float32, bf16, fp8, int8, nf4"),
    "resume": (["--resume", "nowhere"], 2, "nowhere is not a project; it holds no project.json."),
}


def sentence_of(capsys, arguments):
    code = main(arguments)
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err and captured.out == ""
    return code, captured.err.strip().splitlines()[-1]


@pytest.mark.parametrize("name", GENERATE)
def test_generate(name, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments, code, sentence = GENERATE[name]
    got, text = sentence_of(capsys, ["generate", *arguments])
    assert got == code
    assert text.startswith(f"error: {sentence}") and text.endswith(".")
    assert list(tmp_path.iterdir()) == [], "nothing is begun for a request that is refused"


@pytest.mark.parametrize(
    "arguments",
    [
        ["app", "--models"], ["app", "--projects"], ["plan", "--models"], ["download", "4.5B-distill", "--models"],
        ["info"], ["export", "--to", "a.mp4"], ["render", "--ray"], ["render", "a.txt", "--projects"], ["render"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_no_command_stumbles_over_a_long_name(arguments, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("x" * 300, "x/" * 3000):
        code = main([*arguments, name])
        said = capsys.readouterr().err
        assert code == 2 and "unexpected" not in said and "Traceback" not in said


def test_a_picture_and_a_clip_that_are_given_as_the_other(capsys, folder):
    (folder / "named.png").write_bytes((folder / "good.mp4").read_bytes())
    for name in ("good.mp4", "named.png"):
        assert sentence_of(capsys, ["generate", "--prompt", "a", "--image", str(folder / name)]) == (
            2,
            f"error: {name} is a video, not an image; give it with --video.",
        )
    assert sentence_of(capsys, ["generate", "--prompt", "a", "--video", str(folder / "good.jpg")]) == (
        2,
        "error: good.jpg is a picture, not a video; give it with --image.",
    )


def test_weights_in_a_prompt_are_named():
    (sentence,) = notices(parse("[0s-1s: a (big red:1.3) ball]"))
    assert sentence == '"(big red:1.3)" is read as plain text: the model knows no weights; write "big red".'
    assert notices(parse("[0s-1s: a ball (red) at 10:30]")) == ()


def test_info(capsys, folder):
    assert sentence_of(capsys, ["info", str(folder / "nothing.mp4")]) == (
        2,
        f"error: There is no file {folder / 'nothing.mp4'}; give the path of a video.",
    )
    assert sentence_of(capsys, ["info", str(folder / "text.mp4")]) == (
        2,
        "error: text.mp4 cannot be read as a video; give an MP4 file.",
    )
