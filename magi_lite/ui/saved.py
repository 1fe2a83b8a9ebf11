"""Settings that the user keeps under a name: everything of the form but prompts, blocks, files and the seed."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import gradio as gr

from magi_lite.errors import InputError
from magi_lite.jobs import JobQueue
from magi_lite.request import presets
from magi_lite.request.request import STYLES
from magi_lite.ui import form
from magi_lite.ui.expose import in_toast
from magi_lite.ui.fills import INNER, fills

if TYPE_CHECKING:
    from magi_lite.ui.events import Handlers

NOT_SAVED = ("mode", "source", "prompt", "timeline", "seed")
CLOSED = ("quality", "fit", *form.OVERRIDES)
"""Lists that take no other value than those they show."""
KEPT_AS_IT_IS = "\x00"
"""Comes in place of a name that shall not be replaced."""
SAVE_JS = """async (name, ...values) => {
  await magiReady;
  const known = await magi.form.saved(), wanted = name.trim().split(/\\s+/).join(' ');
  const may = !known.includes(wanted) || await magi.sure(
    'Replace settings', `There are settings called ${wanted}. Replace them?`, 'Replace');
  return [may ? name : '\\0', ...values];
}"""
DELETE_JS = """async (name) => {
  await magiReady;
  return [name && await magi.sure('Delete settings', `Delete the settings called ${name}?`, 'Delete') ? name : null];
}"""
ASKING: dict[str, Any] = {**INNER, "trigger_mode": "multiple"}
"""Of events whose next click says something else, as after a "no", another name or a refusal: it counts, though the
answer to the one before may still be under way."""
KEPT = tuple(name for name in form.FIELDS if name not in NOT_SAVED)


class Saved:
    """Named settings, kept with the queue."""

    def __init__(self, queue: JobQueue) -> None:
        self._queue = queue

    def all(self) -> dict[str, dict[str, Any]]:
        """Settings by name."""
        return {name: kept for name, kept in self._queue.setting("saved", {}).items() if isinstance(kept, dict)}

    def names(self) -> list[str]:
        return sorted(self.all())

    def put(self, name: str, values: dict[str, Any]) -> None:
        """Keep settings under a name; an earlier one of that name is replaced."""
        self._queue.set_setting("saved", {**self.all(), name: values})

    def delete(self, name: str) -> None:
        """Forget settings; a page that began with them begins with the machine's defaults."""
        if self._queue.setting("at_start") == name:
            self.choose_start(None)
        self._queue.set_setting("saved", {key: value for key, value in self.all().items() if key != name})

    def rename(self, old: str, new: str) -> None:
        """Give settings another name; the page's start follows.

        Raises:
            InputError: there are none of the old name, or some of the new one.
        """
        known = self.all()
        if old not in known:
            raise InputError("Choose the settings to rename from the list first.")
        if new in known and new != old:
            raise InputError(f"There are settings called {new} already; choose another name.")
        self._queue.set_setting("saved", {new if name == old else name: values for name, values in known.items()})
        if self._queue.setting("at_start") == old:
            self.choose_start(new)

    def choose_start(self, name: str | None) -> None:
        """Load these settings whenever the page opens; None: the machine's defaults."""
        self._queue.set_setting("at_start", name)

    def at_start(self) -> dict[str, Any]:
        """The values to begin with."""
        return usable(self.all().get(self._queue.setting("at_start", ""), {}))


def usable(values: dict[str, Any]) -> dict[str, Any]:
    """Saved values that the form can show: a profile that is gone, or a choice of another version, would block it."""
    kept = {}
    for name, value in values.items():
        if name not in KEPT:
            continue
        offered = ["auto", *presets.names()] if name == "preset" else form.choices(name) if name in CLOSED else [value]
        if name == "styles" and isinstance(value, list):
            kept[name] = [style for style in value if style in STYLES]
        elif value in offered:
            kept[name] = value
    return kept


def wire(store: Saved, h: Handlers, begin: Callable[[], None]) -> None:
    """Connect the list of saved settings with the form; `begin` is called when the page may begin with others."""
    w = h.w
    kept = [w[name] for name in KEPT]

    def rename(old: str | None, name: str) -> tuple[Any, ...]:
        """Give the chosen settings the name that was typed."""
        name = " ".join((name or "").split())
        if not name:
            raise InputError("Type the new name first.")
        store.rename(old or "", name)
        return gr.update(choices=store.names(), value=name), ""

    def save(name: str, *values: Any) -> tuple[Any, ...]:
        """Keep the form's settings under a name."""
        name = " ".join((name or "").split())
        if name == KEPT_AS_IT_IS:
            return gr.skip(), gr.skip()
        if not name:
            raise InputError("Give the settings a name first.")
        store.put(name, dict(zip(KEPT, values, strict=True)))
        begin()
        return gr.update(choices=store.names(), value=name), ""

    def load(name: str | None) -> list[Any]:
        """Bring saved settings into the form."""
        values = usable(store.all().get(name or "", {}))
        return [values.get(key, gr.skip()) for key in KEPT]

    def delete(name: str | None) -> Any:
        """Forget saved settings; no name is none."""
        if not name:
            return gr.skip()
        store.delete(name)
        begin()
        return gr.update(choices=store.names(), value=None)

    def at_start(name: str | None) -> None:
        """Open the page with these settings from now on."""
        store.choose_start(name)
        begin()
        what = f"“{in_toast(name)}” from now on" if name else "the machine's defaults"
        gr.Info(f"The page opens with {what}.")

    w["save"].click(save, [w["saved_name"], *kept], [w["saved"], w["saved_name"]], js=SAVE_JS, **ASKING)
    w["rename_saved"].click(rename, [w["saved"], w["saved_name"]], [w["saved"], w["saved_name"]], **ASKING)
    fills(w["saved"].input, load, [w["saved"]], kept)
    w["delete_saved"].click(delete, w["saved"], w["saved"], js=DELETE_JS, **ASKING)
    w["at_start"].click(at_start, w["saved"], None, **ASKING)
    gr.on(None, lambda: gr.update(choices=store.names()), None, w["saved"], **INNER)
