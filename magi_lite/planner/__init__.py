"""Will it fit, and how long will it take? request + preset + device + model -> an itemised Plan, or a refusal.

Holds no tensors: any card can be planned on any machine, before a weight is loaded.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from magi_lite import presets
from magi_lite.config import GenerationRequest, Overrides
from magi_lite.devices import Device, with_memory
from magi_lite.planner import choose
from magi_lite.planner.plan import Item, Plan, vram_limit
from magi_lite.planner.shapes import ModelShape, T5Shape, model_shape

__all__ = [
    "Item",
    "ModelShape",
    "Plan",
    "T5Shape",
    "model_shape",
    "next_smaller",
    "plan",
    "plan_execution",
    "vram_limit",
]


def plan(
    request: GenerationRequest,
    preset: str | presets.Preset = "auto",
    device: Device | None = None,
    model: Any = None,
    *,
    free_window: bool = False,
) -> Plan:
    """Plan a run.

    Args:
        request: what is wanted. Its overrides win over the preset, the preset over the planner's own choice.
        preset: a preset or its name; "auto": none, everything is chosen for the device.
        device: the device; None: the one found here.
        model: anything `model_shape` takes; None: the request's model by name.
        free_window: take a smaller window where the request's own does not fit.

    Returns:
        The plan that takes the least time among those that fit with 5 % of the memory to spare.

    Raises:
        PlanError: nothing fits; `choices` holds the nearest things that would.
        InputError: a choice contradicts the model.
        PresetError: no preset of that name.
    """
    if device is None:
        from magi_lite.devices import detect

        device = detect()
    shape = model_shape(request.model if model is None else model)
    chosen = presets.load(preset) if isinstance(preset, str) and preset != "auto" else preset
    name = chosen.name if isinstance(chosen, presets.Preset) else "auto"
    layers = [request.overrides]
    if isinstance(chosen, presets.Preset):
        layers.insert(0, chosen.quality(request.quality).overrides)
    fixed = choose.fixed_choices(*layers)
    vram_gb = fixed.pop("vram_gb", None)
    if vram_gb is not None and device.kind == "cuda":
        device = with_memory(device, vram_gb)
    windows = [request.window] + [
        w for w in choose.WINDOWS if free_window and w < request.window and request.steps % w == 0
    ]
    smallest = None
    for window in windows:
        found, smallest = choose.best(request, window, device, shape, fixed, name)
        if found is not None:
            open_fields = frozenset(
                {f for f in Overrides.__dataclass_fields__ if f not in fixed} | {"attention_slice"}
            )
            return replace(found, frees=open_fields, notes=_notes(found, request))
    raise choose.refuse(request, windows[0], device, shape, fixed, smallest)


def plan_execution(request: GenerationRequest, window: int, model: Any, execution: Any, device: Device) -> Plan:
    """The plan of one given execution, fitting or not: for tables, tests and measurements."""
    return choose.build(request, window, model_shape(model), execution, device, "given")


def next_smaller(plan: Plan) -> Plan | None:
    """The next plan to try after memory ran out: the fastest one that needs clearly less of what ran out.

    Everything may change that does not change the video's size, window or number of steps, the user's overrides
    excepted. Returns None where nothing smaller exists.
    """
    fixed = {
        name: getattr(plan.execution, name)
        for name in (
            "device",
            "scheme",
            "layers",
            "kv_dtype",
            "kv_place",
            "vae",
            "t5",
            "t5_device",
            "mlp_slice",
        )
        if name not in plan.frees
    }
    on_card = plan.execution.device == "cuda"
    used = plan.peak_vram_bytes if on_card else plan.peak_ram_bytes
    smaller = []
    for execution in choose.candidates(plan.device, plan.model, {**fixed, "device": plan.execution.device}):
        candidate = choose.build(
            plan.request,
            plan.window,
            plan.model,
            _smaller_text_encoder(plan, execution),
            plan.device,
            plan.preset,
        )
        if (candidate.peak_vram_bytes if on_card else candidate.peak_ram_bytes) <= 0.9 * used:
            smaller.append(candidate)
    if not smaller:
        return None
    found = min(smaller, key=choose.cost)
    return replace(
        found, frees=plan.frees, notes=(*_notes(found, plan.request), "Memory ran out: a smaller plan.")
    )


def _smaller_text_encoder(plan: Plan, execution: Any) -> Any:
    """One step down for the text encoder if the text stage was the fullest, else as it was."""
    kind, place = plan.execution.t5, plan.execution.t5_device
    text = (
        plan.stage_bytes("text", "vram") if plan.execution.device == "cuda" else plan.stage_bytes("text", "ram")
    )
    others = max(plan.stage_bytes(stage, "vram", "ram") for stage in ("denoise", "decode"))
    if text >= others or plan.peak_stage == "text":
        order = ["float32", "bf16", "int8", "nf4"] if place == "cuda" else ["float32", "bf16", "nf4"]
        if "t5" in plan.frees and kind in order[:-1]:
            kind = order[order.index(kind) + 1]
        elif "t5_device" in plan.frees:
            place = "cpu"
    return replace(execution, t5=kind, t5_device=place)


def _notes(plan: Plan, request: GenerationRequest) -> tuple[str, ...]:
    """What the user should know of the choice."""
    notes = []
    execution = plan.execution
    if plan.window != request.window:
        notes.append(f"Window {plan.window} instead of {request.window}: the larger one does not fit.")
    if execution.scheme == "published" and not plan.device.has_fp8 and execution.device == "cuda":
        notes.append(f"{plan.device.name} has no FP8 units: the FP8 weights are widened while computing.")
    if execution.device == "cuda" and plan.device.capability < (8, 0):
        notes.append(f"{plan.device.name} has no bf16 units: expect it to be slow.")
    if execution.scheme == "nf4":
        notes.append("4-bit weights save memory, not time, and cost some quality.")
    if execution.layers == "streamed":
        notes.append("Layers are copied to the card as they are needed, while it computes.")
    if execution.t5_device == "cpu" and execution.device == "cuda":
        notes.append("Prompts are encoded on the CPU, which takes some seconds each the first time.")
    return tuple(notes)
