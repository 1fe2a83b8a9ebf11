"""The video where the user wants it: the same growing file while the run goes on, an ordinary MP4 at the end."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from magi_lite.files import check_output, output_errors, replacing
from magi_lite.project import Project


class Delivery:
    """Keeps `out` in step with a project's video.

    A hard link where the disk allows it, so that nothing is written twice; a copy after every second elsewhere.

    Args:
        project: whose video it is.
        out: the file wanted; None: the project's own is enough.

    Raises:
        OutputError: the file could not be written.
    """

    def __init__(self, project: Project, out: Path | None) -> None:
        self._project, self._out = project, out
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
        with output_errors(out), replacing(out) as temporary:
            try:
                os.link(source, temporary)
            except OSError:  # another disk, or one without links
                shutil.copyfile(source, temporary)

    def finish(self) -> None:
        """Write the whole video with its index in front; nothing is encoded again."""
        if self._out is not None and self._project.chunks:
            self._project.export(self._out)
