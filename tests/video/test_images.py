"""Every kind of picture becomes upright, opaque 8-bit RGB of the wanted size."""

import struct
import threading
import zlib

import numpy as np
import pytest
from PIL import Image

from magi_lite.errors import MediaError
from magi_lite.ui.uploads import look_at
from magi_lite.video.clips import load_tail
from magi_lite.video.images import is_animated, load_image, shown_size

CORNERS = {
    "top left": (255, 0, 0),
    "top right": (0, 255, 0),
    "bottom left": (0, 0, 255),
    "bottom right": (255, 255, 0),
}


def quarters(width, height, mode="RGB"):
    """An image with one colour per quarter, as in CORNERS."""
    image = Image.new("RGB", (width, height))
    for colour, (x, y) in zip(CORNERS.values(), [(0, 0), (1, 0), (0, 1), (1, 1)], strict=True):
        image.paste(colour, (x * width // 2, y * height // 2, (x + 1) * width // 2, (y + 1) * height // 2))
    return image.convert(mode)


def corners(pixels):
    """The colours in the middle of the quarters."""
    h, w = pixels.shape[0] // 4, pixels.shape[1] // 4
    return [tuple(int(v) for v in pixels[y, x]) for y in (h, 3 * h) for x in (w, 3 * w)]


def near(got, wanted, tolerance=4):
    return np.abs(np.array(got, int) - np.array(wanted, int)).max() <= tolerance


@pytest.mark.parametrize("ending", ["png", "bmp", "tiff", "webp", "ppm", "tga", "gif", "jpg"])
def test_formats(tmp_path, ending):
    path = tmp_path / f"a.{ending}"
    quarters(64, 48).save(path, **({"lossless": True} if ending == "webp" else {"quality": 95}))
    pixels = load_image(path, (64, 48))
    assert pixels.shape == (48, 64, 3) and pixels.dtype == np.uint8
    assert near(corners(pixels), list(CORNERS.values()), 12 if ending == "jpg" else 2)


@pytest.mark.parametrize("ending", ["png", "jpg", "webp", "tif", "avif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation(tmp_path, orientation, ending):
    """The stored pixels are turned the way a camera turns them; what is loaded is upright again."""
    upright = quarters(64, 32)
    undo = {
        2: [Image.Transpose.FLIP_LEFT_RIGHT], 3: [Image.Transpose.ROTATE_180], 4: [Image.Transpose.FLIP_TOP_BOTTOM],
        5: [Image.Transpose.TRANSPOSE], 6: [Image.Transpose.ROTATE_90], 7: [Image.Transpose.TRANSVERSE],
        8: [Image.Transpose.ROTATE_270],
    }  # fmt: skip
    stored = upright
    for turn in undo.get(orientation, []):
        stored = stored.transpose(turn)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{ending}"
    stored.save(path, exif=exif, **({"quality": 95, "subsampling": 0} if ending == "jpg" else {"quality": 95}))
    assert near(corners(load_image(path, (64, 32))), list(CORNERS.values()), 8)
    assert shown_size(path) == (64, 32)


def test_a_damaged_exif_says_nothing(tmp_path):
    quarters(32, 32).save(tmp_path / "a.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\x7f", quality=95)
    assert near(corners(load_image(tmp_path / "a.jpg", (32, 32))), list(CORNERS.values()), 12)


def test_transparency_lies_over_the_stated_background(tmp_path):
    values = np.zeros((8, 8, 4), np.uint8)
    values[:, :4] = (200, 0, 0, 255)
    values[:, 4:] = (200, 0, 0, 128)
    Image.fromarray(values).save(tmp_path / "a.png")
    opaque, half = load_image(tmp_path / "a.png", (8, 8))[4, [1, 6]]
    assert near(opaque, (200, 0, 0), 8) and near(half, (228, 127, 127), 8)
    half = load_image(tmp_path / "a.png", (8, 8), background=(0, 0, 100))[4, 6]
    assert near(half, (100, 0, 50), 8)


def test_palettes_with_and_without_transparency(tmp_path):
    image = quarters(32, 32).quantize(8)
    image.save(tmp_path / "plain.png")
    assert near(corners(load_image(tmp_path / "plain.png", (32, 32))), list(CORNERS.values()))
    image.save(tmp_path / "clear.png", transparency=image.getpixel((4, 4)))
    assert near(corners(load_image(tmp_path / "clear.png", (32, 32)))[0], (255, 255, 255))
    assert near(corners(load_image(tmp_path / "clear.png", (32, 32)))[1:], list(CORNERS.values())[1:])


@pytest.mark.parametrize("mode", ["1", "L", "LA", "CMYK", "RGBA", "HSV"])
def test_colour_modes(tmp_path, mode):
    image = quarters(32, 32, "L" if mode == "LA" else "RGB").convert(mode)
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    (image.convert("RGB") if mode == "HSV" else image).save(path)
    wanted = corners(np.asarray(image.convert("RGB")))
    assert near(corners(load_image(path, (32, 32))), wanted)


def png_16(values):
    """A 16-bit PNG made by hand: (H, W) grey or (H, W, 3) RGB uint16."""
    height, width = values.shape[:2]
    colour = 2 if values.ndim == 3 else 0
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_16_bit(tmp_path):
    """Plain conversion would clip all but the darkest 256 of 65536 greys to white."""
    grey = np.linspace(0, 65535, 64).round().astype(np.uint16)[None].repeat(16, 0)
    wanted = (grey / 257).round()[..., None].repeat(3, -1)
    (tmp_path / "grey.png").write_bytes(png_16(grey))
    Image.fromarray(grey).save(tmp_path / "grey.tif")
    Image.fromarray(grey.astype(np.int32)).save(tmp_path / "wide.tif")
    Image.fromarray((grey / 65535).astype(np.float32)).save(tmp_path / "float.tif")
    (tmp_path / "colour.png").write_bytes(png_16(grey[..., None].repeat(3, -1)))
    for path in tmp_path.iterdir():
        assert near(load_image(path, (64, 16)), wanted, 2), path.name


def test_light_of_a_float_picture(tmp_path):
    """HDR: 1 is white, and most is below. A ramp of 0..255 or of 0..65535, and a mask of whole numbers, are none."""
    light = np.full((16, 64), 0.18, np.float32)
    light[:, 40:48], light[:, 48:56], light[:, 56:] = 1.0, 4.0, 900.0
    Image.fromarray(light).save(tmp_path / "light.tif")
    grey, white, lamp, sun = load_image(tmp_path / "light.tif", (64, 16))[8, [8, 44, 52, 60], 0].tolist()
    assert abs(grey - 118) <= 1, "a grey card is 118 in sRGB"
    assert abs(white - 237) <= 1 and white < lamp <= sun == 255
    for top, name in ((255, "bytes"), (65535, "words")):
        ramp = np.linspace(0, top, 64, dtype=np.float32)[None].repeat(16, 0)
        Image.fromarray(ramp).save(tmp_path / f"{name}.tif")
        wanted = np.linspace(0, 255, 64)[None, :, None].repeat(16, 0).repeat(3, -1)
        assert near(load_image(tmp_path / f"{name}.tif", (64, 16)), wanted, 1), name
    mask = np.zeros((16, 64), np.float32)
    mask[:, 48:], mask[:, 32:48] = 255, 100
    Image.fromarray(mask).save(tmp_path / "mask.tif")
    assert load_image(tmp_path / "mask.tif", (64, 16))[8, [8, 40, 60], 0].tolist() == [0, 100, 255]


def test_a_16_bit_grey_that_means_transparent(tmp_path):
    (tmp_path / "a.png").write_bytes(png_16(np.array([[30000, 30000, 30001, 30001]] * 4, np.uint16)))
    with_chunk(tmp_path / "a.png", b"tRNS", struct.pack(">H", 30000))
    pixels = load_image(tmp_path / "a.png", (4, 4))
    assert near(pixels[:, 0], (255,) * 3, 1) and near(pixels[:, 3], (117,) * 3, 1)


def test_colour_profiles(tmp_path):
    """A damaged or an equal profile changes nothing, and inks come out as the colours they print."""
    from PIL import ImageCms

    Image.new("RGB", (8, 8), (90, 140, 60)).save(tmp_path / "a.png", icc_profile=b"damaged profile")
    assert near(load_image(tmp_path / "a.png", (8, 8))[4, 4], (90, 140, 60)), "a damaged profile is left aside"
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.new("RGB", (8, 8), (90, 140, 60)).save(tmp_path / "b.png", icc_profile=srgb)
    assert near(load_image(tmp_path / "b.png", (8, 8))[4, 4], (90, 140, 60), 2)
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "c.jpg", quality=95)
    assert near(load_image(tmp_path / "c.jpg", (8, 8))[4, 4], (255, 0, 0), 6)


def test_inks_in_a_jpeg_that_is_stored_as_luma_and_chroma(tmp_path):
    """YCCK, as Photoshop writes it: black apart, the other inks as the colours that they leave out."""
    path, inks = tmp_path / "a.jpg", np.asarray(quarters(64, 48).convert("CMYK"))
    stored = Image.fromarray(np.ascontiguousarray(inks[..., :3])).convert("YCbCr")
    turned = np.concatenate([255 - np.asarray(stored), inks[..., 3:]], -1)  # Pillow stores what is left out
    Image.fromarray(np.ascontiguousarray(turned), "CMYK").save(path, quality=95, subsampling=0)
    data = bytearray(path.read_bytes())
    data[data.index(b"Adobe") + 11] = 2
    path.write_bytes(data)
    assert near(corners(load_image(path, (64, 48))), list(CORNERS.values()), 6)


@pytest.mark.parametrize("bits", [4, 8])
def test_run_lengths_in_a_bmp(tmp_path, bits):
    image = quarters(32, 16).quantize(4)
    colours = [image.getpalette()[3 * k : 3 * k + 3] for k in range(4)] + [[0] * 3] * (2**bits - 4)
    table = b"".join(bytes((*colour[::-1], 0)) for colour in colours)
    data = b""
    for row in np.asarray(image)[::-1]:
        data += b"".join(bytes((16, int(row[x]) * (17 if bits == 4 else 1))) for x in (0, 16)) + b"\0\0"
    data += b"\0\1"
    start = 54 + len(table)
    header = struct.pack("<IiiHHIIiiII", 40, 32, 16, 1, bits, 2 if bits == 4 else 1, len(data), 0, 0, 2**bits, 0)
    head = b"BM" + struct.pack("<IHHI", start + len(data), 0, 0, start)
    (tmp_path / "a.bmp").write_bytes(head + header + table + data)
    assert near(corners(load_image(tmp_path / "a.bmp", (32, 16))), list(CORNERS.values()))


@pytest.mark.parametrize("source", [(200, 100), (100, 200), (97, 61), (3000, 20)])
@pytest.mark.parametrize("size", [(64, 64), (96, 32)])
def test_fit_modes_by_geometry(tmp_path, source, size):
    """A coordinate grid shows which part of the picture lands where."""
    width, height = source
    values = np.zeros((height, width, 3), np.uint8)
    values[..., 0] = np.linspace(20, 250, width).round()[None]
    values[..., 1] = np.linspace(20, 250, height).round()[:, None]
    values[..., 2] = 255
    Image.fromarray(values).save(tmp_path / "a.png")

    def coordinates(pixels):
        """Where in the source (0..1) each pixel's middle comes from."""
        return (pixels[..., 0] - 20.0) / 230, (pixels[..., 1] - 20.0) / 230

    middle_x, middle_y = (np.arange(size[0]) + 0.5) / size[0], (np.arange(size[1]) + 0.5) / size[1]
    stretched = load_image(tmp_path / "a.png", size, "stretch")
    x, y = coordinates(stretched)
    assert np.abs(x - middle_x[None]).max() < 0.03 and np.abs(y - middle_y[:, None]).max() < 0.04

    scale = max(size[0] / width, size[1] / height)
    part_x, part_y = size[0] / scale / width, size[1] / scale / height
    cropped = load_image(tmp_path / "a.png", size, "crop")
    x, y = coordinates(cropped)
    assert np.abs(x - (0.5 + (middle_x - 0.5) * part_x)[None]).max() < 0.03
    assert np.abs(y - (0.5 + (middle_y - 0.5) * part_y)[:, None]).max() < 0.04
    assert cropped[..., 2].min() > 240

    padded = load_image(tmp_path / "a.png", size, "pad")
    inside = padded[..., 2] > 128
    scale = min(size[0] / width, size[1] / height)
    assert inside.any(0).sum() == pytest.approx(max(1, width * scale), abs=1)
    assert inside.any(1).sum() == pytest.approx(max(1, height * scale), abs=1)
    assert np.abs(padded[~inside].astype(int)).max(initial=0) == 0, "bars are black"
    rows = np.flatnonzero(inside.any(1))
    assert abs(rows[0] - (size[1] - 1 - rows[-1])) <= 1, "the picture stands in the middle"


def test_tiny_and_large(tmp_path):
    Image.new("RGB", (1, 1), (10, 200, 30)).save(tmp_path / "tiny.png")
    assert near(load_image(tmp_path / "tiny.png", (64, 48)), (10, 200, 30), 1)
    quarters(5000, 3000).save(tmp_path / "large.jpg", quality=90)
    assert near(corners(load_image(tmp_path / "large.jpg", (64, 64))), list(CORNERS.values()), 12)


def test_shrinking_averages_instead_of_picking_pixels(tmp_path):
    """A fine checkerboard becomes grey; nearest neighbour would give black, white or stripes."""
    board = ((np.indices((512, 512)).sum(0) % 2) * 255).astype(np.uint8)
    Image.fromarray(board).save(tmp_path / "a.png")
    assert near(load_image(tmp_path / "a.png", (48, 48))[2:-2, 2:-2], 127, 4)


def test_the_first_frame_of_an_animation(tmp_path):
    first, second = Image.new("RGB", (16, 16), "red"), Image.new("RGB", (16, 16), "blue")
    first.save(tmp_path / "a.gif", save_all=True, append_images=[second])
    assert near(load_image(tmp_path / "a.gif", (16, 16)), (255, 0, 0))


def grey_profile(tmp_path):
    from pathlib import Path

    with Image.open(Path(__file__).parent / "cases" / "icc_gray18.png") as image:
        return image.info["icc_profile"]


def test_profiles_of_grey_and_palette_pictures(tmp_path):
    """Grey 100 of gamma 1.8 is 119 in sRGB, also beside transparency and in 16 bits; a palette has a profile too."""
    from pathlib import Path

    assert near(load_image(Path(__file__).parent / "cases" / "icc_gray18.png", (8, 8))[4, 4], (119,) * 3, 1)
    profile = grey_profile(tmp_path)
    Image.new("LA", (8, 8), (100, 255)).save(tmp_path / "a.png", icc_profile=profile)
    assert near(load_image(tmp_path / "a.png", (8, 8))[4, 4], (119,) * 3, 1)
    Image.fromarray(np.full((8, 8), 100 * 257, np.uint16)).save(tmp_path / "b.png", icc_profile=profile)
    assert near(load_image(tmp_path / "b.png", (8, 8))[4, 4], (119,) * 3, 1)
    Image.new("RGB", (8, 8), (90, 140, 60)).save(tmp_path / "c.png", icc_profile=profile)
    assert near(load_image(tmp_path / "c.png", (8, 8))[4, 4], (90, 140, 60)), "a grey profile says nothing of colours"

    from PIL import ImageCms

    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    for red, green in zip(find_tags(data, b"rXYZ"), find_tags(data, b"gXYZ"), strict=True):  # another RGB: swapped
        data[red], data[green] = data[green], data[red]
    image = Image.new("RGB", (8, 8), (200, 60, 40))
    image.save(tmp_path / "rgb.png", icc_profile=bytes(data))
    image.quantize(4).save(tmp_path / "palette.png", icc_profile=bytes(data))
    swapped = load_image(tmp_path / "rgb.png", (8, 8))[4, 4]
    assert near(swapped, (60, 200, 40), 3)
    assert near(load_image(tmp_path / "palette.png", (8, 8))[4, 4], swapped, 2)


def find_tags(profile, name):
    """Where the 12 bytes of an XYZ tag lie."""
    count = struct.unpack_from(">I", profile, 128)[0]
    for number in range(count):
        signature, offset, _ = struct.unpack_from(">4sII", profile, 132 + 12 * number)
        if signature == name:
            return range(offset + 8, offset + 20)
    raise AssertionError(name)


def with_chunk(path, kind, data):
    """The PNG with a chunk behind its header."""
    whole = path.read_bytes()
    made = struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    path.write_bytes(whole[:33] + made + whole[33:])


def test_pngs_that_say_their_colours_by_number(tmp_path):
    """cICP: PQ and HLG are tone-mapped, BT.709 stays as it is; gAMA without a profile is obeyed."""
    for name, transfer, white in (("pq", 16, 148), ("hlg", 18, 191)):
        path = tmp_path / f"{name}.png"
        Image.fromarray(np.array([[[0] * 3, [white] * 3, [255] * 3]] * 3, np.uint8)).save(path)
        with_chunk(path, b"cICP", bytes((9, transfer, 0, 1)))
        black, paper, light = load_image(path, (3, 3))[1]
        assert near(black, (0,) * 3) and near(paper, (236,) * 3, 6) and near(light, (255,) * 3, 2), name
    for data in (bytes((1, 13, 0, 1)), bytes((1, 1, 0, 1))):
        Image.new("RGB", (3, 3), (200, 60, 40)).save(tmp_path / "a.png")
        with_chunk(tmp_path / "a.png", b"cICP", data)
        assert near(load_image(tmp_path / "a.png", (3, 3))[1, 1], (200, 60, 40))
    Image.new("RGB", (3, 3), (128, 128, 128)).save(tmp_path / "g.png")
    with_chunk(tmp_path / "g.png", b"gAMA", struct.pack(">I", 100000))
    assert near(load_image(tmp_path / "g.png", (3, 3))[1, 1], (188,) * 3, 1), "light 0.5 is 188 in sRGB"


def test_an_animated_picture_as_a_start_is_noticed(tmp_path):
    from magi_lite.pipeline.prefix import prefix_pixels
    from magi_lite.request.request import GenerationRequest
    from magi_lite.timeline.text import parse

    pictures = [Image.new("RGB", (32, 32), (v, v, v)) for v in (40, 200)]
    pictures[0].save(tmp_path / "a.gif", save_all=True, append_images=pictures[1:], duration=100)
    pictures[0].save(tmp_path / "b.gif")
    for name, said in (("a.gif", "a.gif is animated; its first picture is used."), ("b.gif", "")):
        found = prefix_pixels(GenerationRequest(parse("[0s-1s: a]"), 1, 32, 32, image=tmp_path / name), 4)
        assert found.notice.startswith(said) and bool(found.notice) == bool(said)
        assert near(found.pixels[0, 16, 16], (40,) * 3)


def tiff(values, kind, *, order="<", photometric=None, planes=False, predictor=1, tags=()):
    """A TIFF made by hand: (H, W) or (H, W, n) samples of any numpy kind in strips of 5 rows, deflated if predicted."""
    values = values.astype(order + kind)
    height, width = values.shape[:2]
    count, size = (1 if values.ndim == 2 else values.shape[2]), values.itemsize
    sheets = [values.reshape(height, width, count)]
    if planes:
        sheets = [sheets[0][..., k : k + 1] for k in range(count)]
    strips = []
    for sheet in sheets:
        for top in range(0, height, 5):
            rows, n = np.ascontiguousarray(sheet[top : top + 5]), sheet.shape[2]
            if predictor == 3:  # the bytes of a row by their weight, then each less the one before of its channel
                rows = rows.astype(">" + kind).view(np.uint8).reshape(len(rows), -1, size).transpose(0, 2, 1)
                rows = np.ascontiguousarray(rows).reshape(len(rows), -1, n)
            elif predictor == 2:
                rows = rows.view(f"{order}u{size}")
            if predictor > 1:
                rows = np.concatenate([rows[:, :1], rows[:, 1:] - rows[:, :-1]], 1).astype(rows.dtype)
            strips.append(zlib.compress(rows.tobytes()) if predictor > 1 else rows.tobytes())
    entries = {
        256: width, 257: height, 258: (8 * size,) * count, 259: 8 if predictor > 1 else 1, 277: count, 278: 5,
        262: photometric if photometric is not None else 2 if count > 2 else 1, 284: 2 if planes else 1,
        317: predictor, 339: ({"u": 1, "i": 2, "f": 3}[kind[0]],) * count, **dict(tags),
    }  # fmt: skip
    entries[273], entries[279] = (0,) * len(strips), tuple(map(len, strips))

    def written(tag, value):
        if isinstance(value, bytes):
            return 7, len(value), value
        value = value if isinstance(value, tuple) else (value,)
        return 4, len(value), struct.pack(f"{order}{len(value)}I", *value)

    start = 8 + 2 + 12 * len(entries) + 4
    start += sum(len(data) for data in (written(*entry)[2] for entry in entries.items()) if len(data) > 4)
    entries[273] = tuple(start + sum(map(len, strips[:k])) for k in range(len(strips)))
    table, beyond = struct.pack(order + "H", len(entries)), b""
    for tag, value in sorted(entries.items()):
        kind_of, number, data = written(tag, value)
        place = struct.pack(order + "I", 8 + 2 + 12 * len(entries) + 4 + len(beyond)) if len(data) > 4 else data
        beyond += data if len(data) > 4 else b""
        table += struct.pack(order + "HHI", tag, kind_of, number) + place.ljust(4, b"\0")
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, 8)
    return head + table + bytes(4) + beyond + b"".join(strips)


SCENE = np.asarray(quarters(64, 48)).astype(np.float64) / 255 * 0.8 + 0.1


KINDS = ("f2", "f4", "f8", "u2", "u4", "i2", "i4")


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("planes", [False, True])
@pytest.mark.parametrize(
    ("kind", "predictor"), [(kind, number) for kind in KINDS for number in ((1, 2, 3) if kind[0] == "f" else (1, 2))]
)
def test_tiffs_of_many_bits(tmp_path, kind, planes, predictor, order):
    """As scanners, renderers and editors of photographs write them; Pillow refuses them or shows other colours."""
    top = 1 if kind[0] == "f" else np.iinfo(kind).max
    wanted = SCENE * 255
    for name, values in (("colour", SCENE), ("grey", SCENE[..., 1])):
        (tmp_path / "a.tif").write_bytes(tiff(values * top, kind, planes=planes, predictor=predictor, order=order))
        got = load_image(tmp_path / "a.tif", (64, 48)).astype(float)
        assert near(got, wanted if name == "colour" else wanted[..., 1:2].repeat(3, -1), 1 if top == 1 else 2), name
    assert load_image(tmp_path / "a.tif", (16, 12)).shape == (12, 16, 3)


def test_what_else_a_tiff_of_many_bits_says(tmp_path):
    """Inverted, transparent, turned; and one that is cut is one sentence."""
    path, wanted = tmp_path / "a.tif", corners(SCENE * 255)
    path.write_bytes(tiff(65535 - 65535 * SCENE[..., 1], "u2", photometric=0))
    assert near(corners(load_image(path, (64, 48)))[0], (wanted[0][1],) * 3)
    half = np.concatenate([SCENE, np.full((48, 64, 1), 0.5)], -1)
    for kind, values in ((2, half), (1, half * (0.5, 0.5, 0.5, 1))):
        path.write_bytes(tiff(values, "f4", tags={338: kind}.items()))
        assert near(corners(load_image(path, (64, 48))), (np.array(wanted) + 255) / 2), kind
    path.write_bytes(tiff(SCENE, "f4", tags={274: 6}.items()))
    assert look_at(path, "a.tif")["info"].startswith("48 × 64,")
    turned = [wanted[2], wanted[0], wanted[3], wanted[1]]
    assert near(corners(load_image(path, (48, 64))), turned)
    path.write_bytes(tiff(SCENE, "f4", tags={256: b"64 pixels"}.items()))
    with pytest.raises(MediaError, match=r"^a\.tif "):
        look_at(path, "a.tif")
    for predictor in (1, 3):
        data = tiff(SCENE, "f4", predictor=predictor)
        path.write_bytes(data[: len(data) * 2 // 3])
        with pytest.raises(MediaError, match=r"^a\.tif is damaged and cannot be read \("):
            load_image(path, (64, 48))


def test_light_of_a_float_picture_in_colour(tmp_path):
    """Linear by its profile, or because some of it is brighter than white; colours keep their hue."""
    from PIL import ImageCms

    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    curve = struct.unpack_from(">I", profile, profile.index(b"rTRC", 128) + 4)[0]
    profile[curve : curve + 12] = b"curv" + bytes(8)  # all three curves are one, now a straight line
    light = np.where(SCENE < 0.04045, SCENE / 12.92, ((SCENE + 0.055) / 1.055) ** 2.4)
    (tmp_path / "profile.tif").write_bytes(tiff(light, "f4", tags={34675: bytes(profile)}.items()))
    assert near(load_image(tmp_path / "profile.tif", (64, 48)), SCENE * 255, 1)
    light[:4] = (40, 20, 10)
    (tmp_path / "sun.tif").write_bytes(tiff(light, "f2", predictor=3))
    shown = load_image(tmp_path / "sun.tif", (64, 48))
    red, green, blue = shown[1, 30].astype(int)
    assert red >= 254 and red > green > blue > 100
    assert near(shown[12, 48], (25, 225, 25), 8) and not near(shown[12, 48], light[12, 48] * 255, 20)


def test_a_large_tiff_of_floats_is_made_smaller_on_the_way(tmp_path, monkeypatch):
    (tmp_path / "a.tif").write_bytes(tiff(SCENE, "f4"))
    whole = load_image(tmp_path / "a.tif", (20, 15)).astype(int)
    monkeypatch.setattr("magi_lite.video.deep_tiff.BAND_BYTES", 2000)
    monkeypatch.setattr("magi_lite.video.deep_tiff._MOST_PIXELS", 1000)
    assert np.abs(load_image(tmp_path / "a.tif", (20, 15)).astype(int) - whole).max() <= 12
    monkeypatch.setattr("magi_lite.video.deep_tiff.LARGEST_PIECE", 100)
    (tmp_path / "a.tif").write_bytes(tiff(SCENE, "f4", predictor=3))
    with pytest.raises(MediaError, match=r"in one piece; save it as JPEG, or make it smaller\.$"):
        load_image(tmp_path / "a.tif", (20, 15))


KNOWN = {
    "a.psd": (b"8BPS\0\1", "a Photoshop picture"),
    "a.xcf": (b"gimp xcf v011", "a GIMP picture"),
    "a.exr": (b"v/1\x01\2\0\0\0", "an OpenEXR picture"),
    "a.hdr": (b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe", "a Radiance picture"),
    "a.jxl": (b"\0\0\0\x0cJXL \r\n\x87\n", "a JPEG XL picture"),
    "b.jxl": (b"\xff\x0a\xfa\x1f", "a JPEG XL picture"),
    "a.raf": (b"FUJIFILMCCD-RAW 0201", "a raw picture of a camera"),
    "a.orf": (b"IIRO\x08\0\0\0", "a raw picture of a camera"),
    "a.cr2": (b"II*\0\x10\0\0\0CR\2\0", "a raw picture of a camera"),
    "a.cr3": (b"\0\0\0\x18ftypcrx \0\0\0\1crx isom", "a raw picture of a camera"),
}


@pytest.mark.parametrize("name", KNOWN)
def test_kinds_that_are_known_and_not_read(tmp_path, name):
    start, kind = KNOWN[name]
    (tmp_path / name).write_bytes(start + bytes(200))
    sentence = rf"^{name} is {kind}, which is not read; save it as PNG or JPEG\.$"
    works = (load_image, (32, 32)), (look_at, name), (load_tail, (32, 32))
    for work, argument in works:
        with pytest.raises(MediaError, match=sentence):
            work(tmp_path / name, argument)


def test_what_only_looks_like_a_raw_picture_is_read(tmp_path):
    """Pixels may begin where a raw picture has its mark; and a preview's tag may be of a kind that it never is."""
    values = np.full((8, 8, 3), 0.5, np.float32)
    whole = tiff(values, "f4", tags={330: 8, 254: b"preview"}.items())
    (tmp_path / "a.tif").write_bytes(whole)
    assert near(load_image(tmp_path / "a.tif", (8, 8)), values * 255, 2)
    pixels, header = b"CR\3" + bytes(189), b"II*\0" + struct.pack("<I", 200)
    entries = [(256, 8), (257, 8), (258, 8), (259, 1), (262, 2), (273, 8), (277, 3), (278, 8), (279, 192)]
    table = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries)
    (tmp_path / "b.tif").write_bytes(header + pixels + table + bytes(4))
    assert load_image(tmp_path / "b.tif", (8, 8))[0, 0].tolist() == [67, 82, 3]


@pytest.mark.parametrize("kind", ["u2"])
def test_whole_numbers_of_16_bit_have_one_range_however_they_are_stored(tmp_path, kind):
    """A nearly blank scan is not stretched."""
    dark = np.arange(64 * 48).reshape(48, 64) % 256
    (tmp_path / "a.tif").write_bytes(tiff(dark, kind, photometric=0))
    assert load_image(tmp_path / "a.tif", (64, 48)).min() >= 254
    (tmp_path / "a.tif").write_bytes(tiff(np.stack([dark] * 3, -1), kind, planes=True))
    assert load_image(tmp_path / "a.tif", (64, 48)).max() <= 1


def test_strips_that_are_not_there_or_are_too_many(tmp_path, monkeypatch):
    path, whole = tmp_path / "a.tif", tiff(SCENE, "f4", predictor=3)
    path.write_bytes(whole)
    monkeypatch.setattr("magi_lite.video.deep_tiff._MOST_PACKED", 9)  # it has ten
    with pytest.raises(MediaError, match=r"^a\.tif "):
        load_image(path, (64, 48))
    monkeypatch.undo()
    count = -(-48 // 5)
    path.write_bytes(
        whole.replace(struct.pack("<HHI", 273, 4, count), struct.pack("<HHI", 273, 4, count - 1)).replace(
            struct.pack("<HHI", 279, 4, count), struct.pack("<HHI", 279, 4, count - 1)
        )
    )
    with pytest.raises(MediaError, match=r"^a\.tif is damaged"):
        load_image(path, (64, 48))


@pytest.mark.parametrize("tags", [{50706: b"\1\4\0\0"}, {254: 1, 330: (8,)}])
def test_a_raw_picture_is_not_its_preview(tmp_path, tags):
    """DNG and NEF are TIFFs that begin with a small picture."""
    quarters(64, 48).save(tmp_path / "a.dng", "TIFF", tiffinfo=tags)
    with pytest.raises(MediaError, match=r"^a\.dng is a raw picture of a camera, which is not read; save it as PNG"):
        load_image(tmp_path / "a.dng", (32, 32))
    quarters(64, 48).save(tmp_path / "a.tif", tiffinfo={254: 0, 330: (8,)})
    assert near(corners(load_image(tmp_path / "a.tif", (64, 48))), list(CORNERS.values()))


def test_the_limit_of_pillow_stays_as_it_is_in_every_thread(tmp_path, monkeypatch):
    """It belongs to the process: whoever else opens a picture relies on it, also while one of ours is opened."""
    quarters(64, 48).save(tmp_path / "a.gif")
    limit, seen = Image.MAX_IMAGE_PIXELS, []
    Image.init()
    opened, fits = Image.OPEN["GIF"]

    def read(file, name):
        seen.append(Image.MAX_IMAGE_PIXELS)
        return opened(file, name)

    monkeypatch.setitem(Image.OPEN, "GIF", (read, fits))

    def work():
        for _ in range(50):
            is_animated(tmp_path / "a.gif")
            shown_size(tmp_path / "a.gif")
            load_image(tmp_path / "a.gif", (32, 32))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert limit == Image.MAX_IMAGE_PIXELS and set(seen) == {limit} and len(seen) == 600
