"""Large pictures are read in bands: the same picture as when it is read whole, in little memory."""

import io
import json
import struct
import subprocess
import sys
import time
import zlib
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from magi_lite.errors import MediaError
from magi_lite.video import images, strips
from magi_lite.video.clips import load_tail
from magi_lite.video.images import load_image

SIZE = (301, 223)


def picture(mode):
    """A smooth picture with something in every channel."""
    y, x = np.mgrid[: SIZE[1], : SIZE[0]]
    waves = [127 + 120 * np.sin(x / (9 + 3 * k) + y / (17 - 2 * k)) for k in range(4)]
    values = np.stack(waves, -1).astype(np.uint8)
    if mode == "P":
        return Image.fromarray(values[..., :3]).quantize(200)
    if mode == "1":
        return Image.fromarray(values[..., 0]).convert("1")
    if mode == "I;16":
        return Image.fromarray(values[..., 0].astype(np.uint16) * 257)
    if mode == "F":
        return Image.fromarray((values[..., 0] / 255).astype(np.float32))
    if mode == "CMYK":
        return Image.fromarray(values, "CMYK")
    count = {"L": 1, "LA": 2, "RGB": 3, "RGBA": 4}[mode]
    return Image.fromarray(values[..., 0] if count == 1 else np.ascontiguousarray(values[..., :count]))


def in_bands(monkeypatch, path, rows=7):
    """The picture read in bands of a few rows, and read whole."""
    whole = load_image(path, (60, 44), "stretch").astype(int)
    calls = []
    real = strips.reduced
    monkeypatch.setattr(strips, "BAND_BYTES", rows * 4 * SIZE[0])
    monkeypatch.setattr(images, "SMALL_PIXELS", 100)
    monkeypatch.setattr(images, "reduced", lambda *given: calls.append(1) or real(*given))
    banded = load_image(path, (60, 44), "stretch").astype(int)
    assert calls, "the other way was taken"
    return banded, whole


@pytest.mark.parametrize("mode", ["1", "L", "LA", "RGB", "RGBA", "P", "I;16"])
@pytest.mark.parametrize("clear", [False, True])
def test_png(tmp_path, monkeypatch, mode, clear):
    image = picture(mode)
    options = {}
    if clear:
        if mode not in ("L", "RGB", "P"):
            pytest.skip("a colour that means transparent is for those")
        options["transparency"] = image.getpixel((50, 50)) if mode != "P" else bytes(range(200))
    image.save(tmp_path / "a.png", **options)
    banded, whole = in_bands(monkeypatch, tmp_path / "a.png")
    assert np.abs(banded - whole).max() <= 3 if mode != "1" else np.abs(banded - whole).max() <= 40


@pytest.mark.parametrize("bits", [2, 4])
def test_png_of_few_colours(tmp_path, monkeypatch, bits):
    picture("RGB").quantize(2**bits).save(tmp_path / "a.png", bits=bits)
    banded, whole = in_bands(monkeypatch, tmp_path / "a.png")
    assert np.abs(banded - whole).max() <= 3


@pytest.mark.parametrize("channels", [3, 4])
def test_png_of_16_bit_colours(tmp_path, monkeypatch, channels):
    import av

    values = np.asarray(picture("RGBA")).astype(np.uint16)[..., :channels] * 257
    name = {3: "rgb48", 4: "rgba64"}[channels]
    context = av.CodecContext.create("png", "w")
    context.width, context.height, context.pix_fmt, context.time_base = *SIZE, name + "be", Fraction(1, 24)
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(values), format=name + "le").reformat(format=name + "be")
    (tmp_path / "a.png").write_bytes(b"".join(map(bytes, [*context.encode(frame), *context.encode(None)])))
    banded, whole = in_bands(monkeypatch, tmp_path / "a.png")
    assert np.abs(banded - whole).max() <= 3


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "RGBA", "P", "I;16", "F", "CMYK"])
@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"])
def test_tiff(tmp_path, monkeypatch, mode, compression):
    if compression == "jpeg" and mode not in ("L", "RGB"):
        pytest.skip("JPEG holds those")
    picture(mode).save(tmp_path / "a.tif", compression=compression, tiffinfo={278: 16})
    banded, whole = in_bands(monkeypatch, tmp_path / "a.tif")
    assert np.abs(banded - whole).max() <= (60 if mode == "1" else 4)


@pytest.mark.parametrize("subsampling", ["4:2:0", "4:4:4", "4:0:0"])
@pytest.mark.parametrize("limited", [False, True])
def test_avif(tmp_path, monkeypatch, subsampling, limited):
    exif = Image.Exif()
    exif[0x0112] = 6
    options = {"range": "limited"} if limited else {}
    picture("RGB").save(tmp_path / "a.avif", subsampling=subsampling, quality=95, speed=9, exif=exif, **options)
    assert images.shown_size(tmp_path / "a.avif") == SIZE[::-1]
    banded, whole = in_bands(monkeypatch, tmp_path / "a.avif", rows=40)
    most = 20 if subsampling == "4:2:0" else 3  # decoders spread halved colours differently
    assert np.abs(banded - whole).max() <= most
    assert np.abs(banded - whole).mean() < 2 and np.abs((banded - whole).mean((0, 1))).max() < 2


def test_an_avif_that_is_transparent_is_decoded_as_a_whole(tmp_path, monkeypatch):
    picture("RGBA").save(tmp_path / "a.avif", quality=95, speed=9)
    banded, whole = in_bands(monkeypatch, tmp_path / "a.avif")
    assert np.abs(banded - whole).max() <= 3


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
@pytest.mark.parametrize("lossless", [False, True])
def test_webp(tmp_path, monkeypatch, mode, lossless):
    exif = Image.Exif()
    exif[0x0112] = 3
    picture(mode).save(tmp_path / "a.webp", lossless=lossless, quality=95, exif=exif)
    banded, whole = in_bands(monkeypatch, tmp_path / "a.webp", rows=40)
    assert np.abs(banded - whole).max() <= (3 if lossless else 14), "decoders spread halved colours differently"
    assert np.abs(banded - whole).mean() < 2 and np.abs((banded - whole).mean((0, 1))).max() < 2
    data = (tmp_path / "a.webp").read_bytes()
    for kept in (data[: len(data) // 2], data[: len(data) // 2] + bytes(len(data) - len(data) // 2)):
        (tmp_path / "a.webp").write_bytes(kept)
        try:
            load_image(tmp_path / "a.webp", (60, 44))
        except MediaError as error:
            assert str(error).startswith("a.webp is damaged and cannot be read (")
        else:
            assert len(kept) == len(data), "one that is cut is refused"


def test_profile_orientation_and_shape_are_kept(tmp_path, monkeypatch):
    exif = Image.Exif()
    exif[0x0112] = 6
    profile = (Path(__file__).parent / "cases" / "icc_gray18.png").read_bytes()
    with Image.open(io.BytesIO(profile)) as image:
        icc = image.info["icc_profile"]
    picture("L").save(tmp_path / "a.png", exif=exif, icc_profile=icc)
    banded, whole = in_bands(monkeypatch, tmp_path / "a.png")
    assert np.abs(banded - whole).max() <= 3


@pytest.mark.parametrize("ending", ["png", "tif"])
def test_a_cut_one_is_one_sentence(tmp_path, monkeypatch, ending):
    noise = np.random.default_rng(0).integers(0, 256, (200, 300, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / f"a.{ending}", **({"compression": "tiff_lzw"} if ending == "tif" else {}))
    data = (tmp_path / f"a.{ending}").read_bytes()
    (tmp_path / f"a.{ending}").write_bytes(data[: len(data) // 2])
    monkeypatch.setattr(images, "SMALL_PIXELS", 100)
    sentence = rf"a\.{ending} is (damaged and cannot be read \(|not an image that can be read)"
    with pytest.raises(MediaError, match=sentence):
        load_image(tmp_path / f"a.{ending}", (60, 44))


def test_jpeg_2000_is_decoded_at_a_fraction(tmp_path):
    picture("RGB").resize((1200, 900)).save(tmp_path / "a.jp2")
    small = load_image(tmp_path / "a.jp2", (60, 44), "stretch").astype(int)
    wanted = np.asarray(Image.open(tmp_path / "a.jp2").convert("RGB").resize((60, 44), Image.Resampling.LANCZOS))
    assert np.abs(small - wanted).max() <= 12


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_of_several_passes_is_refused_by_what_its_decoder_holds(tmp_path, monkeypatch, progressive):
    """Also a baseline one whose components come one after another: all coefficients are held for it."""
    picture("RGB").save(tmp_path / "a.jpg", progressive=progressive, subsampling=2)
    data = bytearray((tmp_path / "a.jpg").read_bytes())
    at = data.index(b"\xff\xda")
    if not progressive:
        data[at + 2 : at + 14] = bytes((0, 8, 1, 1, 0, 0, 63, 0))
        (tmp_path / "a.jpg").write_bytes(data)
    held = 2 * 64 * 6 * -(-SIZE[0] // 16) * -(-SIZE[1] // 16)
    assert strips.jpeg_frame(tmp_path / "a.jpg") == (True, held)
    monkeypatch.setattr(images, "MAX_HELD_BYTES", held - 1)
    with pytest.raises(MediaError, match="in a progressive or lossless JPEG; save it as baseline, or make it smaller"):
        load_image(tmp_path / "a.jpg", (60, 44))


LOSSLESS = """
import sys
from magi_lite.video.images import load_image
for path in sys.argv[1:]:
    print(load_image(path, (64, 64))[32, 32].tolist())
"""


def test_lossless_jpegs_are_not_decoded_at_a_fraction(tmp_path):
    """Asked for a fraction of one, libjpeg writes behind the end of its buffer: in a process of its own."""
    import av

    paths = []
    for side in (64, 1000, 2000):
        context = av.CodecContext.create("ljpeg", "w")
        context.width, context.height, context.pix_fmt, context.time_base = side, side, "yuv444p", Fraction(1, 24)
        context.options = {"strict": "-2"}
        frame = av.VideoFrame.from_ndarray(np.full((3, side, side), 90, np.uint8), format="yuv444p")
        paths.append(tmp_path / f"{side}.jpg")
        paths[-1].write_bytes(b"".join(map(bytes, [*context.encode(frame), *context.encode(None)])))
    done = subprocess.run(
        [sys.executable, "-c", LOSSLESS, *map(str, paths)],
        capture_output=True, text=True, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert [np.abs(np.array(json.loads(line)) - 90).max() <= 1 for line in done.stdout.splitlines()] == [True] * 3


def test_large_pictures_that_are_turned(tmp_path, monkeypatch):
    """Pillow says a turned TIFF's size as it is shown; its strips lie as they were stored."""
    exif = Image.Exif()
    exif[0x0112] = 6
    for ending in ("tif", "png"):
        picture("RGB").save(tmp_path / f"a.{ending}", exif=exif)
        assert images.shown_size(tmp_path / f"a.{ending}") == SIZE[::-1]
        with monkeypatch.context() as patch:
            banded, whole = in_bands(patch, tmp_path / f"a.{ending}")
        wanted = picture("RGB").transpose(Image.Transpose.ROTATE_270).resize((60, 44), Image.Resampling.LANCZOS)
        assert np.abs(whole - np.asarray(wanted)).max() <= 3 and np.abs(banded - wanted).max() <= 6, ending


# --- memory ----------------------------------------------------------------------------------------------------------


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def big_png(path, side, interlace=0):
    """Grey-green, side x side, 8-bit RGB, in a few kilobytes."""
    line = b"\0" + bytes((90, 140, 60)) * side
    deflate = zlib.compressobj(1)
    data = b"".join([deflate.compress(line) for _ in range(side)]) + deflate.flush()
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, interlace)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b""))


def big_tiff(path, side, rows):
    """Float, one value, deflated in strips of `rows`."""
    piece = zlib.compress(np.full(side * rows, 0.4, "<f4").tobytes(), 9)
    count = -(-side // rows)
    entries = [
        (256, 4, 1, side), (257, 4, 1, side), (258, 3, 1, 32), (259, 3, 1, 8), (262, 3, 1, 1),
        (273, 4, count, 0), (278, 4, 1, rows), (279, 4, count, 0), (339, 3, 1, 3),
    ]  # fmt: skip
    table = 8 + 2 + 12 * len(entries) + 4
    tables = {273: table, 279: table + 4 * count}
    first = table + 8 * count
    body = struct.pack("<2sHIH", b"II", 42, 8, len(entries))
    for tag, kind, number, value in entries:
        value = tables.get(tag, value) if number > 1 else {273: first, 279: len(piece)}.get(tag, value)
        body += struct.pack("<HHI", tag, kind, number) + struct.pack("<I" if kind == 4 else "<Hxx", value)
    body += bytes(4)
    if count > 1:
        body += struct.pack(f"<{count}I", *[first] * count) + struct.pack(f"<{count}I", *[len(piece)] * count)
    path.write_bytes(body.ljust(first, b"\0") + piece)


MEASURE = """
import json, sys
from tests import memory
from magi_lite.video.images import load_image
from magi_lite.errors import MediaError
import av, PIL.Image
PIL.Image.init()
warm, path = sys.argv[1:]
load_image(warm, (720, 720))
before = memory.peak()
try:
    said = load_image(path, (720, 720))[360, 360].tolist()
except MediaError as error:
    said = str(error)
print(json.dumps([(memory.peak() - before) >> 20, said]))
"""


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("png 118", [90, 140, 60]),
        ("png 200", [90, 140, 60]),
        ("jpeg 200", [90, 140, 60]),
        ("narrow 131", [90, 140, 60]),
        ("progressive 50", [90, 140, 60]),
        ("progressive 200", "big has 200 megapixels in a progressive or lossless JPEG; save it as baseline"),
        ("bmp 45", [90, 140, 60]),
        ("webp 62", [90, 140, 60]),
        ("clear 23", [90, 140, 60]),
        ("avif 30", [90, 140, 60]),
        ("clear_avif 33", "big has 33 megapixels in one piece; save it as JPEG, or make it smaller."),
        ("tiff 119 in 1", [102] * 3),
        ("tiff 119 in 64", [102] * 3),
        ("tiff 119 in 10900", "big has 119 megapixels in one piece; save it as JPEG, or make it smaller."),
        ("interlaced 118", "big has 118 megapixels in one piece; save it as JPEG, or make it smaller."),
    ],
)
def test_memory_is_bounded(tmp_path, name, wanted):
    """The peak of a process that reads one of them stays within 300 MB of one that read a small picture."""
    kind, megapixels, *rows = name.replace(" in ", " ").split()
    side, path = int((int(megapixels) * 1e6) ** 0.5), tmp_path / "big"
    whole = Image.new("RGB", (side, side) if kind != "narrow" else (65500, 2000), (90, 140, 60))
    if kind in ("jpeg", "narrow", "bmp", "webp"):
        whole.save(path, {"bmp": "BMP", "webp": "WEBP"}.get(kind, "JPEG"), **({"method": 0} if kind == "webp" else {}))
    elif kind == "progressive":
        (whole if side < 10000 else whole.crop((0, 0, 64, 64))).save(path, "JPEG", progressive=True)
        data = bytearray(path.read_bytes())
        struct.pack_into(">HH", data, data.index(b"\xff\xc2") + 5, side, side)
        path.write_bytes(data)
    elif kind == "avif":
        whole.save(path, "AVIF", speed=10)
    elif kind == "clear_avif":  # its size is read, its pixels are not
        Image.new("RGBA", (64, 64), (90, 140, 60, 99)).save(path, "AVIF", speed=10)
        path.write_bytes(path.read_bytes().replace(struct.pack(">4xII", 64, 64), struct.pack(">4xII", side, side)))
    elif kind == "clear":
        whole.convert("RGBA").save(path, "PNG", compress_level=1)
    elif kind == "tiff":
        side = 10900
        big_tiff(path, side, int(rows[0]))
    else:
        big_png(path, side, int(kind == "interlaced"))
    Image.new("RGB", (800, 800)).save(tmp_path / "warm.png")
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path / "warm.png"), str(path)],
        capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    grown, said = json.loads(done.stdout)
    assert grown < (200 if kind == "avif" else 300), name
    if isinstance(wanted, str):
        assert said.startswith(wanted)
    else:
        assert np.abs(np.array(said) - wanted).max() <= 2


MOVING = """
import json, sys
from tests import memory
from magi_lite.video.clips import load_tail
from magi_lite.video.images import load_image
warm, path = sys.argv[1:]
load_tail(warm, (720, 720), frames=12)
before = memory.peak()
colours = [load_tail(path, (720, 720), frames=12)[-1, 360, 360].tolist(), load_image(path, (720, 720))[9, 9].tolist()]
print(json.dumps([(memory.peak() - before) >> 20, colours]))
"""


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "AVIF"])
def test_memory_of_moving_pictures_is_bounded(tmp_path, kind):
    """The largest one takes less than 300 MB; larger ones are refused before a picture is decoded."""
    options = {"WEBP": {"method": 0}, "PNG": {"compress_level": 1}, "AVIF": {"speed": 10}}.get(kind, {})

    def save(path, width, height):
        mode = "L" if kind == "GIF" else "RGB"
        first, then = (Image.new("RGB", (width, height), (grey,) * 3).convert(mode) for grey in (250, 5))
        first.save(path, kind, save_all=True, append_images=[then, first, then], duration=250, **options)

    save(tmp_path / "warm", 64, 48)
    save(tmp_path / "big", 3990, 3000)
    done = subprocess.run(
        [sys.executable, "-c", MOVING, str(tmp_path / "warm"), str(tmp_path / "big")],
        capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    grown, (last, first) = json.loads(done.stdout)
    assert grown < 300 and max(last) < 12 and min(first) > 243
    save(tmp_path / "large", 4100, 3000)
    with pytest.raises(MediaError, match="has frames of more than 12 megapixels; make it smaller"):
        load_tail(tmp_path / "large", (64, 48), frames=12)
    if kind in ("WEBP", "AVIF"):  # whose first picture, too, is decoded by what holds several
        with pytest.raises(MediaError, match="has frames of more than 12 megapixels; make it smaller"):
            load_image(tmp_path / "large", (64, 48))
    else:
        assert min(load_image(tmp_path / "large", (64, 48))[9, 9]) > 243


HEIC = """
import json, sys
from magi_lite.video.images import load_image
from tests import memory
warm, path = sys.argv[1:]
load_image(warm, (720, 720))
before = memory.peak()
colour = load_image(path, (720, 720))[360, 360].tolist()
print(json.dumps([(memory.peak() - before) >> 20, colour]))
"""


@pytest.mark.slow
def test_a_large_heic_takes_what_is_said(tmp_path):
    """Seven bytes a pixel, decoder and result together (docs/media.md): as a whole, for its library knows no bands."""
    heif = pytest.importorskip("pillow_heif")
    for name, side in (("warm", 64), ("big", 4900)):
        heif.from_pillow(Image.new("RGB", (side, side), (90, 140, 60))).save(tmp_path / f"{name}.heic", quality=30)
    done = subprocess.run(
        [sys.executable, "-c", HEIC, str(tmp_path / "warm.heic"), str(tmp_path / "big.heic")],
        capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    grown, colour = json.loads(done.stdout)
    assert 4900**2 * 3 < grown * 2**20 < 4900**2 * 7 + 30 * 2**20, "less would mean that nothing was measured"
    assert np.abs(np.array(colour) - (90, 140, 60)).max() <= 4


def slow_to_read(kind):
    """Files with much around a small picture."""
    notes = io.BytesIO()
    Image.new("RGB", (8, 8)).save(notes, "PNG")
    png = notes.getvalue()
    note = struct.pack(">I", 2) + b"tEXta\0" + struct.pack(">I", zlib.crc32(b"tEXta\0"))
    empty = struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))
    return {
        "comment.ppm": b"P6\n#" + b"c" * 20_000_000,
        "comments.pgm": b"P5\n" + b"#c\n" * 7_000_000 + b"8 8\n255\n" + bytes(64),
        "notes.png": png[:33] + note * 300_000 + png[33:],
        "notes behind.png": png[:-12] + note * 300_000 + png[-12:],
        "pieces.png": png[:33] + empty * 1_100_000 + png[33:],
    }[kind]


@pytest.mark.parametrize("kind", ["comment.ppm", "comments.pgm", "notes.png", "notes behind.png", "pieces.png"])
def test_a_small_picture_among_much_else_keeps_nobody_busy(tmp_path, kind):
    """Pillow takes text byte by byte and chunks one by one: 500 MB of them would take a quarter of an hour."""
    path = tmp_path / kind
    path.write_bytes(slow_to_read(kind))
    began = time.process_time()
    with pytest.raises(MediaError, match=r"cannot be read \(its? ") as caught:
        load_image(path, (32, 32))
    assert time.process_time() - began < 5
    assert str(caught.value).endswith("; use another copy.")


def test_notes_of_ordinary_pictures_are_no_hindrance(tmp_path):
    info = PngInfo()
    for number in range(2000):
        info.add_text(f"key {number}", "value")
    Image.new("RGB", (32, 32), "red").save(tmp_path / "a.png", pnginfo=info)
    (tmp_path / "a.ppm").write_bytes(b"P6 # by hand\n# and on two lines\n32 32\n255\n" + bytes((255, 0, 0)) * 1024)
    for name in ("a.png", "a.ppm"):
        assert (load_image(tmp_path / name, (32, 32)) == (255, 0, 0)).all()
