"""What is written in each format is read back: sizes, depth, colours, tags, sound, and nothing half done."""

import json
import os
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from magi_lite.errors import InputError, MediaError, OutputError
from magi_lite.video import labels
from magi_lite.video.export import open_export, to_8_bit, to_16_bit
from magi_lite.video.formats import FORMATS, choose_format, missing_encoder
from magi_lite.video.sound import FADE, Sound

SIZE = (256, 64)
SAID = labels.SOURCE_TYPE.encode()
VIDEOS = [name for name, chosen in FORMATS.items() if chosen.kind == "video"]


def gradient(number=0, width=SIZE[0], height=SIZE[1]):
    """A grey ramp finer than 8 bits across, (H, W, 3) in [-1, 1], the lower half in colours; it moves with time."""
    ramp = np.linspace(-0.6, 0.2, width, dtype=np.float32) + 0.01 * number
    frame = np.repeat(np.repeat(ramp[None, :, None], height, 0), 3, 2)
    frame[height // 2 :, :, 0] += 0.3
    frame[height // 2 :, :, 2] -= 0.2
    return frame


def write(name, target, count=12, **options):
    with open_export(name, target, SIZE, **options) as writer:
        for number in range(count):
            writer.write(gradient(number))


def decoded(path):
    """Frames as FFmpeg decodes them, in their own format, and the codec context's description."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = [frame.reformat() for frame in container.decode(stream)]
        return frames, stream.codec_context, dict(container.metadata)


@pytest.mark.parametrize("name", VIDEOS)
def test_videos_are_tagged_and_labelled(tmp_path, name):
    target = tmp_path / f"a{FORMATS[name].suffix}"
    write(name, target, settings={"seed": 4})
    frames, context, metadata = decoded(target)
    assert len(frames) == 12 and (frames[0].width, frames[0].height) == SIZE
    assert (context.color_primaries, context.color_trc) == (1, 1)
    assert context.colorspace == (0 if name == "ffv1" else 1)
    assert SAID in target.read_bytes()
    comment = next(value for key, value in metadata.items() if key.lower() == "comment")
    assert json.loads(comment)["settings"] == {"seed": 4}
    assert name != "hevc" or context.codec_tag == "hvc1"
    assert [path.name for path in tmp_path.iterdir()] == [target.name]


@pytest.mark.skipif(not hasattr(os, "sched_getscheduler"), reason="policies of threads are Linux's")
@pytest.mark.parametrize("name", VIDEOS)
def test_no_thread_takes_the_machine_for_itself(tmp_path, name):
    """SVT-AV1 makes itself and whoever opens it real-time threads where it may, as root."""

    def policies():
        return {os.sched_getscheduler(int(task.name)) for task in Path("/proc/self/task").iterdir()}

    before = policies()
    assert os.SCHED_FIFO not in before
    with open_export(name, tmp_path / f"a{FORMATS[name].suffix}", SIZE) as writer:
        for number in range(12):
            writer.write(gradient(number))
            assert policies() == before
    assert policies() == before


@pytest.mark.parametrize("name", ["hevc", "av1", "prores"])
def test_10_bits_are_real(tmp_path, name):
    """A ramp of less than half the range still has more levels than 8 bits have in all; and it is the right ramp."""
    target = tmp_path / f"a{FORMATS[name].suffix}"
    wide = np.linspace(-1, 1, 1024, dtype=np.float32)
    frame = np.repeat(np.repeat(wide[None, :, None], 64, 0), 3, 2)
    with open_export(name, target, (1024, 64)) as writer:
        for _ in range(3):
            writer.write(frame)
    frames, context, _ = decoded(target)
    assert "10" in context.pix_fmt
    luma = np.frombuffer(frames[1].planes[0], "<u2").reshape(64, -1)[:, :1024]
    assert len(np.unique(luma)) > 256
    wanted = 64 + 876 * (wide.astype(np.float64) + 1) / 2
    assert np.abs(luma.mean(0) - wanted).max() < 4


@pytest.mark.parametrize("name", ["h264", "hevc", "av1", "prores"])
def test_colours_are_those_of_the_frames(tmp_path, name):
    """Read back by BT.709, independently of our own conversion."""
    target = tmp_path / f"a{FORMATS[name].suffix}"
    colour = np.array([200, 60, 40]) / 127.5 - 1
    with open_export(name, target, SIZE) as writer:
        for _ in range(3):
            writer.write(np.broadcast_to(colour.astype(np.float32), (SIZE[1], SIZE[0], 3)))
    frames, _, _ = decoded(target)
    y, u, v = (
        np.frombuffer(plane, "<u2" if "10" in frames[1].format.name else np.uint8).astype(np.float64)
        for plane in frames[1].planes
    )
    unit = 4 if "10" in frames[1].format.name else 1
    y, u, v = (np.median(y) / unit - 16) / 219, (np.median(u) / unit - 128) / 224, (np.median(v) / unit - 128) / 224
    red, blue = y + 1.5748 * v, y + 1.8556 * u
    green = (y - 0.2126 * red - 0.0722 * blue) / 0.7152
    assert np.abs(np.array([red, green, blue]) * 255 - [200, 60, 40]).max() < 2.5


def test_lossless_is_bit_exact(tmp_path):
    target = tmp_path / "a.mkv"
    noise = np.random.default_rng(3).uniform(-1.1, 1.1, (4, 64, 96, 3)).astype(np.float32)
    with open_export("ffv1", target, (96, 64)) as writer:
        for frame in noise:
            writer.write(frame)
    frames, _, _ = decoded(target)
    for frame, source in zip(frames, noise, strict=True):
        green, blue, red = (np.frombuffer(plane, "<u2").reshape(64, -1)[:, :96] for plane in frame.planes)
        assert np.array_equal(np.stack([red, green, blue], -1), to_16_bit(source))


@pytest.mark.parametrize("name", ["png", "png16", "tiff16"])
def test_pictures(tmp_path, name):
    write(name, tmp_path / "shots", count=3)
    files = sorted((tmp_path / "shots").iterdir())
    assert [path.stem for path in files] == ["frame_00000", "frame_00001", "frame_00002"]
    for number, path in enumerate(files):
        with Image.open(path) as image:
            assert image.size == SIZE and SAID in (image.info.get("xmp") or b"")
        if name == "png":
            assert np.array_equal(np.asarray(Image.open(path)), to_8_bit(gradient(number)))
            continue
        with av.open(str(path)) as container:
            frame = next(container.decode(video=0))
            assert np.array_equal(frame.to_ndarray(format="rgb48le").astype(np.uint16), to_16_bit(gradient(number)))
    assert [path.name for path in tmp_path.iterdir()] == ["shots"]


@pytest.mark.parametrize("name", ["gif", "webp"])
def test_animations(tmp_path, name):
    target = tmp_path / f"a.{name}"
    with open_export(name, target, SIZE) as writer:
        for number in range(24):
            writer.write(gradient(5 * number))
    with Image.open(target) as image:
        assert image.n_frames == 24 and image.size == SIZE and image.info.get("loop", 0) == 0
        lengths = []
        for number in range(24):
            image.seek(number)
            image.load()
            lengths.append(image.info["duration"])
            error = np.abs(np.asarray(image.convert("RGB")).astype(int) - to_8_bit(gradient(5 * number)))
            assert error.mean() < 5
        assert sum(lengths) == pytest.approx(1000, abs=60)
    assert SAID in target.read_bytes()


def test_a_single_frame(tmp_path):
    write("frame", tmp_path / "a.png", count=1, settings={"seed": 2})
    with Image.open(tmp_path / "a.png") as image:
        assert np.array_equal(np.asarray(image), to_8_bit(gradient()))
        assert SAID in image.info["xmp"] and b"seed" in image.info["xmp"]


@pytest.mark.parametrize("name", list(FORMATS))
def test_nothing_half_done(tmp_path, name):
    """A failure in the middle leaves what was there, and no leftovers."""
    target = tmp_path / f"a{FORMATS[name].suffix}"
    old = target / "frame_00000.png" if FORMATS[name].kind == "pictures" else target
    old.parent.mkdir(exist_ok=True)
    old.write_bytes(b"dear to someone")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(OutputError, match="exists; give another name, or add --overwrite"):
        write(name, target)
    with pytest.raises(KeyboardInterrupt), open_export(name, target, SIZE, overwrite=True) as writer:
        writer.write(gradient())
        raise KeyboardInterrupt
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    write(name, target, count=2, overwrite=True)
    assert not old.exists() or old.read_bytes() != b"dear to someone"
    assert [path.name for path in tmp_path.iterdir()] == [target.name]


def test_a_folder_with_other_things_is_not_replaced(tmp_path):
    (tmp_path / "shots").mkdir()
    (tmp_path / "shots" / "thesis.txt").write_text("years of work")
    with pytest.raises(OutputError, match=r"holds other files than frames, such as thesis\.txt; give another folder"):
        write("png", tmp_path / "shots", overwrite=True)
    assert (tmp_path / "shots" / "thesis.txt").read_text() == "years of work"


def test_an_encoder_that_is_not_there_is_one_sentence(tmp_path, monkeypatch):
    from dataclasses import replace

    monkeypatch.setitem(FORMATS, "av1", replace(FORMATS["av1"], codec="libnothing"))
    assert missing_encoder("av1") == "libnothing" and not missing_encoder("hevc")
    with pytest.raises(OutputError, match="no encoder libnothing for av1; choose one of h264, hevc, prores"):
        write("av1", tmp_path / "a.mp4")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "size", "sentence"),
    [
        ("av1", (32, 128), r"32x128 is too small for av1, which begins at 64x64; choose another format\."),
        ("webp", (17008, 16), r"17008x16 cannot be written as webp \(.*\); choose another format\."),
    ],
)
def test_a_size_that_an_encoder_refuses_is_one_sentence(tmp_path, name, size, sentence):
    target = tmp_path / f"a{FORMATS[name].suffix}"
    with pytest.raises(OutputError, match=sentence), open_export(name, target, size) as writer:
        writer.write(gradient(width=size[0], height=size[1]))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", VIDEOS)
@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_very_short_videos(tmp_path, name, count):
    target = tmp_path / f"a{FORMATS[name].suffix}"
    for _ in range(3):
        write(name, target, count=count, overwrite=True)
        assert len(decoded(target)[0]) == count


def tone(path, seconds, pitch=440, rate=44100, layout="mono"):
    """A WAV file of one tone."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=rate, layout=layout)
        wave = (8000 * np.sin(np.arange(int(seconds * rate)) * 2 * np.pi * pitch / rate)).astype(np.int16)
        samples = np.repeat(wave, 2 if layout == "stereo" else 1)[None]
        frame = av.AudioFrame.from_ndarray(samples, "s16", layout)
        frame.rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


@pytest.mark.parametrize("name", VIDEOS)
@pytest.mark.parametrize("seconds", [0.2, 0.5, 3])
def test_sound(tmp_path, name, seconds):
    """Sound of any length ends with the pictures; after a shorter one there is silence; the pictures do not change."""
    tone(tmp_path / "a.wav", seconds)
    target, mute = tmp_path / f"a{FORMATS[name].suffix}", tmp_path / f"b{FORMATS[name].suffix}"
    write(name, target, count=24, sound=[Sound(tmp_path / "a.wav")], settings={"seed": 1})
    write(name, mute, count=24)
    with av.open(str(target)) as container:
        sound = np.concatenate([f.to_ndarray().astype(np.float64) for f in container.decode(audio=0)], axis=1)
        rate = container.streams.audio[0].rate
        channels = sound.shape[0] if container.streams.audio[0].format.is_planar else 1
        assert any("seed" in value for value in container.metadata.values())
    sound = sound[0] if channels > 1 else sound[0, ::2]
    assert len(sound) / rate == pytest.approx(1, abs=0.05)
    loud = np.abs(sound) > 0.05 * np.abs(sound).max()
    assert np.flatnonzero(loud)[-1] / rate == pytest.approx(min(1, seconds), abs=0.05)
    crossings = np.count_nonzero(np.diff(sound[: int(0.15 * rate)] > 0))
    assert crossings == pytest.approx(2 * 440 * 0.15, abs=8)
    (ours, context, _), others = decoded(target), decoded(mute)[0]
    assert name != "hevc" or context.codec_tag == "hvc1"
    assert len(ours) == len(others) == 24
    for one, other in zip(ours, others, strict=True):
        assert bytes(one.planes[0]) == bytes(other.planes[0])
    assert SAID in target.read_bytes() and not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    "seconds, stretches, faded",
    [
        (3, [(None, None)], [(0.95, 1)]),
        (3, [(None, 0.4), (None, None)], [(0.35, 0.4), (0.95, 1)]),
        (0.39, [(None, 0.4)], [(0.34, 0.39)]),
        (3, [(0.5, 0.4)], [(0.35, 0.4)]),
        (0.5, [(None, None)], []),
        (1, [(None, None)], []),
    ],
    ids=["the video ends", "another sound", "ends before its stretch", "from its middle", "by itself", "as the video"],
)
@pytest.mark.parametrize("name", ["ffv1", "prores"])
def test_a_sound_that_is_cut_off_fades_out(tmp_path, name, seconds, stretches, faded):
    """All other samples are the file's own; in `FADE` seconds a straight line leads to silence."""
    rate = 48000
    tone(tmp_path / "a.wav", seconds, rate=rate, layout="stereo")
    with av.open(str(tmp_path / "a.wav")) as container:
        own = np.concatenate([f.to_ndarray()[0, ::2] for f in container.decode(audio=0)]) / 32768
    target = tmp_path / f"a{FORMATS[name].suffix}"
    write(name, target, count=24, sound=[Sound(tmp_path / "a.wav", *one) for one in stretches])
    with av.open(str(target)) as container:
        found = [f.to_ndarray() for f in container.decode(audio=0)]
    made = np.concatenate([(f[0] if len(f) > 1 else f[0, ::2]) for f in found])
    made = made / (1 if made.dtype == np.float32 else -float(np.iinfo(made.dtype).min))
    expected, at = np.zeros(rate), 0
    for start, length in stretches:
        begin = round((start or 0) * rate)
        piece = own[begin : begin + (rate - at if length is None else round(length * rate))]
        expected[at : at + len(piece)] = piece
        at += len(piece)
    for begin, end in faded:
        span = slice(round(begin * rate), round(end * rate))
        assert span.stop - span.start == round(FADE * rate)
        expected[span] *= np.linspace(1, 0, span.stop - span.start + 2)[1:-1]
    assert np.abs(made - expected).max() < 2 / 32768


def test_a_sound_whose_rate_and_channels_change(tmp_path):
    """As in a recording that was cut together, or a stream: one tone, then a higher one at another rate in stereo."""
    parts = []
    for rate, channels, tone in ((22050, 1, 400), (44100, 2, 1600)):
        part = tmp_path / f"{rate}.aac"
        with av.open(str(part), "w", format="adts") as container:
            stream = container.add_stream("aac", rate=rate, layout="mono" if channels == 1 else "stereo")
            wave = 0.5 * np.sin(2 * np.pi * tone * np.arange(rate) / rate).astype(np.float32)
            for begin in range(0, rate, 1024):
                frame = av.AudioFrame.from_ndarray(
                    np.tile(wave[begin : begin + 1024], (channels, 1)), format="fltp", layout=stream.layout.name
                )
                frame.sample_rate, frame.pts = rate, begin
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        parts.append(part.read_bytes())
    both = tmp_path / "both.aac"
    both.write_bytes(b"".join(parts))
    target = tmp_path / "a.mov"
    write("prores", target, count=48, sound=[Sound(both)])
    with av.open(str(target)) as container:
        sound = np.concatenate([f.to_ndarray().astype(np.float64) for f in container.decode(audio=0)], axis=1)
        rate, packed = container.streams.audio[0].rate, not container.streams.audio[0].format.is_planar
    sound = sound[0, ::2] if packed else sound[0]
    for begin, tone in ((0.3, 400), (1.4, 1600)):
        piece = sound[int(begin * rate) : int((begin + 0.4) * rate)]
        found = np.abs(np.fft.rfft(piece * np.hanning(len(piece)))).argmax() / 0.4
        assert found == pytest.approx(tone, abs=10)


def test_sound_that_cannot_be(tmp_path):
    tone(tmp_path / "a.wav", 1)
    with pytest.raises(InputError, match="A file of format gif has no sound; choose h264, hevc"):
        write("gif", tmp_path / "a.gif", sound=[Sound(tmp_path / "a.wav")])
    (tmp_path / "text.wav").write_text("la la la")
    with pytest.raises(MediaError, match=r"text\.wav is damaged or not a file with sound"):
        write("h264", tmp_path / "a.mp4", sound=[Sound(tmp_path / "text.wav")])
    write("h264", tmp_path / "mute.mp4")
    with pytest.raises(MediaError, match=r"mute\.mp4 has no sound in it"):
        write("h264", tmp_path / "a.mp4", sound=[Sound(tmp_path / "mute.mp4")])
    assert not (tmp_path / "a.mp4").exists()


def test_names(tmp_path):
    assert choose_format("prores") == ("prores", None)
    assert choose_format(tmp_path / "a.MOV") == ("prores", tmp_path / "a.MOV")
    assert choose_format(tmp_path / "a.mkv", "hevc") == ("hevc", tmp_path / "a.mkv")
    assert choose_format(tmp_path / "frames") == ("png", tmp_path / "frames")
    with pytest.raises(InputError, match=r"a\.doc does not end in a way that can be written; choose one of h264"):
        choose_format("a.doc")
    with pytest.raises(InputError, match=r"A file of format prores ends in \.mov, not in \.mp4"):
        choose_format("a.mp4", "prores")
    with pytest.raises(InputError, match="There is no export format 'divx'; choose one of h264"):
        choose_format("a.mp4", "divx")
