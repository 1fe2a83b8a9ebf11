"""What every video and picture of ours says of itself: that a model made it, and, where wanted, with which settings.

The first is the IPTC digital source type "trainedAlgorithmicMedia" in an XMP packet (IPTC Photo Metadata Standard, and
ISO 16684-1 for the packet), placed where each kind of file keeps XMP (XMP specification, part 3): a `uuid` box in MP4
and MOV, a tag in Matroska, an `iTXt` chunk in PNG, tag 700 in TIFF, a segment in JPEG, a chunk in WebP, an application
extension in GIF. No reader has to decode anything to find it.
"""

from __future__ import annotations

import json
import struct
import zlib
from typing import Any
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


def label_gif(data: bytes, packet: bytes) -> bytes:
    """A GIF with a packet in front of its end, closed by the descending bytes that let old readers skip it."""
    trailer = b"\x01" + bytes(range(255, -1, -1)) + b"\x00"
    return data[:-1] + b"\x21\xff\x0bXMP DataXMP" + packet + trailer + data[-1:]


def label_webp(data: bytes, packet: bytes) -> bytes:
    """An extended WebP (every animation is one) with a packet at its end and its flag set."""
    if data[12:16] != b"VP8X":
        raise ValueError("not an extended WebP")
    flags = data[20] | 0x04
    chunk = b"XMP " + struct.pack("<I", len(packet)) + packet + b"\0" * (len(packet) % 2)
    body = data[8:20] + bytes([flags]) + data[21:] + chunk
    return b"RIFF" + struct.pack("<I", len(body)) + body
