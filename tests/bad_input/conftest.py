"""Real files of every bad kind, made fresh for each test."""

import os
import struct
import zlib

import av
import numpy as np
import pytest
from PIL import Image


def png_header_only(width, height):
    """A PNG that claims a size and holds next to nothing."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


def clip(path, frames=12, audio_only=False):
    with av.open(str(path), "w") as container:
        if audio_only:
            stream = container.add_stream("aac", rate=8000)
            for number in range(8):
                sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
                sound.rate, sound.pts = 8000, number * 1024
                container.mux(stream.encode(sound))
        else:
            stream = container.add_stream("libx264", rate=24)
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            for number in range(frames):
                picture = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 9 * number, np.uint8), format="rgb24")
                container.mux(stream.encode(picture))
        container.mux(stream.encode(None))


@pytest.fixture
def folder(tmp_path):
    """A folder of good and bad files."""
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8))
    for name in ("good.png", "good.jpg", "good.webp", "good.gif", "good.tif"):
        noise.save(tmp_path / name)
    for name in ("png", "jpg", "webp", "gif", "tif"):
        data = (tmp_path / f"good.{name}").read_bytes()
        (tmp_path / f"cut.{name}").write_bytes(data[: len(data) // 2])
    data = bytearray((tmp_path / "good.png").read_bytes())
    data[200:400] = bytes(200)
    (tmp_path / "damaged.png").write_bytes(data)
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("I am a text file.")
    (tmp_path / "page.jpg").write_text("<html><body>Not found</body></html>")
    (tmp_path / "drawing.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    (tmp_path / "script.eps").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    (tmp_path / "huge.png").write_bytes(png_header_only(40000, 20000))
    (tmp_path / "bomb.png").write_bytes(png_header_only(60000, 60000))
    clip(tmp_path / "good.mp4")
    clip(tmp_path / "sound.mp4", audio_only=True)
    data = (tmp_path / "good.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(data[: len(data) * 2 // 3])
    (tmp_path / "damaged.mp4").write_bytes(data[:48] + bytes(len(data) - 48))
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("I am a text file.")
    (tmp_path / "page.webm").write_text("<html><body>Not found</body></html>")
    (tmp_path / "picture.mp4").write_bytes((tmp_path / "good.png").read_bytes())
    (tmp_path / "a_folder").mkdir()
    (tmp_path / "folder.mp4").mkdir()
    return tmp_path


@pytest.fixture
def as_ordinary_user():
    """Run something without the rights of the superuser, who may write anywhere."""
    nobody = 65534

    def run(work):
        if os.geteuid() != 0:
            return work()
        groups = os.getgroups()
        os.setgroups([])
        os.setegid(nobody)
        os.seteuid(nobody)  # the effective user decides on files; the real one comes back
        try:
            return work()
        finally:
            os.seteuid(0)
            os.setegid(0)
            os.setgroups(groups)

    return run
