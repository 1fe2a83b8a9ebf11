"""Pictures with very long texts, colour profiles and the like: read, within bounds."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from magi_lite.video.images import load_image, shown_size
from tests import memory

LONG = 3 << 20
SIZE = (64, 48)
PIXELS = np.zeros((48, 64, 3), np.uint8)
PIXELS[:, :32], PIXELS[24:, 32:] = (200, 40, 40), (30, 60, 220)


def part(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(*parts: bytes, behind: bool = False) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, "PNG")
    data = buffer.getvalue()
    at = len(data) - 12 if behind else 33
    return data[:at] + b"".join(parts) + data[at:]


def profile(name: str = "sRGB") -> bytes:
    """A colour profile of 3 MB."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    if name == "swapped":  # red and blue in each other's place
        count = struct.unpack_from(">I", data, 128)[0]
        places = {bytes(data[at : at + 4]): at for at in range(132, 132 + 12 * count, 12)}
        red, blue = places[b"rXYZ"], places[b"bXYZ"]
        data[red : red + 4], data[blue : blue + 4] = b"bXYZ", b"rXYZ"
    data += bytes(LONG)
    data[:4] = struct.pack(">I", len(data))
    return bytes(data)


PACKED = zlib.compress(b"a" * LONG)
XMP = b"<x:xmpmeta>" + b"y" * LONG + b"</x:xmpmeta>"
PNGS = {
    "text": png(part(b"tEXt", b"Comment\0" + b"a" * LONG)),
    "packed": png(part(b"zTXt", b"Comment\0\0" + PACKED)),
    "packed, behind the pixels": png(part(b"zTXt", b"Comment\0\0" + PACKED), behind=True),
    "XMP": png(part(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(XMP))),
    "many": png(*[part(b"zTXt", b"C%d\0\0" % n + zlib.compress(b"a" * (1 << 20))) for n in range(100)]),
    "300 MB of text": png(part(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(300 << 20)))),
    "300 MB of profile": png(part(b"iCCP", b"p\0\0" + zlib.compress(bytes(300 << 20)))),
    "profile": png(part(b"iCCP", b"p\0\0" + zlib.compress(profile()))),
    "private": png(part(b"prVt", bytes(40 << 20))),
    "no text at all": png(part(b"zTXt", b"")),
    "damaged text": png(part(b"zTXt", b"Comment\0\0" + b"no deflate")),
}


@pytest.mark.parametrize("case", PNGS)
def test_a_png_with_long_notes(tmp_path: Path, case: str) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(PNGS[case])
    before = memory.begin()
    assert (load_image(path, SIZE, "stretch") == PIXELS).all()
    assert (memory.peak() - before) >> 20 < 100


def test_a_long_profile_counts(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png(part(b"iCCP", b"p\0\0" + zlib.compress(profile("swapped")))))
    found = load_image(path, SIZE, "stretch").astype(int)
    assert np.abs(found - PIXELS[..., ::-1]).max() <= 40 and found[40, 10, 2] > found[40, 10, 0]


@pytest.mark.parametrize("what", ["icc_profile", "exif", "xmp"])
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("JPEG", {"quality": 95, "subsampling": 0}),
        ("WEBP", {"lossless": True}),
        ("TIFF", {}),
        ("AVIF", {"quality": 100}),
    ],
)
def test_other_pictures_with_long_notes(tmp_path: Path, kind: str, options: dict[str, object], what: str) -> None:
    exif = Image.Exif()
    exif[0x9286] = b"ASCII\0\0\0" + b"x" * (50_000 if kind == "JPEG" else LONG)
    content = {"icc_profile": profile(), "exif": exif, "xmp": XMP[: 50_000 if kind == "JPEG" else None]}[what]
    path = tmp_path / "a"
    Image.fromarray(PIXELS).save(path, kind, **options, **{what: content})
    assert np.abs(load_image(path, SIZE, "stretch").astype(int) - PIXELS).mean() < 3


@pytest.mark.parametrize("behind", [False, True])
def test_an_orientation_in_front_of_the_pixels_and_behind_them(tmp_path: Path, behind: bool) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "a.png"
    path.write_bytes(png(part(b"eXIf", exif.tobytes()[6:]), behind=behind))
    assert shown_size(path) == SIZE[::-1]
    assert (load_image(path, SIZE[::-1], "stretch") == np.rot90(PIXELS, -1)).all()
