"""The last step of a quantized product: its rows times the activations' scales, its columns times the weight's.

For products whose kernel does not scale by itself: all integer ones, and FP8's where row scales are missing (old
versions, Windows). On a card one read and one write by our Triton kernel, elsewhere two; the bits are the same.
"""

from __future__ import annotations

import torch
from torch import Tensor

from quant import gate


def scale_into(result: Tensor, product: Tensor, scale: Tensor, weight_scale: Tensor) -> None:
    """result = (product * weight_scale) * scale in float32, rounded to the result's type.

    The small scale comes first: huge activations must not overflow on the way to a result that float32 holds.

    Args:
        result: (rows, out) of any float type; product: (rows, out) int32 or float32, used up.
        scale: float32 (rows, 1) or (1,); weight_scale: float32 (out, 1) or (1,).
    """
    fast = gate.product_kernels(result, product)
    if fast is not None:
        fast.scale_product(product, scale, weight_scale, result)
        return
    by_column = weight_scale.view(-1)
    product = product.mul_(by_column) if product.dtype == torch.float32 else product * by_column
    torch.mul(product, scale, out=result)
