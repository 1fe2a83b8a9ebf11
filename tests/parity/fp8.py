"""Parity of the published FP8 layers: each linear alone, fed with recorded inputs, and whole quantized forwards.

Whole forwards reuse the adapter of `dit_forward`; only the building of the model differs. In the float32 runs the
reference's FP8 linears emit float32 (see the sidecar's `fp32_mode`), as ours do for float32 inputs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from magi_lite.attention import SDPA, Backend
from magi_lite.dit.model import DiT, parameter_dtype
from magi_lite.models import DiTConfig
from quant import Published, QuantError, convert_
from quant.activations import static
from quant.linear import QuantizedLinear, as_rows
from quant.published import PublishedPerTensorLinear, PublishedSmoothLinear, static_matmul
from quant.schemes import quantized_names
from tests.parity.dit_calls import NotUnderstood, PlainStore
from tests.parity.dit_forward import compare_case, run_case, single_sdpa
from tests.parity.report import CaseResult, compare, exact, unclaimed

KIND = "fp8"
OUTPUTS = {
    "out_fp32": (torch.float32, torch.float32),
    "out_bf16": (torch.float32, torch.bfloat16),
    "out_xbf16_fp32": (torch.bfloat16, torch.float32),
    "out_xbf16_bf16": (torch.bfloat16, torch.bfloat16),
}
"""Golden output -> (type the input is cast to, type of the result)."""

ONE_FLIP = {"rel_max": 5e-3, "rel_l2": 1e-3}
"""What one activation rounded to the next e4m3 number can change; float32 goldens avoid the edges, bf16 do not."""


# --- one linear -----------------------------------------------------------------------------------------------------


def layer_of(inputs: dict[str, Tensor]) -> QuantizedLinear:
    """One of our layers with a golden's tensors, loaded strictly by their published names."""
    out_features, in_features = inputs["weight"].shape[-2:]
    kind = PublishedSmoothLinear if "smooth_scale" in inputs else PublishedPerTensorLinear
    layer = kind(in_features, out_features, Published(), device="meta")
    layer.load_state_dict({name: value for name, value in inputs.items() if name != "x"}, assign=True)
    return layer


def layer_outputs(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Every golden output of a linear, from the layer itself."""
    layer = layer_of(inputs)
    found = {"x_quantised": layer.quantize_input(inputs["x"]).values.view(inputs["x"].shape)}
    for name, (given, wanted) in OUTPUTS.items():
        layer.output_dtype = wanted
        found[name] = layer(inputs["x"].to(given))
    return found


def arithmetic_outputs(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same from the plain functions: for scales that no layer accepts."""
    x, weight, scale = inputs["x"], inputs["weight"], inputs["input_scale"]

    def quantized(given: Tensor) -> Tensor:
        return static(as_rows(given), inputs.get("smooth_scale", scale).flatten())

    found = {"x_quantised": quantized(x).view(x.shape)}
    for name, (given, wanted) in OUTPUTS.items():
        product = static_matmul(quantized(x.to(given)), weight, scale, inputs["weight_scale"], wanted)
        found[name] = product.view(*x.shape[:-1], -1)
    return found


def run_linear(name: str, case: dict[str, Any], tensors: dict[str, Tensor]) -> Iterator[CaseResult]:
    """Every output of one golden linear; one whose scales contradict each other must also be refused as a layer."""
    inputs = {key: tensors[entry["tensor"]] for key, entry in case["inputs"].items()}
    if unknown := case["inputs"].keys() - {"x", "weight", "weight_scale", "input_scale", "smooth_scale"}:
        raise NotUnderstood(f"inputs {sorted(unknown)}")
    scale = inputs["input_scale"]
    if case["kind"] not in ("per_tensor", "per_channel", "per_tensor_nonuniform"):
        raise NotUnderstood(f"kind {case['kind']!r}")
    if "smooth_scale" not in inputs and not (scale == scale.flatten()[0]).all():
        try:
            layer_of(inputs)
            refused = False
        except (QuantError, RuntimeError) as error:
            refused = "input_scale" in str(error)
        yield exact(KIND, f"{name}.refused", refused, "unequal scales refused" if refused else "accepted")
        found = arithmetic_outputs(inputs)
    else:
        found = layer_outputs(inputs)
    for output, entry in case["outputs"].items():
        if output not in found:
            yield CaseResult(KIND, f"{name}.{output}", False, {}, {}, "an output that is not known")
        else:
            yield compare(KIND, f"{name}.{output}", found[output], tensors[entry["tensor"]], entry["tolerance"])


# --- whole models ---------------------------------------------------------------------------------------------------


def build(config: DiTConfig, state: dict[str, Tensor], dtype: torch.dtype) -> DiT:
    """A DiT of a published FP8 checkpoint: built on meta, converted where the file is quantized, loaded strictly."""
    with torch.device("meta"):
        dit = DiT(config)
    quantized = quantized_names(state)
    convert_(dit, Published(), quantized.__contains__)
    kept = {name: state[name] for name in state if name.rpartition(".")[0] in quantized}
    others = {name: value.to(parameter_dtype(name, dtype)) for name, value in state.items() if name not in kept}
    dit.load_state_dict({**kept, **others}, assign=True)
    return dit.requires_grad_(False)


def find_linear(dit: DiT, layer: int, name: str) -> nn.Module:
    """The linear of a layer that the sidecar calls `name` (q, linear_fc1, ...)."""
    found = [m for path, m in dit.videodit_blocks.layers[layer].named_modules() if path.rpartition(".")[2] == name]
    if len(found) != 1:
        raise NotUnderstood(f"layer {layer} has {len(found)} modules named {name}")
    return found[0]


def forced_linears(dit: DiT, case: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Outputs of single layers of the model for the recorded inputs of the reference's forward."""
    found = {}
    for name in case["outputs"]:
        match = re.fullmatch(r"mid\.layer(\d+)_(\w+)_out", name)
        source = case["outputs"].get(name.removesuffix("_out") + "_in")
        if match and source:
            found[name] = find_linear(dit, int(match[1]), match[2])(tensors[source["tensor"]])
    return found


def with_flips(entry: dict[str, Any]) -> dict[str, Any]:
    """A bfloat16 golden's entry, its noise at least that of one flipped rounding (a 50th of not quantizing at all)."""
    noise = entry.get("bf16_vs_bf16_noise", {})
    return {**entry, "bf16_vs_bf16_noise": {k: max(noise.get(k, 0.0), floor) for k, floor in ONE_FLIP.items()}}


def run_model_case(
    name: str, case: dict[str, Any], tensors: dict[str, Tensor], dit: DiT, store: PlainStore, *, bf16: bool
) -> Iterator[CaseResult]:
    found = run_case(dit, case, tensors, store)
    if bf16:
        compared = {key: with_flips(entry) for key, entry in case["outputs"].items()}
    else:
        found |= forced_linears(dit, case, tensors)
        compared = {k: e for k, e in case["outputs"].items() if not str(e.get("tolerance")).startswith("n/a")}
    for result in compare_case(name, {**case, "outputs": compared}, found, tensors, bf16=bf16):
        yield replace(result, kind=KIND)


def run_models(
    sidecar: dict[str, Any], tensors: dict[str, Tensor], folder: Path, dtype: torch.dtype
) -> Iterator[CaseResult]:
    """All whole-model cases in order; those that share a cache share a store."""
    bf16 = dtype == torch.bfloat16
    if not sidecar["cases"]:
        return
    shards = sorted((folder / sidecar["weights"]).glob("*.safetensors"))
    state = {name: tensor for shard in shards for name, tensor in load_file(shard).items()}
    models: dict[str, DiT] = {}
    stores: dict[str, PlainStore] = {}
    for name, case in sidecar["cases"].items():
        if bf16 and not any("bf16_tensor" in entry for entry in case["outputs"].values()):
            continue
        try:
            if case["weights"] != "fp8":
                raise NotUnderstood(f"weights {case['weights']!r}")
            key = json.dumps(case["config"]["model_config"], sort_keys=True)
            if key not in models:
                models[key] = build(DiTConfig.from_published(case["config"]["model_config"]), state, dtype)
                models[key].backend = Backend("float32 sdpa", single_sdpa) if bf16 else SDPA
            store = stores.setdefault(case["cache"], PlainStore()) if case["cache"] else PlainStore()
            yield from run_model_case(name, case, tensors, models[key], store, bf16=bf16)
        except Exception as error:
            yield CaseResult(KIND, name + (".bf16" if bf16 else ""), False, {}, {}, f"{type(error).__name__}: {error}")


def run(folder: Path, root: Path) -> Iterator[CaseResult]:
    """Every linear and every model case of every sidecar in the folder."""
    claimed: set[str] = set()
    for path in sorted(folder.glob("*.json")):
        sidecar = json.loads(path.read_text())
        claimed |= {path.name, sidecar.get("file", "")}
        if not {"linears", "cases", "file", "weights"} <= sidecar.keys():
            yield CaseResult(KIND, path.name, False, {}, {}, "not a sidecar of this kind")
            continue
        tensors = load_file(folder / sidecar["file"])
        for name, case in sidecar["linears"].items():
            try:
                yield from run_linear(name, case, tensors)
            except Exception as error:
                yield CaseResult(KIND, name, False, {}, {}, f"{type(error).__name__}: {error}")
        yield from run_models(sidecar, tensors, folder, torch.float32)
        yield from run_models(sidecar, tensors, folder, torch.bfloat16)
    yield from unclaimed(KIND, folder, claimed)
