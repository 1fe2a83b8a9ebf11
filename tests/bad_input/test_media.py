"""Images, clips and outputs that cannot be used: one sentence each."""

from pathlib import Path

import pytest

from magi_lite.errors import InputError, MediaError, OutputError
from magi_lite.files import check_output
from magi_lite.request.checks import check
from magi_lite.request.request import GenerationRequest
from magi_lite.timeline.text import parse
from magi_lite.video.clips import load_tail
from magi_lite.video.images import load_image
from magi_lite.video.writer import VideoWriter

NO_IMAGE = "is not an image that can be read; use PNG, JPEG or WebP."
NO_CLIP = "is damaged or not a video that can be read; use an MP4, MOV or WebM."

IMAGES = {
    "missing.png": "There is no file {}; give the path of an image.",
    "a_folder": "{} is a folder; give the path of an image.",
    "empty.png": "empty.png is empty; use another copy.",
    "text.png": f"text.png {NO_IMAGE}",
    "page.jpg": f"page.jpg {NO_IMAGE}",
    "drawing.svg": f"drawing.svg {NO_IMAGE}",
    "script.eps": f"script.eps {NO_IMAGE}",
    "good.mp4": f"good.mp4 {NO_IMAGE}",
    "huge.png": "huge.png has more than 400 megapixels; make it smaller first.",
    "bomb.png": "bomb.png has more than 400 megapixels; make it smaller first.",
    "cut.png": "cut.png is damaged and cannot be read (",
    "cut.jpg": "cut.jpg is damaged and cannot be read (",
    "cut.webp": "cut.webp ",
    "cut.gif": "cut.gif is damaged and cannot be read (",
    "cut.tif": "cut.tif ",
    "damaged.png": "damaged.png is damaged and cannot be read (",
}

CLIPS = {
    "missing.mp4": "There is no file {}; give the path of a video.",
    "folder.mp4": "{} is a folder; give the path of a video.",
    "empty.mp4": "empty.mp4 is empty; use another copy.",
    "text.mp4": f"text.mp4 {NO_CLIP}",
    "page.webm": f"page.webm {NO_CLIP}",
    "cut.mp4": f"cut.mp4 {NO_CLIP}",
    "damaged.mp4": f"damaged.mp4 {NO_CLIP}",
    "sound.mp4": "sound.mp4 has no moving pictures in it; use an MP4, MOV or WebM.",
    "picture.mp4": "picture.mp4 is a single image; start with it as an image instead.",
}


def refused(kind, sentence, work):
    with pytest.raises(kind) as caught:
        work()
    text = str(caught.value)
    assert text.startswith(sentence) and text.endswith(".") and "\n" not in text
    return text


@pytest.mark.parametrize("name", IMAGES)
def test_images(folder, name):
    sentence = IMAGES[name].format(folder / name)
    text = refused(MediaError, sentence, lambda: load_image(folder / name, (32, 32)))
    assert text.endswith(("use another copy.", "first.", "WebP.", "of an image."))


@pytest.mark.parametrize("name", CLIPS)
def test_clips(folder, name):
    refused(MediaError, CLIPS[name].format(folder / name), lambda: load_tail(folder / name, (32, 32)))


def test_the_good_files_are_read(folder):
    for path in folder.glob("good.*"):
        if path.suffix != ".mp4":
            assert load_image(path, (32, 32)).shape == (32, 32, 3)
    assert load_tail(folder / "good.mp4", (32, 32)).shape == (12, 32, 32, 3)


def test_sources_of_a_request(folder):
    def ask(**settings):
        return lambda: check(GenerationRequest(parse("[0s-1s: a]"), **settings))

    both = {"image": folder / "good.png", "video": folder / "good.mp4"}
    refused(InputError, "An image and a clip cannot both be the start; give one of them.", ask(**both))
    for kind, name in (("an image", "image"), ("a video", "video")):
        path = folder / "nothing"
        refused(MediaError, f"There is no file {path}; give the path of {kind}.", ask(**{name: path}))
        refused(MediaError, "/dev/null is not a file; give the path of", ask(**{name: Path("/dev/null")}))
        path = folder / "a_folder"
        refused(MediaError, f"{path} is a folder; give the path of {kind}.", ask(**{name: path}))


def test_outputs(folder):
    missing = folder / "missing" / "a.mp4"
    for work in (lambda: check_output(missing), lambda: VideoWriter(missing, (64, 48))):
        refused(OutputError, f"The folder {missing.parent} does not exist; create it or choose another.", work)
    inside_file = folder / "text.png" / "a.mp4"
    for work in (lambda: check_output(inside_file), lambda: VideoWriter(inside_file, (64, 48))):
        refused(OutputError, f"{inside_file.parent} is not a folder; choose a folder for a.mp4.", work)
    taken = folder / "folder.mp4"
    for work in (lambda: check_output(taken), lambda: VideoWriter(taken, (64, 48))):
        refused(OutputError, f"{taken} is a folder; give the name of a file, such as {taken / 'video.mp4'}.", work)
    long = folder / ("n" * 300 + ".mp4")
    refused(OutputError, f"The name {'n' * 40}… is too long for this disk", lambda: VideoWriter(long, (64, 48)))
    check_output(folder / "good.mp4")


@pytest.mark.parametrize("face", ["check", "writer", "image", "clip", "project"])
def test_no_permission(folder, as_ordinary_user, face):
    """As a user who may not enter the folder, or (where that user owns it) may not write or read there."""
    from magi_lite.project import Project

    request = GenerationRequest(parse("[0s-1s: a]"), 1, 64, 64)
    target = folder / "a.mp4"
    work = {
        "check": lambda: check_output(target),
        "writer": lambda: VideoWriter(target, (64, 48)),
        "image": lambda: load_image(folder / "good.png", (32, 32)),
        "clip": lambda: load_tail(folder / "good.mp4", (32, 32)),
        "project": lambda: Project.create(folder, request),
    }[face]
    for name in ("good.png", "good.mp4"):
        (folder / name).chmod(0)
    folder.chmod(0o555)
    try:
        with pytest.raises((OutputError, MediaError)) as caught:
            as_ordinary_user(work)
    finally:
        folder.chmod(0o755)
    text = str(caught.value)
    wanted = "There is no permission to read" if face in ("image", "clip") else "There is no permission to write"
    assert text.startswith(wanted) and text.endswith(("choose another folder.", "use another copy."))
