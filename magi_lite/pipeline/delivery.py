"""The video where the user wants it: the same growing file while the run goes on, an ordinary MP4 at the end."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from magi_lite.errors import OutputError
from magi_lite.files import check_output, output_errors
from magi_lite.project import Project
from quant.storage.files import replacing, write_all


class Delivery:
    """Keeps `out` in step with a project's video.

    A hard link where the disk allows it, so that nothing is written twice. Elsewhere a copy, to which every new second
    is appended: like the video itself it plays at any moment, and after a crash too.

    Args:
        project: whose video it is.
        out: the file wanted; None: the project's own is enough.

    Raises:
        OutputError: the file could not be written.
    """

    def __init__(self, project: Project, out: Path | None) -> None:
        self._project, self._out = project, out
        self._copied: tuple[int, int] | None = None
        """Which file was copied (its number on the disk), and how many bytes of it `out` holds."""
        if out is not None:
            check_output(out)

    @property
    def video(self) -> Path:
        """The file to show."""
        return self._project.video if self._out is None else self._out

    def update(self) -> None:
        """A second was added to the project's video."""
        source, out = self._project.video, self._out
        if out is None or (out.exists() and out.samefile(source)):
            return
        with self._or_where_it_is(), output_errors(out):
            if self._copied is not None and out.exists():
                number, size = self._copied
                if source.stat().st_ino == number and out.stat().st_size == size:  # else one of them is another file
                    self._append(source, out, size)
                    return
            self._begin(source, out)

    def _begin(self, source: Path, out: Path) -> None:
        """Link, or copy as a whole."""
        with replacing(out) as temporary:
            try:
                if os.name == "nt":  # where a link of an open file cannot be renamed
                    raise OSError
                os.link(source, temporary)
            except OSError:  # another disk, or one without links
                number = source.stat().st_ino
                shutil.copyfile(source, temporary)
                self._copied = number, temporary.stat().st_size

    def _append(self, source: Path, out: Path, size: int) -> None:
        """Copy what the source has behind its first `size` bytes; all of it, or nothing where the disk refuses."""
        with source.open("rb") as file:
            file.seek(size)
            new = file.read()
        with out.open("r+b", buffering=0) as file:
            file.seek(size)
            try:
                write_all(file.fileno(), new)
                os.fsync(file.fileno())
            except OSError:
                with contextlib.suppress(OSError):
                    file.truncate(size)
                raise
        self._copied = source.stat().st_ino, size + len(new)

    def finish(self) -> None:
        """Write the whole video with its index in front; nothing is encoded again."""
        if self._out is not None and self._project.chunks:
            with self._or_where_it_is():
                self._project.export(self._out)

    @contextlib.contextmanager
    def _or_where_it_is(self) -> Iterator[None]:
        """An error of `out` says that the video itself is whole, and where."""
        try:
            yield
        except OutputError as error:
            place = self._project.video.absolute()
            raise OutputError(f"{str(error).rstrip('.')}; the finished seconds are in {place}.") from error
