"""The tail of any clip: the right moments at 24 frames per second, upright and in shape."""

import subprocess
from fractions import Fraction

import av
import numpy as np
import pytest

from magi_lite.video.clips import load_tail, read_tail, read_whole


def write_clip(path, times, codec="libx264", rate=24, size=(64, 48), values=None, gop=12, aspect=None, base=90000):
    """A clip whose frame shown from times[i] s on has the grey values[i] (default: 20 + i % 200)."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        stream.codec_context.gop_size = gop
        stream.codec_context.time_base = Fraction(1, base)
        if aspect:
            stream.codec_context.sample_aspect_ratio = aspect
        if codec == "libx264":
            stream.options = {"crf": "4", "preset": "ultrafast"}
        for number, time in enumerate(times):
            value = 20 + number % 200 if values is None else values[number]
            frame = av.VideoFrame.from_ndarray(np.full((size[1], size[0], 3), value, np.uint8), format="rgb24")
            frame.pts, frame.time_base = round(time * base), Fraction(1, base)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def greys(pixels):
    return pixels.astype(float).mean((1, 2, 3))


@pytest.mark.parametrize(
    "rate",
    [Fraction(24), Fraction(25), Fraction(30), Fraction(60), Fraction(12), Fraction(24000, 1001), Fraction(10)],
)
@pytest.mark.parametrize("ending", ["mp4", "mkv"])
def test_any_rate_becomes_24(tmp_path, rate, ending):
    """Each output frame shows what the clip shows at its moment, counted back from the end."""
    count = int(3 * rate)
    times = [float(i / rate) for i in range(count)]
    write_clip(tmp_path / f"a.{ending}", times, rate=rate)
    pixels = load_tail(tmp_path / f"a.{ending}", (64, 48), frames=36)
    assert pixels.shape == (36, 48, 64, 3) and pixels.dtype == np.uint8
    end = times[-1] + max(1 / 24, float(1 / rate))
    moments = [end - (36 - k) / 24 for k in range(36)]
    shown = [20 + min(count - 1, int((m + 0.011) * float(rate))) for m in moments]
    assert np.abs(greys(pixels) - shown).max() < 2.5


def test_it_is_the_tail_and_not_the_start(tmp_path):
    times = [i / 24 for i in range(24 * 20)]
    values = [10 if t < 19 else 200 for t in times]
    write_clip(tmp_path / "a.mp4", times, values=values, gop=250)
    pixels = load_tail(tmp_path / "a.mp4", (32, 32), frames=48)
    assert np.abs(greys(pixels) - np.repeat([10, 200], 24)).max() < 4


@pytest.mark.parametrize("count", [1, 2, 7, 30])
def test_short_clips_give_what_they_have(tmp_path, count):
    write_clip(tmp_path / "a.mp4", [i / 24 for i in range(count)])
    pixels = load_tail(tmp_path / "a.mp4", (32, 32), frames=96)
    assert np.abs(greys(pixels) - (20 + np.arange(count))).max() < 2.5


def test_variable_frame_rate(tmp_path):
    """Frames of random length: each moment shows the frame that began before it."""
    rng = np.random.default_rng(1)
    times = np.cumsum(rng.choice([1, 2, 5, 9], 60)) / 48
    values = rng.integers(10, 240, 60)
    write_clip(tmp_path / "a.mkv", times.tolist(), values=values, rate=48, gop=5)
    pixels = load_tail(tmp_path / "a.mkv", (32, 32), frames=40)
    shown = greys(pixels)
    assert abs(shown[-1] - values[-1]) < 3
    moments = times[-1] - np.arange(39, -1, -1) / 24
    wanted = values[np.searchsorted(times, moments + 0.0104, side="right") - 1]
    assert np.abs(shown - wanted).max() < 3


def test_rotation_of_phones(tmp_path):
    """A clip stored lying down with a display matrix comes back standing, as players show it."""
    import imageio_ffmpeg

    frames = np.zeros((24, 48, 64, 3), np.uint8)
    frames[:, :24] = (220, 30, 30)
    frames[:, 24:] = (30, 30, 220)
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=24)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    for degrees, top_left, size in [
        (0, "red", (64, 48)),
        (90, "red", (48, 64)),
        (180, "blue", (64, 48)),
        (270, "blue", (48, 64)),
    ]:
        turned = tmp_path / f"{degrees}.mp4"
        command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-display_rotation", str(degrees), "-i", str(path)]
        subprocess.run([*command, "-c", "copy", str(turned)], check=True)
        pixels = load_tail(turned, size, frames=2)[0].astype(int)
        assert (pixels[4, 4, 0] > pixels[4, 4, 2]) == (top_left == "red")
        edge = pixels[size[1] - 5, 4] if degrees in (0, 180) else pixels[4, size[0] - 5]
        assert (edge[0] > edge[2]) != (top_left == "red"), "the other half lies across the edge"


def test_pixels_that_are_not_square(tmp_path):
    """Stored 64x48 with pixels twice as wide is shown 128x48: padded to a square it fills the width."""
    write_clip(tmp_path / "a.mp4", [i / 24 for i in range(12)], values=[200] * 12, aspect=Fraction(2, 1))
    pixels = load_tail(tmp_path / "a.mp4", (64, 64), "pad", frames=4)[0, :, 32, 0]
    assert (pixels > 100).sum() == 24


@pytest.mark.parametrize(
    ("codec", "ending"),
    [("mpeg4", "avi"), ("libvpx-vp9", "webm"), ("libx264", "mov"), ("mjpeg", "mkv"), ("gif", "gif")],
)
def test_other_containers(tmp_path, codec, ending):
    path = tmp_path / f"a.{ending}"
    if codec == "gif":
        from PIL import Image

        pictures = [Image.new("RGB", (64, 48), (v, v, v)) for v in (40, 200)]
        pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=500)
    else:
        pixel = {"mjpeg": "yuvj420p"}.get(codec, "yuv420p")
        with av.open(str(path), "w") as container:
            stream = container.add_stream(codec, rate=24)
            stream.width, stream.height, stream.pix_fmt = 64, 48, pixel
            for number in range(24):
                value = 40 if number < 12 else 200
                frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), value, np.uint8), format="rgb24")
                container.mux(stream.encode(frame.reformat(format=pixel)))
            container.mux(stream.encode(None))
    pixels = load_tail(path, (32, 32), frames=24)
    assert len(pixels) == 24
    assert np.abs(greys(pixels) - np.repeat([40, 200], 12)).max() < 8


def test_a_torn_file_gives_the_tail_of_what_is_left(tmp_path):
    """A growing file cut in the middle of a frame, as a killed recorder leaves it."""
    path = tmp_path / "a.mkv"
    write_clip(path, [i / 24 for i in range(120)])
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])
    pixels = load_tail(path, (32, 32), frames=24)
    shown = greys(pixels)
    assert len(shown) == 24 and 60 < shown[-1] - 20 < 110
    assert np.abs(np.diff(shown) - 1).max() < 2.5


def test_sound_does_not_count(tmp_path):
    """A sound track that goes on after the pictures does not move the tail."""
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=24)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        audio = container.add_stream("aac", rate=8000)
        for number in range(24):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 20 + 8 * number, np.uint8), format="rgb24")
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        for number in range(100):
            sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            sound.rate, sound.pts = 8000, number * 1024
            container.mux(audio.encode(sound))
        container.mux(audio.encode(None))
    shown = greys(load_tail(path, (32, 32), frames=12))
    assert np.abs(shown - (20 + 8 * np.arange(12, 24))).max() < 4


def write_early(path, early, between=0, count=48, container="", **options):
    """A clip with the greys 20, 24, ... at 24 frames per second, whose first is shown `early` s before its clock's 0.

    As programs leave one that cut a longer film in front of a key frame.
    """
    with av.open(str(path), "w", format=container or None, options=options) as output:
        stream = output.add_stream("libx264", rate=24)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.options = {"bf": str(between), "crf": "4"}
        frames = [np.full((48, 64, 3), 20 + 4 * number % 200, np.uint8) for number in range(count)]
        encoded = []
        for number, values in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(values, format="rgb24")
            frame.pts = number
            encoded += stream.encode(frame)
        for packet in encoded + stream.encode(None):
            shift = round(early / packet.time_base)
            packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
            output.mux(packet)


EARLY = {"avoid_negative_ts": "disabled"}


@pytest.mark.parametrize("between", [0, 2])
@pytest.mark.parametrize(
    ("name", "early", "options", "hidden"),
    [
        ("a.mkv", 0.5, EARLY, 0),  # no times below 0: those frames have none
        ("a.ts", 0.5, EARLY, 0),
        ("a.mp4", 0.5, EARLY, 12),  # an edit list leaves out what is before 0
        ("a.mov", 0.5, EARLY, 12),
        ("a.mp4", 0.5, EARLY | {"movflags": "negative_cts_offsets"}, 12),
        ("a.mp4", 0.5, EARLY | {"movflags": "frag_keyframe+empty_moov+delay_moov"}, 0),  # no edit list leaves any out
        ("a.mp4", 0.5, EARLY | {"use_editlist": "0"}, 0),
        ("a.mp4", 0, {"use_editlist": "0"}, 0),
        ("a.mp4", 0, {"movflags": "negative_cts_offsets"}, 0),
        ("a.mp4", -0.5, {}, 0),  # an empty edit: it begins later
        ("a.mkv", -0.5, {}, 0),
    ],
)
def test_every_frame_that_players_show_is_read(tmp_path, name, early, options, hidden, between):
    """Whatever the times are: what no edit list hides is shown, each frame once and in its order."""
    path = tmp_path / name
    write_early(path, early, between, **options)
    wanted = [20 + 4 * number for number in range(hidden, 48)]
    tail, facts = read_tail(path, (64, 48), "crop", 200)
    whole = read_whole(path, (64, 48), "crop")
    assert np.abs(greys(tail) - wanted).max() < 2 and facts.seconds == pytest.approx(len(wanted) / 24, abs=0.01)
    assert whole.count == len(wanted) and np.abs(greys(np.stack([*whole.frames])) - wanted).max() < 2
    assert np.abs(greys(load_tail(path, (64, 48), frames=40))[-36:] - wanted[-36:]).max() < 2


@pytest.mark.parametrize("frames", [24, 110])
def test_a_long_clip_whose_first_frames_have_no_time(tmp_path, frames):
    """The tail alone, and one that reaches into those frames."""
    write_early(tmp_path / "a.mkv", 0.5, 2, count=120, **EARLY)
    wanted = [20 + 4 * number % 200 for number in range(120 - frames, 120)]
    found = greys(load_tail(tmp_path / "a.mkv", (64, 48), frames=frames))
    assert len(found) == frames and np.abs(found - wanted).max() < 2
