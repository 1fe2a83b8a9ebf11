"""The command line's options as the arguments of an action: one table decides what programs may ask for."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from magi_lite.request.request import OPTIONS

_FIRST = (
    "prompt", "seconds", "timeline", "image", "video", "width", "height", "seed", "quality", "model", "preset",
    "styles", "quality_token", "duration_token",
)  # fmt: skip
"""The API's first arguments, in the order that programs may count on."""
_HINTS: dict[str, Any] = {
    "whole": int | None, "number": float | None, "switch": bool | None, "names": list[str] | None,
    "path": str | dict[str, Any] | None,
}  # fmt: skip
"""How an option's kind is announced to programs; all others are text."""


def takes_options(action: Callable[..., Any]) -> Callable[..., Any]:
    """Give a method every option as an argument, but for places on the app's computer."""
    public = [name for name, option in OPTIONS.items() if not (option.local or option.hidden)]
    found = [inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=Any)]
    for name in sorted(public, key=lambda name: _FIRST.index(name) if name in _FIRST else len(_FIRST)):
        hint = _HINTS.get(OPTIONS[name].kind, str | None)
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        found.append(inspect.Parameter(name, kind, default="" if name == "prompt" else None, annotation=hint))
    action.__signature__ = inspect.Signature(found, return_annotation=dict[str, Any])  # type: ignore[attr-defined]
    action.__annotations__ = {one.name: one.annotation for one in found[1:]} | {"return": dict[str, Any]}
    return action
