"""Triton kernels for what a layer does between its matrix products and attentions: each one read and one write.

- `norm_heads_`: the norm of every head of queries or keys, their rotation and the cast, in their own memory.
- `add_gated_`: gate, post-norm and residual sum, straight into the residual stream.

Written out, the first is eight passes over memory and the second nine, most of them in float32. The arithmetic is
float32 where the published program has it (`dit.layers`, `vae.layers`). `triton` is None where it is not installed.
"""

# No postponed annotations here: Triton reads `tl.constexpr` from them.
import contextlib

import torch
from torch import Tensor

try:
    import triton as triton
    import triton.language as tl
except (ImportError, OSError, RuntimeError):  # absent, or broken: then it can be of no use either
    triton = None

WIDEST_HEAD = 256
WIDEST_ROW = 16384
"""Features per row that still fit in a program's registers."""
HEADS = 8
"""Heads of a token that one program norms: 2 KiB of bfloat16 at the published sizes."""
ROWS = 4
"""Rows of the residual stream that one program works on: they share gate, weight and bias, which stay in registers."""

if triton is not None:

    @triton.jit
    def _affine(centred, scale, weight, bias, inside, IN_TYPE: tl.constexpr):
        """centred * scale * (1 + weight) + bias of some columns; IN_TYPE: the sum is rounded to the weight's type."""
        gain = tl.load(weight, mask=inside, other=0.0).to(tl.float32) + 1.0
        if IN_TYPE:
            gain = gain.to(weight.dtype.element_ty).to(tl.float32)
        return centred * scale[:, None] * gain[None, :] + tl.load(bias, mask=inside, other=0.0).to(tl.float32)[None, :]

    @triton.jit
    def _heads_kernel(
        x, weight, bias, table, row_stride, head_stride, table_stride, table_rows, heads, eps,
        AFFINE: tl.constexpr, DEVIATION: tl.constexpr, ROTATE: tl.constexpr, IN_TYPE: tl.constexpr,
        HALF: tl.constexpr, WIDTH: tl.constexpr, REST: tl.constexpr,
        HALF_BLOCK: tl.constexpr, REST_BLOCK: tl.constexpr, HEADS: tl.constexpr,
    ):  # fmt: skip
        row = tl.program_id(0).to(tl.int64)
        head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
        there = (head < heads)[:, None]
        column = tl.arange(0, HALF_BLOCK)
        inside = column < HALF
        mask = there & inside[None, :]
        start = x + row * row_stride + head[:, None] * head_stride + column[None, :]
        first = tl.load(start, mask=mask, other=0.0).to(tl.float32)
        second = tl.load(start + HALF, mask=mask, other=0.0).to(tl.float32)
        total = tl.sum(first, axis=1) + tl.sum(second, axis=1)
        if REST > 0:
            last = tl.arange(0, REST_BLOCK)
            last_inside = last < REST
            last_mask = there & last_inside[None, :]
            last_start = x + row * row_stride + head[:, None] * head_stride + 2 * HALF + last[None, :]
            rest = tl.load(last_start, mask=last_mask, other=0.0).to(tl.float32)
            total += tl.sum(rest, axis=1)
        mean = (total / WIDTH)[:, None]
        first = tl.where(mask, first - mean, 0.0)
        second = tl.where(mask, second - mean, 0.0)
        squares = tl.sum(first * first, axis=1) + tl.sum(second * second, axis=1)
        if REST > 0:
            rest = tl.where(last_mask, rest - mean, 0.0)
            squares += tl.sum(rest * rest, axis=1)
        if DEVIATION:  # noqa: SIM108 - a branch the compiler drops
            scale = 1.0 / (tl.sqrt(squares / WIDTH) + eps)
        else:
            scale = 1.0 / tl.sqrt(squares / WIDTH + eps)
        if AFFINE:
            first = _affine(first, scale, weight + column, bias + column, inside, IN_TYPE)
            second = _affine(second, scale, weight + HALF + column, bias + HALF + column, inside, IN_TYPE)
        else:
            first *= scale[:, None]
            second *= scale[:, None]
        if ROTATE:
            angles = table + (row % table_rows) * table_stride + column
            sine = tl.load(angles, mask=inside, other=0.0)[None, :]
            cosine = tl.load(angles + HALF, mask=inside, other=0.0)[None, :]
            turned = second * cosine + first * sine
            first = first * cosine - second * sine
            second = turned
        tl.store(start, first.to(x.dtype.element_ty), mask=mask)
        tl.store(start + HALF, second.to(x.dtype.element_ty), mask=mask)
        if REST > 0:
            if AFFINE:
                place = 2 * HALF + last
                rest = _affine(rest, scale, weight + place, bias + place, last_inside, IN_TYPE)
            else:
                rest *= scale[:, None]
            tl.store(last_start, rest.to(x.dtype.element_ty), mask=last_mask)

    @triton.jit
    def _gated_kernel(
        x, branch, gate, weight, bias, x_batch, x_chunk, x_token, branch_batch, branch_chunk, branch_token,
        gate_batch, gate_chunk, chunks, tokens, features, eps, ROWS: tl.constexpr, BLOCK: tl.constexpr,
    ):  # fmt: skip
        batch = (tl.program_id(1) // chunks).to(tl.int64)
        chunk = (tl.program_id(1) % chunks).to(tl.int64)
        column = tl.arange(0, BLOCK)
        inside = column < features
        factor = tl.load(gate + batch * gate_batch + chunk * gate_chunk + column, mask=inside, other=0.0).to(tl.float32)
        gain = tl.load(weight + column, mask=inside, other=0.0).to(tl.float32) + 1.0
        shift = tl.load(bias + column, mask=inside, other=0.0).to(tl.float32)
        x += batch * x_batch + chunk * x_chunk
        branch += batch * branch_batch + chunk * branch_chunk
        for number in range(ROWS):
            token = tl.program_id(0).to(tl.int64) * ROWS + number
            mask = inside & (token + column * 0 < tokens)  # of column's shape, as the interpreter wants it
            gated = tl.load(branch + token * branch_token + column, mask=mask, other=0.0).to(tl.float32) * factor
            centred = tl.where(inside, gated - tl.sum(gated, axis=0) / features, 0.0)
            normed = centred / tl.sqrt(tl.sum(centred * centred, axis=0) / features + eps) * gain + shift
            place = x + token * x_token + column
            total = tl.load(place, mask=mask, other=0.0).to(tl.float32) + normed
            tl.store(place, total.to(x.dtype.element_ty), mask=mask)


def norm_heads_(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    *,
    in_type: bool = False,
    deviation: bool = False,
    table: Tensor | None = None,
) -> Tensor:
    """Norm every head, rotate it where there is a table, and write it over x.

    Args:
        x: (rows, heads, head_dim), the last axis without gaps.
        weight, bias: (head_dim,) without gaps, or None: 1 and 0; the weight is the effective one minus one.
        eps: added to the variance; deviation: to its root.
        in_type: round weight + 1 to the weight's type, as a norm that works in it does.
        table: (tokens, 2 * r) float32 [sin | cos], the last axis without gaps; row i is rotated by i modulo tokens.
    """
    rows, heads, width = x.shape
    half = width // 2 if table is None else table.shape[1] // 2
    rest = width - 2 * half
    assert half, "a head of one number has no norm"
    angles = x if table is None else table
    if not x.numel():
        return x
    with _on_device_of(x):
        _heads_kernel[(rows, triton.cdiv(heads, HEADS))](
            x, x if weight is None else weight, x if bias is None else bias, angles,
            x.stride(0), x.stride(1), angles.stride(0), angles.shape[0], heads, eps,
            AFFINE=weight is not None, DEVIATION=deviation, ROTATE=table is not None, IN_TYPE=in_type,
            HALF=half, WIDTH=width, REST=rest,
            HALF_BLOCK=triton.next_power_of_2(half), REST_BLOCK=triton.next_power_of_2(max(1, rest)), HEADS=HEADS,
            num_warps=max(1, width // 64),  # eight numbers of a half for each thread: 16 bytes
        )  # fmt: skip
    return x


def add_gated_(x: Tensor, branch: Tensor, gate: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """x += norm(branch * gate), in float32, in place.

    Args:
        x, branch: (N, chunks, tokens, D); gate: (N, chunks, 1, D); weight (the effective one minus one), bias: (D,).
            The last axis of each has no gaps.
    """
    batch, chunks, tokens, features = x.shape
    if not x.numel():
        return x
    block = triton.next_power_of_2(features)
    with _on_device_of(x):
        _gated_kernel[(triton.cdiv(tokens, ROWS), batch * chunks)](
            x, branch, gate, weight, bias, *x.stride()[:3], *branch.stride()[:3], *gate.stride()[:2],
            chunks, tokens, features, eps, ROWS=ROWS, BLOCK=block, num_warps=min(16, max(1, block // 512)),
        )  # fmt: skip
    return x


def _on_device_of(x: Tensor) -> contextlib.AbstractContextManager[object]:
    """The card of x as the current one, which it mostly is; Triton's interpreter, which tests run in, has none."""
    there = x.is_cuda and x.device.index != torch.cuda.current_device()
    return torch.cuda.device(x.device) if there else contextlib.nullcontext()
