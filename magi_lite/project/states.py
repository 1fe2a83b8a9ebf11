"""The sampler's states of a run: one file per stage, from which the run goes on to the same bits."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from magi_lite.finite import check_finite, is_finite
from magi_lite.project.folder import move_aside, numbers_in, share
from magi_lite.project.record import Record
from magi_lite.project.tensors import Damaged, load_tensors, read_numbers, read_start, save_tensors
from quant.storage.files import parse_json

if TYPE_CHECKING:
    from torch import Tensor


_ORIGIN = "origin"
"""Entry of a state's header; earlier versions wrote none, and what has none is taken as it is."""
_ASKED = "asked"
"""Another, see `record.Record.asked`; what has none is taken as it is where the run knows none either."""


class StateLike(Protocol):
    """What can be saved: `position` JSON-able, `tensors` by name."""

    @property
    def position(self) -> dict[str, Any]: ...

    @property
    def tensors(self) -> dict[str, Tensor]: ...


@dataclass(frozen=True, eq=False)
class SavedState:
    """A sampler's state after stage `stage`: in the shot it is of, all seconds to that number had entered the window.

    Stages are counted from the shot's first second on, so those in which the last seconds of a shot become clean, and
    none enters, have the numbers of stages of the next shot, which replace them.
    """

    stage: int
    position: dict[str, Any]
    tensors: dict[str, Tensor]

    @property
    def shot(self) -> int:
        """The second with which the shot begins that it is in the middle of."""
        return self.position.get("shot", 0)

    @property
    def end(self) -> int | None:
        """The second at which the shot ended that it was made for; None: endless."""
        return _end_of(self.position)

    def latents(self, second: int) -> Tensor | None:
        """The clean latents (1, C, t, H, W) of a second that the sampler still held, or None."""
        return self.tensors.get(_name_of(self.position, second))


def _origin_of_chunks(position: dict[str, Any]) -> int:
    """The second that would have the sampler's chunk number 0."""
    origin: int = position.get("shot", 0) - position.get("offset", 0) + position.get("kept", 0)
    return origin


def _end_of(position: dict[str, Any]) -> int | None:
    """See `SavedState.end`."""
    total = position.get("total")
    return None if total is None else _origin_of_chunks(position) + int(total)


def _name_of(position: dict[str, Any], second: int) -> str:
    """What a state calls the clean latents of a second."""
    return f"clean.{second - _origin_of_chunks(position)}"


class States:
    """The states in a folder.

    Args:
        folder: holds `00000.safetensors` for stage 0, and so on.
        record: of the run.
    """

    def __init__(self, folder: Path, record: Callable[[], Record]) -> None:
        self.folder, self._record = folder, record

    def path(self, stage: int) -> Path:
        return self.folder / f"{stage:05}.safetensors"

    def stages(self) -> list[int]:
        """Stages with a file, in order."""
        return numbers_in(self.folder, "safetensors")

    def save(self, stage: int, state: StateLike) -> None:
        """Store a state.

        Raises:
            CheckpointError: the transformer made no numbers of it.
            OutputError: the disk refuses.
        """
        for tensor in state.tensors.values():  # here, where they lie in host memory: the sampler waits for no result
            check_finite(tensor, "The transformer")
        if self.path(stage).is_dir():
            move_aside(self.path(stage))
        header = {"position": json.dumps(state.position)}
        header |= {_ORIGIN: self._record().origin, _ASKED: self._asked(stage, state.position)}
        save_tensors(self.path(stage), state.tensors, {name: value for name, value in header.items() if value})

    def read(self, stage: int) -> SavedState | None:
        """The state after `stage`; None where there is none, or it is damaged or another run's."""
        try:
            tensors, metadata = load_tensors(self.path(stage))
            position = parse_json(metadata["position"])
        except (Damaged, KeyError, ValueError, RecursionError):
            return None
        if not _is_position(position) or self._is_foreign(stage, metadata, position):
            return None
        finite = all(map(is_finite, tensors.values()))  # not made by damaged weights
        return SavedState(stage, position, tensors) if finite else None

    def held(self, second: int) -> bytes | None:
        """The bytes of a second's clean latents in a state that still holds them, or None. Needs no torch."""
        for stage in self.stages():
            if stage < second:
                continue
            with contextlib.suppress(Damaged, KeyError, ValueError, RecursionError):
                metadata, shapes = read_start(self.path(stage))
                position = parse_json(metadata["position"])
                if not _is_position(position) or self._is_foreign(stage, metadata, position):
                    continue
                name = _name_of(position, second)
                if name in shapes:
                    return read_numbers(self.path(stage), name)[1]
        return None

    def foreign(self) -> list[int]:
        """Stages whose states are another run's, as their headers say."""
        found = []
        for stage in self.stages():
            with contextlib.suppress(Damaged, KeyError, ValueError, RecursionError):
                metadata, _ = read_start(self.path(stage))
                position = parse_json(metadata["position"])
                if _is_position(position) and self._is_foreign(stage, metadata, position):
                    found.append(stage)
        return found

    def _asked(self, stage: int, position: dict[str, Any]) -> str:
        """What its run asks for, see `Record.asked`, of the last second that has entered the window by a stage."""
        end = _end_of(position)
        return self._record().asked_for(stage if end is None else min(stage, end - 1))

    def _is_foreign(self, stage: int, metadata: dict[str, str], position: dict[str, Any]) -> bool:
        """Whether a state's header says that it is another run's."""
        origin, asked = self._record().origin, self._asked(stage, position)
        other_origin = bool(origin) and metadata.get(_ORIGIN, origin) != origin
        return other_origin or (bool(asked) and metadata.get(_ASKED) != asked)

    def prune(self, keep: int) -> None:
        """Drop all but the newest `keep`."""
        stages = self.stages()
        self.drop(stages[: max(0, len(stages) - keep)])

    def drop(self, stages: list[int]) -> None:
        """Delete states, the newest first, so that a crash on the way leaves older ones."""
        for stage in sorted(stages, reverse=True):
            self.path(stage).unlink(missing_ok=True)

    def share(self, target: Path, before: int) -> None:
        """Link the states of stages before `before` into another run's folder."""
        for stage in self.stages():
            if stage < before:
                with contextlib.suppress(FileNotFoundError):  # a running endless video has just let it go
                    share(self.path(stage), target / self.path(stage).name)


def _is_position(position: Any) -> bool:
    """Whether what places a state in time is of its kind; the sampler checks the rest."""
    if not isinstance(position, dict):
        return False
    numbers = [position[name] for name in ("next_stage", "offset", "kept", "shot") if name in position]
    numbers += [] if position.get("total") is None else [position["total"]]
    return all(type(number) is int and number >= 0 for number in numbers)
