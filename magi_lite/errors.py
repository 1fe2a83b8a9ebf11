"""What can go wrong for a user: one class per cause, one sentence per message.

Every message says what was wrong and what would work. Front ends print `str(error)` and exit with `exit_code`;
anything that is not a `MagiLiteError` is our own mistake and keeps its traceback.
"""

from __future__ import annotations

from quant.errors import one_line


class MagiLiteError(Exception):
    """Base of all errors that a user can cause or cure.

    Its text is one line, whatever the names in it hold: a file's name may have line ends or codes for a terminal.
    """

    exit_code = 1

    def __str__(self) -> str:
        return one_line(super().__str__())


class InputError(MagiLiteError):
    """A setting, prompt, size, seed or file given by the user cannot be used."""

    exit_code = 2


class TimelineError(InputError):
    """A timeline cannot be read or contradicts itself; the message names the segment."""


class MediaError(InputError):
    """An image or a clip cannot be read."""


class PresetError(InputError):
    """A preset does not exist or holds a value that is not legal."""


class PlanError(MagiLiteError):
    """Nothing that was asked for fits the device.

    Args:
        message: one sentence.
        choices: the nearest settings that would fit, each as a short phrase.
    """

    exit_code = 2

    def __init__(self, message: str, choices: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.choices = choices


class CheckpointError(MagiLiteError):
    """Weights are missing, damaged or of another model; the message names tensor and file."""

    exit_code = 3


class LoadCancelled(MagiLiteError):
    """The user stopped while weights were read."""


class DownloadError(MagiLiteError):
    """Weights could not be fetched."""

    exit_code = 3


class OutputError(MagiLiteError):
    """The output cannot be written: folder, permission or space."""

    exit_code = 4


class OutOfMemory(MagiLiteError):
    """Device or host memory ran out, and the smaller plan did too."""

    exit_code = 5


class Interrupted(MagiLiteError):
    """The process that made a video died or hung; what is finished is kept, and the run can be resumed."""
