"""Bytes of activations at the worst moment of a forward: a ledger of what the forwards hold at each of their moments.

Each moment lists the tensors alive at once, read off `dit.block`, `vae.tiling` and transformers' T5; the peak is the
largest moment. `tests/plan/test_truth.py` compares the sums with full-size models whose every storage is counted.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from magi_lite.attention_choice import PLAIN, SCORE_BYTES
from magi_lite.dit.slicing import CACHED_TABLES, largest_piece
from magi_lite.models import FPS, FRAMES_PER_LATENT, PIXELS_PER_LATENT, PUBLISHED_TILING, DiTConfig, T5Shape, VAEConfig
from magi_lite.planner.execution import Execution
from magi_lite.planner.passes import WindowPass

FLOAT32 = 4
QUANT_SLICE_BYTES = (1 << 22) * FLOAT32
"""Most float32 temporaries of quantizing activations at a time (`quant.kinds.SLICE_VALUES`).

Of the plain path. Where kernels do it there are none; which of them will serve on a card that is planned for somewhere
else nobody knows, and the slices are so small that it does not matter.
"""
PRODUCT_BYTES = (1 << 25) * 4
"""Most of an integer product that waits to be scaled (`quant.products.CARD_VALUES`)."""


@dataclass(frozen=True)
class PassShape:
    """Rows of one pass over the window, and what its slices are."""

    tokens: int
    """Of one chunk."""
    chunks: int
    attention_rows: int
    mlp_rows: int
    attention_sliced: bool

    @classmethod
    def of(cls, tokens: int, chunks: int, execution: Execution) -> PassShape:
        attention = largest_piece(chunks, tokens, execution.attention_slice)
        mlp = largest_piece(chunks, tokens, execution.mlp_slice)
        return cls(tokens, chunks, attention, mlp, attention < tokens * chunks)

    @property
    def rows(self) -> int:
        return self.tokens * self.chunks


def item_size(execution: Execution) -> int:
    """Bytes of a number of the model's dtype."""
    return 2 if execution.dtype == "bfloat16" else 4


def dit_activation_bytes(dit: DiTConfig, tokens: int, reads: WindowPass, execution: Execution) -> int:
    """Peak of one pass over a window of chunks of `tokens` tokens.

    Weights, captions, rotary tables, latents and the store itself are counted elsewhere.
    """
    shape = PassShape.of(tokens, reads.chunks, execution)
    return max(*_attention_moments(dit, shape, reads, execution), *_mlp_moments(dit, shape, execution))


def _attention_moments(dit: DiTConfig, shape: PassShape, reads: WindowPass, execution: Execution) -> list[int]:
    size, rows, piece = item_size(execution), shape.rows, shape.attention_rows
    queries = dit.num_attention_heads * dit.head_dim
    groups = dit.num_query_groups * dit.head_dim
    hidden = dit.hidden_size
    x = rows * hidden * size
    own = 2 * rows * groups * size
    # Unsliced, all four projections stay until the layer's attention is done; sliced, q and qx live for their piece.
    projected = 0 if shape.attention_sliced else 2 * rows * queries * size + rows * groups * size
    q = (2 * piece * queries * size) if shape.attention_sliced else 0
    moments = [x + projected + own + rows * hidden * size]
    if shape.attention_sliced:
        moments.append(x + 2 * own)
    # Norm and rotation of the keys work in float32: the normed keys, the two rotated halves and their union.
    moments.append(x + projected + own + rotation_bytes(rows * groups))
    past = reads.past
    joined = reads.starts * 2 * (past + shape.chunks) * shape.tokens * groups * size if past else 0
    fetched = 2 * past * shape.tokens * groups * size if execution.kv_dtype == "fp8" else 0
    moments.append(x + projected + own + joined + fetched)
    before = x + projected + own + joined
    held = before + q
    if execution.kernel == "sage":
        # Beside the queries and what the calls before it gave, where each range is quantized by itself; where ranges
        # share that, it is there from before the queries on.
        seen = (past + shape.chunks) * shape.tokens * groups
        by_itself = sage_bytes(min(piece, shape.tokens) * queries, seen)
        wholes = max(1, reads.starts) if shape.chunks > 1 else 0
        moments += [held + 3 * piece * queries * size + by_itself, before + wholes * SAGE_SHARING * seen]
        held += wholes * SAGE_SHARED * seen
        moments.append(held + 3 * piece * queries * size + min(piece, shape.tokens) * queries)
    moments.append(held + rotation_bytes(piece * queries))
    # query, cross query, both attentions' outputs, and the two interleaved.
    moments.append(held + 6 * piece * queries * size)
    if execution.kernel == PLAIN:  # all attention's results, those of a call twice when its groups or slices join
        seen = (past + shape.chunks) * shape.tokens
        share = dit.num_attention_heads // dit.num_query_groups
        plain = plain_bytes(min(piece, shape.tokens), seen, share, dit.head_dim, execution)
        moments.append(held + 5 * piece * queries * size + plain)
    mixed = held + 2 * piece * queries * size
    quantized = execution.scheme in ("fp8", "published", "int8")
    moments.append(mixed + residual_bytes(piece * hidden))
    if quantized:
        moments.append(mixed + 2 * piece * queries + min(QUANT_SLICE_BYTES, 8 * piece * queries))
    # The first of the projections made last, beside what it is made of.
    moments.append(x + projected + own + rows * hidden + product_bytes(rows * groups, execution))
    moments.append(held + piece * hidden + product_bytes(piece * queries, execution))
    moments.append(mixed + 2 * piece * queries + piece * hidden * size + product_bytes(piece * hidden, execution))
    return moments


def product_bytes(numbers: int, execution: Execution) -> int:
    """What an integer product of so many numbers takes before it is scaled; other kernels scale by themselves."""
    return min(PRODUCT_BYTES, 4 * numbers) if execution.scheme == "int8" else 0


SAGE_SHARED, SAGE_SHARING = 2, 4
"""Bytes for each number of the keys that ranges share (`attention_shared`): as long as a layer attends, keys and values
in 8 bits; while they are made, the values transposed in 16 bits as well."""


def sage_bytes(queries: int, keys: int) -> int:
    """What one call of SageAttention takes besides its arguments and result.

    Queries and keys as 8-bit integers, values as 8-bit floats and, on the way there, transposed in 16 bits. Some of its
    ways also take the keys' mean from them, in 16 bits; that copy is gone before the values come (sageattention/core.py
    of 2.2: keys are quantized first, in a call of their own).

    Args:
        queries, keys: numbers of the queries, and of the keys (as many as of the values).
    """
    return queries + keys + 3 * keys


def plain_bytes(queries: int, keys: int, heads: int, width: int, execution: Execution) -> int:
    """What one call of PyTorch's plain formula takes (`attention.in_slices`), besides its arguments and result.

    Scores and their softmax, and keys and values of every head scaled, in float32, where they are not already.

    Args:
        queries, keys: rows of a head. heads: of the call, for each of which keys and values are copied.
    """
    scores = min(SCORE_BYTES, queries * keys * heads * FLOAT32)
    copies = 3 if item_size(execution) < FLOAT32 else 2
    return 2 * scores + copies * keys * heads * width * FLOAT32


def rotation_bytes(numbers: int) -> int:
    """Norming and rotating `numbers` numbers in float32: input, both rotated parts (3/8 each) and the joined result."""
    return int(2.75 * FLOAT32 * numbers)


def residual_bytes(numbers: int) -> int:
    """The gated sandwich norm where no kernel does it: branch and normed branch in float32; the sum goes into x."""
    return numbers * 2 * FLOAT32


def _mlp_moments(dit: DiTConfig, shape: PassShape, execution: Execution) -> list[int]:
    size, rows, piece, hidden = item_size(execution), shape.rows, shape.mlp_rows, dit.hidden_size
    fc1 = dit.ffn_hidden_size * (2 if dit.gated_linear_unit else 1)
    x = rows * hidden * size
    moments = [x + piece * (hidden + fc1) * size, x + piece * (dit.ffn_hidden_size + hidden) * size]
    if dit.gated_linear_unit:
        moments.append(x + piece * (fc1 * size + 3 * dit.ffn_hidden_size * FLOAT32))
    branch = piece * hidden * size if size < FLOAT32 else 0
    moments.append(x + branch + residual_bytes(piece * hidden))
    if execution.scheme in ("fp8", "published", "int8"):
        inner = piece * dit.ffn_hidden_size
        quantizing = min(QUANT_SLICE_BYTES, FLOAT32 * inner)
        product = product_bytes(piece * hidden, execution)
        moments.append(x + inner * size + inner + max(quantizing, product) + piece * hidden * size)
        moments.append(x + piece * (hidden + fc1 * size) + product_bytes(piece * fc1, execution))
    # The final norm and linear: float32 copies of a piece.
    moments.append(rows * hidden * size + piece * hidden * 2 * FLOAT32)
    # The patch embedding's result in float32 and in the model's type.
    moments.append(rows * hidden * (FLOAT32 + (size if size < FLOAT32 else 0)))
    return moments


def rotary_bytes(dit: DiTConfig, tokens: int, window: int) -> int:
    """Rotary tables kept: of the window and of single chunks, a sine and a cosine for 3/8 of a head's numbers."""
    per_token = 2 * 3 * (dit.head_dim // 8) * FLOAT32
    if window == 1:
        return CACHED_TABLES * tokens * per_token
    half = CACHED_TABLES // 2
    return half * (window + 1) * tokens * per_token


def text_activation_bytes(t5: T5Shape, tokens: int, execution: Execution) -> int:
    """Peak of encoding one prompt of `tokens` tokens: position bias, scores and their softmax of one layer."""
    size = 4 if execution.t5 == "float32" else 2
    scores = t5.heads * tokens * tokens * size
    feed_forward = tokens * size * (3 * t5.width + 3 * t5.feed_forward)
    return max(3 * scores, scores + feed_forward)


def decode_activation_bytes(vae: VAEConfig, width: int, height: int, execution: Execution) -> int:
    """Peak of decoding one chunk: a batch of tiles in the decoder beside what is blended so far, or the whole frames.

    At the end the float32 frames exist three times: joined, and twice more on their way to 8 bits.
    """
    frames = FPS * width * height * 3 * FLOAT32
    tile_frames = PUBLISHED_TILING.frames * tile_pixels(width, height) * 3 * FLOAT32
    rows = ceil(width / PUBLISHED_TILING.step)
    joined = frames // 2 + 2 * (rows + 1) * tile_frames
    return max(3 * frames, joined + _tile_bytes(vae, width, height, PUBLISHED_TILING.frames, execution))


def encode_activation_bytes(vae: VAEConfig, width: int, height: int, frames: int, execution: Execution) -> int:
    """Peak of encoding `frames` frames: a batch of tiles in float32 and the model's type, and the latents.

    The frames themselves stay in RAM; a single one is encoded as four alike.
    """
    size, length = item_size(execution), max(4, min(frames, PUBLISHED_TILING.frames))
    numbers = tiles_at_once(width, execution) * length * tile_pixels(width, height) * 3
    tiles = numbers * (FLOAT32 + (size if size < FLOAT32 else 0))
    # Before they join the class token and their positions.
    patches = numbers // (3 * FRAMES_PER_LATENT * PIXELS_PER_LATENT**2) * vae.embed_dim * size
    size_in_latents = (width // PIXELS_PER_LATENT) * (height // PIXELS_PER_LATENT)
    latents = 2 * vae.z_chans * ceil(frames / FRAMES_PER_LATENT) * size_in_latents * FLOAT32
    return tiles + patches + latents + _tile_bytes(vae, width, height, length, execution)


def tile_pixels(width: int, height: int) -> int:
    """Pixels of one frame of a tile."""
    return min(PUBLISHED_TILING.width, width) * min(PUBLISHED_TILING.height, height)


def tiles_at_once(width: int, execution: Execution) -> int:
    """Tiles that really run together: those of one shape that follow each other in a row."""
    whole = max(1, (width - PUBLISHED_TILING.width) // PUBLISHED_TILING.step + 1)
    return execution.vae_tile_batch if width <= PUBLISHED_TILING.step else min(execution.vae_tile_batch, whole)


def _tile_bytes(vae: VAEConfig, width: int, height: int, frames: int, execution: Execution) -> int:
    """What a batch of tiles of `frames` frames takes inside the transformer, in its widest layer."""
    size = item_size(execution)
    cells = frames // FRAMES_PER_LATENT * (tile_pixels(width, height) // PIXELS_PER_LATENT**2)
    tokens = (cells + int(vae.with_cls_token)) * tiles_at_once(width, execution)
    # q, k and v in the model's type, before and after; normalized: in float32, centred, and squared or divided.
    normed = 3 * FLOAT32 + (size if size < FLOAT32 else 0)
    heads = tokens * 3 * vae.embed_dim * (size + normed) + 2 * tokens * vae.embed_dim * size
    hidden = tokens * size * (2 * vae.embed_dim + 2 * int(vae.embed_dim * vae.mlp_ratio))
    if execution.kernel == PLAIN:
        rows = cells + int(vae.with_cls_token)
        many = vae.num_heads * tiles_at_once(width, execution)
        scores = plain_bytes(rows, rows, many, vae.embed_dim // vae.num_heads, execution)
        return max(heads, hidden, 6 * tokens * vae.embed_dim * size + scores)
    return max(heads, hidden)


def latent_bytes(chunk_shape: tuple[int, int], width: int, height: int, window: int, slots: int) -> int:
    """Float32 latents: the window's at the last boundary and now, its velocity twice, and clean chunks within reach.

    chunk_shape: channels and latent frames of a chunk.
    """
    channels, frames = chunk_shape
    chunk = channels * frames * (width // PIXELS_PER_LATENT) * (height // PIXELS_PER_LATENT) * FLOAT32
    return (5 * window + slots) * chunk
