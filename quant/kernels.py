"""Triton kernels that quantize activations in one read and one write, the operation that makes them included.

One program per row, the whole row in registers: neither a norm nor the absmax needs a second pass over memory. Wide
rows are bound by the instructions per number and by how many rows a card's unit holds at once, not by memory, so
instructions and registers are kept few (`_gelu`, `_write_ratio`, `parts`, `warps`). What is not a number stays so, as
in plain arithmetic: a broken activation must not come out as an ordinary one. `triton` is None where it is not
installed.
"""

# No postponed annotations here: Triton reads `tl.constexpr` from them.
import contextlib

import torch
from torch import Tensor

from quant.fusion import Operation
from quant.kinds import SMALLEST_ABSMAX
from quant.schemes import FP8_MAX, INT8_MAX

try:
    import triton as triton
    import triton.language as tl
except (ImportError, OSError, RuntimeError):  # absent, or broken: then it can be of no use either
    triton = None

WIDEST_ROW = 16384
"""Features per row that still fit in a program's registers."""
SCALED_COLUMNS = 1024
"""Columns of a product that one program scales."""

if triton is not None:

    @triton.jit
    def _gelu(x):
        """x * Phi(x) as max(x, 0) - |x| * Phi(-|x|), the tail being 2^(|x| * P(|x|) - 1): to 3e-6, without a branch.

        The library's erf costs twice as much, and its two ranges keep the card from working at several numbers at once.
        P is fitted up to 5, where the tail is 3e-7; beyond, it falls ever faster.
        """
        size = tl.abs(x)
        power = tl.fma(size, -1.0963025260934955e-06, 5.0081012886948884e-05)
        power = tl.fma(power, size, -8.603936876170337e-04)
        power = tl.fma(power, size, 8.297319523990154e-03)
        power = tl.fma(power, size, -5.363631621003151e-02)
        power = tl.fma(power, size, -4.5870357751846313e-01)
        power = tl.fma(power, size, -1.1511811017990112)
        return tl.maximum(x, 0.0) - size * tl.exp2(tl.fma(power, size, -1.0))

    @triton.jit
    def _read(x, row, features, column, FORMULA: tl.constexpr):
        """Numbers of a row in float32, after the operation if that is one number by number."""
        inside = column < features
        if FORMULA == "gated_silu":
            start = x + row * features * 2 + column
            gate = tl.load(start, mask=inside, other=0.0).to(tl.float32)
            value = tl.load(start + features, mask=inside, other=0.0).to(tl.float32)
            numbers = gate / (1.0 + tl.exp(-gate)) * value
        else:
            numbers = tl.load(x + row * features + column, mask=inside, other=0.0).to(tl.float32)
        if FORMULA == "gelu":
            numbers = _gelu(numbers)
        return numbers

    @triton.jit
    def _scaled_norm(numbers, weight, bias, features, column, AFFINE: tl.constexpr):
        if AFFINE:
            inside = column < features
            numbers = numbers * tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
            numbers = numbers + tl.load(bias + column, mask=inside, other=0.0).to(tl.float32)
        return numbers

    @triton.jit
    def _result_row(
        x, weight, bias, row, features, eps, first, second, FORMULA: tl.constexpr, AFFINE: tl.constexpr
    ):  # fmt: skip
        """A row of the operation's result in float32, rounded to the type of x as the operation by itself would.

        In two parts, of the columns `first` and `second`.
        """
        low, high = _read(x, row, features, first, FORMULA), _read(x, row, features, second, FORMULA)
        if FORMULA == "layer_norm":
            mean = (tl.sum(low, axis=0) + tl.sum(high, axis=0)) / features
            low, high = tl.where(first < features, low - mean, 0.0), tl.where(second < features, high - mean, 0.0)
            deviation = tl.sqrt((tl.sum(low * low, axis=0) + tl.sum(high * high, axis=0)) / features + eps)
            low = _scaled_norm(low / deviation, weight, bias, features, first, AFFINE)
            high = _scaled_norm(high / deviation, weight, bias, features, second, AFFINE)
        kind: tl.constexpr = x.dtype.element_ty
        return low.to(kind).to(tl.float32), high.to(kind).to(tl.float32)

    @triton.jit
    def _largest(numbers):
        """The largest magnitude, or NaN: bits of numbers without a sign are in their order, NaN above all."""
        return tl.max(tl.abs(numbers).to(tl.int32, bitcast=True), axis=0)

    @triton.jit
    def _write_ratio(values, numbers, scale, reciprocal, column, features, INTEGER: tl.constexpr):
        """numbers / scale, rounded; nothing is clamped, for the scale puts the largest on the largest.

        The reciprocal is the nearest to the exact one, so that one correction gives the nearest quotient (Markstein).
        """
        scaled = numbers * reciprocal
        scaled = tl.fma(tl.fma(-scaled, scale, numbers), reciprocal, scaled)
        if INTEGER:  # noqa: SIM108 - a branch the compiler drops
            # 1.5 * 2^23: adding and subtracting it rounds a small float32 half to even.
            result = ((scaled + 12582912.0) - 12582912.0).to(tl.int8)
        else:
            result = scaled.to(tl.float8e4nv)
        tl.store(values + column, result, mask=column < features)

    @triton.jit
    def _rows_kernel(
        x, weight, bias, values, scales, features, eps, limit, smallest,
        INTEGER: tl.constexpr, FORMULA: tl.constexpr, AFFINE: tl.constexpr, FIRST: tl.constexpr, SECOND: tl.constexpr,
    ):  # fmt: skip
        row = tl.program_id(0).to(tl.int64)
        first, second = tl.arange(0, FIRST), FIRST + tl.arange(0, SECOND)
        low, high = _result_row(x, weight, bias, row, features, eps, first, second, FORMULA, AFFINE)
        largest = tl.maximum(_largest(low), _largest(high)).to(tl.float32, bitcast=True)
        scale = tl.div_rn(tl.maximum(largest, smallest, propagate_nan=tl.PropagateNan.ALL), limit)
        tl.store(scales + row, scale)
        reciprocal = tl.div_rn(1.0, scale)
        _write_ratio(values + row * features, low, scale, reciprocal, first, features, INTEGER)
        _write_ratio(values + row * features, high, scale, reciprocal, second, features, INTEGER)

    @triton.jit
    def _clamp(numbers, limit):
        """To [-limit, limit]; NaN stays."""
        above = tl.maximum(numbers, -limit, propagate_nan=tl.PropagateNan.ALL)
        return tl.minimum(above, limit, propagate_nan=tl.PropagateNan.ALL)

    @triton.jit
    def _write_divided(
        values, numbers, divisor, column, features, limit, VECTOR: tl.constexpr, TWICE: tl.constexpr
    ):  # fmt: skip
        inside = column < features
        if VECTOR:
            by = tl.load(divisor + column, mask=inside, other=1.0)
        else:
            by = tl.broadcast_to(tl.load(divisor), column.shape)
        scaled = _clamp(tl.div_rn(numbers, by), limit)
        if TWICE:
            scaled = scaled.to(tl.bfloat16).to(tl.float32)
        tl.store(values + column, scaled.to(tl.float8e4nv), mask=inside)

    @triton.jit
    def _static_kernel(
        x, weight, bias, values, divisor, features, eps, limit,
        VECTOR: tl.constexpr, TWICE: tl.constexpr, FORMULA: tl.constexpr, AFFINE: tl.constexpr,
        FIRST: tl.constexpr, SECOND: tl.constexpr,
    ):  # fmt: skip
        row = tl.program_id(0).to(tl.int64)
        first, second = tl.arange(0, FIRST), FIRST + tl.arange(0, SECOND)
        low, high = _result_row(x, weight, bias, row, features, eps, first, second, FORMULA, AFFINE)
        _write_divided(values + row * features, low, divisor, first, features, limit, VECTOR, TWICE)
        _write_divided(values + row * features, high, divisor, second, features, limit, VECTOR, TWICE)

    @triton.jit
    def _scaling_kernel(
        product, scale, weight_scale, result, features,
        BY_ROW: tl.constexpr, BY_COLUMN: tl.constexpr, BLOCK: tl.constexpr,
    ):  # fmt: skip
        row = tl.program_id(0).to(tl.int64)
        column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        inside = column < features
        numbers = tl.load(product + row * features + column, mask=inside, other=0).to(tl.float32)
        numbers = numbers * tl.load(weight_scale + column * BY_COLUMN, mask=inside, other=0.0)
        numbers = numbers * tl.load(scale + row * BY_ROW)
        tl.store(result + row * features + column, numbers.to(result.dtype.element_ty), mask=inside)


def quantize_rows(x: Tensor, kind: torch.dtype, operation: Operation | None = None) -> tuple[Tensor, Tensor]:
    """`activations.per_token` on CUDA."""
    rows, features = x.shape[0], x.shape[1] if operation is None else operation.features(x.shape[1])
    values = torch.empty(rows, features, dtype=kind, device=x.device)
    scale = torch.empty(rows, 1, dtype=torch.float32, device=x.device)
    integer = kind == torch.int8
    weight, bias, eps, settings = _settings(x, features, operation)
    if values.numel():
        with _on_device_of(x):
            _rows_kernel[(rows,)](
                x, weight, bias, values, scale, features, eps, INT8_MAX if integer else FP8_MAX, SMALLEST_ABSMAX,
                INTEGER=integer, **settings,
            )  # fmt: skip
    return values, scale


def quantize_static(x: Tensor, divisor: Tensor, twice: bool, operation: Operation | None = None) -> Tensor:
    """`activations.static` on CUDA (twice: through bfloat16), or plain scaling by (1,)."""
    rows, features = x.shape[0], x.shape[1] if operation is None else operation.features(x.shape[1])
    values = torch.empty(rows, features, dtype=torch.float8_e4m3fn, device=x.device)
    weight, bias, eps, settings = _settings(x, features, operation)
    if values.numel():
        with _on_device_of(x):
            _static_kernel[(rows,)](
                x, weight, bias, values, divisor.contiguous(), features, eps, FP8_MAX,
                VECTOR=divisor.numel() > 1, TWICE=twice, **settings,
            )  # fmt: skip
    return values


def scale_product(product: Tensor, scale: Tensor, weight_scale: Tensor, result: Tensor) -> None:
    """`products.scale_into` on CUDA; all tensors contiguous."""
    rows, features = product.shape
    if not product.numel():
        return
    with _on_device_of(product):
        _scaling_kernel[(rows, triton.cdiv(features, SCALED_COLUMNS))](
            product, scale, weight_scale, result, features,
            BY_ROW=int(scale.numel() > 1), BY_COLUMN=int(weight_scale.numel() > 1), BLOCK=SCALED_COLUMNS, num_warps=4,
        )  # fmt: skip


def _settings(x: Tensor, features: int, operation: Operation | None) -> tuple[Tensor, Tensor, float, dict[str, object]]:
    """(weight, bias, eps, what the kernels are compiled for); x stands in for weights that are not read."""
    weight = bias = x
    given = None if operation is None else operation.bias if operation.weight is None else operation.weight
    if operation is not None and given is not None:
        weight = torch.ones_like(given) if operation.weight is None else operation.weight.contiguous()
        bias = torch.zeros_like(given) if operation.bias is None else operation.bias.contiguous()
    first, second = parts(features)
    settings: dict[str, object] = {
        "FORMULA": "none" if operation is None else operation.formula,
        "AFFINE": given is not None,
        "FIRST": first,
        "SECOND": second,
        "num_warps": warps(features),
    }
    return weight, bias, 0.0 if operation is None else operation.eps, settings


def parts(features: int) -> tuple[int, int]:
    """The two powers of two that a row is read in: most widths are three times one, and a single block would idle."""
    first = 1 << max(0, (features - 1).bit_length() - 1)
    rest = max(1, features - first)
    return first, 1 << (rest - 1).bit_length()


def warps(features: int) -> int:
    """Warps for a row, of 16 to 32 values a thread: with more, its registers leave a card's units room for one row."""
    return min(16, max(1, triton.next_power_of_2(features) // 1024))


def _on_device_of(x: Tensor) -> contextlib.AbstractContextManager[object]:
    """The card of x as the current one, which it mostly is; Triton's interpreter, which tests run in, has none."""
    there = x.is_cuda and x.device.index != torch.cuda.current_device()
    return torch.cuda.device(x.device) if there else contextlib.nullcontext()
