"""The noise that a chunk starts from: a function of (seed, chunk) alone.

So a longer video, or one with a cut later on, never changes its first seconds, any chunk can be made again on its own,
and, drawn on the CPU, the bits do not depend on the device that denoises. Chunks of later shots are counted in seconds
of the video and draw from a series of their own: behind a clip, the first shot's are counted from the clip's beginning.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


def chunk_noise(seed: int, chunk: int, shape: tuple[int, ...], *, later_shot: bool = False) -> Tensor:
    """Standard normal noise of one chunk, float32 on the CPU.

    Args:
        seed: any integer; chunk: absolute chunk number, in a later shot the second of the video;
        shape: (1, C, frames, H, W) of the chunk's latents.
    """
    name = f"magi-lite noise {seed} {chunk}" + (" after a cut" if later_shot else "")
    digest = hashlib.sha256(name.encode()).digest()
    generator = torch.Generator("cpu").manual_seed(int.from_bytes(digest[:8], "little") & (2**63 - 1))
    return torch.randn(shape, generator=generator, dtype=torch.float32)
