"""One action, two doors: called by the panels' scripts, and as an API endpoint."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any

import gradio as gr

from magi_lite.errors import MagiLiteError

log = logging.getLogger(__name__)
Answer = dict[str, Any]


def sentence(error: Exception) -> str:
    """What the user reads: our own errors' sentence; anything else is our mistake and goes to the console in full."""
    if isinstance(error, MagiLiteError):
        return str(error)
    log.error("An action failed", exc_info=error)
    return f"The program made a mistake ({type(error).__name__}: {error}); the console has the details."


def for_page(action: Callable[..., Answer | None]) -> Callable[[dict[str, Any] | None], Answer]:
    """The action for a panel's script: one object of arguments in, its answer or {"error": sentence} out."""

    def door(data: dict[str, Any] | None = None) -> Answer:
        try:
            return action(**(data or {})) or {}
        except Exception as error:
            return {"error": sentence(error)}

    door.__name__ = action.__name__
    door.__doc__ = action.__doc__
    return door


def for_api(action: Callable[..., Answer | None]) -> Callable[..., Answer]:
    """The action as an endpoint: typed arguments in, its answer out, errors as Gradio's own."""

    @functools.wraps(action)
    def door(*args: Any, **kwargs: Any) -> Answer:
        try:
            return action(*args, **kwargs) or {}
        except Exception as error:
            raise gr.Error(sentence(error), print_exception=False) from None

    return door
