"""Bytes of activations at the worst moment of a forward, derived from what the forwards allocate."""

from __future__ import annotations

from magi_lite.config import DiTConfig, Execution, VAEConfig
from magi_lite.planner.shapes import T5Shape


def dit_activation_bytes(dit: DiTConfig, tokens: int, window: int, execution: Execution) -> int:
    """Peak of one pass over `window` chunks of `tokens` tokens each, weights, captions and stored KV apart."""
    rows = tokens * window
    size = 2 if execution.dtype == "bfloat16" else 4
    hidden = dit.hidden_size
    queries = dit.num_attention_heads * dit.head_dim
    groups = dit.num_query_groups * dit.head_dim
    attention = rows * (4 * hidden + size * (hidden + 3 * queries + 2 * groups))
    slice_rows = min(rows, execution.mlp_slice or rows)
    mlp = rows * (4 * hidden + size * 2 * hidden) + slice_rows * size * 2 * dit.ffn_hidden_size
    return max(attention, mlp)


def text_activation_bytes(t5: T5Shape, tokens: int, execution: Execution) -> int:
    """Peak of encoding one prompt of `tokens` tokens."""
    size = 4 if execution.t5 == "float32" else 2
    attention = t5.heads * tokens * tokens * (4 + size)
    return tokens * size * (4 * t5.width + 3 * t5.feed_forward) + attention


def decode_activation_bytes(vae: VAEConfig, width: int, height: int, execution: Execution) -> int:
    """Peak of decoding one chunk by tiles: one batch of tiles in the decoder, and the float32 frames being joined."""
    size = 2 if execution.dtype == "bfloat16" else 4
    tokens = 3 * 32 * 32 + 1
    hidden = int(vae.embed_dim * vae.mlp_ratio)
    tile = execution.vae_tile_batch * tokens * size * (2 * vae.embed_dim + 2 * hidden)
    frames = 24 * width * height * 3 * 4
    return 3 * frames + tile
