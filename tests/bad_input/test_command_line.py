"""The same refusals at the command line: the exit code, one sentence, no traceback."""

import pytest

from magi_lite.cli import main

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
    "no words": ([], 2, "Nothing is said and nothing is shown; write a prompt, or start with an image or a clip."),
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
    "out": (["--prompt", "a", "--out", "nowhere/a.mp4"], 4, "The folder nowhere does not exist; create it or choose"),
    "preset": (["--prompt", "a", "--preset", "99tb"], 2, 'No preset is called "99tb"; choose auto or one of'),
    "style": (["--prompt", "a", "--style", "cubist"], 2, "There is no style 'cubist'; use static, dynamic, borders,"),
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


def test_info(capsys, folder):
    assert sentence_of(capsys, ["info", str(folder / "nothing.mp4")]) == (
        2,
        f"error: There is no file {folder / 'nothing.mp4'}; give the path of a video.",
    )
    assert sentence_of(capsys, ["info", str(folder / "text.mp4")]) == (
        2,
        "error: text.mp4 cannot be read as a video; give an MP4 file.",
    )
