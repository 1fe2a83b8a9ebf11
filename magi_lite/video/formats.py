"""What a finished video can be exported to: one table, free of the libraries that write it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from magi_lite.errors import InputError


@dataclass(frozen=True)
class Format:
    """One way to write frames.

    `kind`: "video" (an encoder and a container), "animation" (the same, a picture file to most programs), "pictures"
    (a folder with a file per frame) or "frame" (one picture). `bits` is the depth of a colour. `sound` is the encoder
    of a sound track; empty: there can be none. `least` is the smallest side that the encoder bears; HEVC has no
    B-frames, because x265 gives false times to a video shorter than its reordering.
    """

    summary: str
    suffix: str
    kind: str
    codec: str
    bits: int = 8
    container: str = ""
    pixels: str = ""
    options: dict[str, str] = field(default_factory=dict)
    sound: str = ""
    least: int = 0


FORMATS: dict[str, Format] = {
    "h264": Format(
        "H.264, which plays everywhere", ".mp4", "video", "libx264", 8, "mp4", "yuv420p",
        {"crf": "14", "preset": "slow", "x264-params": "cpu-independent=1"}, "aac",
    ),
    "hevc": Format(
        "HEVC (H.265), 10-bit", ".mp4", "video", "libx265", 10, "mp4", "yuv420p10le",
        {"crf": "14", "preset": "medium", "x265-params": "log-level=error:bframes=0"}, "aac",
    ),
    "av1": Format(
        "AV1, 10-bit", ".mp4", "video", "libsvtav1", 10, "mp4", "yuv420p10le", {"crf": "16", "preset": "6"}, "aac", 64
    ),
    "prores": Format(
        "ProRes 422 HQ, 10-bit, for editing", ".mov", "video", "prores_ks", 10, "mov", "yuv422p10le",
        {"profile": "hq", "vendor": "apl0"}, "pcm_s16le",
    ),
    "ffv1": Format(
        "FFV1, lossless, 16-bit RGB", ".mkv", "video", "ffv1", 16, "matroska", "gbrp16le",
        {"level": "3", "slicecrc": "1", "g": "1"}, "flac",
    ),
    "gif": Format("GIF", ".gif", "animation", "gif", 8, "gif", "pal8"),
    "webp": Format(
        "animated WebP", ".webp", "animation", "libwebp_anim", 8, "webp", "bgra", {"quality": "90", "loop": "0"}
    ),
    "png": Format("a folder with a PNG per frame", "", "pictures", "", 8),
    "png16": Format("a folder with a 16-bit PNG per frame", "", "pictures", "png", 16),
    "tiff16": Format("a folder with a 16-bit TIFF per frame", "", "pictures", "tiff", 16),
    "frame": Format("a single frame as PNG", ".png", "frame", "", 8),
}  # fmt: skip
"""What can be written, by name."""
BY_SUFFIX = {
    ".mp4": "h264",
    ".mov": "prores",
    ".mkv": "ffv1",
    ".gif": "gif",
    ".webp": "webp",
    ".png": "frame",
    "": "png",
}
"""The format that a file's ending means where none is named; a name without one is a folder of PNGs."""
SUFFIXES = {"hevc": (".mp4", ".mov", ".mkv"), "av1": (".mp4", ".mkv"), "h264": (".mp4", ".mov", ".mkv")}
"""Endings that a format may have beside its own."""
CONTAINERS = {".mp4": "mp4", ".mov": "mov", ".mkv": "matroska"}
"""Containers by ending."""


def choose_format(to: Path | str, name: str | None = None) -> tuple[str, Path | None]:
    """The format and the target that `to` means: a format's name (then there is no target), or a file or folder.

    Raises:
        InputError: no such format, or one that a file of this ending cannot hold.
    """
    known = ", ".join(FORMATS)
    if name is not None and name not in FORMATS:
        raise InputError(f"There is no export format {name!r}; choose one of {known}.")
    if str(to) in FORMATS and name in (None, str(to)):
        return str(to), None
    target = Path(to)
    suffix = target.suffix.lower()
    if name is None:
        if suffix not in BY_SUFFIX:
            raise InputError(f"{target.name} does not end in a way that can be written; choose one of {known}.")
        return BY_SUFFIX[suffix], target
    allowed = SUFFIXES.get(name, (FORMATS[name].suffix,))
    if FORMATS[name].kind != "pictures" and suffix not in allowed:
        raise InputError(f"A file of format {name} ends in {' or '.join(allowed)}, not in {suffix or 'nothing'}.")
    return name, target


def missing_encoder(name: str) -> str:
    """The encoder of a format that the installed PyAV lacks, or nothing."""
    import av

    codec = FORMATS[name].codec
    try:
        if codec:
            av.codec.Codec(codec, "w")
    except (av.codec.codec.UnknownCodecError, ValueError):
        return codec
    return ""
