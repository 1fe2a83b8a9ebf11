"""Videos that grow: what is in the file at every moment, after kills and full disks included."""

import errno
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import av
import numpy as np
import pytest

from magi_lite.errors import MediaError, OutputError
from magi_lite.files import write_atomic
from magi_lite.video import fragments
from magi_lite.video.clips import load_tail
from magi_lite.video.thumbnails import save_image, strip
from magi_lite.video.writer import VideoWriter, finalize, read_settings


def decode(path):
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def peak_error(got, wanted):
    """Mean absolute difference of 8-bit values."""
    return np.abs(got.astype(int) - wanted.astype(int)).mean()


@pytest.mark.parametrize("counts", [[24, 24], [1, 24], [21, 3, 1], [24]])
def test_every_chunk_is_readable_as_soon_as_it_is_appended(tmp_path, frames, counts):
    path, wanted = tmp_path / "a.mp4", []
    with VideoWriter(path, (64, 48), crf=10, settings={"seed": 3}) as writer:
        for number, count in enumerate(counts):
            wanted.append(frames(count, seed=number))
            writer.append(wanted[-1])
            assert path.stat().st_size == writer.bytes_written
            got = decode(path)
            assert got.shape == np.concatenate(wanted).shape
            assert peak_error(got, np.concatenate(wanted)) < 4
        assert (writer.chunks, writer.frames) == (len(counts), sum(counts))
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        times = [round(float(frame.pts * frame.time_base) * 24, 6) for frame in container.decode(stream)]
        assert times == list(range(sum(counts)))
        assert stream.codec_context.name == "h264" and stream.codec_context.pix_fmt == "yuv420p"


def test_colours_come_back(tmp_path):
    """Flat patches survive RGB -> BT.709 -> RGB; a matrix mistaken for BT.601 would be off by more than 10."""
    patches = np.array([[200, 30, 60], [20, 180, 40], [30, 60, 210], [128, 128, 128], [240, 240, 20]], np.uint8)
    wanted = np.repeat(np.repeat(patches[None, None], 16, 1), 16, 2).repeat(3, 0)
    with VideoWriter(tmp_path / "a.mp4", (80, 16), crf=4) as writer:
        writer.append(wanted)
    got = decode(tmp_path / "a.mp4")
    centres = got[:, 8, 8::16].astype(int)
    assert np.abs(centres - patches.astype(int)).max() <= 4


def test_a_chunk_costs_the_same_bytes_wherever_it_stands(tmp_path, frames):
    first, second = frames(24, seed=1), frames(7, seed=2)
    with VideoWriter(tmp_path / "a.mp4", (64, 48)) as writer:
        writer.append(first)
        behind = writer.append(second)
    with VideoWriter(tmp_path / "b.mp4", (64, 48)) as writer:
        alone = writer.append(second)
    assert len(alone) == len(behind)
    assert fragments.place(behind, 0, 0) == alone
    assert fragments.frame_count(behind) == 7


def test_what_lies_in_freed_memory_does_not_change_the_bytes():
    random = np.random.default_rng()
    for _ in range(5):
        clip = random.normal(128, 3, (24, 32, 32, 3)).clip(0, 255).astype(np.uint8)
        made = set()
        for value in (0, 255, 127):
            litter = [np.full(size, value, np.uint8) for size in range(1040, 20_000, 16) for _ in range(7)]
            del litter
            made.add(fragments.encode_chunk(clip, 24, 18))
        assert len(made) == 1


@pytest.mark.parametrize("torn", [0, 5, 300])
def test_resume_drops_a_torn_tail_and_goes_on(tmp_path, frames, torn):
    whole, again = tmp_path / "whole.mp4", tmp_path / "again.mp4"
    chunks = [frames(24, seed=1), frames(24, seed=2), frames(9, seed=3)]
    with VideoWriter(whole, (64, 48), settings={"a": 1}) as writer:
        for chunk in chunks:
            writer.append(chunk)
    with VideoWriter(again, (64, 48), settings={"a": 1}) as writer:
        writer.append(chunks[0])
        end = writer.bytes_written
    with again.open("ab") as file:
        file.write(whole.read_bytes()[end : end + torn])
    with VideoWriter(again, (64, 48), settings={"ignored": 2}, resume=True) as writer:
        assert (writer.chunks, writer.frames) == (1, 24)
        writer.append(chunks[1])
        writer.append(chunks[2])
    assert again.read_bytes() == whole.read_bytes()


KILLED = """
    import sys, numpy as np
    from magi_lite.video.writer import VideoWriter
    rng = np.random.default_rng(0)
    writer = VideoWriter(sys.argv[1], (64, 48), settings={"seed": 7})
    while True:
        writer.append(rng.integers(0, 256, (24, 48, 64, 3), np.uint8))
        print(writer.chunks, flush=True)
"""


def test_a_killed_writer_leaves_every_finished_chunk(tmp_path):
    path = tmp_path / "a.mp4"
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(KILLED), str(path)],
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )
    try:
        for line in process.stdout:
            if int(line) == 4:
                break
    finally:
        process.send_signal(signal.SIGKILL)
        finished = max([4, *map(int, process.stdout.read().split())])
        process.wait()
        process.stdout.close()
    assert len(decode(path)) >= 24 * finished
    assert read_settings(path) == {"seed": 7}
    with VideoWriter(path, (64, 48), resume=True) as writer:
        assert finished <= writer.chunks <= finished + 1


def test_settings_come_back_from_growing_and_finalized_files(tmp_path, frames):
    settings = {"prompt": 'a "quoted" 猫\nin two lines', "seed": 2**53 - 1, "nested": {"list": [1, None, 0.5]}}
    path = tmp_path / "a.mp4"
    with VideoWriter(path, (64, 48), settings=settings) as writer:
        assert read_settings(path) == settings
        writer.append(frames(24))
        writer.append(frames(24, seed=1))
    before = decode(path)
    assert finalize(path, tmp_path / "final.mp4") == tmp_path / "final.mp4"
    assert finalize(path) == path
    assert path.read_bytes() == (tmp_path / "final.mp4").read_bytes()
    assert read_settings(path) == settings
    assert np.array_equal(decode(path), before)
    kinds = [kind for kind, _, _ in fragments.boxes(path.read_bytes())]
    assert kinds.index(b"moov") < kinds.index(b"mdat") and b"moof" not in kinds
    with av.open(str(path)) as container:
        assert container.duration == 2_000_000
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.mp4", "final.mp4"]


def test_settings_are_left_out_when_asked_and_foreign_comments_are_not_ours(tmp_path, frames):
    with VideoWriter(tmp_path / "a.mp4", (64, 48)) as writer:
        writer.append(frames(2))
    assert read_settings(tmp_path / "a.mp4") is None
    for number, comment in enumerate(['{"seed": 1}', "hello", '{"magi_lite": "1", "settings": 3}', "[" * 100000]):
        path = tmp_path / f"{number}.mp4"
        with av.open(str(path), "w") as container:
            container.metadata["comment"] = comment
            stream = container.add_stream("mpeg4", rate=24)
            stream.width = stream.height = 16
            container.mux(stream.encode(av.VideoFrame(16, 16, "yuv420p")))
            container.mux(stream.encode(None))
        assert read_settings(path) is None


@pytest.mark.parametrize("content", [b"", b"not a video", b"\0" * 5000])
def test_settings_of_what_is_no_video(tmp_path, content):
    (tmp_path / "a.mp4").write_bytes(content)
    sentence = (
        r"a\.mp4 cannot be read as a video; give an MP4 file\." if content else r"a\.mp4 is empty; use another copy\."
    )
    with pytest.raises(MediaError, match=sentence):
        read_settings(tmp_path / "a.mp4")
    with pytest.raises(MediaError, match=r"There is no file .*b\.mp4; give the path of a video\."):
        read_settings(tmp_path / "b.mp4")


def test_the_codec_string_names_profile_and_level_of_the_stream(tmp_path, frames):
    with VideoWriter(tmp_path / "a.mp4", (64, 48)) as writer:
        writer.append(frames(2))
        with av.open(str(tmp_path / "a.mp4")) as container:
            extradata = container.streams.video[0].codec_context.extradata
        assert writer.mime == f'video/mp4; codecs="avc1.{extradata[1:4].hex()}"'
        assert extradata[1] == 100, "High profile, which every browser plays"


def test_a_full_disk_is_one_sentence():
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    with pytest.raises(
        OutputError, match="The disk is full or limited at /dev/full; free some space or choose another"
    ):
        VideoWriter("/dev/full", (64, 48))


LIMITED = """
    import resource, sys, numpy as np
    from magi_lite.errors import OutputError
    from magi_lite.video.writer import VideoWriter
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    rng = np.random.default_rng(0)
    writer = VideoWriter(sys.argv[1], (64, 48))
    try:
        while True:
            writer.append(rng.integers(0, 256, (24, 48, 64, 3), np.uint8))
    except OutputError as error:
        print(writer.chunks, writer.bytes_written, error)
"""


def test_a_disk_that_fills_up_keeps_the_finished_chunks(tmp_path):
    """The limit is the system's own, so the failing write is a real one."""
    path = tmp_path / "a.mp4"
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(LIMITED), str(path)],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    chunks, size, sentence = result.stdout.split(" ", 2)
    assert int(chunks) >= 1
    assert path.stat().st_size == int(size)
    assert len(decode(path)) == 24 * int(chunks)
    assert sentence.strip() == f"The disk is full or limited at {path}; free some space or choose another folder."


def test_files_that_cannot_be_continued(tmp_path, frames):
    path = tmp_path / "a.mp4"
    with VideoWriter(path, (64, 48)) as writer:
        writer.append(frames(2))
    sentence = r"a\.mp4 is not a growing video of this size and encoder; choose another name\."
    with pytest.raises(OutputError, match=sentence):
        VideoWriter(path, (48, 64), resume=True)
    finalize(path)
    with pytest.raises(OutputError, match=sentence):
        VideoWriter(path, (64, 48), resume=True)
    assert len(decode(path)) == 2, "a refused resume leaves the file alone"
    VideoWriter(path, (64, 48)).close()
    assert path.stat().st_size == fragments.INIT_STEP, "without resume the file is replaced"


@pytest.mark.parametrize("shape", [(24, 64, 48, 3), (24, 48, 64), (48, 64, 3), (24, 48, 64, 4)])
def test_frames_of_another_shape_are_our_own_mistake(tmp_path, shape):
    with VideoWriter(tmp_path / "a.mp4", (64, 48)) as writer, pytest.raises(ValueError, match="frames must be uint8"):
        writer.append(np.zeros(shape, np.uint8))


def test_thumbnails(tmp_path, frames):
    video = frames(24, seed=4)
    picture = strip(video, count=3, height=24)
    assert picture.shape == (24, 3 * 32, 3)
    assert (
        peak_error(picture[:, :32], video[0, ::2, ::2]) < 12
        and peak_error(picture[:, -32:], video[-1, ::2, ::2]) < 12
    )
    assert strip(video[:1], count=4, height=48).shape == (48, 256, 3)
    save_image(tmp_path / "a.png", picture)
    save_image(tmp_path / "a.jpg", picture)
    from PIL import Image

    assert np.array_equal(np.asarray(Image.open(tmp_path / "a.png")), picture)
    assert peak_error(np.asarray(Image.open(tmp_path / "a.jpg")), picture) < 6


def test_atomic_files_are_whole_or_absent(tmp_path, monkeypatch):
    path = tmp_path / "a.bin"
    write_atomic(path, b"old")

    def stop(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    for step in ("write", "fsync"):
        with monkeypatch.context() as patch:
            patch.setattr(os, step, stop)
            with pytest.raises(OutputError, match="The disk is full"):
                write_atomic(path, b"new")
        assert path.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1
    write_atomic(path, b"new")
    assert path.read_bytes() == b"new"


def test_names_that_look_like_addresses_are_names(tmp_path, frames, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = Path("take:2 Größe.mp4")
    with VideoWriter(path, (64, 48), settings={"seed": 3}) as writer:
        writer.append(frames(24))
    assert read_settings(path) == {"seed": 3}
    assert load_tail(path, (64, 48), frames=24).shape == (24, 48, 64, 3)
    assert len(decode(finalize(path, Path("file:final.mp4")).absolute())) == 24
