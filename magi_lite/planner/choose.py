"""Choosing: of all executions that fit the device, the one that takes the least time, quality weighed in.

A choice that costs quality counts as if it took longer (`PENALTY`), so that it is taken only where it buys enough.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, replace
from itertools import product
from typing import Any

from magi_lite.cards import GIB, Device
from magi_lite.config import Execution, GenerationRequest, Overrides
from magi_lite.errors import InputError, PlanError
from magi_lite.planner import memory, speed
from magi_lite.planner.plan import Plan
from magi_lite.planner.shapes import ModelShape

PENALTY = {
    ("scheme", "fp8"): 1.1,
    ("scheme", "int8"): 1.12,
    ("scheme", "nf4"): 1.6,
    ("kv_dtype", "fp8"): 1.02,
    ("vae", "decoder"): 1.001,
    ("vae", "swapped"): 1.002,
    ("vae", "cpu"): 1.2,
    ("layers", "streamed"): 1.03,
    ("kv_place", "pinned"): 1.03,
    ("mlp_slice", 2048): 1.02,
    ("attention_slice", 2048): 1.02,
}
"""How many times longer a choice may make a run before it is the worse one."""
T5_ORDER = (("cuda", "bf16"), ("cuda", "int8"), ("cpu", "bf16"), ("cuda", "nf4"), ("cpu", "nf4"))
"""Where and in which numbers the text encoder runs, best first."""
SLICES = (8192, 2048)
"""Tokens worked on at once: large enough to fill a card, and the fallback that halves what activations take."""
WINDOWS = (4, 2, 1)
SMALLER_SIDES = (720, 544, 480, 384, 320, 256)


def candidates(device: Device, model: ModelShape, fixed: dict[str, Any]) -> Iterator[Execution]:
    """Every execution that the device can run and the fixed choices allow, the text encoder left for later."""
    on_card = fixed.get("device", device.kind) == "cuda"
    for scheme in _schemes(device, model, fixed, on_card):
        dtype = "float32" if scheme == "float32" or (not on_card and scheme != "bf16") else "bfloat16"
        kv_types = ("bf16", "fp8") if dtype == "bfloat16" else ("float32", "bf16", "fp8")
        axes: dict[str, tuple[Any, ...]] = {
            "layers": ("resident", "streamed") if on_card else ("resident",),
            "kv_dtype": kv_types if on_card else (kv_types[0], "fp8"),
            "kv_place": ("device", "pinned") if on_card else ("device",),
            "vae": ("resident", "decoder", "swapped", "cpu") if on_card else ("resident",),
            "mlp_slice": SLICES,
            "attention_slice": SLICES,
        }
        for name in axes.keys() & fixed.keys():
            axes[name] = (fixed[name],)
        for values in product(*axes.values()):
            yield Execution(
                device="cuda" if on_card else "cpu",
                dtype=dtype,
                scheme=scheme,
                attention=fixed.get("attention", "auto"),
                **dict(zip(axes, values, strict=True)),
            )


def _schemes(device: Device, model: ModelShape, fixed: dict[str, Any], on_card: bool) -> tuple[str, ...]:
    if model.quantized:
        if fixed.get("scheme", "published") not in ("published", "fp8"):
            raise InputError(
                f"The weights of {model.name} are already FP8 and cannot become {fixed['scheme']}; "
                f'use scheme "published" or the unquantized model.'
            )
        return ("published",)
    if "scheme" in fixed:
        if fixed["scheme"] == "published":
            raise InputError(
                f'Scheme "published" needs the published FP8 weights; {model.name} has none, use "fp8".'
            )
        return (fixed["scheme"],)
    if not on_card:
        return ("float32", "bf16", "nf4")
    return ("bf16", "fp8" if device.has_fp8 else "int8", "nf4")


def fixed_choices(*layers: Overrides) -> dict[str, Any]:
    """The choices that presets and the user fixed; later layers win."""
    fixed: dict[str, Any] = {}
    for overrides in layers:
        for field in fields(overrides):
            value = getattr(overrides, field.name)
            if value is not None:
                fixed[field.name] = value
    return fixed


def build(
    request: GenerationRequest,
    window: int,
    model: ModelShape,
    execution: Execution,
    device: Device,
    preset: str,
) -> Plan:
    """The plan of one execution, whether or not it fits."""
    seconds = speed.predict(request, window, model, execution, device)
    return Plan(
        request=request,
        preset=preset,
        device=device,
        model=model,
        execution=execution,
        items=memory.items_of(request, window, model, execution),
        seconds_per_chunk=seconds.per_chunk,
        time_to_first_chunk=seconds.to_first_chunk,
        window=window,
    )


def weighted_seconds(
    request: GenerationRequest, window: int, model: ModelShape, execution: Execution, device: Device
) -> float:
    """Seconds per chunk, made longer by what the execution costs in quality: what the best plan has least of."""
    weight = 1.0
    for (name, value), penalty in PENALTY.items():
        if getattr(execution, name) == value:
            weight *= penalty
    return weight * speed.predict(request, window, model, execution, device).per_chunk


def with_text_encoder(execution: Execution, fixed: dict[str, Any], fits: Any) -> Execution:
    """The first way of running the text encoder that fits, or the smallest one where none does."""
    if execution.device == "cpu":
        order = tuple(("cpu", kind) for kind in ("float32", "bf16", "nf4"))
        if execution.dtype == "bfloat16" or execution.scheme == "nf4":
            order = order[1:]
    else:
        order = T5_ORDER
    allowed = [
        (place, kind)
        for place, kind in order
        if fixed.get("t5_device", place) == place and fixed.get("t5", kind) == kind
    ] or [(fixed.get("t5_device", "cpu"), fixed.get("t5", "bf16"))]
    for place, kind in allowed:
        candidate = replace(execution, t5_device=place, t5=kind)
        if fits(candidate):
            return candidate
    return replace(execution, t5_device=allowed[-1][0], t5=allowed[-1][1])


def best(
    request: GenerationRequest, window: int, device: Device, model: ModelShape, fixed: dict[str, Any], preset: str
) -> tuple[Plan | None, Plan | None]:
    """(the best plan that fits, None), or (None, the smallest plan of all where none fits)."""
    found = sorted(
        candidates(device, model, fixed), key=lambda e: weighted_seconds(request, window, model, e, device)
    )
    tried = []
    for execution in found:
        plan = build(request, window, model, execution, device, preset)
        tried.append(plan)
        if _generation_fits(plan):
            complete = with_text_encoder(
                execution, fixed, lambda e: build(request, window, model, e, device, preset).fits
            )
            plan = build(request, window, model, complete, device, preset)
            if plan.fits:
                return plan, None
    return None, min(tried, key=lambda plan: (plan.peak_vram_bytes, plan.peak_ram_bytes), default=None)


def _generation_fits(plan: Plan) -> bool:
    """Whether denoising and decoding fit, the text encoder apart."""
    return replace(plan, items=tuple(item for item in plan.items if item.stage != "text")).fits


def refuse(
    request: GenerationRequest,
    window: int,
    device: Device,
    model: ModelShape,
    fixed: dict[str, Any],
    smallest: Plan | None,
) -> PlanError:
    """The error that says what is missing and what would fit instead, nearest first."""
    choices = tuple(_choices(request, window, device, model, fixed))
    size = f"{request.width}x{request.height} with window {window}"
    if smallest is None:
        return PlanError(f"{model.name} cannot run {size} on {device.name} with these settings.", choices)
    if device.kind != "cuda" and fixed.get("device") == "cuda":
        return PlanError("There is no CUDA card in this machine; leave the device out, or choose cpu.")
    if device.kind == "cuda" and fixed.get("device", "cuda") == "cuda":
        needed, has = smallest.needed_vram_bytes, device.vram_bytes
        message = (
            f"{size} of {model.name} needs at least {needed / GIB:.1f} GB of graphics memory, "
            f"{device.name} has {has / GIB:.1f} GB (5 % is kept free)."
        )
        if needed <= 0.95 * has:
            message = (
                f"{size} of {model.name} needs {smallest.peak_ram_bytes / GIB:.1f} GB of RAM "
                f"on {device.name}, more than there is."
            )
    else:
        message = (
            f"{size} of {model.name} needs {smallest.peak_ram_bytes / GIB:.1f} GB of RAM, more than there is."
        )
    return PlanError(message + (f" These would fit: {'; '.join(choices)}." if choices else ""), choices)


def _choices(
    request: GenerationRequest, window: int, device: Device, model: ModelShape, fixed: dict[str, Any]
) -> Iterator[str]:
    """Single changes that fit, then smaller sizes, then size and window together; at most five."""
    found = 0

    def fits(new_request: GenerationRequest, new_window: int, new_fixed: dict[str, Any]) -> bool:
        try:
            return best(new_request, new_window, device, model, new_fixed, "auto")[0] is not None
        except InputError:
            return False

    for name in ("layers", "kv_dtype", "kv_place", "vae", "scheme", "t5", "t5_device", "mlp_slice", "device"):
        if name in fixed:
            freed = {key: value for key, value in fixed.items() if key != name}
            plan = best(request, window, device, model, freed, "auto")[0] if name != "device" else None
            if plan is not None:
                yield f"{name} {getattr(plan.execution, name)} instead of {fixed[name]}"
                found += 1
    smaller_windows = [w for w in WINDOWS if w < window and request.steps % w == 0]
    for smaller in smaller_windows:
        if fits(request, smaller, fixed):
            yield f"window {smaller}"
            found += 1
            break
    for label, size_window in [("", window)] + [(f" with window {w}", w) for w in smaller_windows[-1:]]:
        for width, height in _smaller_sizes(request):
            if found < 5 and fits(replace(request, width=width, height=height), size_window, fixed):
                yield f"{width}x{height}{label}"
                found += 1
                break
    if not found:
        for width, height in _smaller_sizes(request):
            if fits(replace(request, width=width, height=height), 1, {}):
                yield f"{width}x{height} with window 1 and everything else automatic"
                return


def _smaller_sizes(request: GenerationRequest) -> Iterator[tuple[int, int]]:
    """Sizes of about the same shape with a shorter short side, on the grid of 16."""
    short = min(request.width, request.height)
    for side in (1440, 1080, 960, *SMALLER_SIDES, 192, 128):
        if side < short:
            scale = side / short
            yield tuple(max(32, round(edge * scale / 16) * 16) for edge in (request.width, request.height))
