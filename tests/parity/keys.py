"""Parity of the true-size models' state dicts, built on the meta device: names, shapes, types and counts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from magi_lite.dit.model import DiT
from magi_lite.models import DiTConfig, VAEConfig, quantizable
from magi_lite.vae.model import ViTVAE
from quant import convert_
from quant.schemes import Published
from tests.parity.report import CaseResult, exact

KIND = "keys"


def dit_state(model_config: dict[str, Any], fp8: bool) -> dict[str, Tensor]:
    """The state dict of a true-size DiT as it is loaded: bfloat16 with its float32 places, or the published fp8."""
    config = DiTConfig.from_published(model_config)
    with torch.device("meta"):
        dit = DiT(config).to_precision(torch.bfloat16)
    if fp8:
        convert_(dit, Published(), quantizable(config))
    return dit.state_dict()


def vae_state(ddconfig: dict[str, Any]) -> dict[str, Tensor]:
    with torch.device("meta"):
        return ViTVAE(VAEConfig(**ddconfig)).state_dict()


def dtype_name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def differences(ours: dict[str, Any], golden: dict[str, Any]) -> str:
    """The first few keys whose values differ; empty if none does."""
    wrong = [f"{k}: {ours[k]} instead of {golden[k]}" for k in ours.keys() & golden.keys() if ours[k] != golden[k]]
    return f"{len(wrong)} differ, first {'; '.join(sorted(wrong)[:2])}" if wrong else ""


def compare_state(name: str, listing: dict[str, Any], state: dict[str, Tensor]) -> Iterator[CaseResult]:
    """Names, order-free; shapes; types where stated; counts."""
    golden = listing["tensors"]
    missing, extra = sorted(golden.keys() - state.keys()), sorted(state.keys() - golden.keys())
    note = f"{len(missing)} missing {missing[:2]}, {len(extra)} unexpected {extra[:2]}" if missing or extra else ""
    yield exact(KIND, f"{name}.names ({len(golden)})", not note, note)
    typed = all(entry and isinstance(entry[0], list) for entry in golden.values())
    shapes = {key: list(entry[0]) if typed else list(entry) for key, entry in golden.items()}
    note = differences({key: list(tensor.shape) for key, tensor in state.items()}, shapes)
    yield exact(KIND, f"{name}.shapes", not note, note)
    if typed:  # the last column is the type at run time, float32 places included
        note = differences({k: dtype_name(t) for k, t in state.items()}, {k: entry[-1] for k, entry in golden.items()})
        yield exact(KIND, f"{name}.types", not note, note)
    counts = {"tensors": len(state), "numbers": sum(tensor.numel() for tensor in state.values())}
    stated = {"tensors": listing["num_tensors"], "numbers": listing.get("param_count_all_tensors")}
    stated["numbers"] = stated["numbers"] or listing["param_count"]
    note = differences(counts, stated)
    yield exact(KIND, f"{name}.counts", not note, note)


def run(folder: Path, root: Path) -> Iterator[CaseResult]:
    """Every listing in the folder; one that is of no known model fails."""
    for path in sorted(folder.iterdir()):
        listing = json.loads(path.read_text()) if path.suffix == ".json" else {}
        if "model_config" in listing:
            state = dit_state(listing["model_config"], listing["fp8_quant"])
        elif "ddconfig" in listing:
            state = vae_state(listing["ddconfig"])
        else:
            yield exact(KIND, path.name, False, "not a listing of a known model")
            continue
        yield from compare_state(path.stem, listing, state)
