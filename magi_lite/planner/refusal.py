"""What to say where nothing fits: what is missing, in true numbers, and the nearest things that would fit.

Every choice named was planned before it is named.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from typing import Any

from magi_lite.errors import InputError, PlanError
from magi_lite.machine.cards import GIB, PINNED_SHARE, Device, cpu_device
from magi_lite.models import MODELS, ModelSpec
from magi_lite.planner import choose
from magi_lite.planner.plan import SPARE, Plan, ram_limits, vram_limit
from magi_lite.request.request import GenerationRequest

KEPT_FREE = f"{100 * SPARE:.0f} % is kept free"
MOST_CHOICES = 5
SIDES = (1440, 1080, 960, 720, 544, 480, 384, 320, 256, 192, 128)
"""Short sides that are offered in place of one that does not fit."""
SMALLER_MODELS = ("4.5B-distill-fp8", "4.5B-distill")


def refuse(
    request: GenerationRequest, window: int, device: Device, model: ModelSpec, fixed: dict[str, Any]
) -> PlanError:
    """The error that says what is missing and what would fit instead, nearest first."""
    size = f"{request.width}x{request.height} with window {window}"
    if device.kind != "cuda" and fixed.get("device") == "cuda":
        return PlanError("There is no CUDA card in this machine; leave the device out, or choose cpu.")
    needs = shortage(request, window, device, model, fixed)
    message = f"{size} of {model.name} {needs}."
    choices = tuple(islice(_choices(request, window, device, model, fixed), MOST_CHOICES))
    if choices:
        return PlanError(f"{message} These would fit: {'; '.join(choices)}.", choices)
    width, height = [(request.width, request.height), *_smaller_sizes(request)][-1]
    least = shortage(replace(request, width=width, height=height), 1, device, model, {})
    return PlanError(f"{message} No size of it fits: even {width}x{height} with window 1 {least}.")


def shortage(
    request: GenerationRequest, window: int, device: Device, model: ModelSpec, fixed: dict[str, Any]
) -> str:
    """What the plan that comes nearest needs and the machine has not: "needs at least 3.1 GB of ..."."""
    plans = [
        choose.build(request, window, model, choose.smallest_text_encoder(execution, fixed), device, "auto")
        for execution in choose.candidates(device, model, fixed)
    ]
    if device.kind == "cuda" and fixed.get("device", "cuda") == "cuda":
        limit, needed = vram_limit(device), min(plan.needed_vram_bytes for plan in plans)
        if needed > limit:
            free = KEPT_FREE
            if device.free_bytes is not None and limit == device.free_bytes:
                free = f"{limit / GIB:.1f} GB of it free now"
            return (
                f"needs at least {needed / GIB:.1f} GB of graphics memory, {device.name} has "
                f"{device.vram_gb:.1f} GB ({free})"
            )
        plans = [plan for plan in plans if plan.needed_vram_bytes <= limit]
    has = device.ram_bytes or 0
    most, most_pinned = ram_limits(has)
    nearest = min(plans, key=lambda plan: max(plan.peak_ram_bytes / (1 - SPARE), plan.pinned_bytes / PINNED_SHARE))
    if nearest.pinned_bytes > most_pinned and nearest.peak_ram_bytes <= most:
        return (
            f"needs {nearest.pinned_bytes / GIB:.1f} GB of pinned RAM, of which {most_pinned / GIB:.1f} GB may "
            "be taken here"
        )
    there = f"there are {has / GIB:.1f} GB ({KEPT_FREE})"
    if device.kind == "cpu" and device.free_bytes is not None and device.free_bytes < most:
        there = f"of {has / GIB:.1f} GB {device.free_bytes / GIB:.1f} GB are free now"
    return f"needs at least {nearest.peak_ram_bytes / GIB:.1f} GB of RAM, {there}"


def _best(
    request: GenerationRequest, window: int, device: Device, model: ModelSpec, fixed: dict[str, Any]
) -> Plan | None:
    """The plan, or None where nothing fits or the choices contradict the weights."""
    try:
        return choose.best(request, window, device, model, fixed, "auto")
    except InputError:
        return None


def _fits(
    request: GenerationRequest, window: int, device: Device, model: ModelSpec, fixed: dict[str, Any]
) -> bool:
    """Whether anything fits: with the smallest slices, so that a quarter of the executions has to be looked at."""
    smallest = dict.fromkeys(("mlp_slice", "attention_slice"), choose.SLICES[-1])
    return _best(request, window, device, model, {**smallest, **fixed}) is not None


def _choices(
    request: GenerationRequest, window: int, device: Device, model: ModelSpec, fixed: dict[str, Any]
) -> Iterator[str]:
    """Single changes, then sizes, then size and window together, then all but what matters most, as far as they fit."""
    for name in ("layers", "kv_dtype", "kv_place", "vae", "scheme", "t5", "t5_device", "mlp_slice"):
        if name in fixed:
            freed = {key: value for key, value in fixed.items() if key != name}
            plan = _best(request, window, device, model, freed)
            if plan is not None:
                yield f"{name} {getattr(plan.execution, name)} instead of {fixed[name]}"
    windows = choose.smaller_windows(request, window)
    fitting = next((w for w in windows if _fits(request, w, device, model, fixed)), None)
    if fitting is not None:
        yield f"window {fitting}"
    found = fitting is not None
    for label, size_window in [("", window)] + [(f" with window {w}", w) for w in windows[-1:]]:
        for width, height in _smaller_sizes(request):
            if _fits(replace(request, width=width, height=height), size_window, device, model, fixed):
                yield f"{width}x{height}{label}"
                found = True
                break
    if not found and fixed:
        for width, height in _smaller_sizes(request):
            if _fits(replace(request, width=width, height=height), 1, device, model, {}):
                yield f"{width}x{height} with window 1 and everything else automatic"
                break
    if not found:
        yield from _elsewhere(request, window, device, model, fixed)


def _elsewhere(
    request: GenerationRequest, window: int, device: Device, model: ModelSpec, fixed: dict[str, Any]
) -> Iterator[str]:
    """Another model, or the processor."""
    if request.model in MODELS and model.dit != MODELS[SMALLER_MODELS[0]].dit:
        for name in SMALLER_MODELS:
            if _fits(replace(request, model=name), window, device, MODELS[name], fixed):
                yield f"model {name} instead of {request.model}"
                break
    on_cpu = (request, window, cpu_device(device.ram_bytes), model, {**fixed, "device": "cpu"})
    if device.kind == "cuda" and "device" not in fixed and _fits(*on_cpu):
        yield "device cpu instead of cuda"


def _smaller_sizes(request: GenerationRequest) -> Iterator[tuple[int, int]]:
    """Sizes of about the same shape with a shorter short side, on the grid of 16."""
    short = min(request.width, request.height)
    for side in SIDES:
        if side < short:
            scale = side / short
            width, height = (max(32, round(edge * scale / 16) * 16) for edge in (request.width, request.height))
            yield width, height
