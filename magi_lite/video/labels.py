"""What every video and picture of ours says of itself: that a model made it, and, where wanted, with which settings.

The first is the IPTC digital source type "trainedAlgorithmicMedia" in an XMP packet (IPTC Photo Metadata Standard, and
ISO 16684-1 for the packet), placed where each kind of file keeps XMP (XMP specification, part 3): a `uuid` box in MP4
and MOV, a tag in Matroska, an `iTXt` chunk in PNG, tag 700 in TIFF, a segment in JPEG, a chunk in WebP, an application
extension in GIF. No reader has to decode anything to find it.
"""

from __future__ import annotations

import io
import json
import struct
import zlib
from typing import Any, BinaryIO
from xml.sax.saxutils import escape

from magi_lite import __version__

SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
"""IPTC's name for media made by a trained model."""
SOURCE_TAG = "DIGITALSOURCETYPE"
"""The same as a tag, for containers that have tags and no place for XMP."""
_XMP_BOX = bytes.fromhex("be7acfcb97a942e89c71999491e3afac")
_PACKET = (
    '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description rdf:about="" xmlns:xmp="http://ns.adobe.com/xap/1.0/" xmlns:dc="http://purl.org/dc/elements/1.1/"'
    ' xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/">'
    "<xmp:CreatorTool>{tool}</xmp:CreatorTool>"
    "<Iptc4xmpExt:DigitalSourceType>{source}</Iptc4xmpExt:DigitalSourceType>{description}"
    '</rdf:Description></rdf:RDF></x:xmpmeta><?xpacket end="w"?>'
)
_DESCRIPTION = '<dc:description><rdf:Alt><rdf:li xml:lang="x-default">{}</rdf:li></rdf:Alt></dc:description>'


def comment(settings: dict[str, Any]) -> str:
    """Settings as the `comment` tag of a video holds them."""
    return json.dumps({"magi_lite": __version__, "settings": settings})


def xmp(settings: dict[str, Any] | None = None) -> bytes:
    """An XMP packet: made by a trained model, by which program, and with which settings if they are given."""
    description = "" if settings is None else _DESCRIPTION.format(escape(comment(settings)))
    tool = escape(f"magi_lite {__version__}")
    return _PACKET.format(tool=tool, source=SOURCE_TYPE, description=description).encode()


def mp4_box(packet: bytes) -> bytes:
    """A packet as a box that stands at the top level of an MP4 or MOV file."""
    return struct.pack(">I4s", 24 + len(packet), b"uuid") + _XMP_BOX + packet


def label_png(data: bytes, packet: bytes) -> bytes:
    """A PNG with a packet behind its header."""
    content = b"iTXt" + b"XML:com.adobe.xmp\0\0\0\0\0" + packet
    chunk = struct.pack(">I", len(content) - 4) + content + struct.pack(">I", zlib.crc32(content))
    end_of_header = 8 + 25
    return data[:end_of_header] + chunk + data[end_of_header:]


def label_tiff(data: bytes, packet: bytes) -> bytes:
    """A little-endian TIFF of one picture with a packet: its directory is written anew at the end, tags in order."""
    (start,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, start)
    entries = [data[start + 2 + 12 * i : start + 14 + 12 * i] for i in range(count)]
    body = data + b"\0" * (len(data) % 2)
    entries.append(struct.pack("<HHII", 700, 1, len(packet), len(body)))
    entries.sort(key=lambda entry: struct.unpack_from("<H", entry)[0])
    body += packet + b"\0" * (len(packet) % 2)
    directory = struct.pack("<H", len(entries)) + b"".join(entries) + struct.pack("<I", 0)
    return body[:4] + struct.pack("<I", len(body)) + body[8:] + directory


def label_mp4(file: BinaryIO, packet: bytes) -> None:
    """Put a packet at the end of an MP4 or MOV file, where no offset in it moves."""
    file.seek(0, io.SEEK_END)
    file.write(mp4_box(packet))


def label_gif(file: BinaryIO, packet: bytes) -> None:
    """Put a packet in front of a GIF's end, closed by the descending bytes that let old readers skip it."""
    file.seek(-1, io.SEEK_END)
    end = file.read(1)
    file.seek(-1, io.SEEK_END)
    file.write(b"\x21\xff\x0bXMP DataXMP" + packet + b"\x01" + bytes(range(255, -1, -1)) + b"\x00" + end)


def label_webp(file: BinaryIO, packet: bytes, size: tuple[int, int]) -> None:
    """Put a packet at the end of a WebP of `size` (width, height), which becomes an extended one if it is none."""
    file.seek(12)
    body = bytearray(file.read())
    if body[:4] != b"VP8X":
        canvas = b"".join((side - 1).to_bytes(3, "little") for side in size)
        body = bytearray(b"VP8X" + struct.pack("<II", 10, 0) + canvas) + body
    body[8] |= 0x04
    body += b"XMP " + struct.pack("<I", len(packet)) + packet + b"\0" * (len(packet) % 2)
    file.seek(4)
    file.write(struct.pack("<I", 4 + len(body)) + b"WEBP" + body)
