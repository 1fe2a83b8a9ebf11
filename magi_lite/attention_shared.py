"""Keys and values that several ranges share: SageAttention quantizes them once here, and not at every call.

The ranges of a window's chunks begin with one chunk, so each is a beginning of the longest. SageAttention's public
function takes the mean of the keys it is given out of them, rounds them to 8 bits, transposes the values and rounds
those, whatever it did a call before: for ranges of 2, 3, 4 and 5 chunks 14 chunks instead of 5, and 24 kernels of a
layer instead of 10. Its own steps are functions of their own, which this module calls one by one.

A beginning of quantized keys is what its range needs. The mean of more keys than a range has is one number more or less
in all scores of a query, which the softmax does not see. Keys are scaled by blocks of 64 from the first on, and what of
its last block a range does not see is masked by the kernel; values are scaled by channel. So a scale may come from
keys or values behind the range's end, and be larger than need be: `benchmarks/attention_error.py` measures what that
does. The kernel takes values that are longer than the keys, but scales only as a tensor without gaps: those of shorter
ranges are copied, all in one.

Written to the sources of SageAttention 2.0 to 2.2 for the cards whose kernel is that of capability 8.9. Nothing of it
is promised by the package: `attention_trial` tries it in a process of its own, and where it fails the public function
serves.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

CAPABILITIES = ((8, 9), (12, 0))
"""Cards that `sageattn` gives to the kernel of 8.9."""
BLOCK, QUERY_BLOCK, QUERY_WARP = 64, 128, 32
"""Keys, and queries, that the kernel works on at a time; queries of 32 share a scale, or eight."""
HEAD_SIZES = (64, 128)
"""Others are padded by the public function."""
NHD, NOT_CAUSAL, BY_WARP, BY_THREAD, NO_LSE = 0, 0, 2, 3, 0
"""The package's numbers: tokens before heads, everything sees everything, who shares a scale, no sums returned."""
HALF_SUMS, HALF_SUMS_SINCE = "qk_int8_sv_f8_accum_f16_fuse_v_scale_attn_inst_buf", (12, 8)
"""The kernel that adds in float16 for a while, and the CUDA that has its instruction."""
SINGLE_SUMS = "qk_int8_sv_f8_accum_f32_fuse_v_scale_attn_inst_buf"
LARGEST_FOR_HALF_SUMS, LARGEST_E4M3 = 2.25, 448.0
"""To which number the largest value of a channel is scaled."""


@dataclass(frozen=True, eq=False)
class Reach:
    """What a chunk attends to: the first `length` tokens of keys and values that other ranges may share."""

    key: Tensor
    """(N, L, groups, head_dim)."""
    value: Tensor
    length: int

    @property
    def seen(self) -> tuple[Tensor, Tensor]:
        """Keys and values of the range, as views."""
        return self.key[:, : self.length], self.value[:, : self.length]

    @property
    def whole(self) -> tuple[int, int]:
        """Equal for ranges that share their tensors."""
        return id(self.key), id(self.value)


def by_whole(reaches: Iterable[Reach]) -> dict[tuple[int, int], list[int]]:
    """The lengths of ranges, each once and in order, by the tensors that they begin with."""
    lengths: dict[tuple[int, int], set[int]] = {}
    for reach in reaches:
        lengths.setdefault(reach.whole, set()).add(reach.length)
    return {whole: sorted(found) for whole, found in lengths.items()}


Reader = Callable[[Tensor], Tensor]
"""Queries (N, S, heads, head_dim) to their attention to a range."""
Share = Callable[[Sequence[Reach]], list[Reader]]
"""Makes ranges ready to be read: a reader for each."""


class Sage:
    """SageAttention's steps on a card.

    Raises:
        ImportError, AttributeError, OSError: the installed package is not built of them.
        ValueError: this card has another kernel.
    """

    def __init__(self, capability: tuple[int, int], cuda: str | None) -> None:
        if capability not in CAPABILITIES:
            raise ValueError(f"cards of capability {capability[0]}.{capability[1]} have another kernel")
        core = importlib.import_module("sageattention.core")
        kernels: Any = getattr(core, "sm89_compile", None) or core._qattn_sm89
        half = tuple(map(int, (cuda or "0.0").split(".")[:2])) >= HALF_SUMS_SINCE and hasattr(kernels, HALF_SUMS)
        self._attend: Callable[..., Tensor] = getattr(kernels, HALF_SUMS if half else SINGLE_SUMS)
        self._largest = LARGEST_FOR_HALF_SUMS if half else LARGEST_E4M3
        self._values: Callable[..., tuple[Tensor, Tensor, None]] = core.per_channel_fp8
        self._by_thread: Callable[..., tuple[Tensor, ...]] | None = None
        self._by_warp: Any = None
        if capability == CAPABILITIES[0]:
            self._by_thread = core.per_thread_int8_triton
        else:
            self._by_warp = importlib.import_module("sageattention.quant")._fused

    def share(self, reaches: Sequence[Reach]) -> list[Reader]:
        """A reader for each range; what begins with the same tensors is quantized once, for the longest of them."""
        wholes = {reach.whole: reach for reach in reaches}
        made = {which: _Quantized(self, wholes[which], lengths) for which, lengths in by_whole(reaches).items()}
        return [made[reach.whole].reader(reach.length) for reach in reaches]

    def keys(self, key: Tensor) -> tuple[Tensor, Tensor]:
        """8-bit integers, the mean taken out, and their scales (N, groups, scales)."""
        mean = key.mean(dim=1, keepdim=True)
        if self._by_thread is not None:
            none = key[:, :0]  # of the queries that the package would quantize with them: nothing is issued
            _, _, numbers, scales = self._by_thread(none, key, mean, tensor_layout="NHD")
            return numbers, scales
        n, length, groups, _ = key.shape
        numbers, scales = _empty_like(key), _scales(key, n, groups, _blocks(length, BLOCK))
        self._by_warp.quant_per_block_int8_fuse_sub_mean_cuda(key, mean.squeeze(1), numbers, scales, BLOCK, NHD)
        return numbers, scales

    def queries(self, query: Tensor) -> tuple[Tensor, Tensor]:
        """8-bit integers and their scales."""
        if self._by_thread is not None:
            numbers, scales, _, _ = self._by_thread(query, query[:, :0], None, tensor_layout="NHD")
            return numbers, scales
        n, length, heads, _ = query.shape
        warps = _blocks(length, QUERY_BLOCK) * (QUERY_BLOCK // QUERY_WARP)
        numbers, scales = _empty_like(query), _scales(query, n, heads, warps)
        self._by_warp.quant_per_warp_int8_cuda(query, numbers, scales, QUERY_BLOCK, QUERY_WARP, NHD)
        return numbers, scales

    def values(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """8-bit floats, transposed as the kernel reads them and padded, and their scales by channel."""
        numbers, scales, _ = self._values(value, tensor_layout="NHD", scale_max=self._largest, smooth_v=False)
        return numbers, scales

    def attend(self, query: Tensor, key: Tensor, key_scales: Tensor, value: Tensor, value_scales: Tensor) -> Tensor:
        """The queries' attention to quantized keys; values may be longer than they are."""
        numbers, scales = self.queries(query)
        output = torch.empty(query.shape, dtype=query.dtype, device=query.device)
        shared = BY_THREAD if self._by_thread is not None else BY_WARP
        factor = query.shape[3] ** -0.5
        self._attend(
            numbers, key, value, output, scales, key_scales, value_scales, NHD, NOT_CAUSAL, shared, factor, NO_LSE
        )
        return output


class _Quantized:
    """Keys and values of the longest of some ranges, for all of them."""

    def __init__(self, sage: Sage, reach: Reach, lengths: list[int]) -> None:
        self._sage, longest = sage, lengths[-1]
        self._keys, scales = sage.keys(reach.key[:, :longest])
        self._values, self._value_scales = sage.values(reach.value[:, :longest])
        self._scales = beginnings(scales, longest, lengths)

    def reader(self, length: int) -> Reader:
        def read(query: Tensor) -> Tensor:
            keys, scales = self._keys[:, :length], self._scales[length]
            return self._sage.attend(query, keys, scales, self._values, self._value_scales)

        return read


def beginnings(scales: Tensor, longest: int, lengths: list[int]) -> dict[int, Tensor]:
    """Of scales (N, groups, some for each block of keys) those of each length, without gaps; one copy for all."""
    n, groups, count = scales.shape
    of_block = count // _blocks(longest, BLOCK)
    counts = {length: of_block * _blocks(length, BLOCK) for length in lengths}
    shorter = tuple(sorted({each for each in counts.values() if each < count}))
    found = {count: scales}
    if shorter:
        copied = scales.flatten().index_select(0, _places(n * groups, count, shorter, scales.device))
        parts = copied.split([n * groups * each for each in shorter])
        found |= {each: part.view(n, groups, each) for each, part in zip(shorter, parts, strict=True)}
    return {length: found[each] for length, each in counts.items()}


@lru_cache(maxsize=64)
def _places(rows: int, count: int, shorter: tuple[int, ...], device: torch.device) -> Tensor:
    """Where in rows of `count` numbers the first ones of every row are, for each of some numbers of them."""
    with torch.inference_mode(False):  # kept for whoever comes next
        starts = count * torch.arange(rows, device=device)[:, None]
        return torch.cat([(starts + torch.arange(each, device=device)).flatten() for each in shorter])


def _blocks(length: int, size: int) -> int:
    return -(-length // size)


def _empty_like(x: Tensor) -> Tensor:
    return torch.empty(x.shape, dtype=torch.int8, device=x.device)


def _scales(x: Tensor, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.float32, device=x.device)
