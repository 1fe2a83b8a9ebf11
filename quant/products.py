"""The last step of a quantized product: its rows times the activations' scales, its columns times the weight's.

For products whose kernel does not scale by itself: all integer ones, and FP8's where row scales are missing or slower
(Windows, some cards and versions). On a card one read and one write by our Triton kernel, elsewhere two; the bits are
the same.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from quant import gate
from quant.kinds import slices

CARD_VALUES = 1 << 25
"""Values of an unscaled product that a card makes at a time: 128 MiB. At the widest linear of the 4.5B model these are
2,730 rows: enough to keep every multiprocessor busy, where the few rows that suit a processor are not."""
TILE_ROWS = 128
"""Rows that matrix kernels work on together: a slice is whole tiles."""


def product_slices(result: Tensor) -> Iterator[slice]:
    """Row ranges in which a product of this result's shape is made unscaled."""
    if result.device.type == "cpu":
        yield from slices(result)
        return
    step = max(TILE_ROWS, CARD_VALUES // max(1, result.shape[1]) // TILE_ROWS * TILE_ROWS)
    yield from (slice(start, start + step) for start in range(0, result.shape[0], step))


def scale_into(result: Tensor, product: Tensor, scale: Tensor, weight_scale: Tensor) -> None:
    """result = (product * weight_scale) * scale in float32, rounded to the result's type.

    The small scale comes first: huge activations must not overflow on the way to a result that float32 holds.

    Args:
        result: (rows, out) of any float type; product: (rows, out) int32 or any float type, used up; may be `result`.
        scale: float32 (rows, 1) or (1,); weight_scale: float32 (out, 1) or (1,).
    """
    fast = gate.product_kernels(result, product)
    if fast is not None:
        fast.scale_product(product, scale, weight_scale, result)
        return
    by_column = weight_scale.view(-1)
    for rows in slices(product):
        part, by_row = product[rows], scale if scale.numel() == 1 else scale[rows]
        part = part.mul_(by_column) if part.dtype == torch.float32 else part * by_column
        torch.mul(part, by_row, out=result[rows])
