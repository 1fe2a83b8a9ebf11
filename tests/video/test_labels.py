"""Every file we write says that a trained model made it, with or without settings."""

import io
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from magi_lite.video import fragments, labels
from magi_lite.video.thumbnails import save_image, to_jpeg, to_png
from magi_lite.video.writer import VideoWriter, finalize, read_settings

SAID = b"http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
PICTURE = np.arange(48 * 64 * 3, dtype=np.uint8).reshape(48, 64, 3)


def xmp_of(image):
    """The packet as Pillow, which knows where each kind of picture keeps it, finds it."""
    found = image.info.get("xmp") or image.info.get("XML:com.adobe.xmp", "")
    return found.encode() if isinstance(found, str) else found


def test_the_growing_video_and_the_finished_one(tmp_path, frames):
    path = tmp_path / "a.mp4"
    with VideoWriter(path, (64, 48)) as writer:
        assert SAID in path.read_bytes(), "from the first byte on"
        writer.append(frames(24))
    assert read_settings(path) is None
    assert SAID in fragments.scan(path).init, "and what continues the file keeps it"
    assert SAID in finalize(path, tmp_path / "b.mp4").read_bytes()


def test_pictures(tmp_path):
    save_image(tmp_path / "a.png", PICTURE)
    save_image(tmp_path / "a.jpg", PICTURE)
    for name in ("a.png", "a.jpg"):
        with Image.open(tmp_path / name) as image:
            assert SAID in xmp_of(image), name
    assert SAID in xmp_of(Image.open(io.BytesIO(to_jpeg(PICTURE))))


def test_settings_are_in_it_only_where_wanted():
    assert b"seed" not in labels.xmp()
    png = to_png(PICTURE, {"seed": 5, "prompt": "<a & b>"})
    with Image.open(io.BytesIO(png)) as image:
        assert b"seed" in xmp_of(image)
        assert ElementTree.fromstring(xmp_of(image)).tag == "{adobe:ns:meta/}xmpmeta", "well-formed"
        assert np.array_equal(np.asarray(image), PICTURE)
