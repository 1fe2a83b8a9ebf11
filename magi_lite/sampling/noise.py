"""The noise that a chunk starts from: a function of (seed, chunk) alone.

So a longer video never changes its first seconds, any chunk can be made again on its own, and, drawn on the CPU, the
bits do not depend on the device that denoises.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


def chunk_noise(seed: int, chunk: int, shape: tuple[int, ...]) -> Tensor:
    """Standard normal noise of one chunk, float32 on the CPU.

    Args:
        seed: any integer; chunk: absolute chunk number; shape: (1, C, frames, H, W) of the chunk's latents.
    """
    digest = hashlib.sha256(f"magi-lite noise {seed} {chunk}".encode()).digest()
    generator = torch.Generator("cpu").manual_seed(int.from_bytes(digest[:8], "little") & (2**63 - 1))
    return torch.randn(shape, generator=generator, dtype=torch.float32)
