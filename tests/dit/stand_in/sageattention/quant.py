"""The steps that the package has in CUDA."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import Tensor

ORDER = [0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15]
"""In which order the kernel wants each 16 values of a channel."""
calls: list[tuple[str, int]] = []
"""What was issued, and for how many tokens."""


def check(true: bool, what: str) -> None:
    if not true:
        raise RuntimeError(what)


def rounded(x: Tensor, scale: Tensor) -> Tensor:
    scaled = x / scale
    return (scaled + 0.5 * torch.where(scaled >= 0, 1, -1)).clamp(-127, 127).to(torch.int8)


def padded(x: Tensor, size: int) -> Tensor:
    """(N, L, heads, D) in float32, zeros to a multiple of `size` tokens."""
    return torch.nn.functional.pad(x.float(), (0, 0, 0, 0, 0, -x.shape[1] % size))


def by_block(x: Tensor, numbers: Tensor, scales: Tensor, size: int) -> None:
    """A scale for each `size` tokens of a head."""
    n, length, heads, width = x.shape
    blocks = padded(x, size).view(n, -1, size, heads, width)
    largest = blocks.abs().amax((2, 4)).clamp_min(1e-7) / 127
    numbers.copy_(rounded(blocks, largest[:, :, None, :, None]).flatten(1, 2)[:, :length])
    scales.copy_(largest.transpose(1, 2))


def quant_per_warp_int8_cuda(x: Tensor, numbers: Tensor, scales: Tensor, block: int, warp: int, layout: int) -> None:
    check(layout == 0 and x.stride(3) == 1 and x.shape[1] > 0, "tokens before heads, some of them")
    check(numbers.is_contiguous() and scales.is_contiguous(), "results without gaps")
    warps = -(-x.shape[1] // block) * (block // warp)
    check(scales.shape == (x.shape[0], x.shape[2], warps), f"scales are {tuple(scales.shape)}")
    calls.append(("queries", x.shape[1]))
    used = -(-x.shape[1] // warp)
    scales.fill_(torch.nan)  # of warps behind the last token nobody wrote any
    found = torch.empty(*scales.shape[:2], used)
    by_block(x, numbers, found, warp)
    scales[..., :used] = found


def quant_per_block_int8_fuse_sub_mean_cuda(
    x: Tensor, mean: Tensor, numbers: Tensor, scales: Tensor, block: int, layout: int
) -> None:
    check(layout == 0 and x.stride(3) == 1 and x.shape[1] > 0, "tokens before heads, some of them")
    check(mean.is_contiguous() and numbers.is_contiguous() and scales.is_contiguous(), "without gaps")
    check(mean.dtype == x.dtype and mean.shape == (x.shape[0], x.shape[2], x.shape[3]), "mean")
    check(scales.shape == (x.shape[0], x.shape[2], -(-x.shape[1] // block)), f"scales are {tuple(scales.shape)}")
    calls.append(("keys", x.shape[1]))
    by_block(x.float() - mean.float()[:, None], numbers, scales, block)


_fused = SimpleNamespace(
    quant_per_warp_int8_cuda=quant_per_warp_int8_cuda,
    quant_per_block_int8_fuse_sub_mean_cuda=quant_per_block_int8_fuse_sub_mean_cuda,
)


def per_channel_fp8(
    v: Tensor, tensor_layout: str = "HND", scale_max: float = 448.0, smooth_v: bool = True
) -> tuple[Tensor, Tensor, None]:
    check(tensor_layout == "NHD" and not smooth_v and v.stride(3) == 1, "as the attention of 8.9 wants it")
    calls.append(("values", v.shape[1]))
    whole = padded(v, 64)
    scales = whole.abs().amax(1) / scale_max
    places = torch.arange(whole.shape[1]).view(-1, 16)[:, ORDER].flatten()
    values = (whole / scales[:, None])[:, places].permute(0, 3, 2, 1).contiguous()
    return values.to(torch.float8_e4m3fn), scales.contiguous(), None
