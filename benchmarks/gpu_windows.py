"""What `gpu.py` asks of Windows, on any system: its paths are forced, and run beside the ordinary ones.

Forced are attention group by group without the flash kernel, which Windows's wheels lack; segments of fixed size; a
limit to the card's memory; and a query behind every recorded event. That its driver moves memory to RAM and hands work
over in batches cannot be had elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any
from unittest import mock

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.gpu_checks import grouped_example
from benchmarks.gpu_models import NO_CARD, relative_error, stage_inputs
from benchmarks.gpu_overlap import layers
from benchmarks.gpu_setup import Setup
from magi_lite import attention
from magi_lite.machine import devices
from magi_lite.planner.plan import fragment_bytes

LAYERS = 4
PASSES = 24
"""Window passes that both ways take together, streamed ones included."""
SECONDS = 36.0
"""What they may take: decides the size."""


def windows(s: Setup) -> dict[str, Any]:
    """Attention, memory and passes as under Windows, and the same passes as here."""
    results: dict[str, Any] = {"attention": s.attempt({}, 5.0, lambda: _attention(s))}
    size = _size(s)
    results["size"] = list(size)
    expected = PASSES / 2 * _pass_seconds(s, size)
    outputs: list[torch.Tensor] = []
    results["as_here"] = s.attempt({}, expected, lambda: _passes(s, size, outputs))
    devices.free_memory()
    with forced(s) as done:
        results["forced"] = done
        results["as_windows"] = s.attempt({}, expected, lambda: _passes(s, size, outputs))
        devices.free_memory()
    if len(outputs) == 2:
        results["windows_against_here"] = relative_error(outputs[1], outputs[0])
    return results


@contextmanager
def forced(s: Setup) -> Iterator[dict[str, Any]]:
    """Windows's paths inside; yields what could be forced. All is as before afterwards."""
    flash = torch.backends.cuda.flash_sdp_enabled()
    devices.free_memory()
    try:
        with (
            _fixed_segments(s) as fixed,
            mock.patch.object(devices, "windows_driver", lambda: True),
            mock.patch.object(attention, "reads_groups", lambda query, mask=None: False),
        ):
            torch.backends.cuda.enable_flash_sdp(False)
            devices.stay_on_card()
            yield {"fixed_segments": fixed, "memory_fraction": _refuses(s)}
    finally:
        torch.backends.cuda.enable_flash_sdp(flash)
        if not s.dry:
            torch.cuda.set_per_process_memory_fraction(1.0)
            devices.stay_on_card()


@contextmanager
def _fixed_segments(s: Setup) -> Iterator[str]:
    """Segments of fixed size inside; yields "yes", or why not."""
    change, before = devices.allocator_settings()
    if s.dry or change is None:
        yield NO_CARD if s.dry else "not run: this torch cannot change its allocator's settings"
        return
    try:
        change(_with_fixed_segments(before))
    except (RuntimeError, ValueError) as error:
        yield f"not run: {error}"
        return
    try:
        yield "yes"
    finally:
        devices.free_memory()
        if before:
            change(before)
        else:  # this torch does not say what was set
            devices.grow_segments()


def _with_fixed_segments(settings: str) -> str:
    """An allocator's settings, its segments' apart."""
    kept = [part for part in settings.split(",") if part and not part.startswith("expandable_segments")]
    return ",".join([*kept, "expandable_segments:False"])


def _refuses(s: Setup) -> dict[str, Any] | str:
    """Whether what the card has, but the limit leaves to others, is refused as an ordinary want of memory."""
    info = devices.memory_info()
    if s.dry or info is None:
        return NO_CARD
    try:
        torch.empty(info[0] - devices.LEFT_FREE // 2, dtype=torch.uint8, device=s.kind)
    except Exception as error:
        known = devices.is_out_of_memory(error)
        return {"works": known, "reason": "" if known else f"{type(error).__name__}: {error}"}
    return {"works": False, "reason": "more was given than the limit allows"}


def _attention(s: Setup) -> dict[str, Any]:
    """Self attention of the largest size: groups read as they are, group by group, and that without flash."""
    q, k, v = grouped_example(s)
    few = slice(0, 1024)
    plain = attention.sdpa(q[:, few].float(), k.float(), v.float())
    whole = s.timed(lambda: attention.sdpa(q, k, v))
    results: dict[str, Any] = {"grouped": whole}
    kernels = {"by_group": None, "by_group_without_flash": SDPBackend.EFFICIENT_ATTENTION}
    with mock.patch.object(attention, "reads_groups", lambda query, mask=None: False):
        for name, kernel in kernels.items():
            if kernel is not None and s.dry:
                results[name] = NO_CARD
                continue
            with sdpa_kernel(kernel) if kernel is not None else nullcontext():
                error = relative_error(attention.sdpa(q, k, v)[:, few], plain)
                taken = s.timed(lambda: attention.sdpa(q, k, v))
            results[name] = {"error": error, **taken, "against_grouped": taken["seconds"] / whole["seconds"]}
    return results


def _size(s: Setup) -> tuple[int, int]:
    """The largest size whose passes take no longer than they may, or else the smallest."""
    for size in reversed(s.sizes):
        if PASSES * _pass_seconds(s, size) < SECONDS:
            return size
    return s.sizes[0]


def _pass_seconds(s: Setup, size: tuple[int, int]) -> float:
    return s.forward_seconds(s.plan(size, 4, s.execution(s.schemes[1]))) * LAYERS / s.dit.num_layers


def _passes(s: Setup, size: tuple[int, int], outputs: list[torch.Tensor]) -> dict[str, Any]:
    """Passes of a few layers in windows 4 and 1, resident and streamed; `fragments`: what the allocator held beside
    tensors."""
    torch.manual_seed(0)  # both ways compute the same
    with devices.peak_memory() as peak:
        # Without a card unquantized: attention's last bits would turn some of the roundings to 8 bits around.
        dit = s.build(s.schemes[0 if s.dry else 1], replace(s.dit, num_layers=LAYERS))
        dit.backend = attention.choose("sdpa", s.kind, s.dtype)
        given = stage_inputs(dit, size, 4, s.kind, s.dtype)
        outputs.append(dit(**given).cpu())
        resident = s.timed(lambda: dit(**given), most=3)
        streamed = layers(s, dit, size)
    held, reserved = peak["peak_bytes"], peak["reserved_bytes"]
    return {
        "window_4": resident, "streamed_window_1": streamed, "peak_gb": held / 1e9, "reserved_gb": reserved / 1e9,
        "fragments": reserved / held - 1 if held else NO_CARD,
        "planned_fragments": fragment_bytes(held, fixed=devices.windows_driver()) / held if held else NO_CARD,
    }  # fmt: skip
