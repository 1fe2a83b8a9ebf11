"""What happens when something is pressed, dropped or changed: handlers that turn the form into actions and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import gradio as gr

from magi_lite.errors import InputError, MagiLiteError
from magi_lite.files import is_file
from magi_lite.models import MODELS
from magi_lite.request.build import DEMO, SEED_LIMIT, models_on_disk, with_defaults
from magi_lite.request.request import GenerationRequest
from magi_lite.request.settings import settings_from_data
from magi_lite.timeline import Segment, Timeline
from magi_lite.timeline.edit import clip, with_pictures
from magi_lite.ui import form
from magi_lite.ui.actions import Actions
from magi_lite.ui.create import Widgets
from magi_lite.ui.examples import Example
from magi_lite.ui.expose import in_json, in_markdown, in_text, in_toast, sentence
from magi_lite.ui.fills import INNER, fills, skipped
from magi_lite.ui.library import Library
from magi_lite.ui.machine import Machine, download_gb

SIZE_NOTE_JS = "(w, h, seed) => [{ note: `${w} × ${h}, ${seed >= 0 ? `seed ${seed}` : 'a new seed each time'}` }]"
"""What the closed section "Size and seed" shows of itself."""
LENGTH_JS = """(length, endless) => {
  const seconds = endless ? 0 : Math.max(1, Math.floor(length) || 1);
  return [{ __type__: "update", props: { seconds } }];
}"""
"""The timeline's length follows the fields, and nothing else: answers that fill it may come after one was typed. Blocks
beyond it stay."""
OF_DEMO = (
    "The demo model is small and soft: it moves a camera, light and weather over a picture. Write "
    '"a photograph camera pans left" or "a photograph at night in snow". '
    "For other prompts take a model of the System tab."
)
"""What a picture leads to where only the demo model is there."""
NOTE_JS = "async (...all) => { await magiReady; magi.form.note(all); return []; }"
RESTORE_JS = "async (...all) => { await magiReady; return magi.form.restore(all); }"


class Handlers:
    """The handlers of one page, over the app's actions."""

    def __init__(
        self, widgets: Widgets, actions: Actions, library: Library, machine: Machine, examples: dict[str, Example]
    ) -> None:
        self.w, self.actions, self.library, self.machine, self.examples = widgets, actions, library, machine, examples

    # --- form <-> request

    def request(self, *values: Any) -> GenerationRequest:
        """The form's request."""
        named = within(dict(zip(form.FIELDS, values, strict=True)))
        last = self.library.last_video() if named["mode"] == form.LAST else None
        return form.to_request(named, models_folder=self.machine.models_folder, last_video=last)

    def missing(self, request: GenerationRequest) -> dict[str, Any] | None:
        """What the stage asks where the request's model must be downloaded first; None: it is here."""
        if self.machine.elsewhere:
            return None
        place = self.machine.without_tokens(request.model)
        if place is not None:
            words = f"The special tokens of {request.model}, one small file, are not in {place}."
            sentence = f"{words} Download them, or copy special_tokens.npz there."
            return {"missing": request.model, "size": "3 MB", "sentence": sentence}
        if request.model not in MODELS or request.model in models_on_disk(self.machine.models_folder):
            return None
        return {
            "missing": request.model,
            "size": f"{download_gb(request.model):.0f} GB",
            "sentence": f"The model {request.model} is not on this computer. Download it, or choose another model.",
        }

    def say_what_is_left_out(self, values: Sequence[Any]) -> None:
        """A notice for blocks that lie beyond the video's end."""
        named = dict(zip(form.FIELDS, values, strict=True))
        end = None if named["endless"] else int(named["seconds"])
        count = sum(end is not None and s.end > end for s in (named["timeline"] or Timeline()).segments)
        if count:
            what = "1 block reaches" if count == 1 else f"{count} blocks reach"
            gr.Info(f"{what} beyond second {end}: that part is left out of this video and stays on the timeline.")

    def fill(self, request: GenerationRequest, source: dict[str, Any] | None = None) -> list[Any]:
        """Values of all fields for a request."""
        timeline, without = self.actions.given.own_pictures(request.timeline)
        if without:
            gr.Warning(in_toast(without))
        request = replace(request, timeline=timeline)
        values = form.from_request(request, source=source or self._source_of(request))
        values["timeline"] = gr.update(value=values["timeline"].to_json())
        if request.models_folder is None and request.model not in self.w["model"].choices:
            values["model"] = gr.update(value=request.model)
        return [values[name] for name in form.FIELDS]

    def _source_of(self, request: GenerationRequest) -> dict[str, Any] | None:
        path = request.image or request.video
        if path is None or not self.library.holds(path) or not is_file(path):
            return None
        if str(path) != in_text(str(path)):  # no address leads to it
            return None
        from magi_lite.ui import uploads
        from magi_lite.ui.library import file_url

        found = uploads.look_at(path, path.name)
        found.pop("settings", None)
        return {**found, "path": str(path), "url": file_url(path)}

    # --- Generate

    def generate(self, *values: Any) -> tuple[Any, ...]:
        """Put the form's video into the queue and show it; one whose model is not here is not queued."""
        request = self.request(*values)
        missing = self.missing(request)
        if missing:
            return missing, gr.skip()
        same = self.actions.is_made(request)
        answer = self.actions.submit(request)
        self.say_what_is_left_out(values)
        others = [job for job in self.actions.queue()["jobs"] if job["id"] != answer["job"]]
        ahead = any(job["state"] in ("running", "waiting") for job in others)
        if ahead:
            gr.Info("Added to the queue; it starts when its turn comes.")
        return {"job": answer["job"], "ahead": ahead, "same": same}, answer["seed"]

    def several(self, event: dict[str, Any] | None, *values: Any) -> None:
        """Put a video from each of several pictures into the queue, each in its own shape.

        Where the form asks for a new seed each time, each has its own.
        """
        named = dict(zip(form.FIELDS, values, strict=True))
        sources = (event or {}).get("pictures") or []
        if not all(one and self.actions.given.may_be_named(one.get("path", "")) for one in sources):
            raise InputError("Drop the pictures into the page first.")
        requests = []
        for source in sources:
            size = form.shaped("Match image", named["width"], named["height"], (source["width"], source["height"]))
            own = {"mode": form.IMAGE, "source": source, "width": size[0], "height": size[1]}
            requests.append(self.request(*(named | own).values()))
        for request in requests:
            self.actions.submit(request)
        gr.Info(f"{len(requests)} {'videos are' if len(requests) > 1 else 'video is'} put into the queue.")

    def save_edit(self, job: str, *values: Any) -> tuple[Any, ...]:
        """Give the queued job that is being edited the form's values."""
        self.actions.edit(job, self.request(*values))
        return gr.update(visible=False), "", gr.Tabs(selected="queue")

    def plan(self, *values: Any) -> tuple[Any, str]:
        """The plan of the form's values."""
        named = dict(zip(form.FIELDS, values, strict=True))
        if not (named["prompt"] or "").strip():
            named["prompt"] = "a video"
        named = within(named)
        try:
            if named["mode"] in (form.IMAGE, form.VIDEO) and not named["source"]:
                named["mode"] = form.TEXT
            last = self.library.last_video() if named["mode"] == form.LAST else None
            request = form.to_request(named, models_folder=self.machine.models_folder, last_video=last)
            answer = self.actions.plan(request)
        except MagiLiteError as error:
            answer = {"error": sentence(error)}
        answer = answer | {"asked": {name: in_json(named[name]) for name in ("seconds", "width", "height")}}
        return answer, answer.get("sentence") or in_markdown(answer.get("error", ""))

    # --- widgets that move other widgets

    def dropped(self, source: dict[str, Any] | None, *values: Any) -> list[Any]:
        """A file came: it picks the mode; a video of ours brings its settings back."""
        if not source:
            return skipped(form.FIELDS)
        updates = dict.fromkeys(form.FIELDS, gr.skip())
        if source.get("settings"):
            try:
                request = settings_from_data(source["settings"])
                request = replace(request, models_folder=self.machine.models_folder)
                request = replace(request, timeline=with_pictures(request.timeline, _of_known_content))
                notice = f"The settings of {source['name']} are restored. Choose {form.VIDEO} to go on from it instead."
                if start := request.image or request.video:
                    notice += f" It was started from {start.name}: drop that file, too, for the same video."
                gr.Info(in_toast(notice))
                kept = {key: value for key, value in source.items() if key != "settings"}
                filled = self.fill(request, kept)
                filled[form.FIELDS.index("mode")] = form.TEXT
                return filled
            except MagiLiteError as error:
                gr.Warning(in_toast(f"The settings in {source['name']} cannot be used: {sentence(error)}"))
        if source.get("settings_error"):
            gr.Warning(in_toast(str(source["settings_error"])))
        model = values[form.FIELDS.index("model")]
        if (self.machine.model if model in (form.AUTO, None) else model) == DEMO:
            gr.Info(OF_DEMO)
        updates["mode"] = form.IMAGE if source["kind"] == "image" else form.VIDEO
        if source["kind"] == "image":
            width, height = values[form.FIELDS.index("width")], values[form.FIELDS.index("height")]
            size = (source["width"], source["height"])
            updates["width"], updates["height"] = form.shaped("Match image", width, height, size)
        return [updates[name] for name in form.FIELDS]

    def cleared(self, mode: str) -> list[str]:
        """Without a file only the modes that need none are left."""
        return [form.TEXT if mode in (form.IMAGE, form.VIDEO) else mode]

    def shape(self, shape: str, width: float, height: float, source: dict[str, Any] | None) -> tuple[Any, Any]:
        """Another shape of about the same area."""
        if not shape:
            return gr.skip(), gr.skip()
        image = (source["width"], source["height"]) if source else None
        if shape == "Match image" and image is None:
            gr.Info("Drop an image first; then its shape can be matched.")
        return form.shaped(shape, width or 64, height or 64, image)

    def quality(self, quality: str | None, preset: str, model: str) -> tuple[Any, ...]:
        """A quality brings its size, and leaves steps and window to it."""
        if not quality:
            return (gr.skip(),) * 4
        chosen_quality: Any = quality.lower()  # one of the option's choices, which the widget offers
        base = GenerationRequest(Timeline(), preset=preset or "auto", quality=chosen_quality)
        chosen = {} if model in (form.AUTO, None) else {"model": model}
        if chosen:
            form.check_model(model, self.machine.models_folder)
        base = with_defaults(replace(base, models_folder=self.machine.models_folder), chosen)
        if base.model == DEMO and base.preset != DEMO:
            gr.Info(f"The profile {base.preset} is for downloaded models; the demo model keeps its own small size.")
            base = with_defaults(replace(base, preset=DEMO), chosen)
        return base.width, base.height, form.AUTO, form.AUTO

    def imported(self, timeline: Timeline, seconds: float, endless: bool) -> tuple[Any, ...]:
        """A timeline that was imported or typed may bring a global prompt, and need more seconds."""
        prompt = timeline.global_prompt or gr.skip()
        longer = timeline.end if not endless and timeline.end > (seconds or 0) else None
        value = gr.skip()
        if timeline.global_prompt or longer:
            value = gr.update(value=replace(timeline, global_prompt="").to_json())
        return value, prompt, longer or gr.skip()

    def example(self, title: str) -> tuple[Any, ...]:
        """Load an example timeline."""
        example = self.examples.get(title)
        if example is None:
            return (gr.skip(),) * 4
        timeline = replace(example.timeline, global_prompt="")
        return gr.update(value=timeline.to_json()), example.timeline.global_prompt, example.seconds, False

    def example_card(self, event: dict[str, Any] | None) -> tuple[Any, ...]:
        """Load the example of a card on the empty stage."""
        return self.example((event or {}).get("example", ""))

    # --- from other tabs

    def use_settings(self, event: dict[str, Any] | None) -> list[Any]:
        """Bring a gallery video's settings into the form."""
        project = self.library.open((event or {}).get("use", ""))
        return [gr.Tabs(selected="create"), *self.fill(project.request)]

    def follow(self, event: dict[str, Any] | None) -> list[Any]:
        """Fill the form with what a job's video was made with; from another tab, show this one."""
        event = event or {}
        tabs = gr.Tabs(selected="create") if event.get("open") else gr.skip()
        return [tabs, *self.fill(self.actions.request_of(event.get("job", "")))]

    def edit_job(self, event: dict[str, Any] | None) -> list[Any]:
        """Bring a queued job into the form, to be saved back."""
        job = (event or {}).get("edit", "")
        request = self.actions.request_of(job)
        return [gr.Tabs(selected="create"), job, gr.update(visible=True), *self.fill(request)]


def _of_known_content(segment: Segment) -> Segment:
    """A block without a picture of which a stranger's settings do not say what is in it."""
    return segment if segment.image_sha256 else replace(segment, cut=True, image=None)


def within(named: dict[str, Any]) -> dict[str, Any]:
    """The form's values with the blocks as far as the video reaches."""
    timeline, seconds = named["timeline"], named["seconds"]
    if named["endless"] or not timeline or not isinstance(seconds, int | float) or timeline.end <= seconds:
        return named
    return named | {"timeline": clip(timeline, int(seconds))}


def wire(h: Handlers, tabs: gr.Tabs, queue: Any, gallery: Any, system: Any, demo: gr.Blocks) -> None:
    """Connect the widgets with their handlers."""
    w = h.w
    fields = [w[name] for name in form.FIELDS]
    editing = gr.State("")
    used_seed = gr.State(-1)

    # each click is answered, one after the other, so that videos are made in the order in which they were asked for
    w["generate"].click(
        h.generate, fields, [w["watch"], used_seed], api_name="generate_from_form", api_visibility="undocumented",
        show_progress="hidden", concurrency_limit=1, trigger_mode="multiple",
    )  # fmt: skip
    w["save_edit"].click(h.save_edit, [editing, *fields], [w["save_edit"], editing, tabs], **INNER)
    for name in form.FIELDS:
        if name not in ("seed", "source", "embed_settings", "crf", "timeline"):
            w[name].change(h.plan, fields, [system, w["plan"]], trigger_mode="always_last", **INNER)
    demo.load(h.plan, fields, [system, w["plan"]], **INNER)
    w["form"].replan(h.plan, fields, [system, w["plan"]], trigger_mode="always_last", **INNER)
    fills(w["form"].follow, h.follow, [w["form"]], fields, [tabs])
    w["form"].several(h.several, [w["form"], *fields], None, trigger_mode="multiple", **INNER)
    w["form"].restore(None, fields, fields, js=RESTORE_JS, trigger_mode="multiple", **INNER)
    typed = [w[name].change for name in form.FIELDS if name not in ("timeline", "source")]
    gr.on(typed, None, fields, None, js=NOTE_JS, **INNER)
    panels = (w["timeline"].commit, w["timeline"].imported, w["source"].dropped, w["source"].cleared)
    for changed in panels:
        changed(None, fields, None, js=NOTE_JS, trigger_mode="always_last", **INNER)

    fills(w["source"].dropped, h.dropped, [w["source"], *fields], fields)
    fills(w["source"].cleared, h.cleared, [w["mode"]], [w["mode"]])
    size = [w["width"], w["height"]]
    fills(w["shape"].input, h.shape, [w["shape"], *size, w["source"]], size)
    for field in size:
        field.blur(None, field, field, js=f"(n) => [{form.LEGAL_SIZE_JS}]", **INNER)
    lengths = [w["seconds"], w["endless"]]
    gr.on([field.change for field in lengths], None, lengths, w["timeline"], js=LENGTH_JS, **INNER)
    tiers = [w["quality"], w["preset"], w["model"]]
    for tier in tiers:
        fills(tier.input, h.quality, tiers, [*size, w["steps"], w["window"]])
    w["dice"].click(None, None, w["seed"], js=f"() => [Math.floor(Math.random() * {SEED_LIMIT})]", **INNER)
    fills(w["last_seed"].click, lambda seed: [seed], [used_seed], [w["seed"]])
    content = [w["timeline"], w["prompt"], w["seconds"]]
    fills(w["timeline"].imported, h.imported, [w["timeline"], w["seconds"], w["endless"]], content)
    fills(w["example"].input, h.example, [w["example"]], [*content, w["endless"]])
    fills(w["watch"].example, h.example_card, [w["watch"]], [*content, w["endless"]])

    fills(gallery.use_settings, h.use_settings, [gallery], fields, [tabs])
    fills(queue.edit_job, h.edit_job, [queue], fields, [tabs, editing, w["save_edit"]])
    gr.on(
        [demo.load, *(w[name].change for name in ("width", "height", "seed"))], None, [*size, w["seed"]],
        w["size_fold"], js=SIZE_NOTE_JS, trigger_mode="always_last", **INNER,
    )  # fmt: skip
    for name in ("size", "advanced", "mine"):
        shown = "() => [{__type__: 'update', visible: true}]"
        w[f"{name}_fold"].opened(None, None, w[f"{name}_body"], js=shown, **INNER)
