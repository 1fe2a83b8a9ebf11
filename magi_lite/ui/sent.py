"""What a page sends, checked in one place: every value is of its widget's kind before a handler sees it.

Gradio hands on to handlers whatever a request holds, and prints a traceback where one stumbles over it. Here a value of
another kind is refused in one sentence, as are the values that a handler refuses; what is left is our own mistake, and
goes to the console in full.
"""

from __future__ import annotations

from typing import Any, TypedDict

import gradio as gr
from gradio.exceptions import ComponentProcessingError

from magi_lite.errors import InputError, MagiLiteError
from magi_lite.sentences import count
from magi_lite.ui.expose import Refusal, checked, failed, in_toast
from magi_lite.ui.guard import REFUSED

_KINDS: tuple[tuple[type, Any], ...] = (
    (gr.Checkbox, bool), (gr.Number, int | float), (gr.Slider, int | float), (gr.Textbox, str), (gr.Radio, str),
)  # fmt: skip


class _File(TypedDict):
    kind: str
    name: str
    width: int
    height: int


class Source(_File, total=False):
    """An uploaded picture or clip, as the page has it: see `uploads.look_at`."""

    path: Any
    """Looked at by `Given.may_be_named`, which says of each that it is none in the same words."""
    url: str
    info: str
    settings: dict[str, Any]
    settings_error: str


class FormEvent(TypedDict, total=False):
    """What the form's events bring; see `FormPanel`."""

    job: str
    open: bool
    pictures: list[Source]


class WatchEvent(TypedDict, total=False):
    """What the stage's event brings."""

    example: str


class QueueEvent(TypedDict, total=False):
    """What the queue's event brings."""

    edit: str


class GalleryEvent(TypedDict, total=False):
    """What the gallery's event brings."""

    use: str


class CheckedBlocks(gr.Blocks):
    """A page whose handlers get what they are written for, and whose errors are sentences."""

    async def preprocess_data(self, block_fn: Any, inputs: list[Any], state: Any, explicit_call: bool = False) -> Any:
        """As Gradio's, after the check. Raises: MagiLiteError."""
        if not block_fn.fn:
            raise InputError("This is done by the page's own script, not by the app.")
        if len(inputs) < len(block_fn.inputs):
            raise InputError(f"{block_fn.name} takes {count(len(block_fn.inputs), 'value')}, not {len(inputs)}.")
        for block, value in zip(block_fn.inputs, inputs, strict=False):
            removed = value == "" and hasattr(block, "takes")  # so a page sends a panel's value that was taken away
            if not (block.stateful or removed):
                checked(_name_of(block), value, _kind_of(block))
            if value is None and isinstance(block, gr.Slider):  # the one that is never empty
                raise InputError(f"{_name_of(block)} is missing.")
        try:
            return await super().preprocess_data(block_fn, inputs, state, explicit_call)
        except gr.Error:  # Gradio's own, which repeats all that was sent
            raise InputError("A value is none of those that the page offers; load the page again.") from None
        except ComponentProcessingError as error:
            if isinstance(error.__cause__, MagiLiteError):
                raise error.__cause__ from None
            raise

    async def process_api(self, *args: Any, **options: Any) -> dict[str, Any]:
        """As Gradio's. Raises: gr.Error: a sentence; of a `Refusal` the guard is informed."""
        try:
            return await super().process_api(*args, **options)
        except Exception as error:
            shown = error if isinstance(error, gr.Error) else failed(error, in_toast)
            request = getattr(options.get("request"), "request", None)
            if request is not None and isinstance(shown, Refusal):
                request.scope[REFUSED] = True
            raise shown from None


def _kind_of(block: Any) -> Any:
    """The type of a widget's value, in which null stands for none."""
    if isinstance(block, gr.Dropdown):
        return list[str] if block.multiselect else str
    return getattr(block, "takes", None) or next((kind for known, kind in _KINDS if isinstance(block, known)), Any)


def _name_of(block: Any) -> str:
    label = getattr(block, "label", None)  # of a panel it may be an action of that name
    return label if label and isinstance(label, str) else (block.elem_id or "value").removeprefix("mg-")
