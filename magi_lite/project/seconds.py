"""The finished seconds of a run on disk, and what is done where one is damaged.

A second is three files: its clean latents, its frames as an H.264 fragment, and a strip of thumbnails. The latents
carry a checksum of themselves and of the fragment, and one of all latents before them: a chain that begins with the
run's origin. The run's record lists what each second became. A second of another run, or of another version of this
one, is whole as it is, but not on the list, or breaks the chain where there is no list; it is damage too, unless it is
the same to the bit.
What is damaged is moved aside, and made again from what is whole:
the fragment from the video or by decoding the latents, the latents from a sampler's state that still held them, the
thumbnails from the fragment. Only where nothing is left of a second it has to be computed again. Nothing whole is ever
replaced.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import sys
from collections.abc import Callable, Container
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from magi_lite.errors import InputError
from magi_lite.files import write_atomic
from magi_lite.finite import check_finite
from magi_lite.models import FPS, PIXELS_PER_LATENT
from magi_lite.project.folder import move_aside, numbers_in, share
from magi_lite.project.states import States
from magi_lite.project.tensors import (
    Damaged,
    load_tensors,
    read_metadata,
    read_numbers,
    read_start,
    save_tensors,
    short_digest,
)
from quant.storage.files import open_plain, read_small

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from magi_lite.project.record import Record

LATENTS, FRAGMENT, THUMBNAILS = "safetensors", "m4s", "jpg"
KINDS = (LATENTS, THUMBNAILS, FRAGMENT)
"""In the order in which they are written: with the fragment a second is finished."""
_FRAGMENT_SUM = "fragment"
"""Entry of the latents' header: SHA-256 of the fragment beside them; empty where no fragment is known to be theirs."""
_PARAMETERS = "parameters"
"""Another: the fragment's parameter sets in hexadecimal, without which its pictures cannot be decoded."""
_BEFORE = "before"
"""Another: the chain of the second before, or the run's origin; see `_Link`. Earlier versions wrote none."""
_SHORT = len(short_digest(b""))
"""Characters of either half of a second's entry in the record's list: what `_Link.after` says, and of its frames."""
_LARGEST_GAP = 1000
"""Seconds that may be missing between others. What lies behind more is no second of this run, and each is looked at."""
_LARGEST_FRAGMENT = 1 << 30
"""Bytes: no second of video is larger."""


class _Link(NamedTuple):
    """A second's place in the chain.

    Attributes:
        header: entries of the latents' file; None where it is missing or damaged.
        before: what the second says of those before it; empty where it says nothing.
        after: what the next one has to say, a short digest of `before` and the second's own latents; empty likewise.
        stranger: whether the run's list has other latents there, or none.
        listed: whether it has these.
    """

    header: dict[str, str] | None
    before: str = ""
    after: str = ""
    stranger: bool = False
    listed: bool = False


class Seconds:
    """The seconds in a folder.

    Args:
        folder: holds `00000.safetensors`, `.m4s` and `.jpg` for second 0, and so on.
        states: of the run.
        record: of the run.
        put_on_list: puts what a second becomes on the record's list.
    """

    def __init__(
        self, folder: Path, states: States, record: Callable[[], Record], put_on_list: Callable[[int, str], None]
    ) -> None:
        self.folder, self._states, self._record, self._put_on_list = folder, states, record, put_on_list

    def path(self, index: int, kind: str) -> Path:
        return self.folder / f"{index:05}.{kind}"

    def count(self) -> int:
        """Finished seconds, from 0 on without a gap.

        Raises:
            InputError: the folder is gone.
        """
        try:
            with os.scandir(self.folder) as entries:
                names = {entry.name for entry in entries}
        except OSError as error:
            gone = isinstance(error, FileNotFoundError | NotADirectoryError)
            if gone and self.folder.parent.is_dir():  # the seconds alone: what the video still holds can be restored
                return 0
            raise InputError(f"The folder {self.folder.parent} cannot be read ({error.strerror}).") from None
        count = 0
        while {self.path(count, LATENTS).name, self.path(count, FRAGMENT).name} <= names:
            count += 1
        return count

    def write(self, index: int, latents: Tensor, frames: np.ndarray, fragment: bytes, parameters: bytes) -> bytes:
        """Store a second; of its pieces, what is there whole is kept as it is.

        Args:
            latents: (1, C, t, H, W).
            frames: (T, H, W, 3) uint8.
            fragment: the frames, encoded and placed at this second.
            parameters: the fragment's parameter sets.

        Returns:
            The fragment that is kept.

        Raises:
            CheckpointError: the transformer made no numbers of it.
            OutputError: the disk refuses.
        """
        from magi_lite.video.thumbnails import strip, to_jpeg

        check_finite(latents, "The transformer")
        path = self.path(index, FRAGMENT)
        kept, known = _read_fragment(path, index), self.parameters(index)
        if self._record().listed(index) != "" and not self._listed_fragment(index, kept):
            kept = b""
        if self._is_ours(index):
            latents = self.read_latents(index)
        fragment = kept or fragment
        header = self._new_header(index, _sum(fragment))
        if known or not kept:
            header[_PARAMETERS] = (known if kept and known else parameters).hex()
        numbers = latents.detach().cpu().contiguous().numpy().tobytes()
        self._put_on_list(index, self._digest(index, header, numbers) + short_digest(fragment))
        save_tensors(self.path(index, LATENTS), {"latents": latents}, header)
        write_atomic(self.path(index, THUMBNAILS), to_jpeg(strip(frames)))
        if not kept:
            move_aside(path)
            write_atomic(path, fragment)
        return fragment

    def read_latents(self, index: int) -> Tensor:
        """Latents (1, C, t, H, W) of a second.

        Raises:
            Damaged: they are missing or not those that were written.
        """
        tensors, _ = load_tensors(self.path(index, LATENTS))
        if "latents" not in tensors:
            raise Damaged(self.path(index, LATENTS))
        return tensors["latents"]

    def latent_shape(self, index: int) -> tuple[int, ...]:
        """(1, C, t, H, W) of a second's latents, from their file's header.

        Raises:
            Damaged: they are missing or cannot be read.
        """
        path = self.path(index, LATENTS)
        shape = read_start(path)[1].get("latents")
        if shape is None:
            raise Damaged(path)
        return shape

    def read_fragment(self, index: int) -> bytes:
        """The frames of a second, encoded.

        Raises:
            Damaged: they are missing or not those that were written.
        """
        path = self.path(index, FRAGMENT)
        fragment, header = _read_fragment(path, index), self._header(index)
        if not fragment or header is None or header.get(_FRAGMENT_SUM) not in (None, _sum(fragment)):
            raise Damaged(path)  # where the latents are, so is what vouches for the frames
        return fragment

    def parameters(self, index: int) -> bytes | None:
        """The parameter sets of a second's fragment; None where an earlier version of this program wrote it."""
        try:
            return bytes.fromhex(read_start(self.path(index, LATENTS))[0][_PARAMETERS])
        except (Damaged, KeyError, ValueError, TypeError):
            return None

    def fragments(self) -> list[Path]:
        """The fragments of all finished seconds."""
        return [self.path(index, FRAGMENT) for index in range(self.count())]

    def share(self, target: Path, before: int) -> None:
        """Link the seconds before `before` into another run's folder."""
        for index in range(before):
            for kind in KINDS:
                if self.path(index, kind).is_file():
                    share(self.path(index, kind), target / self.path(index, kind).name)

    # --- damage ------------------------------------------------------------------------------------------------------

    def damage(self) -> list[str]:
        """A phrase for every piece that is missing or damaged, such as "the frames of second 3"."""
        return [phrase for n, link in enumerate(self._links(self.end())) for phrase in self._damage_of(n, link.header)]

    def lost(
        self, video: Path, changed: Container[int], length: int | None, finished: int = 0
    ) -> dict[int, list[str]]:
        """What is missing or damaged of each second that was finished, as later ones, the video or a record say.

        Args:
            changed: see `repair`.
            length: seconds of the whole video, behind which nothing belongs to it; None: endless.
            finished: how many are on record as finished.

        Returns:
            By second, phrases such as "the frames of second 3".
        """
        in_video = _VideoPieces(video)
        whole = max(self.end(length) - 1, finished, min(len(in_video), _least(length)), self.count())
        whole = min(whole, _least(length))
        links = self._links(whole)
        foreign = self._foreign(links, in_video, changed)
        return {n: phrases for n, link in enumerate(links) if (phrases := self._damage_of(n, link.header, foreign))}

    def undecoded(self) -> int | None:
        """The second behind the finished ones where its latents are whole, so that only its frames are missing."""
        index = self.count()
        return index if self._is_ours(index) else None

    def has_gap(self, length: int | None) -> bool:
        """Whether whole seconds of a video of `length` seconds lie behind one that is not finished."""
        return self.end(length) > self.count() + 1

    def repair(
        self,
        video: Path,
        changed: Container[int] = (),
        length: int | None = None,
        finished: int = 0,
        *,
        only_whole: bool = False,
    ) -> list[str]:
        """Move damaged pieces aside, and put in their place what the video and the sampler's states still hold.

        Args:
            changed: seconds of which states hold other latents than those that were emitted.
            length: seconds of the whole video; None: endless.
            finished: how many are on record as finished.
            only_whole: touch only seconds that are whole afterwards.

        Returns:
            A sentence for each second that was damaged.

        Raises:
            OutputError: the disk refuses.
        """
        in_video = _VideoPieces(video)
        found = end = self.end(length)
        shown = min(len(in_video), _least(length))
        links = self._links(max(end, shown))
        while end > max(finished, shown) and links[end - 1].stranger:  # nothing says that the run had a second there
            end -= 1
        links = links[: max(end, shown)]
        foreign = self._foreign(links[:end], in_video, changed)
        trusted = not foreign or self._vouches(in_video, foreign)
        damaged = {n: phrases for n, link in enumerate(links) if (phrases := self._damage_of(n, link.header, foreign))}
        sentences = self._clear_behind(end, found if only_whole else self._reach())
        sentences += [] if only_whole else self._clear_states()
        for index, phrases in damaged.items():
            copy = _Copy(in_video.read(index), trusted)
            held_by = None if index in changed else self._states
            if (only_whole or index >= end) and not self._restorable(index, held_by, copy, foreign):
                continue
            for kind in KINDS if index in foreign else ():
                if kind != FRAGMENT or not self._listed_fragment(index, self._fragment(index)):
                    move_aside(self.path(index, kind))
            known = self._header(index) is not None
            self._repair_latents(index, held_by, copy)
            self._repair_fragment(index, copy, known)
            how = "will be made again" if self._damage_of(index, self._header(index)) else "could be restored"
            if index in foreign:
                sentences.append(f"Second {index} was of another run; it is kept in the folder damaged, and {how}.")
            elif index < end - 1 or copy.fragment:  # else a crash came before it was finished
                sentences.append(f"{_sentence(phrases)} damaged or missing and {how}.")
        self.restore_thumbnails()
        return sentences

    def restore_thumbnails(self, most: int = sys.maxsize) -> None:
        """Make thumbnails that are missing or damaged again, from the frames of their finished seconds.

        Args:
            most: seconds that are decoded for it, the first of those that need it.

        Raises:
            OutputError: the disk refuses.
        """
        from magi_lite.video.thumbnails import strip, to_jpeg

        lost = (index for index in range(self.count()) if not _is_jpeg(self.path(index, THUMBNAILS)))
        for index in itertools.islice(lost, most):
            frames = self._frames(index)
            if frames is not None:
                path = self.path(index, THUMBNAILS)
                move_aside(path)
                write_atomic(path, to_jpeg(strip(frames)))

    def _frames(self, index: int) -> np.ndarray | None:
        """The frames (T, H, W, 3) uint8 of a finished second; None where they cannot be decoded."""
        from magi_lite.video import fragments

        try:
            height, width = (side * PIXELS_PER_LATENT for side in self.latent_shape(index)[-2:])
            init = fragments.encode_init((width, height), FPS, 18, None, self.parameters(index))
            return fragments.frames_of(init, self.read_fragment(index))
        except Exception:  # whatever a damaged file makes the reader stumble over, it is damaged
            return None

    def compared_with(self, video: Path) -> Literal["same", "more", "other"]:
        """What a growing video holds: all of these seconds or the first, more behind them, or anything else.

        Of "more", seconds may have been deleted from the folder; a video that is not there is the "same".
        """
        pieces, count = _VideoPieces(video), self.count()
        if not os.path.lexists(video):
            return "same"
        shared = range(min(len(pieces), count))
        if pieces.readable and all(pieces.read(n) == self.path(n, FRAGMENT).read_bytes() for n in shared):
            return "more" if len(pieces) > count else "same"
        return "other"

    def _clear_behind(self, end: int, until: int) -> list[str]:
        """Move aside what lies behind the video's end: extended, it would run into it, or take it for its own."""
        sentences = []
        for index in range(end, until):
            there = [path for kind in (LATENTS, FRAGMENT) if os.path.lexists(path := self.path(index, kind))]
            for path in there:
                move_aside(path)
            if there:
                names = ", ".join(path.name for path in there)
                sentences.append(f"What lay behind the video's end ({names}) was moved to the folder damaged.")
        return sentences

    def _clear_states(self) -> list[str]:
        """Move the sampler's states of other runs aside."""
        stages = self._states.foreign()
        for stage in stages:
            move_aside(self._states.path(stage))
        if not stages:
            return []
        names = ", ".join(self._states.path(stage).name for stage in stages[:3])
        more = f" and {len(stages) - 3} more" if len(stages) > 3 else ""
        return [f"States of the sampler ({names}{more}) were of another run; they are kept in the folder damaged."]

    def _restorable(self, index: int, states: States | None, copy: _Copy, foreign: Container[int]) -> bool:
        """Whether `repair` makes a damaged second whole."""
        header = None if index in foreign else self._header(index)
        if header is None:
            return self._held(index, states) is not None and bool(self._own_fragment(index, copy))
        wanted = header.get(_FRAGMENT_SUM)
        if wanted is None:
            return bool(copy.trusted)
        return wanted in [_sum(data) for data in (self._fragment(index), copy.fragment) if data]

    def _repair_latents(self, index: int, states: States | None, copy: _Copy) -> None:
        path = self.path(index, LATENTS)
        if self._header(index) is not None:
            return
        move_aside(path)
        found = self._held(index, states)
        if found is not None:  # the fragment's checksum went with the damaged file
            own = self._own_fragment(index, copy)
            save_tensors(path, {"latents": found}, self._new_header(index, _sum(own) if own else ""))

    def _own_fragment(self, index: int, copy: _Copy) -> bytes:
        """The frames of a second whose latents are lost: those on the list; without it two copies vouch for each other.

        Nothing where they are not known.
        """
        fragment = self._fragment(index)
        if self._record().listed(index):
            return next((data for data in (fragment, copy.fragment) if self._listed_fragment(index, data)), b"")
        return copy.trusted if fragment in (b"", copy.trusted) else b""

    def _listed_fragment(self, index: int, fragment: bytes) -> bool:
        """Whether a second's frames are those on the list."""
        listed = self._record().listed(index)
        return bool(listed and fragment) and str(listed)[_SHORT:] == short_digest(fragment)

    def _held(self, index: int, states: States | None) -> Tensor | None:
        """The latents of a second that one of the sampler's states still holds."""
        for stage in states.stages() if states else ():
            state = states.read(stage) if states and stage >= index else None
            found = state.latents(index) if state else None
            if found is not None and self._is_made(index, found.contiguous().numpy().tobytes()):
                return found
        return None

    def _fragment(self, index: int) -> bytes:
        return _read_fragment(self.path(index, FRAGMENT), index)

    def _repair_fragment(self, index: int, copy: _Copy, known: bool) -> None:
        """See `repair`; known: whether the latents are those that were written with the fragment."""
        path, header = self.path(index, FRAGMENT), self._header(index) or {}
        wanted, fragment = header.get(_FRAGMENT_SUM), _read_fragment(path, index)
        if wanted is None and self._record().listed(index):
            own = self._own_fragment(index, copy)
            if fragment != own:
                move_aside(path)
                if own:
                    write_atomic(path, own)
            return
        in_video = copy.trusted if wanted is None else copy.fragment
        unvouched = (b"", fragment) if known else (fragment,)  # earlier versions' latents say nothing of it
        if fragment and (in_video in unvouched if wanted is None else wanted == _sum(fragment)):
            return
        move_aside(path)
        if in_video and (not fragment if wanted is None else wanted == _sum(in_video)):
            write_atomic(path, in_video)

    def _damage_of(self, index: int, header: dict[str, str] | None, foreign: Container[int] = ()) -> list[str]:
        if index in foreign:
            return [f"the latents of second {index}", f"the frames of second {index}"]
        fragment = _read_fragment(self.path(index, FRAGMENT), index)
        phrases = [] if header is not None else [f"the latents of second {index}"]
        wanted = (header or {}).get(_FRAGMENT_SUM)
        if not fragment or wanted not in (None, _sum(fragment)):
            phrases.append(f"the frames of second {index}")
        return phrases

    def _header(self, index: int) -> dict[str, str] | None:
        """Header entries of the latents; None where they are missing or damaged."""
        try:
            return read_metadata(self.path(index, LATENTS))
        except Damaged:
            return None

    # --- seconds of other runs ---------------------------------------------------------------------------------------

    def _new_header(self, index: int, fragment_sum: str) -> dict[str, str]:
        """Header entries of latents that are written."""
        before = self._before(index)
        return {_FRAGMENT_SUM: fragment_sum} | ({_BEFORE: before} if before else {})

    def _before(self, index: int) -> str:
        """What a second has to say of those before it; empty where they say nothing."""
        record = self._record()
        if not index or not record.origin:
            return record.origin
        listed = record.listed(index - 1)
        return listed[:_SHORT] if listed else self._link(index - 1).after

    def _digest(self, index: int, header: dict[str, str], numbers: bytes) -> str:
        """See `_Link.after`; where the second says nothing of those before it, of what it would have to say."""
        before = header[_BEFORE] if _BEFORE in header else self._before(index)
        return short_digest(before.encode() + numbers)

    def _is_made(self, index: int, numbers: bytes) -> bool:
        """Whether latents are those on the list; without it any are."""
        listed = self._record().listed(index)
        return listed == "" or (listed is not None and listed[:_SHORT] == self._digest(index, {}, numbers))

    def _links(self, end: int) -> list[_Link]:
        """The seconds before `end`, each read once: a long run's latents are gigabytes."""
        return [self._link(index) for index in range(end)]

    def _link(self, index: int) -> _Link:
        try:
            header, latents = read_numbers(self.path(index, LATENTS), "latents")
        except Damaged:
            return _Link(self._header(index), stranger=self._record().listed(index) is None)
        before, listed = header.get(_BEFORE, ""), self._record().listed(index)
        if not listed and not before:
            return _Link(header, stranger=listed is None)
        after = self._digest(index, header, latents)
        if listed is None or (listed and listed[:_SHORT] != after):
            return _Link(header, stranger=True)
        return _Link(header, before, after if before else "", listed=bool(listed))

    def _foreign(self, links: list[_Link], in_video: _VideoPieces, changed: Container[int]) -> set[int]:
        """Of the first seconds, which links are given, the whole ones that were copied here from another run.

        The list tells them. Of seconds that are not on it, where the chain is whole, there are none, but for a second
        that none comes after to vouch for it. Where it is broken, a second belongs to the run if a state of the sampler
        still holds its latents; where none does, if the video has its frames; and where the video is not known to be
        the run's, if the chain leads to it from the run's origin.

        Args:
            changed: see `repair`.
        """
        end = len(links)
        wanted = [self._record().origin, *(link.after for link in links)]
        listed = {n for n, link in enumerate(links) if link.listed}
        broken = [
            n for n, link in enumerate(links) if link.before and n not in listed and wanted[n] not in ("", link.before)
        ]
        loose = (
            index
            for index, link in enumerate(links)
            if link.before
            and not link.listed
            and not (index + 1 < end and links[index + 1].before)
            and index not in changed
        )
        replaced = {index for index in loose if not self._in(in_video, index) and self._is_held(index) is False}
        replaced |= {index for index, link in enumerate(links) if link.stranger}
        if not broken:
            return replaced
        from_origin = set(range(broken[0]))
        held = {
            index: found
            for index in range(end)
            if index not in changed and (found := self._is_held(index)) is not None
        }
        certain = {index for index in range(end) if held.get(index, index in from_origin)}
        trusted = self._vouches(in_video, set(range(end)) - certain)
        foreign = replaced
        for index in range(end):
            ours = held.get(index)
            if ours is None and trusted and index < len(in_video):
                ours = self._in(in_video, index)
            if links[index].before and not (index in from_origin if ours is None else ours):
                foreign.add(index)
        return foreign - listed

    def _is_held(self, index: int) -> bool | None:
        """Whether a second has the latents that a state still holds; None: none does, or the second has no latents."""
        try:
            _, there = read_numbers(self.path(index, LATENTS), "latents")
        except Damaged:
            return None
        found = self._states.held(index)
        return None if found is None else there == found

    def _in(self, in_video: _VideoPieces, index: int) -> bool:
        """Whether a video has the frames of a second, those that its latents were written with."""
        piece, header = in_video.read(index), self._header(index) or {}
        if header.get(_FRAGMENT_SUM):
            return bool(piece) and header[_FRAGMENT_SUM] == _sum(piece)
        return piece == _read_fragment(self.path(index, FRAGMENT), index) != b""

    def _vouches(self, in_video: _VideoPieces, foreign: Container[int]) -> bool:
        """Whether a video holds seconds of this run, so that others in it are this run's as well."""
        known = (index for index in range(min(len(in_video), self.end())) if index not in foreign)
        return any(self._in(in_video, index) for index in known)

    def end(self, length: int | None = None) -> int:
        """One more than the last second of the run of which anything is there.

        Args:
            length: seconds of the whole video; what lies behind is no part of it. None: endless, of which a second
                behind others that are missing is a part where its latents are whole and on the run's list.
        """
        end = self._reach(length)
        if length is None:
            first = self.count() + 1
            while end > first and not self._is_ours(end - 1):
                end -= 1
        return end

    def _is_ours(self, index: int) -> bool:
        link = self._link(index)
        return link.header is not None and not link.stranger

    def _reach(self, length: int | None = None) -> int:
        """One more than the last second of which anything is there, but for what lies far behind all others."""
        end = 0
        for index in sorted({*numbers_in(self.folder, LATENTS), *numbers_in(self.folder, FRAGMENT)}):
            if index > end + _LARGEST_GAP or index >= _least(length):
                break
            end = index + 1
        return end


def _least(length: int | None) -> int:
    """The length of a video as a limit; that of an endless one is none."""
    return sys.maxsize if length is None else length


class _Copy(NamedTuple):
    """The fragment of a second as the video has it, and whether the video is known to be the run's."""

    fragment: bytes
    known: bool

    @property
    def trusted(self) -> bytes:
        return self.fragment if self.known else b""


def _is_jpeg(path: Path) -> bool:
    """Whether a file begins and ends as a JPEG does."""
    try:
        data = read_small(path)
    except (OSError, ValueError):
        return False
    return data.startswith(b"\xff\xd8") and data.endswith(b"\xff\xd9")


def _read_fragment(path: Path, index: int) -> bytes:
    """A file's content where it is built as fragment `index` is, else nothing (a checksum, if any, tells more)."""
    from magi_lite.video import fragments

    try:
        data = read_small(path, _LARGEST_FRAGMENT)
        kinds = [kind for kind, _, _ in fragments.boxes(data)]
        whole = kinds == [b"moof", b"mdat"] and fragments.frame_count(data) > 0 and fragments.place_of(data) == index
        return data if whole and fragments.place(data, index, 0) else b""
    except Exception:  # whatever a damaged file makes the reader stumble over, it is damaged
        return b""


class _VideoPieces:
    """The whole fragments of a growing video, read one at a time; none where it cannot be read."""

    def __init__(self, video: Path) -> None:
        from magi_lite.video import fragments

        self.video = video
        self.places: tuple[tuple[int, int, int], ...] = ()
        self.readable = True
        try:
            self.places = fragments.scan(video).fragments
        except Exception:  # as above
            self.readable = False

    def __len__(self) -> int:
        return len(self.places)

    def read(self, index: int) -> bytes:
        """Fragment `index`; nothing where there is none."""
        if index >= len(self.places):
            return b""
        offset, size, _ = self.places[index]
        with open_plain(self.video) as file:
            file.seek(offset)
            return file.read(size)


def _sum(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _sentence(phrases: list[str]) -> str:
    """The phrases as the beginning of a sentence, with its verb."""
    text = " and ".join(phrases)
    return f"{text[0].upper()}{text[1:]} were"
