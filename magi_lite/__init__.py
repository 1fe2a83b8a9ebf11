"""MAGI Lite: make videos with MAGI-1 second by second on one graphics card.

`generate`, `stream` and `plan` are the library; nothing heavy is imported before the first of them is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from magi_lite.library import Result, generate, plan, stream

__version__ = "0.2.0.dev0"
__all__ = ["Result", "__version__", "export", "generate", "plan", "stream"]
_LAZY = {
    "Result": "magi_lite.library", "generate": "magi_lite.library", "plan": "magi_lite.library",
    "stream": "magi_lite.library", "export": "magi_lite.pipeline.export",
}  # fmt: skip
"""Where each public name is defined."""


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
