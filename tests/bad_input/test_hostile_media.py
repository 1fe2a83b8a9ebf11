"""Media made to do harm: each is one sentence, in bounded time and memory, and nothing else is opened with it."""

import io
import json
import resource
import socket
import struct
import subprocess
import sys
import threading
import zlib
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from magi_lite.errors import MediaError
from magi_lite.ui import uploads
from magi_lite.video.clips import load_tail
from magi_lite.video.export import open_export
from magi_lite.video.images import load_image
from magi_lite.video.sound import Sound, check_sound, has_sound
from magi_lite.video.writer import read_settings
from tests.bad_input.conftest import png_header_only
from tests.video.test_images import tiff

CASES = Path(__file__).parents[1] / "video" / "cases"
NO_CLIP = "is damaged or not a video that can be read; use an MP4, MOV or WebM."
NO_IMAGE = "is not an image that can be read; use PNG, JPEG or WebP."
NO_DECODER = "has pictures in a format that cannot be decoded; convert it to H.264 first."
SINGLE = "is a single image; start with it as an image instead."
TOO_MANY = "has more than 400 megapixels; make it smaller first."
DAMAGED = "is damaged and cannot be read ("
WHOLE = "megapixels in one piece; save it as JPEG, or make it smaller."


def base() -> bytes:
    return (CASES / "base.mp4").read_bytes()


def changed(data: bytes, *changes: tuple[int, bytes]) -> bytes:
    out = bytearray(data)
    for at, new in changes:
        out[at : at + len(new)] = new
    return bytes(out)


def after(data: bytes, name: bytes, skip: int, new: bytes) -> bytes:
    """A box's content overwritten `skip` bytes behind its name."""
    return changed(data, (data.index(name) + len(name) + skip, new))


def saved(kind: str, image: Image.Image, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(seed: int, size: int) -> bytes:
    return np.random.default_rng(seed).integers(0, 256, size, np.uint8).tobytes()


def riff_webp(width: int, height: int) -> bytes:
    """A WebP header that claims a size."""
    canvas = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    body = b"WEBPVP8X" + struct.pack("<II", 10, 0) + canvas
    return b"RIFF" + struct.pack("<I", len(body)) + body


def bomb_png(side: int, interlace: int) -> bytes:
    """Zeros that inflate to side x side grey pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    deflate = zlib.compressobj(9)
    data = b"".join(deflate.compress(bytes(side + 1)) for _ in range(side)) + deflate.flush()
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, interlace)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def many_passes(count: int, before: bytes = b"") -> bytes:
    """A progressive JPEG whose last pass comes `count` times more: at full size each takes a tenth of a second.

    `before`: these.
    """
    data = saved("JPEG", Image.new("RGB", (640, 640)), progressive=True)
    last = data[data.rindex(b"\xff\xc4", 0, data.rindex(b"\xff\xda")) : -2]
    return data[:-2] + before + last * count + b"\xff\xd9"


def narrow_tiff(width: int) -> bytes:
    """A TIFF of floats that claims to be one line."""
    small, entry = tiff(np.zeros((1, 1, 3)), "f4"), struct.pack("<HHII", 256, 4, 1, 1)
    return small.replace(entry, struct.pack("<HHII", 256, 4, 1, width))


SMALL = Image.new("RGB", (64, 48), (200, 60, 40))
CLIPS = {
    "v58.mp4": (lambda: (CASES / "v58.mp4").read_bytes(), NO_DECODER),
    "unknown_codec.mp4": (lambda: base().replace(b"avc1", b"zzzz"), NO_DECODER),
    "list.ffconcat": (lambda: b"ffconcat version 1.0\nfile secret.mp4\n", NO_CLIP),
    "list.mp4": (lambda: b"ffconcat version 1.0\nfile secret.mp4\n", NO_CLIP),
    "concat_url.mp4": (lambda: b"ffconcat version 1.0\nfile http://127.0.0.1:PORT/a.mp4\n", NO_CLIP),
    "playlist.m3u8": (lambda: b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nhttp://127.0.0.1:PORT/a.ts\n", NO_CLIP),
    "playlist.mp4": (lambda: b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nsecret.mp4\n#EXT-X-ENDLIST\n", NO_CLIP),
    "manifest.mpd": (
        lambda: (
            b'<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"><Period><AdaptationSet>'
            b'<Representation id="1"><BaseURL>http://127.0.0.1:PORT/a.mp4</BaseURL></Representation></AdaptationSet>'
            b"</Period></MPD>"
        ),
        NO_CLIP,
    ),
    "session.sdp": (lambda: b"v=0\nc=IN IP4 127.0.0.1\nm=video PORT RTP/AVP 96\na=rtpmap:96 H264/90000\n", NO_CLIP),
    "subtitles.mp4": (lambda: b"1\n00:00:00,000 --> 00:00:01,000\nhello\n", NO_CLIP),
    "metadata.mp4": (lambda: b";FFMETADATA1\ntitle=x\n", NO_CLIP),
    "noise.mp4": (lambda: noise(1, 4096), NO_CLIP),
    "noise.webm": (lambda: b"\x1aE\xdf\xa3" + noise(2, 4096), NO_CLIP),
    "riff.avi": (lambda: b"RIFF\xff\xff\xff\xffAVI LIST" + noise(3, 512), NO_CLIP),
    "only_ftyp.mp4": (lambda: base()[:32], NO_CLIP),
    "cut_header.mp4": (lambda: base()[:32] + base()[base().index(b"moov") - 4 : base().index(b"stsd")], NO_CLIP),
    "huge_box.mp4": (lambda: base()[:32] + struct.pack(">I4sQ", 1, b"moov", 2**62) + bytes(64), NO_CLIP),
    "cut_behind_a_long_box.mp4": (
        lambda: (
            base()[:32]
            + struct.pack(">I4sQ", 1, b"mdat", 4016)
            + bytes(4000)
            + base()[base().index(b"moov") - 4 : base().index(b"stsd")]
        ),
        NO_CLIP,
    ),
    "no_samples.mp4": (lambda: after(base(), b"stsz", 8, bytes(4)), "base"),
    "many_samples.mp4": (lambda: after(base(), b"stsz", 8, b"\x7f\xff\xff\xff"), "base"),
    "far_offset.mp4": (lambda: after(base(), b"stco", 8, b"\xff\xff\xff\xff"), "base"),
    "no_time.mp4": (lambda: after(base(), b"mdhd", 12, bytes(4)), "base"),
    "empty_pixels.mp4": (lambda: base()[: base().index(b"mdat") + 4] + bytes(2000), "base"),
    "still.mp4": (lambda: saved("PNG", SMALL), SINGLE),
    "still.gif": (lambda: saved("GIF", SMALL), SINGLE),
    "page.mp4": (lambda: b"<!doctype html><script>alert(1)</script>", NO_CLIP),
    "archive.mp4": (lambda: b"PK\x03\x04" + bytes(100), NO_CLIP),
}
"""Clips with their sentence; "base": one sentence or frames, for readers may mend them."""
IMAGES = {
    "vast.png": (lambda: png_header_only(2**31 - 1, 2**31 - 1), TOO_MANY),
    "large.png": (lambda: png_header_only(40_000, 20_000), TOO_MANY),
    "hollow.png": (lambda: png_header_only(15_000, 15_000), DAMAGED),
    "interlaced.png": (lambda: bomb_png(9000, 1), WHOLE),
    "no_pixels.png": (lambda: saved("PNG", SMALL)[:33], ""),
    "bad_zlib.png": (lambda: saved("PNG", SMALL).replace(b"IDATx", b"IDATq"), DAMAGED),
    "vast.webp": (lambda: riff_webp(16_384, 16_384), ""),
    "vast.gif": (lambda: b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0, 0, 0) + b",", ""),
    "vast.bmp": (
        lambda: b"BM" + struct.pack("<IIIIiiHHIIIIII", 100, 0, 54, 40, 30000, 30000, 1, 24, 0, 0, 0, 0, 0, 0),
        TOO_MANY,
    ),
    "large.ppm": (lambda: b"P6 9000 9000 255\n" + bytes(10), WHOLE),
    "cut.jpg": (lambda: saved("JPEG", SMALL)[:400], DAMAGED),
    "hidden_passes.jpg": (
        lambda: many_passes(500, b"\xff\x01\xff\xff"),  # no length, though one might be read that leads behind them
        "has more than 200 passes in a JPEG; save it as baseline.",
    ),
    "passes.jpg": (lambda: many_passes(5000), "has more than 200 passes in a JPEG; save it as baseline."),
    "two_heads.jpg": (lambda: b"\xff\xd8\xff\xe0" + noise(5, 300), ""),
    "cut.tif": (lambda: saved("TIFF", SMALL)[:-40], ""),
    "far.tif": (lambda: b"II*\0\xff\xff\xff\x7f" + bytes(40), ""),
    "circle.tif": (lambda: b"II*\0\x08\0\0\0\0\0\x08\0\0\0", ""),
    "script.eps": (lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) run\n", NO_IMAGE),
    "narrow.tif": (lambda: narrow_tiff(400_000_000), WHOLE),
    "hollow.tif": (lambda: narrow_tiff(2_000_000), DAMAGED),
    "page.svg": (
        lambda: b'<svg xmlns="http://www.w3.org/2000/svg"><image href="http://127.0.0.1:PORT/"/></svg>',
        NO_IMAGE,
    ),
    "noise.png": (lambda: b"\x89PNG\r\n\x1a\n" + noise(7, 400), ""),
    "noise.jp2": (lambda: b"\0\0\0\x0cjP  \r\n\x87\n" + noise(8, 400), ""),
    "noise.avif": (lambda: b"\0\0\0\x1cftypavif\0\0\0\0avifmif1" + noise(9, 400), ""),
    "noise.ico": (lambda: b"\0\0\1\0\1\0" + noise(10, 400), ""),
}
"""Pictures with their sentence; empty: any one sentence."""


@pytest.fixture
def listener():
    """Counts connections to an address that the files name."""
    server = socket.create_server(("127.0.0.1", 0))
    server.settimeout(0.1)
    found, done = [], threading.Event()

    def accept() -> None:
        while not done.is_set():
            try:
                found.append(server.accept()[0])
            except OSError:
                continue

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    yield server.getsockname()[1], found
    done.set()
    thread.join()
    server.close()


def write(folder: Path, name: str, make, port: int = 9) -> Path:
    path = folder / name
    path.write_bytes(make().replace(b"PORT", str(port).encode()))
    (folder / "secret.mp4").write_bytes(base())
    return path


def sentence_of(work) -> str | None:
    """The one sentence, or None where the file was read after all."""
    try:
        work()
    except MediaError as error:
        text = str(error)
        assert text.endswith(".") and "\n" not in text and "Traceback" not in text and len(text) < 200, text
        return text
    return None


@pytest.mark.parametrize("name", CLIPS)
def test_clips(tmp_path, listener, name):
    make, wanted = CLIPS[name]
    port, connections = listener
    path = write(tmp_path, name, make, port)
    said = sentence_of(lambda: load_tail(path, (32, 32), frames=24))
    if wanted == "base":
        assert said is None or said.startswith(name)
    else:
        assert said == f"{name} {wanted}"
    app = sentence_of(lambda: uploads.look_at(path, name))
    assert wanted in ("base", SINGLE) or app
    sentence_of(lambda: read_settings(path))
    assert not connections


@pytest.mark.parametrize("name", IMAGES)
def test_images(tmp_path, listener, name):
    make, wanted = IMAGES[name]
    port, connections = listener
    path = write(tmp_path, name, make, port)
    said = sentence_of(lambda: load_image(path, (32, 32)))
    assert said and said.startswith(name) and wanted in said
    assert sentence_of(lambda: uploads.look_at(path, name))
    assert not connections


SOUNDS = {
    "list.m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile://FOLDER/secret.aac\n#EXT-X-ENDLIST\n",
    "list.wav": "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nsecret.aac\n#EXT-X-ENDLIST\n",
    "away.wav": "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nhttp://127.0.0.1:PORT/a.aac\n#EXT-X-ENDLIST\n",
    "c.wav": "ffconcat version 1.0\nfile secret.wav\n",
    "c.ffconcat": "ffconcat version 1.0\nfile secret.wav\n",
    "url.wav": "ffconcat version 1.0\nfile http://127.0.0.1:PORT/a.wav\n",
    "session.sdp": "v=0\nc=IN IP4 127.0.0.1\nm=audio PORT RTP/AVP 0\n",
}
"""Sounds that are lists of other files and addresses."""


@pytest.mark.parametrize("name", SOUNDS)
def test_sounds(tmp_path, listener, name):
    """None is played: what lies beside it would be in the export, for whoever asked for it."""
    port, connections = listener
    for secret, muxer in (("secret.wav", "wav"), ("secret.aac", "adts")):
        with av.open(str(tmp_path / secret), "w", format=muxer) as container:
            stream = container.add_stream("pcm_s16le" if muxer == "wav" else "aac", rate=48000, layout="stereo")
            kind = stream.codec_context.format.name
            values = np.full((1, 96000), 9000, np.int16) if kind == "s16" else np.full((2, 48000), 0.3, np.float32)
            sound = av.AudioFrame.from_ndarray(values, kind, "stereo")
            sound.rate, sound.pts = 48000, 0
            container.mux(stream.encode(sound))
            container.mux(stream.encode(None))
        check_sound(tmp_path / secret)
    path = tmp_path / name
    path.write_text(SOUNDS[name].replace("PORT", str(port)).replace("FOLDER", str(tmp_path)))
    wanted = f"{name} is damaged or not a file with sound; use a WAV, FLAC, MP3 or M4A."

    def export() -> None:
        with open_export("ffv1", tmp_path / "out.mkv", (64, 48), sound=[Sound(path)]) as writer:
            writer.write(np.zeros((48, 64, 3), np.float32))

    assert sentence_of(lambda: check_sound(path)) == wanted and not has_sound(path)
    assert sentence_of(export) == wanted and not (tmp_path / "out.mkv").exists()
    assert not connections


def test_there_are_enough_of_them():
    assert len(CLIPS) + len(IMAGES) >= 34


ALL = """
import json, sys
from pathlib import Path
from magi_lite.errors import MediaError
from magi_lite.ui import uploads
from magi_lite.video.images import load_image
from tests import memory
load_image(sys.argv[1], (720, 720))
before = memory.peak()
for path in sorted(Path(sys.argv[2]).iterdir()):
    try:
        uploads.look_at(path, path.name)
    except MediaError:
        pass
print(json.dumps((memory.peak() - before) >> 20))
"""


def test_memory_and_time_are_bounded(tmp_path):
    """All of them in one process: 300 MB at most, and the system ends it after two minutes of work."""
    folder = tmp_path / "all"
    folder.mkdir()
    for name, (make, _) in {**CLIPS, **IMAGES}.items():
        write(folder, name, make)
    SMALL.save(tmp_path / "warm.png")
    done = subprocess.run(
        [sys.executable, "-c", ALL, str(tmp_path / "warm.png"), str(folder)],
        capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CPU, (120, 120)),
    )  # fmt: skip
    assert json.loads(done.stdout) < 300


def test_a_name_is_not_an_address(tmp_path, monkeypatch):
    """Names that FFmpeg would take for protocols are files that do not exist."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.mp4").write_bytes(base())
    for name in ("concat:a.mp4|a.mp4", "subfile,,start,0,end,100,,:a.mp4", "http://127.0.0.1:9/a.mp4", "data:,x"):
        with pytest.raises(MediaError, match="There is no file"):
            load_tail(name, (32, 32))


def test_frames_that_grow_on_the_way_are_refused(tmp_path):
    """A stream whose later frames are far larger than its header says."""
    path = tmp_path / "grow.ts"
    with av.open(str(path), "w", format="mpegts") as container:
        stream = container.add_stream("mpeg2video", rate=24)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(24):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), number, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    assert load_tail(path, (32, 32), frames=12).shape == (12, 32, 32, 3)
    data = path.read_bytes()
    at = data.rindex(b"\x00\x00\x01\xb3")
    path.write_bytes(changed(data, (at + 4, b"\xff\xff\xff")))
    said = sentence_of(lambda: load_tail(path, (32, 32), frames=12))
    assert said is None or said.startswith("grow.ts")


def test_a_jpeg_of_as_many_passes_as_encoders_write_is_read(tmp_path):
    """Passes are counted in the picture alone: not in its preview, nor behind its end."""
    path, preview = tmp_path / "a.jpg", many_passes(500)
    note = b"\xff\xe5" + struct.pack(">H", len(preview) + 2) + preview
    for content in (many_passes(50), many_passes(0) + preview, b"\xff\xd8" + note + many_passes(0)[2:]):
        path.write_bytes(content)
        assert load_image(path, (32, 32)).shape == (32, 32, 3)
