"""What `gpu.py` asks of the planned pass: where its time and memory go, against plan and price, and how to slice it."""

from __future__ import annotations

import cProfile
import pstats
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks import roofline
from benchmarks.gpu_models import (
    FEW_LAYERS,
    NO_CARD,
    few_layers,
    profiled,
    relative_error,
    slots_of,
    stage_inputs,
)
from benchmarks.gpu_setup import Setup, pass_bytes
from magi_lite import attention, planner
from magi_lite.errors import PlanError
from magi_lite.machine import devices
from magi_lite.pipeline.engine import Engine, tune
from magi_lite.planner.execution import Execution
from magi_lite.weights.residency import Residency

KERNELS, OPERATORS = 30, 10
"""Rows in the tables of the dearest."""
SLICES = ((None, None), (2048, 2048), (8192, 8192), (2048, None))
"""Tokens at once of MLP and attention; the last: the MLP's elementwise chains in the cache, attention whole."""
DRY_SLICES = ((None, None), (32, 32), (16, None))


def planned(s: Setup) -> dict[str, Any]:
    """The pass that matters most, as the plan executes it: the largest size, window 4; where its time and memory go.

    What a few layers can tell comes first, peak memory included; the whole pass follows if there is time for it.
    """
    plan = chosen(s)
    size, execution = (plan.request.width, plan.request.height), plan.execution
    results: dict[str, Any] = {
        "size": list(size), "window": plan.window, "scheme": execution.scheme, "layers": execution.layers,
        "keys_and_values": [execution.kv_place, execution.kv_dtype],
        "slices": [execution.mlp_slice, execution.attention_slice],
        "planned_pass_seconds": plan.seconds_per_chunk * plan.window / plan.request.steps,
        "planned_gb": pass_bytes(plan) / 1e9,
    }  # fmt: skip
    with placed(s, execution) as networks:
        results |= {"attention": networks.dit.backend.name, "notices": list(networks.notices)}
        store = networks.store(slots_of(plan.window))
        given = stage_inputs(networks.dit, size, plan.window, s.kind, s.dtype, store=store)

        def window_pass() -> torch.Tensor:
            return networks.dit(**given)

        with few_layers(networks.dit) as share, devices.peak_memory() as peak:
            results["few_layers"] = _few(window_pass, s)
        results["peak_gb"] = peak["peak_bytes"] / 1e9  # the other layers are there, and each takes what these take
        expected = results["few_layers"]["seconds"] / share
        if not s.dry:
            s.pace["passes"] = expected / s.forward_seconds(plan)
        whole = {"expected_seconds": expected}
        results |= s.attempt(whole, 1.2 * expected, lambda: _with_peak(window_pass, s, 10.0))
    if not s.dry:
        taken, kernel = results.get("seconds", expected), results["attention"]
        results["price"] = s.attempt({}, 5.0, lambda: _price(s, plan, taken, kernel))
    return results


def chosen(s: Setup) -> planner.Plan:
    """The plan that this card would get for the largest size that it can do."""
    if s.dry:
        return s.plan(s.sizes[-1], 4, s.execution(s.schemes[1]))
    refused: PlanError | None = None
    for size in reversed(s.sizes):
        request = s.plan(size, 4, s.execution("bf16")).request
        try:
            return planner.plan(request, "auto", s.device, s.model(), free_window=True)
        except PlanError as error:
            refused = refused or error
    assert refused is not None
    raise refused


@contextmanager
def placed(s: Setup, execution: Execution) -> Iterator[Engine]:
    """A transformer with random weights, placed and sliced as a plan says, with the attention that serves here."""
    with Residency(execution, device=s.kind) as home:
        dit = s.build(execution.scheme)
        with torch.inference_mode(False):
            home.place_dit(dit)
        dit.mlp_slice, dit.attention_slice = execution.mlp_slice, execution.attention_slice
        dit.backend = attention.choose(execution.attention, s.kind, s.dtype)
        notices = tune(dit, home.device, execution.scheme)
        devices.free_memory()
        yield Engine(None, execution, dit, home, notices)  # type: ignore[arg-type]


def _few(work: Callable[[], Any], s: Setup) -> dict[str, Any]:
    """Time, dearest kernels and waits of a pass through a few layers: host time is that of issuing, for so few
    operations do not fill the card's queue."""
    taken = s.timed(work, most=4)
    return {"layers": FEW_LAYERS, **taken, **_dearest(work, s), "waits_for_the_card": _waits(work, s)}


def _with_peak(work: Callable[[], Any], s: Setup, budget: float) -> dict[str, Any]:
    """Time and peak memory of `work`, which runs once where it is slow."""
    with devices.peak_memory() as peak:
        taken = s.timed(work, budget=budget, most=6, warm=False)
    return {**taken, "peak_gb": peak["peak_bytes"] / 1e9, "reserved_gb": peak["reserved_bytes"] / 1e9}


def _price(s: Setup, plan: planner.Plan, taken: float, backend: str) -> dict[str, float]:
    """What the pass's own operations cost at this card's rates, and `taken` against its products and attentions."""
    size, execution = (plan.request.width, plan.request.height), plan.execution
    case = roofline.Case(
        s.device, s.model(), *size, plan.window, plan.request.steps, execution.scheme,
        "sage" if backend == "sage" else "sdpa", execution.mlp_slice,
    )  # fmt: skip
    with torch.inference_mode(False):
        bill = roofline.price(case)["window pass"]
    return {"priced_seconds": bill.seconds, "floor_seconds": bill.floor, "ratio": taken / bill.floor}


def _dearest(work: Callable[[], Any], s: Setup) -> dict[str, Any]:
    """The kernels that take the card longest, and the operators that take the processor longest."""
    try:
        kernels, operators = profiled(work, s.dry)
    except Exception as error:  # the profiler needs rights that not every machine gives
        return {"dearest_kernels": f"not run: {type(error).__name__}: {error}"}
    on_card = [
        {"kernel": row.key[:160], "calls": row.count, "ms": row.self_device_time_total / 1e3} for row in kernels
    ]
    on_host = [
        {"operator": row.key[:160], "calls": row.count, "ms": row.self_cpu_time_total / 1e3} for row in operators
    ]
    return {
        "dearest_kernels": NO_CARD if s.dry else on_card[:KERNELS],
        "kernels_ms": NO_CARD if s.dry else sum(row["ms"] for row in on_card),
        "dearest_operators": on_host[:OPERATORS],
    }


def _waits(work: Callable[[], Any], s: Setup) -> str:
    """The first operation of a pass that makes the processor wait for the card; empty: none does."""
    if s.dry:
        return NO_CARD
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        work()
    except RuntimeError as error:
        return str(error).splitlines()[0]
    finally:
        torch.cuda.set_sync_debug_mode(before)
        devices.synchronize()
    return ""


def slices(s: Setup) -> list[dict[str, Any]]:
    """A few layers at the planned size, whole and in slices: time, peak memory, error against 2048."""
    plan = chosen(s)
    size = (plan.request.width, plan.request.height)
    expected = 1.2 * s.forward_seconds(plan) * FEW_LAYERS / s.dit.num_layers
    rows: list[dict[str, Any]] = []
    if not s.affords(2 * expected):
        return [{"skipped": "out of time"}]
    with placed(s, replace(plan.execution, layers="resident", kv_place="device")) as networks:
        dit = networks.dit
        store = networks.store(slots_of(plan.window))
        given = stage_inputs(dit, size, plan.window, s.kind, s.dtype, store=store)
        with few_layers(dit):
            dit.mlp_slice = dit.attention_slice = 2048  # what fits if anything does
            wanted = dit(**given)
            for mlp, of_attention in DRY_SLICES if s.dry else SLICES:
                dit.mlp_slice, dit.attention_slice = mlp, of_attention
                row = {"size": list(size), "layers": FEW_LAYERS, "mlp": mlp, "attention": of_attention}
                rows.append(s.attempt(row, expected, lambda: _sliced(lambda: dit(**given), wanted, s)))
                devices.free_memory()
    return rows


def _sliced(work: Callable[[], torch.Tensor], wanted: torch.Tensor, s: Setup) -> dict[str, Any]:
    found: list[torch.Tensor] = []
    taken = _with_peak(lambda: found.__setitem__(slice(None), [work()]), s, 2.0)
    return {**taken, "error": relative_error(found[0], wanted)}


def host(s: Setup) -> list[dict[str, Any]]:
    """Where the processor's time goes in the smallest pass, which it bounds: the functions that take most, by layer."""
    size, rows = s.sizes[0], []
    for scheme in dict.fromkeys((s.schemes[1], s.schemes[-1])):
        dit = s.build(scheme)
        given = stage_inputs(dit, size, 1, s.kind, s.dtype)
        for name in attention.available(s.kind, s.dtype):
            row = {"scheme": scheme, "size": list(size), "attention": name}
            rows.append(s.attempt(row, 3.0, lambda name=name, dit=dit, given=given: _host(s, dit, given, name)))
        del dit, given
        devices.free_memory()
    return rows


def _host(s: Setup, dit: Any, given: dict[str, Any], kernel: str) -> dict[str, Any]:
    dit.backend = attention.choose(kernel, s.kind, s.dtype)
    layers, found = len(dit.videodit_blocks.layers), s.timed(lambda: dit(**given))
    seen = cProfile.Profile()
    seen.runcall(dit, **given)
    devices.synchronize()
    functions = sorted(pstats.Stats(seen).stats.items(), key=lambda entry: -entry[1][2])  # type: ignore[attr-defined]
    found["dearest_functions"] = [
        {
            "function": f"{Path(file).name}:{line} {name}"[:100],
            "calls_a_layer": round(calls / layers, 2),
            "own_us_a_layer": round(own / layers * 1e6, 2),
            "us_a_layer": round(total / layers * 1e6, 2),
        }
        for (file, line, name), (_, calls, own, total, _) in functions[:KERNELS]
    ]
    return found
