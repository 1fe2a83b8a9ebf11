"""Answers of the server that fill the form, and never over what was typed since they were asked for.

Gradio sets whatever a handler answers, however long the answer took. Here an answer goes into a mailbox first; a script
then hands it on to those fields that still hold what they held when the question left the page. While an answer is
under way Gradio drops further events; here the last of them is answered afterwards.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from itertools import count
from typing import Any

import gradio as gr

QUIET: dict[str, Any] = {"show_progress": "hidden"}
INNER: dict[str, Any] = {**QUIET, "api_visibility": "private"}
"""Events that only keep the page in step; the actions have their own endpoints."""
_numbers = count()


def fills(
    event: Callable[..., Any],
    answer: Callable[..., Sequence[Any]],
    inputs: Sequence[Any],
    fields: Sequence[Any],
    others: Sequence[Any] = (),
) -> None:
    """When `event` happens, let `answer` fill `fields`, except those that were changed in the meantime.

    Args:
        event: a component's event, such as `button.click`.
        answer: takes the values of `inputs`; answers one value or update for each of `others`, then of `fields`.
        others: components that are not typed into; they are set as Gradio does.
    """
    key, inputs, fields = f"fill-{next(_numbers)}", list(inputs), list(fields)
    mailbox = gr.JSON(visible=False)

    def ask(*values: Any) -> Any:
        found = list(answer(*values[: len(inputs)]))
        plain = [_plain(field, value) for field, value in zip(fields, found[len(others) :], strict=True)]
        return (*found[: len(others)], {"values": plain}) if others else {"values": plain}

    ask.__name__ = getattr(answer, "__name__", "ask")
    ask.__doc__ = answer.__doc__
    asked = event(
        ask, inputs + fields, [*others, mailbox], js=_js(f"magi.ask('{key}', all, {len(inputs)})"),
        trigger_mode="always_last", **INNER,
    )  # fmt: skip
    names = json.dumps([(field.elem_id or "").removeprefix("mg-") for field in fields])
    asked.success(None, [mailbox, *fields], fields, js=_js(f"magi.answer('{key}', all, {names})"), **INNER)


def _js(call: str) -> str:
    """An inline handler that waits for the page's scripts."""
    return f"async (...all) => {{ await magiReady; return {call}; }}"


def skipped(fields: Sequence[Any]) -> list[Any]:
    """An answer that leaves all fields as they are."""
    return [gr.skip()] * len(fields)


def _plain(field: Any, value: Any) -> Any:
    """A value or an update as the page's script gets it; a panel's own properties go under "props"."""
    if not (isinstance(value, dict) and value.get("__type__") == "update"):
        return field.postprocess(value)
    found = {key: value[key] for key in value if key not in ("__type__", "value")}
    if found and isinstance(field, gr.HTML):
        found = {"props": found}
    if "value" in value:
        found["value"] = field.postprocess(value["value"])
    return found | {"__type__": "update"}
