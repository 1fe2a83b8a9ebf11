"""Names as long as a disk takes are written; longer ones are refused before the work."""

import pytest

from magi_lite.errors import OutputError
from magi_lite.files import check_output, write_atomic
from magi_lite.video.export import check_export, open_export
from magi_lite.video.writer import VideoWriter, finalize

LONGEST = 255
"""Bytes of a name on nearly every disk."""


def named(letter, size, ending):
    return letter * ((size - len(ending)) // len(letter.encode())) + ending


@pytest.mark.parametrize("letter", ["n", "ü", "漢"])
@pytest.mark.parametrize("size", [200, 240, LONGEST])
def test_long_names_are_written(tmp_path, frames, letter, size):
    path = tmp_path / named(letter, size, ".mp4")
    check_output(path)
    with VideoWriter(path, (64, 48)) as writer:
        writer.append(frames(24))
    finalize(path)
    write_atomic(tmp_path / named(letter, size, ".json"), b"{}")
    target = tmp_path / named(letter, size, ".mkv")
    check_export("ffv1", target, (64, 48), False)
    with open_export("ffv1", target, (64, 48)) as writer:
        writer.write(frames(1)[0] / 127.5 - 1)
    with open_export("png", tmp_path / named(letter, size, ""), (64, 48)) as writer:
        writer.write(frames(1)[0] / 127.5 - 1)
    assert len(list(tmp_path.iterdir())) == 4


def test_longer_ones_are_refused_before_the_work(tmp_path):
    path = tmp_path / named("n", LONGEST + 1, ".mp4")
    for work in (lambda: check_output(path), lambda: check_export("h264", path, (64, 48), False)):
        with pytest.raises(OutputError, match=r"The name n{40}… is too long for this disk; choose a shorter one\."):
            work()
