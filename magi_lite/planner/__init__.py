"""Will it fit, and how long will it take? request + preset + device + model -> an itemised Plan, or a refusal.

Holds no tensors: any card can be planned on any machine, before a weight is loaded.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from magi_lite.errors import PlanError
from magi_lite.machine import devices, findings
from magi_lite.machine.cards import GIB, Device, cpu_device, with_memory
from magi_lite.models import ModelSpec, T5Shape, published_model
from magi_lite.planner import choose, learned, passes, refusal
from magi_lite.planner.execution import Execution
from magi_lite.planner.plan import PHASES, Item, Phase, Plan, ram_limits, spoken, vram_limit
from magi_lite.planner.speed import conversion_seconds, kv_bytes_per_token, tokens_per_chunk
from magi_lite.request import presets
from magi_lite.request.request import GenerationRequest, Overrides

__all__ = [
    "Item",
    "ModelSpec",
    "Phase",
    "Plan",
    "T5Shape",
    "next_smaller",
    "plan",
    "plan_execution",
    "vram_limit",
]


def plan(
    request: GenerationRequest,
    preset: str | presets.Preset = "auto",
    device: Device | None = None,
    model: ModelSpec | None = None,
    *,
    free_window: bool = False,
    here: bool = False,
) -> Plan:
    """Plan a run.

    Args:
        request: what is wanted. Its overrides win over the preset, the preset over the planner's own choice.
        preset: a preset or its name; "auto": none, everything is chosen for the device.
        device: the device; None: the one found here.
        model: what is known of the model; None: the request's, by its published name.
        free_window: take a smaller window where the request's own does not fit.
        here: whether `device` is this machine's, so that the plan promises the times that were measured on it.

    Returns:
        The plan that takes the least time among those that fit with 5 % of the memory to spare.

    Raises:
        PlanError: nothing fits; `choices` holds the nearest things that would.
        InputError: a choice contradicts the model.
        PresetError: no preset of that name.
    """
    if device is None:
        device, here = devices.detect(), True
    spec = published_model(request.model) if model is None else model
    chosen = presets.load(preset) if isinstance(preset, str) and preset != "auto" else preset
    name = chosen.name if isinstance(chosen, presets.Preset) else "auto"
    layers = [request.overrides]
    if isinstance(chosen, presets.Preset):
        layers.insert(0, chosen.quality(request.quality).overrides)
    fixed = choose.fixed_choices(*layers)
    vram_gb = fixed.pop("vram_gb", None)
    if fixed.get("device") == "cpu" and device.kind == "cuda":  # the processor beside the card, at its own pace
        device = devices.processor() if here else cpu_device(device.ram_bytes)
    if device.missing and (device.kind == "cuda" or fixed.get("device") == "cuda"):
        raise PlanError(f"{device.missing} (or choose the processor: device cpu).", ())
    if vram_gb is not None and device.kind == "cuda":
        device = with_memory(device, vram_gb)
    if here and device.kind == "cuda":
        device = replace(device, kernels=findings.kernels_serve(device.name))
    windows = [request.window, *(choose.smaller_windows(request, request.window) if free_window else ())]
    for window in windows:
        found = choose.best(request, window, device, spec, fixed, name)
        if found is not None:
            open_fields = frozenset(
                {f for f in Overrides.__dataclass_fields__ if f not in fixed} | {"attention_slice"}
            )
            noted = replace(found, frees=open_fields, notes=_notes(found, request))
            return _with_conversion(learned.applied(noted) if here else noted)
    raise refusal.refuse(request, windows[0], device, spec, fixed)


def plan_execution(
    request: GenerationRequest, window: int, model: ModelSpec, execution: Execution, device: Device
) -> Plan:
    """The plan of one given execution, fitting or not: for tables, tests and measurements."""
    return choose.build(request, window, model, execution, device, "given")


def next_smaller(
    plan: Plan, phase: Phase | None = None, place: Literal["vram", "ram"] = "vram"
) -> Plan | None:
    """The next plan to try after memory ran out: the fastest one that needs clearly less.

    Everything may change that does not change the video's size, window or number of steps, the user's overrides
    excepted.

    Args:
        plan: the one that failed.
        phase: where it failed; None: not known, so denoising and decoding shrink, and the text encoder too where it is
            among the largest.
        place: which memory ran out: the card's or RAM. Without a card it is RAM.

    Returns:
        A plan whose failed phases need at most 90 % of what they did of that memory, and the others no more than the
        largest did, without asking for more of the other memory than there is; or None where nothing smaller exists.
    """
    now = _phase_peaks(plan, place)
    execution = plan.execution
    if phase == "text" or (phase is None and now["text"] >= 0.9 * now["rest"]):
        execution = _smaller_text_encoder(plan)
        if phase == "text":
            if execution == plan.execution:
                return None
            return _finish(
                choose.build(plan.request, plan.window, plan.model, execution, plan.device, plan.preset), plan
            )
    fixed = {name: getattr(plan.execution, name) for name in _CHOICES if name not in plan.frees}
    smaller = []
    for candidate in choose.candidates(plan.device, plan.model, {**fixed, "device": plan.execution.device}):
        candidate = replace(candidate, t5=execution.t5, t5_device=execution.t5_device)
        built = choose.build(plan.request, plan.window, plan.model, candidate, plan.device, plan.preset)
        then = _phase_peaks(built, place)
        failed = "rest" if phase is None else phase
        if then[failed] <= 0.9 * now[failed] and then["rest"] <= now["rest"] and _other_fits(built, plan, place):
            smaller.append(built)
    if not smaller:
        return None
    best = min(
        smaller, key=lambda p: choose.weighted_seconds(p.request, p.window, p.model, p.execution, p.device)
    )
    return _finish(best, plan)


_CHOICES = ("device", "scheme", "layers", "kv_dtype", "kv_place", "vae", "mlp_slice", "attention")


def _finish(found: Plan, before: Plan) -> Plan:
    notes = (*_notes(found, before.request), "Memory ran out: a smaller plan.")
    return replace(found, frees=before.frees, notes=notes)


def _other_fits(built: Plan, before: Plan, place: Literal["vram", "ram"]) -> bool:
    """Whether a plan takes no more than there is, or than the one before did, of the memory that did not run out."""
    device = built.device
    if device.kind != "cuda":
        return True
    if place == "ram":
        return built.needed_vram_bytes <= max(before.needed_vram_bytes, vram_limit(device))
    if device.ram_bytes is None:
        return True
    ram, pinned = ram_limits(device.ram_bytes)
    return built.peak_ram_bytes <= max(before.peak_ram_bytes, ram) and (
        built.pinned_bytes <= max(before.pinned_bytes, pinned)
    )


def _phase_peaks(plan: Plan, place: Literal["vram", "ram"]) -> dict[str, int]:
    """Bytes of what ran out: of each phase, and of the largest but `text` ("rest")."""
    places = ("vram",) if plan.execution.device == "cuda" and place == "vram" else ("ram", "pinned")
    peaks: dict[str, int] = {phase: plan.phase_bytes(phase, *places) for phase in PHASES}
    return {**peaks, "rest": max(size for phase, size in peaks.items() if phase != "text")}


def _smaller_text_encoder(plan: Plan) -> Execution:
    """The execution with the text encoder one step down: fewer bits, at last on the CPU; unchanged at the end."""
    execution = plan.execution
    kinds: list[Literal["float32", "bf16", "int8", "nf4"]] = ["float32", "bf16", "int8", "nf4"]
    if execution.t5_device == "cpu":
        kinds.remove("int8")
    at = kinds.index(execution.t5)
    if "t5" in plan.frees and at + 1 < len(kinds):
        return replace(execution, t5=kinds[at + 1])
    return replace(execution, t5_device="cpu") if "t5_device" in plan.frees else execution


def _with_conversion(plan: Plan) -> Plan:
    """The plan with the conversion of its text encoder, where the first prompt has to wait for one."""
    seconds = conversion_seconds(plan.model, plan.execution)
    if not seconds:
        return plan
    note = (
        f"The text encoder is converted to 16 bits before its first prompt, once: about {spoken(seconds)}, and "
        f"{plan.model.text_conversion / 1e9:.1f} GB of disk."
    )
    return replace(plan, notes=(*plan.notes, note), time_to_first_chunk=plan.time_to_first_chunk + seconds)


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
    if plan.model.sampler.sees_everything:
        seconds = f"{passes.GROWING_SECONDS} seconds" if request.seconds is None else "the whole video"
        per_chunk = tokens_per_chunk(plan.model, request.width, request.height)
        growth = per_chunk * kv_bytes_per_token(plan.model.dit, execution) / GIB
        notes.append(
            f"This model looks back at every second so far, so memory grows by {growth:.2f} GB a second; "
            f"planned for {seconds}."
        )
    if request.reuse != "off":
        notes.append("Reuse leaves out steps that would change little; the times are those of all steps.")
    if execution.layers == "streamed":
        notes.append("Layers are copied to the card as they are needed, while it computes.")
    if execution.t5_device == "cpu" and execution.device == "cuda":
        notes.append("Prompts are encoded on the CPU, which takes some seconds each the first time.")
    return tuple(notes)
