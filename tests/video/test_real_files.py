"""Clips as cameras, phones and browsers make them: shown as players show them, whatever they are called."""

import io
import json
import struct
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image

from magi_lite.errors import MediaError
from magi_lite.ui import uploads
from magi_lite.video import colour
from magi_lite.video.clips import load_tail, read_whole
from magi_lite.video.images import load_image
from magi_lite.video.look import look_at
from magi_lite.video.writer import VideoWriter, read_settings

CASES = Path(__file__).parent / "cases"
RED, BLUE, YELLOW = (200, 60, 40), (30, 120, 220), (240, 230, 60)


def ffmpeg(*arguments):
    subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", *map(str, arguments)], check=True)


def ffmpeg_frame(path, number=0):
    """A frame as ffmpeg shows it, its automatic rotation included: an implementation of its own."""
    out = path.with_suffix(".shown.png")
    ffmpeg("-i", path, "-vf", f"select=eq(n\\,{number})", "-frames:v", 1, out)
    return np.asarray(Image.open(out).convert("RGB")).astype(int)


def corners(pixels):
    """Top left, top right, bottom left, bottom right."""
    h, w = pixels.shape[0] // 16, pixels.shape[1] // 16
    return [pixels[y, x].astype(int) for y in (h, -h) for x in (w, -w)]


def near(got, wanted, tolerance):
    return np.abs(np.asarray(got, int) - np.asarray(wanted, int)).max() <= tolerance


SCENE = (BLUE, RED, RED, YELLOW)


@pytest.mark.parametrize(
    ("name", "scene", "tolerance"),
    [
        ("base.mp4", SCENE, 3),
        ("hflip.mp4", (RED, BLUE, YELLOW, RED), 3),
        ("untag709_1280.mp4", SCENE, 3),
        ("hlg.mov", SCENE, 20),
        ("b.3gp", SCENE, 3),
    ],
)
def test_the_scene(name, scene, tolerance):
    got = corners(load_tail(CASES / name, (256, 256), frames=2)[-1])
    assert all(near(one, wanted, tolerance) for one, wanted in zip(got, scene, strict=True)), got


def test_red_in_hlg_is_red():
    assert near(corners(load_tail(CASES / "hlg.mov", (256, 256), frames=1)[0])[1], RED, 8)


MATRICES = [
    (1, 0, 0, 1), (-1, 0, 0, 1), (1, 0, 0, -1), (-1, 0, 0, -1),
    (0, 1, 1, 0), (0, 1, -1, 0), (0, -1, 1, 0), (0, -1, -1, 0),
]  # fmt: skip


@pytest.mark.parametrize("matrix", MATRICES)
def test_all_eight_orientations(tmp_path, matrix):
    """The display matrix of the track header is rewritten; what ffmpeg shows is right, and the app says that size."""
    source = tmp_path / "wide.mp4"
    ffmpeg("-i", CASES / "base.mp4", "-vf", "scale=256:128", "-g", 1, source)
    data = bytearray(source.read_bytes())
    at = data.index(b"tkhd") + 4 + 40
    assert struct.unpack_from(">9i", data, at) == (65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30)
    a, b, c, d = (value * 65536 for value in matrix)
    struct.pack_into(">9i", data, at, a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path = tmp_path / "turned.mp4"
    path.write_bytes(data)
    shown = ffmpeg_frame(path)
    seen = look_at(path)
    assert (seen.height, seen.width) == shown.shape[:2]
    got = load_tail(path, (seen.width, seen.height), "stretch", frames=96)[0]
    for one, other in zip(corners(got), corners(shown), strict=True):
        assert near(one, other, 12), matrix


def test_the_app_says_the_size_that_the_reader_gives(tmp_path):
    seen = uploads.look_at(CASES / "anamorph.mp4", "clip.mp4")
    assert (seen["width"], seen["height"]) == (640, 360)
    ffmpeg("-display_rotation", 90, "-i", CASES / "anamorph.mp4", "-c", "copy", tmp_path / "turned.mp4")
    seen = uploads.look_at(tmp_path / "turned.mp4", "clip.mp4")
    assert (seen["width"], seen["height"]) == (360, 640) and "360 × 640" in seen["info"]
    white = (load_tail(tmp_path / "turned.mp4", (90, 160), "pad", frames=1)[0].sum(-1) > 0).mean()
    assert white > 0.95, "padded to the size that was said, nothing is left to pad"


@pytest.mark.parametrize(
    ("rate", "said"), [("1/4", "0.25 frames"), ("1", "1 frame"), ("5/2", "2.5 frames"), ("60", "60 frames"), ("24", "")]
)
def test_a_slow_clip_has_a_rate_too(tmp_path, rate, said):
    pattern = f"testsrc=size=64x48:rate={rate}:duration=16"
    ffmpeg("-f", "lavfi", "-i", pattern, "-pix_fmt", "yuv420p", tmp_path / "a.mp4")
    _, *more = uploads.look_at(tmp_path / "a.mp4", "a.mp4")["info"].split(" s, ")
    assert more == ([f"{said} per second"] if said else [])


@pytest.mark.parametrize(("size", "matrix"), [((640, 480), "bt601"), ((1280, 720), "bt709"), ((1024, 768), "bt709")])
def test_untagged_clips_are_read_by_convention(tmp_path, size, matrix):
    path = tmp_path / "a.mkv"
    scale = f"color=0xC83C28:s={size[0]}x{size[1]}:r=24:d=1,format=rgb24,scale=out_color_matrix={matrix}:out_range=tv"
    ffmpeg("-f", "lavfi", "-i", scale + ",format=yuv420p", "-c:v", "ffv1", path)
    assert near(load_tail(path, (64, 64), frames=1)[0, 32, 32], RED, 3)


def test_interlaced_clips_have_no_combs(tmp_path):
    """A bar that moves between fields: read straight, odd and even lines disagree at its edges."""
    path = tmp_path / "a.mkv"
    fields = "color=black:s=320x240:r=50:d=1.2[b];color=white:s=40x240:r=50:d=1.2[w];[b][w]overlay=x='mod(n*9,280)'"
    ffmpeg(
        "-f", "lavfi", "-i", fields + ",tinterlace=interleave_top,setfield=tff,format=yuv420p",
        "-c:v", "libx264", "-flags", "+ildct+ilme", "-x264opts", "tff=1", "-qp", 4, path,
    )  # fmt: skip
    pixels = load_tail(path, (320, 240), frames=12).astype(int)[..., 0]
    comb = np.abs(pixels[:, 2:-2] - (pixels[:, 1:-3] + pixels[:, 3:-1]) / 2).max((1, 2))
    assert np.median(comb) < 90, comb
    left = np.array([np.flatnonzero(frame[120] > 128)[0] for frame in pixels])
    assert (np.diff(left) >= 0).all() and left[-1] > left[0] + 60, "and the moments are the right ones"


@pytest.mark.parametrize("sizes", [("640x480", "320x240"), ("320x240", "640x480")])
def test_interlaced_recordings_whose_size_changes(tmp_path, sizes):
    """As two recordings in one file: each is shown, up to its last frame."""
    whole = b""
    for size, painted in zip(sizes, ("red", "blue"), strict=True):
        ffmpeg(
            "-f", "lavfi", "-i", f"color={painted}:s={size}:r=25:d=1,setfield=tff", "-c:v", "mpeg2video",
            "-flags", "+ildct+ilme", "-b:v", "2M", "-output_ts_offset", len(whole) and 1, "-f", "mpegts",
            tmp_path / "part.ts",
        )  # fmt: skip
        whole += (tmp_path / "part.ts").read_bytes()
    path = tmp_path / "a.ts"
    path.write_bytes(whole)
    tail = load_tail(path, (64, 48), frames=36)
    assert len(tail) == 36 and near(tail[-1][24, 32], (0, 0, 255), 12) and near(tail[6][24, 32], (255, 0, 0), 12)
    reds = sum(near(frame[24, 32], (255, 0, 0), 12) for frame in tail)
    assert 11 <= reds <= 13 and reds + sum(near(frame[24, 32], (0, 0, 255), 12) for frame in tail) == 36


def ramp(path, *options, seconds=4, first=20):
    """A clip whose frames rise in grey, by two each, over and over."""
    level = f"16+({first}+2*mod(N,96))*219/255"
    grey = f"nullsrc=s=64x48:r=24:d={seconds},geq=lum='{level}':cb=128:cr=128,format=yuv420p"
    ffmpeg("-f", "lavfi", "-i", grey, "-c:v", "libx264", "-qp", 2, *options, path)
    return path


def greys(pixels):
    """Of each frame, 0..255."""
    return pixels.astype(float).mean((1, 2, 3))


def test_broadcasts_with_one_key_frame_are_looked_at_and_continued(tmp_path):
    """A file without an index is sought to any frame; where no picture can be made from there, it is read from before.

    The end of 12 seconds that begin at 1000 s; one picture stands for itself, the first.
    """
    path = ramp(tmp_path / "a.ts", "-g", 1000, "-output_ts_offset", 1000, seconds=12)
    assert "64 × 48, 12.0 s" in uploads.look_at(path, "a.ts")["info"]
    for frames in (1, 24, 96):
        assert np.abs(greys(load_tail(path, (32, 32), frames=frames)) - (20 + 2 * np.arange(96))[-frames:]).max() < 3
    flv = ramp(tmp_path / "a.flv", "-g", 1000, "-flvflags", "no_duration_filesize", seconds=12)
    assert np.abs(greys(load_tail(flv, (32, 32), frames=1)) - 210).max() < 3


def test_a_recording_whose_clock_wraps_begins_with_its_first_picture(tmp_path):
    """After 26.5 hours the clock of MPEG-TS is at 0 again; the times before it are negative then."""
    path = ramp(tmp_path / "a.ts", "-g", 24, "-output_ts_offset", 95436, seconds=12)
    for frames in (96, 270):
        shown = greys(load_tail(path, (32, 32), frames=frames))
        assert np.abs(shown - (20 + 2 * (np.arange(288) % 96))[-frames:]).max() < 6


@pytest.mark.parametrize("offsets", [(0, 500), (500, 0), (0, 0)])
@pytest.mark.parametrize("ending", ["ts", "mpg"])
def test_recordings_joined_in_one_file_follow_each_other(tmp_path, offsets, ending):
    """The clock jumps in between, forwards or back; what comes last in the file is the end."""
    options = ("-c:v", "mpeg2video", "-pix_fmt", "yuv420p", "-q:v", 1) if ending == "mpg" else ()
    joined = b""
    for number, offset in enumerate(offsets):
        part = tmp_path / f"part.{ending}"
        ramp(part, *options, "-output_ts_offset", offset, seconds=2, first=20 + 100 * number)
        joined += part.read_bytes()
    path = tmp_path / f"a.{ending}"
    path.write_bytes(joined)
    wanted = np.concatenate([20 + 2 * np.arange(48), 120 + 2 * np.arange(48)])
    shown = greys(load_tail(path, (32, 32), frames=120))
    assert len(shown) == 96 and np.abs(shown - wanted).max() < 9
    whole = read_whole(path, (32, 32), "crop")
    assert whole.count == 96 and np.abs(greys(np.stack(list(whole.frames))) - wanted).max() < 9
    assert look_at(path).seconds == pytest.approx(4, abs=0.05)


@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
def test_an_avi_shows_its_frames_in_their_order(tmp_path, codec):
    """It says in which order frames are stored, not when they are shown."""
    path = ramp(tmp_path / "a.avi", "-c:v", codec, "-q:v", 1, "-bf", 3, "-g", 1000)
    assert np.abs(greys(load_tail(path, (32, 32), frames=90)) - (20 + 2 * np.arange(6, 96))).max() < 3
    whole = np.stack(list(read_whole(path, (32, 32), "crop").frames))
    assert np.abs(greys(whole) - (20 + 2 * np.arange(96))).max() < 3


def test_of_several_pictures_the_one_to_show_is_taken(tmp_path):
    """Cameras and editors put small or second views into one file, and say which one players show."""
    ramp(tmp_path / "ramp.mp4")
    ffmpeg("-f", "lavfi", "-i", "color=blue:s=320x240:r=24:d=2,format=yuv420p", tmp_path / "blue.mp4")
    for shown in (0, 1):
        path = tmp_path / f"{shown}.mp4"
        ffmpeg(
            "-i", tmp_path / "blue.mp4", "-i", tmp_path / "ramp.mp4", "-map", "0:v", "-map", "1:v", "-c", "copy",
            "-disposition", "0", f"-disposition:v:{shown}", "default", path,
        )  # fmt: skip
        assert (look_at(path).width, look_at(path).height) == ((320, 240), (64, 48))[shown]


@pytest.mark.parametrize("fragments", [False, True])
def test_a_cut_download_ends_with_its_last_whole_frame(tmp_path, fragments):
    """Threads of a decoder lose whole frames beside a damaged one; and no frame is held for those that are lost."""
    flags = "+frag_keyframe+empty_moov" if fragments else "+faststart"
    path = ramp(tmp_path / "a.mp4", "-g", 48, "-bf", 2, "-movflags", flags)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 9 // 10])
    ffmpeg_shows = subprocess.run(
        [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "quiet", "-i", path, "-f", "rawvideo", "-pix_fmt", "gray", "-"],
        capture_output=True,
    ).stdout
    newest = np.frombuffer(ffmpeg_shows, np.uint8).reshape(-1, 48 * 64).mean(1)[-1]
    shown = greys(load_tail(path, (32, 32), frames=12))
    assert abs(shown[-1] - newest) < 3 and (np.diff(shown) > 0.5).sum() >= 9, "it moves up to its end"


def test_rates_that_containers_do_not_tell(tmp_path):
    """DV counts in 60000ths, a raw stream has no times at all."""
    ffmpeg(
        "-f", "lavfi", "-i", "testsrc=s=720x576:r=25:d=1", "-c:v", "dvvideo", "-pix_fmt", "yuv420p", tmp_path / "a.dv"
    )
    assert "25 frames per second" in uploads.look_at(tmp_path / "a.dv", "a.dv")["info"]
    raw = ramp(tmp_path / "a.h264", "-f", "h264")
    seen = look_at(raw)
    assert (seen.seconds, seen.rate) == (pytest.approx(4, abs=0.05), 24)
    assert np.abs(greys(load_tail(raw, (32, 32), frames=200)) - (20 + 2 * np.arange(96))).max() < 3


PEAK = """
import json, sys
from pathlib import Path
from magi_lite.video.clips import load_tail, read_whole
from tests import memory
small, large = sys.argv[1:]
load_tail(small, (64, 48), frames=4)
before = memory.peak()
shown = load_tail(large, (64, 48), frames=4)
read_whole(Path(large), (64, 48), "crop")
print(json.dumps([(memory.peak() - before) >> 20, len(shown)]))
"""


def test_memory_does_not_grow_with_the_length_of_a_clip(tmp_path):
    """A hundred megabytes without a length or an index, so that all of it has to be looked at."""
    noise = np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8)
    for name, count in (("small.mkv", 8), ("large.mkv", 300)):
        with av.open(str(tmp_path / name), "w", options={"live": "1"}) as container:
            stream = container.add_stream("mjpeg", rate=24)
            stream.width, stream.height, stream.pix_fmt = 640, 480, "yuvj444p"
            stream.options = {"qmin": "1", "qmax": "1"}
            frame = av.VideoFrame.from_ndarray(noise, format="rgb24").reformat(format="yuvj444p")
            frame.pts = 0
            data = bytes(next(packet for packet in (*stream.encode(frame), *stream.encode(None)) if packet.size))
            for number in range(count):
                packet = av.Packet(data)
                packet.stream, packet.time_base, packet.is_keyframe = stream, Fraction(1, 24), True
                packet.pts = packet.dts = number
                container.mux(packet)
    assert (tmp_path / "large.mkv").stat().st_size > 80 << 20
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(tmp_path / "small.mkv"), str(tmp_path / "large.mkv")],
        capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    grown, shown = json.loads(done.stdout)
    assert shown == 4 and grown < 30


def test_transparent_clips_lie_on_white(tmp_path):
    got = load_tail(CASES / "alpha.webm", (256, 256), frames=1)[0]
    assert near(got[8, 8], (255, 255, 255), 12)
    path = tmp_path / "a.mov"
    ffmpeg("-f", "lavfi", "-i", "color=red@0.5:s=64x48:r=24:d=1,format=rgba", "-c:v", "qtrle", path)
    assert near(load_tail(path, (64, 48), frames=1)[0, 24, 32], (255, 127, 127), 4)


def animation(path, **options):
    pictures = [Image.new("RGB", (64, 48), (value,) * 3) for value in (40, 120, 200)]
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=[500, 250, 250], **options)


@pytest.mark.parametrize(
    ("ending", "options"), [("gif", {}), ("webp", {"lossless": True}), ("png", {}), ("avif", {"quality": 90})]
)
@pytest.mark.parametrize("named", ["clip", "clip.png", "clip.mp4"])
def test_animated_pictures_are_clips(tmp_path, ending, options, named):
    animation(tmp_path / f"a.{ending}", **options)
    path = (tmp_path / f"a.{ending}").rename(tmp_path / named)
    shown = load_tail(path, (32, 32), frames=96).astype(float).mean((1, 2, 3))
    assert np.abs(shown - np.repeat([40, 120, 200], [12, 6, 6])).max() < 4
    tail = load_tail(path, (32, 32), frames=9).astype(float).mean((1, 2, 3))
    assert np.abs(tail - np.repeat([120, 200], [3, 6])).max() < 4
    seen = uploads.look_at(path, path.name)
    assert (seen["kind"], seen["width"], seen["height"]) == ("video", 64, 48) and "1.0 s" in seen["info"]
    assert near(load_image(path, (32, 32))[16, 16], (40,) * 3, 4), "as a picture it is its first one"


@pytest.mark.parametrize("ending", ["gif", "webp", "png", "avif"])
def test_an_animation_read_as_a_whole_is_its_tail_frame_by_frame(tmp_path, ending):
    path = tmp_path / f"a.{ending}"
    values = np.random.default_rng().integers(0, 256, 9)
    pictures = [Image.new("RGB", (64, 48), (int(value),) * 3) for value in values]
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=[0, 40, 90, 5, 200, 1000, 30, 70, 60])
    whole = read_whole(path, (32, 32), "crop")
    frames = list(whole.frames)
    assert len(frames) == whole.count and whole.start is None
    assert np.array_equal(np.stack(frames), load_tail(path, (32, 32), frames=whole.count + 5))


def test_an_animation_read_as_a_whole_is_not_held(tmp_path):
    """300 pictures of 1280 x 720 are 829 MB; read one by one they take the memory of a few."""
    path = tmp_path / "a.gif"
    pictures = [Image.new("L", (64, 36), number % 256) for number in range(300)]
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=40)
    code = """if True:
        import sys
        from pathlib import Path
        from magi_lite.video.clips import read_whole
        from tests import memory
        whole = read_whole(Path(sys.argv[1]), (1280, 720), "crop")
        next(whole.frames)
        before = memory.begin()
        count = 1 + sum(1 for _ in whole.frames)
        print(count == whole.count, memory.peak() - before)
    """
    command, where = [sys.executable, "-c", code, str(path)], Path(__file__).parents[2]
    done = subprocess.run(command, cwd=where, capture_output=True, text=True)
    counted, more = done.stdout.split()
    assert counted == "True" and int(more) < 100 << 20, done.stderr


def test_an_animation_that_takes_minutes_is_refused_at_once(tmp_path):
    path = tmp_path / "a.gif"
    frame = io.BytesIO()
    Image.new("L", (3000, 3000)).save(frame, "GIF")
    data = frame.getvalue()
    start = data.index(b",", 13)  # the picture's descriptor; behind it its data, and a byte that ends the file
    path.write_bytes(data[:-1] + data[start:-1] * 299 + b";")
    sentence = r"^a\.gif has 300 pictures of 3000 x 3000, which take minutes to decode; give a video of it, or"
    for read in (lambda: load_tail(path, (32, 32)), lambda: read_whole(path, (32, 32), "crop"), lambda: look_at(path)):
        with pytest.raises(MediaError, match=sentence):
            read()


@pytest.mark.parametrize("kept", [0.3, 0.5, 0.7, 0.9, 0.98])
@pytest.mark.parametrize("ending", ["gif", "webp", "png", "avif"])
def test_animated_pictures_that_are_cut_are_a_sentence_or_what_comes_before(tmp_path, ending, kept):
    """Pillow finds out how many pictures there are by reading all, and stumbles over a cut in ways of its own."""
    path = tmp_path / f"a.{ending}"
    animation(path)
    data = path.read_bytes()
    for left in {int(len(data) * kept) + more for more in range(-3, 4)}:
        path.write_bytes(data[:left])
        for read in (lambda: load_tail(path, (32, 32), frames=24), lambda: look_at(path)):
            try:
                read()
            except MediaError as error:
                assert str(error).startswith(path.name) and str(error).endswith(".")


def test_a_clip_that_claims_to_last_for_days_is_not_read_as_a_whole(tmp_path):
    """One late frame makes moments of 24 million pictures; its end can be gone on with all the same."""
    path = tmp_path / "gap.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=24)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for number in range(6):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 40 * number, np.uint8), format="rgb24")
            frame.pts, frame.time_base = number * 40 + (10**9 if number > 3 else 0), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(MediaError, match=r"^gap\.mkv lasts 278 hours by its own times; cut it first\.$"):
        read_whole(path, (32, 32), "crop")
    assert near(load_tail(path, (32, 32), frames=2)[-1][16, 16], (200,) * 3, 6)


def test_the_cases_in_the_app():
    for name, kind in (("b.gif", "video"), ("anim.webp", "video"), ("photo.jfif", "image"), ("b.3gp", "video")):
        assert uploads.look_at(CASES / name, name)["kind"] == kind
        assert uploads.look_at(CASES / name, "IMG_0001")["kind"] == kind, "by content, not by name"


@pytest.mark.parametrize(
    ("ending", "codec"),
    [("mpg", "mpeg2video"), ("ts", "libx264"), ("3gp", "mpeg4"), ("flv", "libx264"), ("ogv", "libvpx")],
)
def test_other_containers_under_any_name(tmp_path, ending, codec):
    muxer = {"mpg": "mpeg", "ts": "mpegts", "ogv": "ogg"}.get(ending, ending)
    ffmpeg("-i", CASES / "base.mp4", "-c:v", codec, "-b:v", "2M", "-f", muxer, tmp_path / f"a.{ending}")
    path = (tmp_path / f"a.{ending}").rename(tmp_path / "a.bin")
    assert near(corners(load_tail(path, (256, 256), frames=4)[-1])[1], RED, 30)
    assert uploads.look_at(path, f"a.{ending}")["kind"] == "video"


@pytest.mark.parametrize("ending", ["jp2", "tiff", "bmp", "ppm"])
def test_other_pictures_under_any_name(tmp_path, ending):
    Image.new("RGB", (64, 48), RED).save(tmp_path / f"a.{ending}")
    path = (tmp_path / f"a.{ending}").rename(tmp_path / "a")
    assert uploads.look_at(path, "a")["kind"] == "image" and near(load_image(path, (32, 32))[16, 16], RED, 3)


@pytest.mark.parametrize("transfer", ["PQ", "HLG", "sRGB"])
def test_an_avif_in_hdr_is_tone_mapped(tmp_path, transfer):
    """Grey of diffuse white, 203 nits: a signal of 0.58 in PQ, of 0.75 in HLG."""
    signal, wanted = {"PQ": (0.5807, 236), "HLG": (0.75, 236), "sRGB": (0.58, 148)}[transfer]
    tags = {"PQ": "smpte2084", "HLG": "arib-std-b67", "sRGB": "iec61966-2-1"}[transfer]
    primaries, matrix = ("bt709", "bt709") if transfer == "sRGB" else ("bt2020", "bt2020nc")
    luma = 4 * round(16 + 219 * signal)
    ffmpeg(
        "-f", "lavfi", "-i", "color=black:s=96x64,format=yuv420p10le", "-frames:v", 1, "-vf",
        f"geq=lum={luma}:cb=512:cr=512,setparams=color_primaries={primaries}:color_trc={tags}:colorspace={matrix}",
        "-c:v", "libaom-av1", "-still-picture", 1, "-cpu-used", 8, tmp_path / "a.avif",
    )  # fmt: skip
    assert near(load_image(tmp_path / "a.avif", (32, 32))[16, 16], [wanted] * 3, 4)


def test_a_heic_in_hdr_is_tone_mapped(tmp_path):
    heif = pytest.importorskip("pillow_heif")
    heif.register_heif_opener()
    Image.new("RGB", (64, 48), (148,) * 3).save(
        tmp_path / "a.heic", color_primaries=9, transfer_characteristics=16, matrix_coefficients=9
    )
    assert near(load_image(tmp_path / "a.heic", (32, 32))[16, 16], [236] * 3, 4)


@pytest.mark.parametrize("name", ["IMG_1.heic", "IMG_1.jpg"])
def test_heic_is_read_through_pillow_heif_and_named_without_it(tmp_path, monkeypatch, name):
    """As phones write it: lying on its side with a note that says so."""
    heif = pytest.importorskip("pillow_heif")
    picture, exif = Image.new("RGB", (96, 64), RED), Image.Exif()
    picture.paste((0, 0, 255), (0, 0, 32, 64))  # left as stored: at the top when upright
    exif[0x0112] = 6
    path = tmp_path / "written.heic"
    heif.from_pillow(picture).save(path, quality=95, exif=exif.tobytes())
    path = path.rename(tmp_path / name)
    read = load_image(path, (64, 96))
    assert near(read[8, 32], (0, 0, 255), 30) and near(read[80, 32], RED, 30)
    assert uploads.look_at(path, name)["kind"] == "image"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for work in (lambda: load_image(path, (32, 32)), lambda: look_at(path)):
        with pytest.raises(MediaError, match=rf"{name} is a HEIC picture; install pillow-heif to read it, or save it"):
            work()


def test_a_damaged_heic_is_one_sentence(tmp_path):
    path = tmp_path / "IMG_1.jpg"
    path.write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200))
    for work in (lambda: load_image(path, (32, 32)), lambda: look_at(path)):
        with pytest.raises(MediaError, match=r"IMG_1\.jpg is (a HEIC picture; install pillow-heif|damaged)"):
            work()


def test_kept_files_cannot_be_run_by_a_browser(tmp_path):
    kept = uploads.keep(CASES / "photo.jfif", "photo.html", tmp_path / "kept")
    assert kept.suffix == ".media"
    assert uploads.keep(CASES / "photo.jfif", "photo.jfif", tmp_path / "kept").suffix == ".jfif"


def test_settings_survive_a_remux(tmp_path, frames):
    with VideoWriter(tmp_path / "a.mp4", (64, 48), settings={"seed": 8}) as writer:
        writer.append(frames(24))
    ffmpeg("-i", tmp_path / "a.mp4", "-c", "copy", tmp_path / "a.mkv")
    with av.open(str(tmp_path / "a.mkv")) as container:
        assert "COMMENT" in container.metadata
    assert read_settings(tmp_path / "a.mkv") == {"seed": 8}


def test_tone_curves():
    """Known points: PQ 0.508 is 100 nits, 0.58 about 203; HLG 0.5 is a twelfth; white stays white and grey neutral."""
    assert colour.pq_nits(np.array([0.0, 0.508078, 1.0])) == pytest.approx([0, 100, 10000], abs=0.1)
    assert colour.hlg_scene(np.array([0.0, 0.5, 1.0])) == pytest.approx([0, 1 / 12, 1], abs=1e-5)
    ramp = np.linspace(0, 1, 256)[None, :, None].repeat(3, -1)
    for transfer, white in ((colour.PQ, 0.5807), (colour.HLG, 0.75)):
        out = colour.to_bt709(ramp, transfer, 9).astype(int)
        assert (np.ptp(out, -1) <= 1).all() and (np.diff(out[0, :, 0]) >= 0).all()
        assert 215 <= out[0, round(white * 255), 0] <= 250 and out[0, -1, 0] >= 253 and out[0, 0, 0] == 0


def test_time_bases_of_deinterlaced_frames(tmp_path):
    """A deinterlaced clip of another time base keeps its moments."""
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 12800)
        stream.options = {"x264-params": "tff=1", "qp": "2"}
        for number in range(50):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 20 + 4 * number, np.uint8), format="rgb24")
            frame.pts, frame.time_base = number * 512, Fraction(1, 12800)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    shown = load_tail(path, (32, 32), frames=24).astype(float).mean((1, 2, 3))
    wanted = [20 + 4 * min(49, int((2 - (24 - k) / 24 + 0.011) * 25)) for k in range(24)]
    assert np.abs(shown - wanted).max() < 5


@pytest.mark.parametrize(
    ("name", "codec", "more"),
    [("a.mp4", "libx264", 0), ("b.mp4", "libx265", 0), ("a.ts", "libx264", 0), ("a.avi", "mpeg4", 2)],
)
def test_a_frame_holds_where_those_behind_it_are_damaged_and_no_longer(tmp_path, name, codec, more):
    """As many are missing as ffmpeg cannot decode; in an AVI, which has no times of its frames, a few more."""
    path, cut = tmp_path / name, tmp_path / f"cut_{name}"
    ffmpeg("-f", "lavfi", "-i", "testsrc2=s=160x120:r=24:d=2", "-g", 24, "-bf", 2, "-c:v", codec, path)
    with av.open(str(path)) as container:
        packets = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    for number in (5, 23, 30):
        data, (at, size) = bytearray(path.read_bytes()), packets[number]
        data[at + size // 2 : at + size] = np.random.default_rng(number).bytes(size - size // 2)
        cut.write_bytes(data)
        frames = [*read_whole(cut, (160, 120), "stretch").frames]
        held = sum((one == before).all() for one, before in zip(frames[1:], frames, strict=False))
        program, sums = imageio_ffmpeg.get_ffmpeg_exe(), ["-fps_mode", "passthrough", "-f", "framemd5", "-"]
        shown = subprocess.run(
            [program, "-v", "quiet", "-i", cut, *sums], capture_output=True, text=True, check=True
        ).stdout.splitlines()
        decoded = sum(not line.startswith("#") for line in shown)
        assert len(frames) == 48 and held <= 48 - decoded + more, number


def test_packets_that_repeat_the_frame_before(tmp_path):
    """Theora has empty ones where nothing moves, also at the end; they are no end of the stream."""
    parts = [f"{one}s=64x48:r=24:d=1[{at}]" for at, one in enumerate(("color=red:", "testsrc2=", "color=blue:"))]
    ffmpeg("-f", "lavfi", "-i", ";".join([*parts, "[0][1][2]concat=n=3"]), "-c:v", "libtheora", tmp_path / "a.ogv")
    with av.open(str(tmp_path / "a.ogv")) as container:
        new = [packet.size > 0 for packet in container.demux(video=0) if packet.pts is not None]
    assert len(new) == 72 and new.count(False) > 10 and not new[-1]
    frames = [*read_whole(tmp_path / "a.ogv", (64, 48), "stretch").frames]
    tail = load_tail(tmp_path / "a.ogv", (64, 48), "stretch", frames=48)
    assert len(frames) == 72 and (np.stack(frames[-48:]) == tail).all()
    assert near(frames[10][24, 32], (255, 0, 0), 12) and near(frames[60][24, 32], (0, 0, 255), 12)
    changed = [(frames[number] != frames[number - 1]).any() for number in range(26, 46)]
    assert changed == new[26:46] and sum(changed) > 8
