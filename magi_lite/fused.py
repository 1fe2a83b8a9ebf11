"""Which of `kernels` serves for given tensors, and each one's trial against the plain formula.

A kernel is tried once for each card, type and width, and not taken where its result is unlike the formula's.
"""

from __future__ import annotations

import importlib.util
import logging
from functools import lru_cache
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

from magi_lite.machine import devices, findings

FLOATS = (torch.bfloat16, torch.float16, torch.float32)
OLDEST = (8, 0)
"""Compute capability from which Triton is supported."""
_log = logging.getLogger(__name__)


def for_heads(x: Tensor, weight: Tensor, bias: Tensor, table: Tensor | None) -> ModuleType | None:
    """The module whose `norm_heads_` serves for x (..., heads, head_dim), or None."""
    if not _on_a_card(x) or not _packed(x, weight, bias) or (table is not None and not _packed(table)):
        return None
    rotated = 0 if table is None else table.shape[-1]
    return _heads(x.device.index or 0, x.dtype, weight.dtype, x.shape[-1], rotated)


def for_plain_heads(x: Tensor) -> ModuleType | None:
    """The module whose `norm_heads_` serves for x (..., heads, head_dim) without weights, or None."""
    if not _on_a_card(x) or not _packed(x):
        return None
    return _heads(x.device.index or 0, x.dtype, None, x.shape[-1], 0)


def for_residual(x: Tensor, branch: Tensor, gate: Tensor, weight: Tensor, bias: Tensor) -> ModuleType | None:
    """The module whose `add_gated_` serves for x (N, chunks, tokens, D), or None."""
    if not _on_a_card(x) or not _packed(x, branch, gate, weight, bias):
        return None
    return _residual(x.device.index or 0, x.dtype, branch.dtype, x.shape[-1])


def _on_a_card(x: Tensor) -> bool:
    on_card = x.is_cuda and not isinstance(x, torch._subclasses.FakeTensor) and not torch.version.hip
    return on_card and not torch.is_grad_enabled() and x.dtype in FLOATS


def _packed(*tensors: Tensor) -> bool:
    """Whether the last axis of each has no gaps."""
    return all(x.stride(-1) == 1 or x.shape[-1] == 1 for x in tensors)


def _kernels(index: int) -> ModuleType | None:
    if torch.cuda.get_device_capability(index) < OLDEST or importlib.util.find_spec("triton") is None:
        return None
    from magi_lite import kernels

    return kernels if kernels.triton is not None else None


@lru_cache
def _heads(
    index: int, dtype: torch.dtype, weights: torch.dtype | None, width: int, rotated: int
) -> ModuleType | None:
    kernels = _kernels(index)
    if kernels is None or width > kernels.WIDEST_HEAD:
        return None
    return None if _heads_problem(index, dtype, weights, width, rotated) else kernels


@lru_cache
def _residual(index: int, dtype: torch.dtype, branch: torch.dtype, width: int) -> ModuleType | None:
    kernels = _kernels(index)
    if kernels is None or width > kernels.WIDEST_ROW:
        return None
    return None if _residual_problem(index, dtype, branch, width) else kernels


@lru_cache
def _heads_problem(index: int, dtype: torch.dtype, weights: torch.dtype | None, width: int, rotated: int) -> str:
    """The kernel's one trial: why it is not used, or an empty string."""
    kernels = _kernels(index)
    assert kernels is not None
    problem = heads_disagreement(kernels, torch.device("cuda", index), dtype, weights, width, rotated)
    if problem:
        _log.warning("The Triton kernel that norms heads is not used on cuda:%d: %s", index, problem)
        findings.refuse_kernels(devices.identity(index), problem)  # plans count without them from now on
    return problem


@lru_cache
def _residual_problem(index: int, dtype: torch.dtype, branch: torch.dtype, width: int) -> str:
    kernels = _kernels(index)
    assert kernels is not None
    problem = residual_disagreement(kernels, torch.device("cuda", index), dtype, branch, width)
    if problem:
        _log.warning("The Triton kernel of gated residuals is not used on cuda:%d: %s", index, problem)
        findings.refuse_kernels(devices.identity(index), problem)  # plans count without them from now on
    return problem


def notice(index: int, dtype: torch.dtype, weights: torch.dtype, head_dim: int, rotated: int, hidden: int) -> str:
    """Which kernel a transformer of these sizes does without on a card, and why, as a sentence; else empty.

    Where Triton itself is at fault `quant.slow_paths` says so.
    """
    if _kernels(index) is None:
        return ""
    heads = _heads_problem(index, dtype, weights, head_dim, rotated)
    problem = heads or _residual_problem(index, dtype, torch.float32, hidden)
    if not problem:
        return ""
    what = "that norms heads" if heads else "of gated residuals"
    return f"The kernel {what} is not used on this card, so that every step is slower: {problem.splitlines()[0][:200]}"


def heads_disagreement(
    kernels: ModuleType, device: torch.device, dtype: torch.dtype, weights: torch.dtype | None, width: int, rotated: int
) -> str:
    """Run `norm_heads_` once against the formula; what is wrong with it, or an empty string.

    Args:
        weights: their type; None: the autoencoder's norm, which has none and adds its epsilon to the deviation.
        rotated: numbers of a head that are rotated, or 0.

    Raises:
        torch.OutOfMemoryError: that says nothing about the kernel, and must not be remembered as if it did.
    """
    random = torch.Generator().manual_seed(0)
    x = torch.randn(10, 11, width, generator=random).to(device, dtype)
    table = torch.randn(5, rotated, generator=random).to(device) if rotated else None
    weight = bias = None
    if weights is None:
        centred = x.float() - x.float().mean(-1, keepdim=True)
        wanted = centred / (centred.square().mean(-1, keepdim=True).sqrt() + 1e-6)
    else:
        weight, bias = ((0.1 * torch.randn(width, generator=random)).to(device, weights) for _ in range(2))
        gain = weight + 1 if table is None else weight.float() + 1
        wanted = F.layer_norm(x.float(), (width,), gain.float(), bias.float(), 1e-6)
    if table is not None:
        sine, cosine = table.repeat(2, 1)[:, None].chunk(2, dim=-1)
        first, second = wanted[..., : rotated // 2], wanted[..., rotated // 2 : rotated]
        turned = (first * cosine - second * sine, second * cosine + first * sine, wanted[..., rotated:])
        wanted = torch.cat(turned, dim=-1)
    try:
        found = kernels.norm_heads_(
            x, weight, bias, 1e-6, in_type=table is None, deviation=weights is None, table=table
        )
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever a compiler raises, the plain path still works
        return f"{type(error).__name__}: {error}"
    return _unlike(found, wanted)


def residual_disagreement(
    kernels: ModuleType, device: torch.device, dtype: torch.dtype, branch: torch.dtype, width: int
) -> str:
    """Run `add_gated_` once against the formula; what is wrong with it, or an empty string.

    Raises:
        torch.OutOfMemoryError: that says nothing about the kernel.
    """
    random = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 5, width, generator=random).to(device, dtype)
    added = torch.randn(2, 3, 5, width, generator=random).to(device, branch)
    gate = torch.randn(2, 3, 1, width, generator=random).to(device)
    weight, bias = ((0.1 * torch.randn(width, generator=random)).to(device) for _ in range(2))
    wanted = x.float() + F.layer_norm(added.float() * gate, (width,), weight + 1, bias, 1e-6)
    try:
        found = kernels.add_gated_(x, added, gate, weight, bias, 1e-6)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever a compiler raises, the plain path still works
        return f"{type(error).__name__}: {error}"
    return _unlike(found, wanted)


def _unlike(found: Tensor, wanted: Tensor) -> str:
    """Float32 sums in another order, then one rounding to the result's type."""
    unit = torch.finfo(found.dtype).eps
    near = (found.float() - wanted).abs() <= unit * wanted.abs() + 1e-5 * wanted.abs().max()
    return "" if bool(near.all()) else "its result is unlike the plain formula's"
