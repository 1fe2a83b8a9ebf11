"""Files that pages and programs name: which of them they may name, and what each is."""

from __future__ import annotations

import base64
from dataclasses import replace
from pathlib import Path
from typing import Any

from magi_lite.errors import InputError
from magi_lite.files import is_file, is_there
from magi_lite.request.request import GenerationRequest
from magi_lite.sentences import shown
from magi_lite.timeline import Segment, Timeline
from magi_lite.timeline.edit import with_pictures
from magi_lite.ui import uploads
from magi_lite.ui.library import Library, file_url

_DRAWN_PIXELS = 320
"""Longer side of what is drawn for a page: twice what the largest place for it has."""


class Given:
    """What was uploaded, and what runs made; nothing else of this computer is looked at.

    `folder`: where uploaded files are kept.
    """

    def __init__(self, library: Library) -> None:
        self._library = library
        self.folder = library.folder / ".uploads"

    def may_be_named(self, path: str) -> bool:
        """Whether a page may name this file."""
        return self._library.holds(path)

    def look_at(self, path: str | dict[str, Any], name: str = "") -> dict[str, Any]:
        """An uploaded file, kept, as the form's source.

        Raises:
            InputError: it was not uploaded. MediaError: it cannot be used.
        """
        if isinstance(path, dict):
            name = name or str(path.get("orig_name") or "")
            path = str(path.get("path", ""))
        name = Path(name or str(path)).name
        uploaded = uploads.received(str(path))
        found = uploads.look_at(uploaded, name)
        kept = uploads.keep(uploaded, name, self.folder)
        return {**found, "path": str(kept), "url": file_url(kept)}

    def drawn(self, path: str) -> str:
        """A small JPEG, as a data URL, of a picture or a clip's last frame, for browsers that cannot draw the file.

        Raises:
            InputError: the file is not one that a page may name, or is gone. MediaError: it cannot be used.
        """
        from magi_lite.video.look import small_frame
        from magi_lite.video.thumbnails import to_jpeg

        if not self.may_be_named(path) or not is_file(path):
            raise InputError(f"There is no file {shown(path)} in the projects folder.")
        jpeg = to_jpeg(small_frame(Path(path), _DRAWN_PIXELS), made=False)
        return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()

    def source(self, file: str | dict[str, Any], kind: str) -> dict[str, Any]:
        """The form's source for an uploaded file, or for the path of one inside the projects folder.

        Raises:
            InputError: it lies elsewhere, does not exist, or is of another kind.
            MediaError: it cannot be used.
        """
        if not isinstance(file, str | dict):
            raise InputError(f"{kind} must be a file of yours or the path of one, not {shown(file)}.")
        if isinstance(file, dict):
            source = self.look_at(file)
        else:
            if not self._library.holds(file) or not is_file(file):
                raise InputError(f"{file} is no file of the projects folder; upload yours with handle_file.")
            found = Path(file).resolve()
            source = {**uploads.look_at(found, found.name), "path": str(found)}
        if source["kind"] != kind:
            raise InputError(f"{source['name']} is no {kind}; give it as {source['kind']}.")
        return source

    def check_pictures(self, timeline: Timeline) -> None:
        """Refuse a block's picture that was neither uploaded nor made by a run, before it is looked at.

        Raises:
            InputError: names the block.
        """
        for segment in timeline.segments:
            if segment.image is not None and not self._library.holds(segment.image):
                raise InputError(
                    f"The picture {segment.image.name} of the block at {segment.start} s is no file of the projects "
                    "folder; drop it on the block again."
                )

    def check_there(self, request: GenerationRequest, *, shown: bool = True) -> None:
        """Refuse a request whose picture or clip the app had kept and is gone: a page may show it for longer.

        Args:
            shown: whether it is in the form, where another can be dropped; else it is that of a video that is made.

        Raises:
            InputError: names which.
        """
        places = [
            ("picture that the video starts from", request.image, "into the box"),
            ("clip that the video starts from", request.video, "into the box"),
            *(
                (f"picture of the block at {segment.start} s", segment.image, "on the block")
                for segment in request.timeline.segments
            ),
        ]
        for what, path, where in places:
            if self._is_gone(path):
                remedy = f"drop it {where} again" if shown else "make a new video and drop it there"
                raise InputError(f"The {what} is gone; {remedy}.")

    def _is_gone(self, path: Path | None) -> bool:
        return path is not None and self._library.holds(path) and not is_there(path)

    def own_pictures(self, timeline: Timeline) -> tuple[Timeline, str]:
        """The timeline with the pictures that lie in the folder, and a sentence about the others (empty: none).

        A block without its picture keeps the cut. Of a file elsewhere nothing is looked at.
        """
        missing = []

        def own(segment: Segment) -> Segment:
            image = segment.image
            if image is None or (self._library.holds(image) and is_file(image)):
                return segment
            missing.append(image.name)
            return replace(segment, cut=True, image=None, image_sha256=None)

        kept = with_pictures(timeline, own)
        names = ", ".join(dict.fromkeys(missing))
        return kept, f"The app does not have {names}; drop it on its block for the same video." if names else ""
