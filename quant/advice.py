"""What a converted model will do slowly on its card, and what would mend it, for one notice before it is run."""

from __future__ import annotations

import torch
from torch import nn

from quant import gate
from quant.fp8 import Fp8Linear, products_missing, row_scales_missing


def slow_paths(model: nn.Module, device: torch.device) -> list[str]:
    """One sentence for each slower path that a model takes on a card; empty elsewhere, and where all is well."""
    if device.type != "cuda":
        return []
    index = device.index or 0
    found = [gate.triton_problem(index)]
    layers = [layer for layer in model.modules() if isinstance(layer, Fp8Linear)]
    if layers and torch.cuda.get_device_capability(index) >= (8, 9):
        reason = products_missing(index, layers[0].scheme.fast_accumulate, torch.bfloat16)
        if reason:
            found.append(
                "This card's FP8 products do not work with this PyTorch, so that they are made in bfloat16, half as "
                f"fast; a newer PyTorch or driver may mend it ({reason})."
            )
            return [sentence for sentence in found if sentence]
    for fast in {layer.scheme.fast_accumulate for layer in layers if layer.scheme.granularity == "row"}:
        reason = row_scales_missing(index, fast)
        if reason and torch.cuda.get_device_capability(index) >= (8, 9):
            found.append(
                "This PyTorch has no FP8 products with a scale by row for this card, so a step of its own scales them, "
                f"a few per cent slower; a newer PyTorch may have them ({reason})."
            )
    return [sentence for sentence in found if sentence]
