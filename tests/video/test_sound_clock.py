"""The sound of a clip stays with its pictures: over jumps of the file's clock, and over gaps."""

from __future__ import annotations

import subprocess
from pathlib import Path

import av
import imageio_ffmpeg
import numpy as np
import pytest

from magi_lite.errors import MediaError
from magi_lite.models import FPS
from magi_lite.video.clips import load_tail, read_whole
from magi_lite.video.export import open_export
from magi_lite.video.sound import Sound, check_sound

PART = 3.0
"""Seconds of pictures in each part; in its middle second all is white, and a tone is heard."""


def ffmpeg(*arguments: object) -> None:
    subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", *map(str, arguments)], check=True)


def part(path: Path, clock: float, heard: float, codecs: tuple[str, ...] = ("mpeg2video", "mp2")) -> bytes:
    """Pictures and a sound of `heard` seconds, on a clock that begins at `clock`."""
    ffmpeg(
        "-f", "lavfi", "-i", f"color=black:s=64x48:r=24:d={PART},drawbox=c=white:t=fill:enable='between(t,1,1.99)'",
        "-f", "lavfi", "-i", f"aevalsrc='0.5*sin(6283*t)*between(t,1,2)':s=48000:d={heard}",
        "-c:v", codecs[0], "-c:a", codecs[1], "-muxdelay", 0, "-muxpreload", 0, "-output_ts_offset", clock, path,
    )  # fmt: skip
    return path.read_bytes()


def exported(clip: Path, target: Path) -> tuple[np.ndarray, np.ndarray]:
    """The clip and its sound as an export has them: whether frames are white, and whether a tone is in each of them."""
    whole = read_whole(clip, (64, 48), "stretch")
    with open_export("ffv1", target, (64, 48), sound=[Sound(clip, whole.start, whole.count / FPS)]) as writer:
        for frame in whole.frames:
            writer.write(frame.astype(np.float32) / 127.5 - 1)
    with av.open(str(target)) as container:
        white = np.array([frame.to_ndarray(format="gray").mean() > 128 for frame in container.decode(video=0)])
    with av.open(str(target)) as container:
        samples = np.concatenate([frame.to_ndarray().reshape(-1, 2)[:, 0] for frame in container.decode(audio=0)])
    step = 48000 // FPS
    loud = np.abs(samples[: len(white) * step].astype(float)).reshape(-1, step).max(1)
    return white, loud > 0.3 * loud.max()


def check_together(white: np.ndarray, loud: np.ndarray, parts: int) -> None:
    begins = [np.flatnonzero(np.diff(np.concatenate([[0], one.astype(int)])) == 1) for one in (white, loud)]
    assert [len(one) for one in begins] == [parts, parts]
    assert np.abs(begins[0] - begins[1]).max() <= 2, begins


@pytest.mark.parametrize("heard", [PART, 2.4, 3.3], ids=["as long", "shorter", "longer"])
@pytest.mark.parametrize(
    "clocks", [(0, 0, 0), (50_000, 7, 90_000), (95_440, 95_443, 0), (10, 11, 30)],
    ids=["begins anew", "jumps", "wraps", "small steps"],
)  # fmt: skip
@pytest.mark.parametrize("suffix", ["ts", "mpg"])
def test_sound_and_pictures_jump_together(tmp_path: Path, clocks: tuple[float, ...], heard: float, suffix: str) -> None:
    """Recordings one behind the other in one file, as receivers and `cat` leave them."""
    clip = tmp_path / f"all.{suffix}"
    clip.write_bytes(b"".join(part(tmp_path / f"{n}.{suffix}", clock, heard) for n, clock in enumerate(clocks)))
    white, loud = exported(clip, tmp_path / "out.mkv")
    if clocks != (10, 11, 30):  # there pictures stand over each other, or wait
        assert abs(len(white) / FPS - 3 * PART) < 0.3
    check_together(white, loud, 3)


def test_silence_where_sound_is_missing(tmp_path: Path) -> None:
    """A recorder that lost some of it: what comes behind is heard with its pictures."""
    part(tmp_path / "a.mkv", 0, PART, ("libx264", "aac"))
    with av.open(str(tmp_path / "a.mkv")) as source, av.open(str(tmp_path / "gap.mkv"), "w") as output:
        streams = {one.index: output.add_stream_from_template(one) for one in source.streams}
        for packet in source.demux():
            is_lost = packet.size and packet.stream.type == "audio" and 0.2 < packet.pts * packet.time_base < 0.9
            if packet.size and not is_lost:
                packet.stream = streams[packet.stream.index]
                output.mux(packet)
    check_together(*exported(tmp_path / "gap.mkv", tmp_path / "out.mkv"), 1)


def test_sound_behind_pictures_without_a_time(tmp_path: Path) -> None:
    """Matroska has no times below 0: what a cut left there has none, and is shown in front of the rest."""
    early = 0.5
    part(tmp_path / "a.mp4", 0, PART, ("libx264", "aac"))
    kept = {"avoid_negative_ts": "disabled"}
    with av.open(str(tmp_path / "a.mp4")) as source, av.open(str(tmp_path / "b.mkv"), "w", options=kept) as output:
        streams = {one.index: output.add_stream_from_template(one) for one in source.streams}
        for packet in source.demux():
            if packet.size:
                shift = round(early / packet.time_base)
                packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
                packet.stream = streams[packet.stream.index]
                output.mux(packet)
    white, loud = exported(tmp_path / "b.mkv", tmp_path / "out.mkv")
    assert len(white) == PART * FPS
    check_together(white, loud, 1)


def ogg(path: Path, rate: int, pictures: bool = False) -> bytes:
    shown = ["-f", "lavfi", "-i", "testsrc2=s=64x48:r=24:d=1", "-c:v", "libtheora"] if pictures else []
    ffmpeg("-f", "lavfi", "-i", f"sine=440:d=1:sample_rate={rate}", *shown, "-c:a", "libvorbis", path)
    return path.read_bytes()


def test_ogg_recordings_in_one_file(tmp_path: Path) -> None:
    """Sounds of one kind are heard one behind the other; what the reader would give up in the middle is refused."""
    recordings = {rate: ogg(tmp_path / f"{rate}.ogg", rate) for rate in (48000, 22050)}
    target, sentence = tmp_path / "out.mkv", "is several Ogg recordings in one file, which cannot be read as one"

    def heard(content: bytes) -> float:
        (tmp_path / "all.ogg").write_bytes(content)
        check_sound(tmp_path / "all.ogg")
        with open_export("ffv1", target, (64, 48), sound=[Sound(tmp_path / "all.ogg")], overwrite=True) as writer:
            for _ in range(3 * FPS):
                writer.write(np.zeros((48, 64, 3), np.float32))
        with av.open(str(target)) as container:
            parts = [frame.to_ndarray().reshape(-1, 2)[:, 0] for frame in container.decode(audio=0)]
        samples = np.concatenate(parts)
        return float(np.flatnonzero(np.abs(samples) > 0.01 * np.abs(samples).max())[-1] / 48000)

    assert abs(heard(recordings[48000]) - 1) < 0.1 and abs(heard(recordings[48000] * 2) - 2) < 0.1
    with pytest.raises(MediaError, match=sentence):
        heard(recordings[48000] + recordings[22050])
    clip = tmp_path / "all.ogv"
    whole = ogg(tmp_path / "a.ogv", 48000, pictures=True)
    clip.write_bytes(whole)
    assert len(load_tail(clip, (64, 48), frames=48)) == 24
    clip.write_bytes(whole * 2)
    for read in (lambda: load_tail(clip, (64, 48)), lambda: read_whole(clip, (64, 48), "crop")):
        with pytest.raises(MediaError, match=sentence):
            read()
