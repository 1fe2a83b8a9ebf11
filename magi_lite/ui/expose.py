"""An action as the panels' scripts call it, and as an API endpoint; both check its arguments by their type hints."""

from __future__ import annotations

import functools
import html
import inspect
import logging
import types
import typing
from collections.abc import Callable
from typing import Any, Union

import gradio as gr

from magi_lite.errors import InputError, MagiLiteError
from magi_lite.sentences import shown, whole_characters

log = logging.getLogger(__name__)
Answer = dict[str, Any]
_KINDS: dict[Any, str] = {
    str: "text", int: "a whole number", float: "a number", bool: "true or false", dict: "an object", list: "a list",
}  # fmt: skip


def sentence(error: Exception) -> str:
    """What the user reads: our own errors' sentence; anything else is our mistake and goes to the console in full."""
    if isinstance(error, MagiLiteError):
        return whole_characters(str(error))
    log.error("An action failed", exc_info=error)
    return f"The program made a mistake ({type(error).__name__}: {error}); the console has the details."


class Refusal(gr.Error):
    """What was asked for cannot be done, and the sentence why; it is nobody's mistake, so the console shows nothing."""

    def __init__(self, text: str) -> None:
        super().__init__(text, print_exception=False)


def failed(error: Exception, shown_by: Callable[[str], str] = str) -> gr.Error:
    """An action's error as Gradio sends it: a `Refusal` for our own, else our mistake, which goes to the console.

    Args:
        shown_by: what writes the sentence as whoever gets it shows it unchanged, see `in_toast`.
    """
    text = shown_by(sentence(error))
    return Refusal(text) if isinstance(error, MagiLiteError) else gr.Error(text, print_exception=False)


def in_toast(text: str) -> str:
    """A text as Gradio's messages show it unchanged: they are HTML, which could fetch pictures from elsewhere."""
    return html.escape(text, quote=False)


def in_markdown(text: str) -> str:
    """A text as Markdown shows it unchanged: every sign that could be markup becomes an entity."""
    return "".join(one if one.isalnum() or one in " .,;'" or ord(one) > 127 else f"&#{ord(one)};" for one in text)


def in_text(value: Any) -> Any:
    """An answer whose texts can be sent: half characters, as in names of files of old disks, are written out.

    A single one would turn the whole answer, such as the gallery's, into an error of the server.
    """
    if isinstance(value, str):
        return whole_characters(value)
    if isinstance(value, dict):
        return {in_text(key): in_text(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [in_text(part) for part in value]
    return value


def in_json(value: Any) -> Any:
    """A number as a page can be sent it: whole ones beyond 64 bits would end its connection to the app."""
    return float(value) if isinstance(value, int) and abs(value) >= 2**53 else value


def for_page(action: Callable[..., Answer | None]) -> Callable[[dict[str, Any] | None], Answer]:
    """The action for a panel's script: one object of arguments in, its answer or {"error": sentence} out."""

    def answer(data: dict[str, Any] | None = None) -> Answer:
        try:
            if not isinstance(data, dict | None):
                raise InputError(f"The arguments must be an object, not {shown(data)}.")
            return in_text(action(**arguments(action, (), data or {})) or {})
        except Exception as error:
            return {"error": sentence(error)}

    answer.__name__ = action.__name__
    answer.__doc__ = action.__doc__
    return answer


def for_api(action: Callable[..., Answer | None]) -> Callable[..., Answer]:
    """The action as an endpoint: typed arguments in, its answer out, errors as Gradio's own."""

    @functools.wraps(action)
    def answer(*args: Any, **kwargs: Any) -> Answer:
        try:
            return in_text(action(**arguments(action, args, kwargs)) or {})
        except Exception as error:
            raise failed(error) from None

    answer.__signature__ = inspect.signature(action)  # type: ignore[attr-defined]
    return answer


def arguments(action: Callable[..., Any], given: tuple[Any, ...], named: dict[str, Any]) -> dict[str, Any]:
    """An action's arguments by name, each of the kind that its type hint says; null stands for one left out.

    Arguments that the table of options declares are read and checked by it, not here.

    Raises:
        InputError: one is missing, unknown, or of another kind.
    """
    signature = inspect.signature(action)
    try:
        found = signature.bind(*given, **named).arguments
    except TypeError as error:
        raise InputError(f"The arguments of {action.__name__} do not fit: {error}.") from None
    if hasattr(action, "__signature__"):  # made of the table
        return found
    hints = typing.get_type_hints(action)
    return {
        name: value
        for name, value in ((name, _checked_text(name, value, hints[name])) for name, value in found.items())
        if value is not None or _may_be_none(hints[name]) or _refuse_missing(name, signature)
    }


def checked(name: str, value: Any, hint: Any) -> Any:
    """A value of the kind that a type hint says; null stays null, and is left out of objects whose keys are known.

    Raises:
        InputError: it is of another kind; the sentence calls it `name`.
    """
    if value is None or hint is Any:
        return value
    if typing.is_typeddict(hint):
        return _with_known_keys(name, value, hint)
    allowed = [typing.get_origin(one) or one for one in _alternatives(hint)]
    if int in allowed and isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        value = int(value)
    if float in allowed and isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**53:
        value = float(value)
    fits = any(isinstance(value, one) for one in allowed if isinstance(one, type))
    if not fits or (isinstance(value, bool) and bool not in allowed):
        named = [one for one in allowed if one is not type(None) and not (one is int and float in allowed)]
        kinds = " or ".join(_KINDS.get(one, one.__name__) for one in named)
        raise InputError(f"{name} must be {kinds}, not {shown(value)}.")
    if isinstance(value, list) and typing.get_origin(hint) is list:
        return [checked(f"Each of {name}", part, typing.get_args(hint)[0]) for part in value]
    return value


def _checked_text(name: str, value: Any, hint: Any) -> Any:
    value = checked(name, value, hint)
    if isinstance(value, str) and "\0" in value:
        raise InputError(f"{name} holds a character that no text has.")
    return value


def _with_known_keys(name: str, value: Any, kind: Any) -> dict[str, Any]:
    """An object whose known keys are of their kinds; others stay as they are."""
    if not isinstance(value, dict):
        raise InputError(f"{name} must be an object, not {shown(value)}.")
    hints = typing.get_type_hints(kind)
    found = {key: checked(f"{key} of {name}", part, hints.get(key, Any)) for key, part in value.items()}
    found = {key: part for key, part in found.items() if part is not None or key not in hints}
    missing = sorted(kind.__required_keys__ - found.keys())
    if missing:
        raise InputError(f"{name} lacks {missing[0]}.")
    return found


def _refuse_missing(name: str, signature: inspect.Signature) -> bool:
    """False for an argument with a default, which null stands for; raises InputError for one that is needed."""
    if signature.parameters[name].default is inspect.Parameter.empty:
        raise InputError(f"{name} is missing.")
    return False


def _may_be_none(hint: Any) -> bool:
    return type(None) in _alternatives(hint)


def _alternatives(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if typing.get_origin(hint) in (Union, types.UnionType) else (hint,)
