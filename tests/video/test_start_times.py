"""Clips whose pictures and sound begin below 0, late, or apart: every frame is read once, the sound stays with it."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from magi_lite.models import FPS
from magi_lite.video.clips import load_tail, read_whole
from magi_lite.video.export import open_export
from magi_lite.video.sound import SOUND_RATE, Sound

COUNT = 24
BEEP = 0.5
"""Seconds after the first picture at which a tone of 0.1 s begins."""
CONTAINERS = {
    "flv": ("flv", "libx264", "aac"), "mkv": ("matroska", "libx264", "aac"), "webm": ("webm", "libvpx", "libopus"),
    "mp4": ("mp4", "libx264", "aac"), "mov": ("mov", "libx264", "pcm_s16le"), "ts": ("mpegts", "libx264", "aac"),
    "mpg": ("mpeg", "mpeg2video", "mp2"), "avi": ("avi", "mpeg4", "mp2"),
}  # fmt: skip
WHOLE_CLOCK = ("flv", "mkv", "webm", "ts", "mpg")
"""Containers whose times go below 0; what MP4 and MOV have there is not shown, and AVI has no times at all."""


def write(path: Path, seen: float, heard: float, between: int = 0, count: int = COUNT) -> None:
    """Pictures of rising greys from the moment `seen` on, and a sound from `heard` on, on one clock."""
    kind, pictures, sound = CONTAINERS[path.suffix[1:]]
    with av.open(str(path), "w", format=kind, options={"avoid_negative_ts": "disabled"}) as output:
        video = output.add_stream(pictures, rate=FPS)
        video.width, video.height, video.pix_fmt, video.bit_rate = 64, 48, "yuv420p", 2_000_000
        video.codec_context.gop_size = 12
        if pictures != "libvpx":
            video.options = {"bf": str(between)}
        audio = output.add_stream(sound, rate=SOUND_RATE, layout="mono")
        packets = []
        for number in range(count):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), grey(number), np.uint8), format="rgb24")
            frame = frame.reformat(format="yuv420p")
            frame.pts, frame.time_base = number, Fraction(1, FPS)
            packets += placed(video.encode(frame), seen)
        packets += placed(video.encode(None), seen)
        times = heard + np.arange(round((seen + count / FPS - heard) * SOUND_RATE)) / SOUND_RATE
        loud = (times >= seen + BEEP) & (times < seen + BEEP + 0.1)
        samples = np.where(loud, 0.8 * np.sin(6283 * times), 0).astype(np.float32)
        size = audio.codec_context.frame_size or 1024
        for first in range(0, len(samples), size):
            piece = av.AudioFrame.from_ndarray(samples[None, first : first + size], format="fltp", layout="mono")
            piece.rate = SOUND_RATE
            resampler = av.AudioResampler(format=audio.codec_context.format, layout="mono", rate=SOUND_RATE)
            for part in resampler.resample(piece):
                part.pts, part.time_base = first, Fraction(1, SOUND_RATE)
                packets += placed(audio.encode(part), heard)
        packets += placed(audio.encode(None), heard)
        for packet in sorted(packets, key=lambda one: float(one.dts * one.time_base)):
            output.mux(packet)


def grey(number: int) -> int:
    return 16 + 8 * number % 208


def placed(packets: list[av.Packet], moment: float) -> list[av.Packet]:
    for packet in packets:
        shift = round(moment / packet.time_base)
        packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
    return packets


def numbers(frames: np.ndarray | list[np.ndarray]) -> list[int]:
    return [round((float(frame[..., 0].mean()) - 16) / 8) for frame in frames]


def beep(path: Path, target: Path) -> float:
    """The moment at which the tone begins, after the first picture, as an export has it."""
    whole = read_whole(path, (64, 48), "stretch")
    with open_export("ffv1", target, (64, 48), sound=[Sound(path, whole.start, whole.count / FPS)]) as writer:
        for frame in whole.frames:
            writer.write(frame.astype(np.float32) / 127.5 - 1)
    with av.open(str(target)) as container:
        samples = np.concatenate([frame.to_ndarray().reshape(-1, 2)[:, 0] for frame in container.decode(audio=0)])
    loudness = np.abs(samples.astype(float))
    return float(np.flatnonzero(loudness > 0.1 * loudness.max())[0]) / SOUND_RATE


@pytest.mark.parametrize("between", [0, 2])
@pytest.mark.parametrize(
    ("seen", "heard"),
    [(0, 0), (-0.5, -0.5), (0, -0.25), (-0.25, 0), (0.25, 0), (0, 0.25), (100, 99.5), (90_000, 90_000.25), (0, -8)],
)
@pytest.mark.parametrize("ending", WHOLE_CLOCK)
def test_all_frames_are_read_and_the_sound_stays_with_them(tmp_path, ending, seen, heard, between):
    path = tmp_path / f"a.{ending}"
    write(path, seen, heard, between)
    shown = numbers([*read_whole(path, (64, 48), "stretch").frames])
    late = (0,) if ending != "mpg" else (0, 1)  # FFmpeg writes a program stream's times a frame late in places
    assert [one for one, before in zip(shown, [-1, *shown], strict=False) if one != before] == [*range(COUNT)]
    assert len(shown) - COUNT in late
    assert numbers(load_tail(path, (64, 48), frames=COUNT + 9)) == shown
    assert beep(path, tmp_path / "out.mkv") == pytest.approx(BEEP, abs=0.03)


@pytest.mark.parametrize("ending", ["mp4", "mov"])
@pytest.mark.parametrize(
    ("seen", "heard", "hidden"), [(0, 0, 0), (-0.5, -0.5, 12), (-0.25, 0, 6), (0.25, 0, 0), (0, 0.25, 0), (100, 100, 0)]
)
def test_edit_lists_hide_what_is_below_0(tmp_path, ending, seen, heard, hidden):
    path = tmp_path / f"a.{ending}"
    write(path, seen, heard)
    assert numbers([*read_whole(path, (64, 48), "stretch").frames]) == [*range(hidden, COUNT)]
    assert numbers(load_tail(path, (64, 48), frames=COUNT + 9)) == [*range(hidden, COUNT)]
    assert beep(path, tmp_path / "out.mkv") == pytest.approx(BEEP - hidden / FPS, abs=0.03)


def test_an_avi_has_pictures_and_sound_from_its_beginning_on(tmp_path):
    path = tmp_path / "a.avi"
    write(path, 0, 0)
    assert numbers([*read_whole(path, (64, 48), "stretch").frames]) == [*range(COUNT)]
    assert beep(path, tmp_path / "out.mkv") == pytest.approx(BEEP, abs=0.03)


@pytest.mark.parametrize("ending", ["flv", "mkv", "webm"])
def test_pictures_below_0_and_above(tmp_path, ending):
    """More than the reader looks ahead, so that it has no times for the first of them."""
    path = tmp_path / f"a.{ending}"
    write(path, -2, -3, count=96)
    wanted = [(grey(number) - 16) // 8 for number in range(96)]
    assert numbers([*read_whole(path, (64, 48), "stretch").frames]) == wanted
    assert numbers(load_tail(path, (64, 48), frames=90)) == wanted[-90:]
    assert beep(path, tmp_path / "out.mkv") == pytest.approx(BEEP, abs=0.03)


@pytest.mark.parametrize("between", [0, 2])
def test_frames_that_come_faster_at_first_keep_their_times(tmp_path: Path, between: int) -> None:
    """As screens are recorded: half of the frames within half a second, the others over two and a half."""
    path = tmp_path / "screen.mkv"
    times = [20 * number for number in range(25)] + [500 + 100 * number for number in range(25)]
    with av.open(str(path), "w", format="matroska") as output:
        stream = output.add_stream("libx264", rate=FPS)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = 64, 48, "yuv420p", 2_000_000
        stream.codec_context.time_base = Fraction(1, 1000)
        stream.options = {"bf": str(between)}
        for number, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), grey(number // 2), np.uint8), format="rgb24")
            frame = frame.reformat(format="yuv420p")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    frames = numbers(list(read_whole(path, (64, 48), "stretch").frames))
    moments = [1000 * (at + 0.5) / FPS for at in range(len(frames))]
    shown = [max(n for n, time in enumerate(times) if time <= moment) // 2 for moment in moments]
    assert 2.9 * FPS <= len(frames) <= 3.0 * FPS + 1
    assert np.abs(np.subtract(frames, shown)).max() <= 1
