"""A video file that grows chunk by chunk and plays at every moment, also after the writer was killed.

Each chunk is appended as one whole MP4 fragment and synced to the disk (see `fragments` for why); a MediaSource player
can read along. `finalize` turns a finished file into an ordinary one with its index in front, without encoding again.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import numpy as np

from magi_lite.errors import MediaError, OutputError
from magi_lite.files import check_source, output_error, output_errors, replacing
from magi_lite.models import FPS
from magi_lite.request.settings import LIMIT_BYTES
from magi_lite.video import fragments, labels
from magi_lite.video.containers import open_media
from quant.storage.files import open_own, parse_json, write_all


class VideoWriter:
    """Writes frames to a growing MP4.

    Args:
        path: the file; its folder must exist. An existing file is replaced unless `resume`.
        size: (width, height) in pixels, even.
        fps: frames per second.
        crf: H.264 quality, 0 lossless to 51 worst.
        settings: JSON-able, put in the file's `comment` tag; read back by `read_settings`. None: nothing is put in.
        resume: keep the whole chunks of an existing file of ours, its settings included, and go on behind them.
        parameters: `fragments.parameter_sets` of the fragments to append; None: those of this encoder.

    Raises:
        OutputError: the file cannot be written, or cannot be continued.
    """

    def __init__(
        self,
        path: Path | str,
        size: tuple[int, int],
        fps: int = FPS,
        crf: int = 18,
        settings: dict[str, Any] | None = None,
        *,
        resume: bool = False,
        parameters: bytes | None = None,
    ) -> None:
        self.path, self.size, self.fps, self.crf = Path(path), size, fps, crf
        self._init = fragments.encode_init(size, fps, crf, settings, parameters)
        self.chunks = self.frames = 0
        """Whole chunks and frames in the file."""
        flags = os.O_RDWR | os.O_CREAT
        with output_errors(self.path):
            known = self._scan() if resume and self.path.exists() and not self.path.is_symlink() else None
            self._descriptor = open_own(self.path, flags if known else flags | os.O_TRUNC)
        if known:
            self._end, self.chunks, self.frames = known.end, len(known.fragments), known.frames
            self._cut()
        else:
            self._end = 0
            self._write(self._init)

    @property
    def mime(self) -> str:
        """The file's type as MediaSource wants it, codec included."""
        return fragments.mime(self._init)

    @property
    def bytes_written(self) -> int:
        """Bytes of the file that are whole: init segment and finished chunks."""
        return self._end

    def append(self, frames: np.ndarray) -> bytes:
        """Write one chunk, (T, H, W, 3) uint8 with T >= 1, and return the fragment as it stands in the file.

        Raises:
            OutputError: the disk is full or gone; the chunks before are kept.
            ValueError: the frames have another shape or type.
        """
        if frames.ndim != 4 or frames.dtype != np.uint8 or frames.shape[2:0:-1] != self.size or frames.shape[3] != 3:
            raise ValueError(f"frames must be uint8 (T, {self.size[1]}, {self.size[0]}, 3), not {frames.shape}")
        return self.append_fragment(fragments.encode_chunk(frames, self.fps, self.crf))

    def append_fragment(self, fragment: bytes) -> bytes:
        """Write a chunk that was encoded before, and return the fragment as it stands in the file.

        Raises:
            OutputError: see `append`.
        """
        placed = fragments.place(fragment, self.chunks, self.frames)
        self._write(placed)
        self.chunks += 1
        self.frames += fragments.frame_count(placed)
        return placed

    def close(self) -> None:
        """Release the file. It is complete at any moment; closing adds nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _scan(self) -> fragments.Scan:
        try:
            known = fragments.scan(self.path)
            same = fragments.parameter_sets(known.init) == fragments.parameter_sets(self._init)
        except ValueError:
            same = False
        if not same:
            raise OutputError(f"{self.path} is not a growing video of this size and encoder; choose another name.")
        return known

    def _write(self, data: bytes) -> None:
        """Append, all or nothing."""
        try:
            write_all(self._descriptor, data)
            os.fsync(self._descriptor)
        except OSError as error:
            with contextlib.suppress(OSError):
                self._cut()
            raise output_error(error, self.path) from error
        self._end += len(data)

    def _cut(self) -> None:
        """Drop what lies behind the last whole chunk."""
        os.ftruncate(self._descriptor, self._end)
        os.lseek(self._descriptor, self._end, os.SEEK_SET)


def assemble(
    path: Path,
    pieces: list[Path],
    size: tuple[int, int],
    fps: int,
    crf: int,
    settings: dict[str, Any] | None,
    parameters: bytes | None = None,
) -> None:
    """Make `path` hold these settings and exactly these fragments, which stand where they stood; done if it does.

    A link to such a video becomes a file: who goes on writing follows none.

    Args:
        parameters: `fragments.parameter_sets` of the pieces; None: those of this encoder.

    Raises:
        OutputError: the file cannot be written.
    """
    init = fragments.encode_init(size, fps, crf, settings, parameters)
    sizes = [piece.stat().st_size for piece in pieces]
    try:
        known = None if path.is_symlink() else fragments.scan(path)
    except (OSError, ValueError):
        known = None
    if known and known.init == init and [length for _, length, _ in known.fragments] == sizes:
        return
    with (
        replacing(path) as temporary,
        VideoWriter(temporary, size, fps, crf, settings, parameters=parameters) as writer,
    ):
        for piece in pieces:
            writer.append_fragment(piece.read_bytes())


def read_settings(path: Path | str) -> dict[str, Any] | None:
    """The settings that a video was made with; None for a video that is not ours or was made without them.

    Raises:
        MediaError: the file is not a readable video.
    """
    import av

    path = Path(path)
    check_source(path, "a video")
    try:
        with open_media(path) as container:
            tags = {name.lower(): tag for name, tag in container.metadata.items()}  # Matroska has upper case
            comment = tags.get("comment", "")
    except (av.FFmpegError, OSError, ValueError):
        raise MediaError(f"{path.name} cannot be read as a video; give an MP4 file.") from None
    if len(comment) > LIMIT_BYTES:
        raise MediaError(f"{path.name} carries settings of {len(comment)} characters; {LIMIT_BYTES} is the most read.")
    try:
        data = parse_json(comment)
    except (ValueError, RecursionError):
        return None
    settings = data.get("settings") if isinstance(data, dict) and "magi_lite" in data else None
    return settings if isinstance(settings, dict) else None


def finalize(path: Path | str, target: Path | str | None = None) -> Path:
    """Rewrite a finished video with its index in front, which every player and site takes; nothing is encoded again.

    Args:
        path: a video of ours.
        target: where the result goes, whole or not at all; None: in place.

    Raises:
        OutputError: the target cannot be written.
        MediaError: the video cannot be read.
    """
    import av

    path = Path(path)
    target = Path(target) if target else path
    try:
        with replacing(target) as temporary:
            temporary.touch()  # so that a folder that refuses says so itself
            _remux(path, temporary)
            with temporary.open("r+b") as file:
                labels.label_mp4(file, labels.xmp())
    except av.InvalidDataError:
        raise MediaError(f"{path.name} cannot be read as a video; give an MP4 file.") from None
    return target


def _remux(path: Path, target: Path) -> None:
    """Copy the packets of a video into an ordinary MP4 with its index in front."""
    import av

    with (
        open_media(path) as source,
        av.open(str(target.absolute()), "w", format="mp4", options={"movflags": "+faststart"}) as output,
    ):
        output.metadata.update({k: v for k, v in source.metadata.items() if k in ("comment", "title")})
        stream = output.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                output.mux(packet)
