"""The last step of a quantized product: its rows times the activations' scales, its columns times the weight's.

For products whose kernel does not scale by itself: all integer ones, and FP8's where row scales are missing (old
versions, Windows). On a card one read and one write by our Triton kernel, elsewhere two; the bits are the same.
"""

from __future__ import annotations

import importlib.util
import logging
from functools import lru_cache

import torch
from torch import Tensor

_log = logging.getLogger(__name__)


def scale_into(result: Tensor, product: Tensor, scale: Tensor, weight_scale: Tensor) -> None:
    """result = (product * weight_scale) * scale in float32, rounded to the result's type.

    The small scale comes first: huge activations must not overflow on the way to a result that float32 holds.

    Args:
        result: (rows, out) of any float type; product: (rows, out) int32 or float32, used up.
        scale: float32 (rows, 1) or (1,); weight_scale: float32 (out, 1) or (1,).
    """
    if _has_kernel(result, product):
        from quant import kernels

        kernels.scale_product(product, scale, weight_scale, result)
        return
    by_column = weight_scale.view(-1)
    product = product.mul_(by_column) if product.dtype == torch.float32 else product * by_column
    torch.mul(product, scale, out=result)


def _has_kernel(result: Tensor, product: Tensor) -> bool:
    if not product.is_cuda or isinstance(product, torch._subclasses.FakeTensor) or torch.version.hip:
        return False
    whole = result.is_contiguous() and product.is_contiguous()
    return whole and _kernel_works(product.device.index or 0, product.dtype, result.dtype)


@lru_cache
def _kernel_works(index: int, product: torch.dtype, result: torch.dtype) -> bool:
    """Try it once per device and types: other bits than plain arithmetic gives are not accepted."""
    if importlib.util.find_spec("triton") is None:
        return False
    from quant import kernels

    if kernels.triton is None:
        return False
    problem = disagreement(torch.device("cuda", index), product, result)
    if problem is not None:
        _log.warning("The Triton kernel that scales products is not used on cuda:%d: %s", index, problem)
    return problem is None


def disagreement(device: torch.device, product: torch.dtype, result: torch.dtype) -> str | None:
    """Run the kernel against plain arithmetic; what is wrong with it, or None.

    Raises:
        torch.OutOfMemoryError: that says nothing about the kernel.
    """
    from quant import kernels

    try:
        random = torch.Generator().manual_seed(0)
        numbers = torch.randint(-(1 << 27), 1 << 27, (5, 1040), generator=random).to(device, product)
        rows, columns = (0.001 + torch.rand(n, 1, generator=random).to(device) for n in numbers.shape)
        for scale, weight_scale in ((rows, columns), (rows[0], columns[0])):
            found = torch.empty(numbers.shape, dtype=result, device=device)
            kernels.scale_product(numbers, scale, weight_scale, found)
            if not torch.equal(found, (numbers.float() * weight_scale.view(-1) * scale).to(result)):
                return "it gives other bits than plain arithmetic"
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever a compiler raises, the plain path still works
        return f"{type(error).__name__}: {error}"
    return None
