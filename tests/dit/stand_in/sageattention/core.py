"""The steps that the package has in Triton, its kernel, and the functions that put them together."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import Tensor

from sageattention.quant import ORDER, _fused, calls, check, padded, per_channel_fp8, rounded

BY_WARP, BY_THREAD = 2, 3


def per_thread_int8_triton(
    q: Tensor,
    k: Tensor,
    km: Tensor | None = None,
    BLKQ: int = 128,
    WARPQ: int = 32,
    BLKK: int = 64,
    WARPK: int = 64,
    sm_scale: float | None = None,
    tensor_layout: str = "HND",
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Queries: eight scales for 32, by their number modulo 8. Keys: four for 64, by pairs of the same."""
    check(tensor_layout == "NHD" and q.shape[0] == k.shape[0], "tokens before heads, one batch")
    if km is not None:
        k = k - km
    return *_by_thread("queries", q, BLKQ, WARPQ, 8, 1), *_by_thread("keys", k, BLKK, WARPK, 4, 2)


def _by_thread(what: str, x: Tensor, block: int, warp: int, threads: int, pair: int) -> tuple[Tensor, Tensor]:
    n, length, heads, width = x.shape
    if length == 0:
        return x.to(torch.int8), torch.empty(n, heads, 0)
    calls.append((what, length))
    warps = padded(x, block).view(n, -1, warp // 8, threads, pair, heads, width)
    scales = warps.abs().amax((2, 4, 6)) / 127 + 1e-7
    numbers = rounded(warps, scales[:, :, None, :, None, :, None]).view(n, -1, heads, width)[:, :length]
    return numbers.contiguous(), scales.permute(0, 3, 1, 2).flatten(2).contiguous()


def _kernel(
    largest: float,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
    query_scale: Tensor,
    key_scale: Tensor,
    value_scale: Tensor,
    tensor_layout: int,
    is_causal: int,
    qk_quant_gran: int,
    sm_scale: float,
    return_lse: int,
) -> Tensor:
    (n, rows, heads, width), (_, length, groups, _) = query.shape, key.shape
    check((tensor_layout, is_causal, return_lse) == (0, 0, 0), "options")
    check(query.dtype == key.dtype == torch.int8 and value.dtype == torch.float8_e4m3fn, "types")
    check(query.stride(3) == key.stride(3) == output.stride(3) == 1, "heads without gaps")
    check(value.is_contiguous() and value.shape[:3] == (n, width, groups), "values")
    check(value.shape[3] >= -(-length // 64) * 64, "values are shorter than keys")
    check(all(x.is_contiguous() for x in (query_scale, key_scale, value_scale)), "scales without gaps")
    of_warp, of_block = {BY_WARP: (1, 1), BY_THREAD: (8, 4)}[qk_quant_gran]
    warps, blocks = -(-rows // 128) * 4, -(-length // 64)
    check(query_scale.shape == (n, heads, warps * of_warp), f"scales of queries are {tuple(query_scale.shape)}")
    check(key_scale.shape == (n, groups, blocks * of_block), f"scales of keys are {tuple(key_scale.shape)}")
    check(value_scale.shape == (n, groups, width), f"scales of values are {tuple(value_scale.shape)}")
    if value.float().abs().max() > largest:  # more than fits the sums of this kernel
        output.fill_(torch.inf)
        return torch.empty(0)
    calls.append(("attention", length))
    row, column = torch.arange(rows), torch.arange(length)
    by_row = row // 32 * of_warp + (row % 8 if of_warp > 1 else 0)
    by_column = column // 64 * of_block + (column % 8 // 2 if of_block > 1 else 0)
    place = torch.empty(16, dtype=torch.long).scatter_(0, torch.tensor(ORDER), torch.arange(16))
    values = value.float()[..., column // 16 * 16 + place[column % 16]]
    query_scales, key_scales = query_scale.view(-1), key_scale.view(-1)
    for batch in range(n):
        for head in range(heads):
            group = head // (heads // groups)
            scale = query_scales[(batch * heads + head) * warps * of_warp + by_row][:, None]
            scale = scale * key_scales[(batch * groups + group) * blocks * of_block + by_column]
            scores = query[batch, :, head].float() @ key[batch, :, group].float().T * scale * sm_scale
            weights = torch.exp(scores - scores.amax(1, keepdim=True))
            sums = (448 * weights).to(torch.float8_e4m3fn).float() @ values[batch, :, group].T / 448
            output[batch, :, head] = (sums * value_scale[batch, group] / weights.sum(1, keepdim=True)).to(output.dtype)
    return torch.empty(0)


_qattn_sm89 = SimpleNamespace(
    qk_int8_sv_f8_accum_f16_fuse_v_scale_attn_inst_buf=lambda *given: _kernel(2.25, *given),
    qk_int8_sv_f8_accum_f32_fuse_v_scale_attn_inst_buf=lambda *given: _kernel(448.0, *given),
)


def sageattn(q: Tensor, k: Tensor, v: Tensor, tensor_layout: str = "HND", is_causal: bool = False) -> Tensor:
    """As on a card of capability 8.9."""
    return sageattn_qk_int8_pv_fp8_cuda(q, k, v, "per_thread")


def sageattn_qk_int8_pv_fp8_cuda(q: Tensor, k: Tensor, v: Tensor, qk_quant_gran: str) -> Tensor:
    mean = k.mean(dim=1, keepdim=True)
    if qk_quant_gran == "per_thread":
        numbers_q, scales_q, numbers_k, scales_k = per_thread_int8_triton(q, k, mean, tensor_layout="NHD")
    else:
        numbers_q, numbers_k = (torch.empty(x.shape, dtype=torch.int8) for x in (q, k))
        scales_q = torch.empty(q.shape[0], q.shape[2], -(-q.shape[1] // 128) * 4)
        scales_k = torch.empty(k.shape[0], k.shape[2], -(-k.shape[1] // 64))
        _fused.quant_per_warp_int8_cuda(q, numbers_q, scales_q, 128, 32, 0)
        _fused.quant_per_block_int8_fuse_sub_mean_cuda(k, mean.squeeze(1), numbers_k, scales_k, 64, 0)
    values, scales_v, _ = per_channel_fp8(v, tensor_layout="NHD", scale_max=2.25, smooth_v=False)
    output = torch.empty(q.shape, dtype=q.dtype)
    gran = BY_THREAD if qk_quant_gran == "per_thread" else BY_WARP
    _qattn_sm89.qk_int8_sv_f8_accum_f16_fuse_v_scale_attn_inst_buf(
        numbers_q, numbers_k, values, output, scales_q, scales_k, scales_v, 0, 0, gran, q.shape[3] ** -0.5, 0
    )
    return output
