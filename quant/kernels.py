"""Triton kernels that quantize activations in one read and one write; `triton` is None where it is not installed.

One program per row, the whole row in registers: the absmax needs no second pass over memory.
"""

# No postponed annotations here: Triton reads `tl.constexpr` from them.
import logging

import torch
from torch import Tensor

from quant.schemes import FP8_MAX, INT8_MAX

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = None

WIDEST_ROW = 16384
"""Features per row that still fit in a program's registers."""
_log = logging.getLogger(__name__)

if triton is not None:

    @triton.jit
    def _rows_kernel(x, values, scales, features, limit, smallest, INTEGER: tl.constexpr, BLOCK: tl.constexpr):
        row = tl.program_id(0).to(tl.int64)
        column = tl.arange(0, BLOCK)
        inside = column < features
        numbers = tl.load(x + row * features + column, mask=inside, other=0.0).to(tl.float32)
        absmax = tl.maximum(tl.max(tl.abs(numbers), axis=0), smallest)
        scale = tl.div_rn(absmax, limit)
        tl.store(scales + row, scale)
        scaled = tl.div_rn(numbers, tl.broadcast_to(scale, (BLOCK,)))
        scaled = tl.minimum(tl.maximum(scaled, -limit), limit)
        if INTEGER:  # noqa: SIM108 - a branch the compiler drops
            # 1.5 * 2^23: adding and subtracting it rounds a small float32 half to even.
            result = ((scaled + 12582912.0) - 12582912.0).to(tl.int8)
        else:
            result = scaled.to(tl.float8e4nv)
        tl.store(values + row * features + column, result, mask=inside)

    @triton.jit
    def _static_kernel(
        x, values, divisor, features, limit, VECTOR: tl.constexpr, TWICE: tl.constexpr, BLOCK: tl.constexpr
    ):
        row = tl.program_id(0).to(tl.int64)
        column = tl.arange(0, BLOCK)
        inside = column < features
        numbers = tl.load(x + row * features + column, mask=inside, other=0.0).to(tl.float32)
        if VECTOR:
            by = tl.load(divisor + column, mask=inside, other=1.0)
        else:
            by = tl.broadcast_to(tl.load(divisor), (BLOCK,))
        scaled = tl.minimum(tl.maximum(tl.div_rn(numbers, by), -limit), limit)
        if TWICE:
            scaled = scaled.to(tl.bfloat16).to(tl.float32)
        tl.store(values + row * features + column, scaled.to(tl.float8e4nv), mask=inside)


def quantize_rows(x: Tensor, kind: torch.dtype) -> tuple[Tensor, Tensor]:
    """`activations.per_token` on CUDA."""
    from quant.activations import SMALLEST_ABSMAX

    values = torch.empty_like(x, dtype=kind)
    scale = torch.empty(x.shape[0], 1, dtype=torch.float32, device=x.device)
    integer = kind == torch.int8
    block, warps = _launch(x)
    if x.numel():
        with torch.cuda.device(x.device):
            _rows_kernel[(x.shape[0],)](
                x, values, scale, x.shape[1], INT8_MAX if integer else FP8_MAX, SMALLEST_ABSMAX,
                INTEGER=integer, BLOCK=block, num_warps=warps,
            )  # fmt: skip
    return values, scale


def quantize_static(x: Tensor, divisor: Tensor, twice: bool) -> Tensor:
    """`activations.static` on CUDA (twice: through bfloat16), or plain scaling by (1,)."""
    values = torch.empty_like(x, dtype=torch.float8_e4m3fn)
    block, warps = _launch(x)
    if x.numel():
        with torch.cuda.device(x.device):
            _static_kernel[(x.shape[0],)](
                x, values, divisor.contiguous(), x.shape[1], FP8_MAX,
                VECTOR=divisor.numel() > 1, TWICE=twice, BLOCK=block, num_warps=warps,
            )  # fmt: skip
    return values


def _launch(x: Tensor) -> tuple[int, int]:
    """(columns of a program, warps): about 32 to 64 values a thread."""
    block = triton.next_power_of_2(x.shape[1])
    return block, min(16, max(1, block // 1024))


def agrees_with_plain(device: torch.device, features: int, kind: torch.dtype) -> bool:
    """Run the kernels of a type once against plain arithmetic; False (and a logged reason) if one fails or differs."""
    from quant.activations import exact_ratio, largest, to_kind

    try:
        x = torch.randn(8, features, generator=torch.Generator().manual_seed(0)).to(device)
        x[:, 0] *= 50
        scale = exact_ratio(x.abs().amax(1, keepdim=True), largest(kind))
        pairs = [(quantize_rows(x, kind)[0], to_kind(x / scale, kind))]
        if kind != torch.int8:
            divisor = torch.rand(features, device=device) + 0.01
            for by in (divisor, divisor[:1]):
                plain = (x / by).clamp(-FP8_MAX, FP8_MAX).to(torch.bfloat16).to(kind)
                pairs.append((quantize_static(x, by, twice=True), plain))
        if not all(torch.equal(ours.float(), plain.float()) for ours, plain in pairs):
            raise ValueError(f"{kind} values differ from plain arithmetic")
    except Exception as error:  # whatever a compiler raises, the plain path still works
        _log.warning("The Triton quantization kernels are not used on %s: %s", device, error)
        return False
    return True
