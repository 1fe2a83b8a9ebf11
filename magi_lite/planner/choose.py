"""Choosing: of all executions that fit the device, the one that takes the least time, quality weighed in.

A choice that costs quality counts as if it took longer (`PENALTY`), so that it is taken only where it buys enough.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, replace
from itertools import product
from typing import Any, Literal, cast

from magi_lite import attention_choice
from magi_lite.errors import InputError
from magi_lite.machine.cards import Device
from magi_lite.models import ModelSpec
from magi_lite.planner import memory, speed
from magi_lite.planner.execution import Execution, Scheme
from magi_lite.planner.plan import Plan
from magi_lite.request.request import OPTIONS, WINDOWS, GenerationRequest, Overrides

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
    ("mlp_slice", 8192): 1.005,
    ("mlp_slice", 2048): 1.02,
    ("attention_slice", 8192): 1.005,
    ("attention_slice", 2048): 1.02,
}
"""How many times longer a choice may make a run before it is the worse one."""
TextEncoder = tuple[Literal["cuda", "cpu"], Literal["float32", "bf16", "int8", "nf4"]]
"""Where and in which precision the text encoder runs."""
T5_ORDER: tuple[TextEncoder, ...] = (
    ("cuda", "bf16"),
    ("cuda", "int8"),
    ("cpu", "bf16"),
    ("cuda", "nf4"),
    ("cpu", "nf4"),
)
"""Where and in which numbers the text encoder runs, best first."""
SLICES = (8192, 2048)
"""Tokens worked on at once: large enough to fill a card, and the fallback that halves what activations take.

On a card only where memory needs them: a sliced layer norms and quantizes its input twice. On a CPU always."""


def candidates(device: Device, model: ModelSpec, fixed: dict[str, Any]) -> Iterator[Execution]:
    """Every execution that the device can run and the fixed choices allow, the text encoder left for later."""
    on_card = fixed.get("device", device.kind) == "cuda"
    attention = fixed.get("attention", "auto")
    kernel = attention_choice.expected(attention, device.name)

    def places(name: str) -> tuple[str, ...]:
        """Where things may be: on a card all that can be asked for, elsewhere the first, which is where it computes."""
        return OPTIONS[name].choices if on_card else OPTIONS[name].choices[:1]

    for scheme in _schemes(device, model, fixed, on_card):
        dtype: Literal["float32", "bfloat16"] = (
            "float32" if scheme == "float32" or (not on_card and scheme != "bf16") else "bfloat16"
        )
        kv_types = tuple(kind for kind in OPTIONS["kv_dtype"].choices if (kind, dtype) != ("float32", "bfloat16"))
        axes: dict[str, tuple[Any, ...]] = {
            "layers": places("layers"),
            "kv_dtype": kv_types if on_card else (kv_types[0], "fp8"),
            "kv_place": places("kv_place"),
            "vae": places("vae"),
            "mlp_slice": (None, *SLICES) if on_card else SLICES,
            "attention_slice": (None, *SLICES) if on_card else SLICES,
        }
        for name in axes.keys() & fixed.keys():
            axes[name] = (fixed[name],)
        for values in product(*axes.values()):
            yield Execution(
                device="cuda" if on_card else "cpu",
                dtype=dtype,
                scheme=scheme,
                attention=attention,
                kernel=kernel if on_card else attention_choice.OWN,
                **dict(zip(axes, values, strict=True)),
            )


def smaller_windows(request: GenerationRequest, window: int) -> list[int]:
    """Usual windows below `window` that the request's steps can be split over, the largest first."""
    return [w for w in sorted(WINDOWS, reverse=True) if w < window and request.steps % w == 0]


def _schemes(device: Device, model: ModelSpec, fixed: dict[str, Any], on_card: bool) -> tuple[Scheme, ...]:
    stored = cast("Scheme | None", model.stored_scheme)
    if stored is not None:
        wanted = fixed.get("scheme", stored)
        if wanted != stored and (stored, wanted) != ("published", "fp8"):
            raise InputError(
                f"The weights of {model.name} are already {'FP8' if stored == 'published' else stored.upper()} and "
                f'cannot become {wanted}; use scheme "{stored}" or the unquantized model.'
            )
        return (stored,)
    if "scheme" in fixed:
        if fixed["scheme"] == "published":
            raise InputError(f'Scheme "published" needs the published FP8 weights; {model.name} has none, use "fp8".')
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
    model: ModelSpec,
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
        time_to_load=seconds.to_load,
        window=window,
    )


def weighted_seconds(
    request: GenerationRequest, window: int, model: ModelSpec, execution: Execution, device: Device
) -> float:
    """Seconds per chunk, made longer by what the execution costs in quality: what the best plan has least of."""
    weight = 1.0
    for (name, value), penalty in PENALTY.items():
        if getattr(execution, name) == value:
            weight *= penalty
    return weight * speed.predict(request, window, model, execution, device).per_chunk


def text_encoders(execution: Execution, fixed: dict[str, Any]) -> list[Execution]:
    """The ways of running the text encoder beside this execution, best first; what is fixed stays."""
    if execution.device == "cpu":
        order: tuple[TextEncoder, ...] = (("cpu", "float32"), ("cpu", "bf16"), ("cpu", "nf4"))
        if execution.dtype == "bfloat16" or execution.scheme == "nf4":
            order = order[1:]
    else:
        order = T5_ORDER
    allowed = [
        (place, kind)
        for place, kind in order
        if fixed.get("t5_device", place) == place and fixed.get("t5", kind) == kind
    ] or [(fixed.get("t5_device", "cpu"), fixed.get("t5", "bf16"))]
    return [replace(execution, t5_device=place, t5=kind) for place, kind in allowed]


def smallest_text_encoder(execution: Execution, fixed: dict[str, Any]) -> Execution:
    """The execution with the text encoder that takes the least of the device."""
    return text_encoders(execution, fixed)[-1]


def best(
    request: GenerationRequest, window: int, device: Device, model: ModelSpec, fixed: dict[str, Any], preset: str
) -> Plan | None:
    """The best plan that fits, or None."""

    def fits(execution: Execution, *, text: bool) -> bool:
        """Whether its text phase fits, or all others do; times are not asked for, which take longer than memory."""
        items = memory.items_of(request, window, model, execution)
        items = tuple(item for item in items if (item.phase == "text") == text)
        return Plan(request, preset, device, model, execution, items, 0.0, 0.0, 0.0, window).fits

    encoders: dict[tuple[Any, ...], TextEncoder | None] = {}  # the text phase depends on no other choice
    found: list[Execution] = []
    for execution in candidates(device, model, fixed):
        ways = text_encoders(execution, fixed)
        key = (execution.device, *((way.t5_device, way.t5) for way in ways))
        if key not in encoders:
            encoders[key] = next(((way.t5_device, way.t5) for way in ways if fits(way, text=True)), None)
        encoder = encoders[key]
        if encoder is not None and fits(execution, text=False):
            found.append(replace(execution, t5_device=encoder[0], t5=encoder[1]))
    if not found:
        return None
    chosen = min(found, key=lambda e: weighted_seconds(request, window, model, e, device))
    beside = replace(chosen, decode_beside=may_decode_beside(chosen))
    chosen = beside if fits(beside, text=False) else chosen
    return build(request, window, model, chosen, device, preset)


def may_decode_beside(execution: Execution) -> bool:
    """Whether seconds can be decoded while the next steps compute, if memory allows it.

    Without a card the steps may use every core already, and memory would be taken for little (`benchmarks/overlap.py`
    shows how little on a machine). An autoencoder that is brought to the card for each use was chosen so that it is not
    there beside the steps. It is asked last, of the execution that is best without: a part of one decoding for every
    second outweighs no other choice.
    """
    return execution.device == "cuda" and execution.vae != "swapped"
