"""How a run is executed: the part of a plan that says where tensors live and in which precision they compute."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Scheme = Literal["float32", "bf16", "fp8", "int8", "nf4", "published"]


@dataclass(frozen=True)
class Execution:
    """Placement and precision of everything in a run; read by the loader, the KV store and the residency."""

    device: Literal["cuda", "cpu"] = "cpu"
    dtype: Literal["bfloat16", "float32"] = "float32"
    scheme: Scheme = "float32"
    layers: Literal["resident", "streamed"] = "resident"
    kv_dtype: Literal["float32", "bf16", "fp8"] = "float32"
    kv_place: Literal["device", "pinned"] = "device"
    mlp_slice: int | None = None
    """Tokens per slice of the MLP; None: all at once."""
    attention_slice: int | None = None
    """Query tokens per slice of self attention; None: all at once."""
    vae: Literal["resident", "swapped", "decoder", "cpu"] = "resident"
    vae_tile_batch: int = 1
    decode_beside: bool = False
    """Whether a finished second is decoded while the next steps compute, and not between them."""
    t5: Literal["float32", "bf16", "int8", "nf4"] = "float32"
    t5_device: Literal["cuda", "cpu"] = "cpu"
    attention: str = "auto"
    """Attention backend: auto, sdpa, flash, sage, cudnn."""
    kernel: str = "sdpa"
    """The backend that will serve, as far as trials on such a card have shown; what is planned with."""
