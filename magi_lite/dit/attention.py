"""The one door to attention kernels.

Every kernel takes queries (N, S, heads, head_dim) and keys, values (N, L, groups, head_dim), heads a multiple of
groups, query head h reading group h // (heads / groups); everything sees everything (ranges are cut before the door),
scale head_dim ** -0.5; output like the queries. Which kernel serves is chosen once, by `choose`, and shown by its name.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from magi_lite.errors import InputError

Kernel = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Backend:
    """An attention kernel and the name under which it is shown."""

    name: str
    kernel: Kernel

    def __call__(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return self.kernel(query, key, value)


def sdpa(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """PyTorch's own kernels; keys and values of a group are not expanded to its heads."""
    q, k, v = (x.transpose(1, 2) for x in (query, key, value))
    return F.scaled_dot_product_attention(q, k, v, enable_gqa=q.shape[1] != k.shape[1]).transpose(1, 2)


SDPA = Backend("sdpa", sdpa)


def masked_sdpa(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """As `sdpa`, where rows have different numbers of keys: mask (N, L), True where there is one."""
    q, k, v = (x.transpose(1, 2) for x in (query, key, value))
    gqa = q.shape[1] != k.shape[1]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None], enable_gqa=gqa).transpose(1, 2)


def _flash() -> Kernel:
    flash_attn_func = importlib.import_module("flash_attn").flash_attn_func
    return lambda query, key, value: flash_attn_func(query, key, value)


def _sage() -> Kernel:
    sageattn = importlib.import_module("sageattention").sageattn
    return lambda query, key, value: sageattn(query, key, value, tensor_layout="NHD", is_causal=False)


def _has_sage() -> bool:
    """SageAttention 2 or later; version 1 visibly breaks video models and does not know grouped queries."""
    if importlib.util.find_spec("sageattention") is None:
        return False
    from importlib import metadata

    return int(metadata.version("sageattention").split(".")[0]) >= 2


def available(device: str = "cpu", dtype: torch.dtype = torch.float32) -> tuple[str, ...]:
    """Names that `choose` accepts here, best first. The compiled kernels need a GPU and half precision."""
    names = []
    if torch.device(device).type == "cuda" and dtype in (torch.bfloat16, torch.float16):
        names += ["flash"] if importlib.util.find_spec("flash_attn") is not None else []
        names += ["sage"] if _has_sage() else []
    return (*names, "sdpa")


def choose(name: str = "auto", device: str = "cpu", dtype: torch.dtype = torch.float32) -> Backend:
    """The kernel for a run.

    Args:
        name: "auto" (the best there is), "flash", "sage" or "sdpa".

    Raises:
        InputError: the kernel is not installed or cannot serve this device and type.
    """
    names = available(device, dtype)
    if name == "auto":
        name = names[0]
    if name not in names:
        kind = str(dtype).removeprefix("torch.")
        works = " or ".join(names)
        raise InputError(f"Attention backend {name!r} cannot be used here ({device}, {kind}); use {works}.")
    makers: dict[str, Callable[[], Kernel]] = {"flash": _flash, "sage": _sage, "sdpa": lambda: sdpa}
    return SDPA if name == "sdpa" else Backend(name, makers[name]())
