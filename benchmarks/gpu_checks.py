"""What of `gpu.py` asks whether fast paths are taken and right: attention, quantization, linears, streaming, slices."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.gpu_models import NO_CARD, profiled, relative_error, stage_inputs
from benchmarks.gpu_setup import Setup
from magi_lite import fused
from magi_lite.attention import Backend, available, choose
from magi_lite.attention_shared import Reach
from magi_lite.errors import InputError
from magi_lite.machine import devices
from magi_lite.sampling.kv_store import KVRing
from magi_lite.weights.residency import Residency, move_except
from quant import activations, fusion, kernels, kinds
from quant.convert import quantized_linear
from quant.linear import QuantizedLinear
from quant.schemes import SCHEMES, Fp8, Scheme

LINEARS = {"qkv": (3072, 3072), "projection": (6144, 3072), "fc1": (3072, 12288), "fc2": (12288, 3072)}
"""The linears of a layer of the 4.5B: inputs, outputs."""
TINY_LINEARS = {"fc1": (64, 128)}
ROW_SETTINGS: dict[str, dict[str, Callable[[int], Any]]] = {
    "8 warps": {"warps": lambda features: 8},
    "16 warps": {"warps": lambda features: 16},
    "one part": {"parts": lambda features: (1 << (features - 1).bit_length(), 1)},
}
"""How else `quant.kernels` could divide the work on a row, to be timed beside what it does."""


def attention(s: Setup) -> dict[str, Any]:
    """Which kernels really run for grouped queries, and how far each backend is from float32."""
    q, k, v = grouped_example(s)
    few = slice(0, 1024)
    plain = choose("sdpa", s.kind, torch.float32)(q[:, few].float(), k.float(), v.float())
    flops = 4.0 * q.numel() * k.shape[1]
    results: dict[str, Any] = {}
    for name in available(s.kind, s.dtype):
        try:
            backend = choose(name, s.kind, s.dtype)
        except InputError as error:  # installed, and it does not work: the others are measured all the same
            results[name] = {"failed": str(error)}
            continue
        time = s.timed(lambda backend=backend: backend(q, k, v))
        results[name] = {"error": relative_error(backend(q, k, v)[:, few], plain), **time}
        results[name]["tflops"] = flops / time["seconds"] / 1e12
        if backend.share is not None:
            results[name]["ranges"] = _ranges(s, backend)
    backend = choose("sdpa", s.kind, s.dtype)
    results["kernels_of_sdpa"] = _kernel_names(lambda: backend(q, k, v), s)
    from torch.nn.attention import SDPBackend, sdpa_kernel

    try:  # raises where the flash kernel does not take grouped queries, and the plain formula would be used instead
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            forced = backend(q, k, v)
            results["flash_serves_groups"] = True
            results["forced_flash_error"] = relative_error(forced[:, few], plain)
            results["forced_flash"] = s.timed(lambda: backend(q, k, v))
    except RuntimeError as error:
        results["flash_serves_groups"] = f"no: {error}"
    return results


def _ranges(s: Setup, backend: Backend) -> dict[str, Any]:
    """A window's four ranges, keys and values made ready once, and by a call for each."""
    q, k, v = grouped_example(s)
    reaches = [Reach(k, v, k.shape[1] * part // 5) for part in (2, 3, 4, 5)]
    few = slice(0, 1024)
    alone = replace(backend, share=None)
    errors = [
        relative_error(one(q)[:, few], other(q)[:, few])
        for one, other in zip(backend.readers(reaches), alone.readers(reaches), strict=True)
    ]
    results = {
        name: s.timed(lambda which=which: [read(q) for read in which.readers(reaches)])
        for name, which in (("shared", backend), ("by_range", alone))
    }
    return {"largest_difference": max(errors), **results}


def grouped_example(s: Setup) -> tuple[Tensor, Tensor, Tensor]:
    """Queries of a chunk at the largest size, keys and values of two."""
    heads, groups, width, tokens = (24, 8, 128, 12150) if not s.dry else (4, 2, 16, 64)
    q = torch.randn(1, tokens, heads, width, device=s.kind).to(s.dtype)
    k, v = (torch.randn(1, 2 * tokens, groups, width, device=s.kind).to(s.dtype) for _ in range(2))
    return q, k, v


def _kernel_names(work: Any, s: Setup) -> list[str] | str:
    """Names of the device kernels that `work` launches, longest running first."""
    if s.dry:
        return NO_CARD
    try:
        kernels, _ = profiled(work, s.dry)
        return [row.key[:120] for row in kernels[:4]]
    except Exception as error:  # the profiler needs rights that not every machine gives
        return f"{type(error).__name__}: {error}"


def quantization(s: Setup) -> list[dict[str, Any]]:
    """Each kernel that quantizes: whether it serves, how near plain arithmetic it is, and what fusing saves."""
    rows = []
    tokens, cases = (12150, [(None, 6144), ("layer_norm", 3072), ("gelu", 12288), ("gated_silu", 12288)])
    if s.dry:
        tokens, cases = 40, [(formula, 64) for formula, _ in cases]
    types = [torch.int8, *([kinds.FP8] if s.dry or s.device.has_fp8 else [])]
    for kind in types:
        for formula, features in cases:
            inputs = 2 * features if formula == "gated_silu" else features
            x = torch.randn(tokens, inputs, device=s.kind).to(s.dtype)
            x[:, 5] *= 30
            operation = fusion.example(formula, features, s.dtype, torch.device(s.kind))
            plain = x if operation is None else operation(x)
            fast = activations.fast_kernels(x, kind, operation)
            row = {"kind": str(kind).removeprefix("torch."), "operation": formula, "features": features}
            row["served_by"] = "plain torch" if fast is None else fast.__name__
            values, scale = activations.per_token(x, kind, operation)
            few = slice(0, 1024)
            row["steps_from_plain"] = kinds.steps_apart(values[few], plain[few].float() / scale[few])
            row["together"] = s.timed(lambda x=x, k=kind, o=operation: activations.per_token(x, k, o))
            row["together_with"] = {
                name: s.timed(lambda x=x, k=kind, o=operation, c=changes: _quantized_with(x, k, o, c), budget=0.1)
                for name, changes in ROW_SETTINGS.items()
            }
            if operation is not None:
                row["apart"] = s.timed(lambda x=x, k=kind, o=operation: activations.per_token(o(x), k))
            with mock.patch.object(activations, "fast_kernels", lambda *_: None):
                row["plain"] = s.timed(lambda x=x, k=kind, o=operation: activations.per_token(x, k, o))
            moved = x.numel() * x.element_size() + values.numel() * values.element_size()
            row["gbs"] = moved / row["together"]["seconds"] / 1e9
            rows.append(row)
    return rows


def _quantized_with(
    x: Tensor, kind: torch.dtype, operation: fusion.Operation | None, changes: dict[str, Any]
) -> tuple[Tensor, Tensor]:
    """`activations.per_token` with other settings of the kernels."""
    with mock.patch.multiple(kernels, **changes):
        return activations.per_token(x, kind, operation)


def linears(s: Setup) -> list[dict[str, Any]]:
    """Every scheme's linears at the model's shapes, side by side: the fast path, the plain one, float64, and time."""
    rows = []
    schemes: dict[str, Scheme | None] = {"unquantized": None}
    schemes |= {name: SCHEMES[name] for name in s.schemes if name in SCHEMES}
    if "fp8" in schemes:
        schemes["fp8 by tensor"] = Fp8("tensor")
    for name, (inputs, outputs) in (LINEARS if not s.dry else TINY_LINEARS).items():
        tokens = 12150 if not s.dry else 40
        x = torch.randn(tokens, inputs, device=s.kind).to(s.dtype)
        x[:, 5] *= 30
        linear = torch.nn.Linear(inputs, outputs, bias=False, device=s.kind, dtype=s.dtype)
        few = slice(0, 512)
        exact = x[few].double() @ linear.weight.double().t()
        for label, scheme in schemes.items():
            row: dict[str, Any] = {"linear": name, "scheme": label}
            try:
                layer = linear if scheme is None else quantized_linear(linear, scheme)
                row["error"] = relative_error(layer(x)[few], exact)
                time = s.timed(lambda layer=layer, x=x: layer(x))
                row |= {**time, "tflops": 2.0 * tokens * inputs * outputs / time["seconds"] / 1e12}
                row |= _paths(layer, x[few])
            except Exception as error:  # one kernel that this card or torch lacks must not hide the others
                row["failed"] = f"{type(error).__name__}: {error}"
            rows.append(row)
    return rows


class Products(TorchDispatchMode):
    """Collects the operations that multiply, or expand weights for it, each with the type of its first argument."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, None] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        name = func.name().split(".")[0]
        if name.startswith("bitsandbytes::") or name.endswith(("mm", "linear", "matmul")):
            kind = next((x.dtype for x in args if isinstance(x, Tensor)), None)
            self.found[f"{name} of {str(kind).removeprefix('torch.')}"] = None
        return func(*args, **(kwargs or {}))


def _paths(layer: torch.nn.Module, x: Tensor) -> dict[str, Any]:
    """How far a linear's fast path is from its plain one, and which operations each of them is.

    "fast" is what the layer does by itself, "plain" what it does with `backend = "plain"`; activations are quantized
    alike in both. No comparison, and why, where both are the same.
    """
    with Products() as fast:
        found = layer(x)
    row: dict[str, Any] = {"fast": [*fast.found], "plain": None, "fast_against_plain": None}
    if not isinstance(layer, QuantizedLinear):
        return {**row, "reason": "an ordinary linear has one path"}
    layer.backend = "plain"
    with Products() as plain:
        wanted = layer(x)
    row["plain"] = [*plain.found]
    if fast.found == plain.found:
        return {**row, "reason": "the fast path is not taken here: both are the same operations"}
    return {**row, "fast_against_plain": relative_error(found, wanted), "reason": ""}


def transformer(s: Setup) -> dict[str, Any]:
    """A short transformer: sliced, streamed, with keys and values elsewhere, and fused, each against the plain way."""
    scheme = s.schemes[1]
    dit = s.build(scheme, replace(s.dit, num_layers=3))
    given = stage_inputs(dit, s.sizes[0], 4, s.kind, s.dtype, tokens=12)
    results: dict[str, Any] = {"scheme": scheme}
    dit.mlp_slice = dit.attention_slice = None
    whole = dit(**given)
    results["finite"] = bool(torch.isfinite(whole).all())
    choices = {"quantization": [(activations, "fast_kernels")]}
    choices["layers"] = [(fused, "for_heads"), (fused, "for_residual")]
    for name, these in choices.items():
        results[f"kernels_against_plain_{name}"] = _against_plain(lambda: dit(**given), these)
    dit.mlp_slice = dit.attention_slice = 512 if not s.dry else 20
    sliced = dit(**given)
    results["sliced_against_whole"] = relative_error(sliced, whole)
    results["again_equal_bits"] = torch.equal(dit(**given), sliced)
    for name in s.schemes[:2]:
        results[f"streamed_equal_bits_{name}"] = _streamed(s, name)
    for place, kind in (("pinned", "bf16"), ("device", "fp8"), ("pinned", "fp8")):
        stored = "float32" if s.dry and kind == "bf16" else kind
        store = KVRing(given["store"].slots, dtype=stored, place=place, device=s.kind, streams=devices)
        results[f"kv_{kind}_{place}"] = _with_store(s, dit, store)
    return results


def _against_plain(work: Callable[[], Tensor], choices: list[tuple[Any, str]]) -> float | str:
    """How far results with the kernels that `choices` choose are from results without; a sentence if none serves."""
    chosen: list[bool] = []

    def watched(choice: Callable[..., Any]) -> Callable[..., Any]:
        def ask(*given: Any) -> Any:
            kernels = choice(*given)
            chosen.append(kernels is not None)
            return kernels

        return ask

    with ExitStack() as stack:
        for owner, name in choices:
            stack.enter_context(mock.patch.object(owner, name, watched(getattr(owner, name))))
        fast = work()
    if not any(chosen):
        return "not run: no kernel serves here, so that plain arithmetic would be compared with itself"
    with ExitStack() as stack:
        for owner, name in choices:
            stack.enter_context(mock.patch.object(owner, name, lambda *_: None))
        return relative_error(fast, work())


def _streamed(s: Setup, scheme: str) -> bool:
    """Whether streamed layers give the bits of resident ones, pass after pass."""
    dit = s.build(scheme, replace(s.dit, num_layers=3))
    given = stage_inputs(dit, s.sizes[0], 1, s.kind, s.dtype, tokens=12)
    resident = dit(**given)
    with Residency(s.execution(scheme, layers="streamed"), device=s.kind) as home:
        with torch.inference_mode(False):
            home.place_dit(dit)
        equal = all(torch.equal(dit(**given), resident) for _ in range(4))
    with torch.inference_mode(False):
        move_except(dit, [], s.kind)
    return equal


def _with_store(s: Setup, dit: Any, store: KVRing) -> float:
    """How far a pass whose keys and values lie in `store` is from one with an ordinary store."""

    def velocity(**options: Any) -> Tensor:
        torch.manual_seed(1)
        return dit(**stage_inputs(dit, s.sizes[0], 4, s.kind, s.dtype, tokens=12, **options))

    return relative_error(velocity(store=store), velocity())
