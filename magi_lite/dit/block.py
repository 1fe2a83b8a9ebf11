"""One transformer layer: self and cross attention side by side, one projection, then the MLP; gated and sandwiched.

A pass is laid out (N, chunks, tokens, D): everything that differs by chunk (gates, ranges, captions) is a slice of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import quant
from magi_lite.attention import Backend, masked_sdpa
from magi_lite.attention_shared import Reach, Reader
from magi_lite.dit.captions import CaptionContext, KeyValue
from magi_lite.dit.layers import (
    MLP,
    Float32Linear,
    Modulation,
    ZeroCentredLayerNorm,
    gated_residual,
    normed_heads,
)
from magi_lite.dit.slicing import Piece, pieces
from magi_lite.dit.store import KVStore
from magi_lite.models import DiTConfig

MOST_CALLS = 8
"""Captions of different lengths are attended one by one up to this many rows, beyond that in one masked call."""


@dataclass(frozen=True, eq=False)
class Pass:
    """What every layer of one forward shares."""

    first_chunk: int
    kv_ranges: tuple[tuple[int, int], ...]
    """Absolute chunks [first, last) that each chunk's queries see."""
    condition: Tensor
    """(N, chunks, condition), after the SiLU that every layer's gates begin with."""
    table: Tensor
    """(chunks, tokens, 2 * r): rotary [sin | cos]."""
    context: CaptionContext
    store: KVStore | None
    write: bool
    backend: Backend
    mlp_slice: int | None = None
    attention_slice: int | None = None


def by_pieces(x: Tensor, parts: list[Piece], work: Callable[[Piece], Tensor]) -> Tensor:
    """`work` on each piece, put together; where autograd is off it writes into x, for pieces do not read each other."""
    if not torch.is_grad_enabled():
        for part in parts:
            work(part)
        return x
    rows: dict[int, list[Tensor]] = {}
    for part in parts:
        rows.setdefault(part.chunks.start, []).append(work(part))
    return torch.cat([torch.cat(row, dim=2) for row in rows.values()], dim=1)


class SharedProjections(nn.Module):
    """The layer's first norm and the four projections of its output."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        heads = config.num_attention_heads * config.head_dim
        groups = config.num_query_groups * config.head_dim
        self.layer_norm = nn.LayerNorm(config.hidden_size, config.layernorm_epsilon)
        self.q = nn.Linear(config.hidden_size, heads, bias=False)
        self.qx = nn.Linear(config.hidden_size, heads, bias=False)
        self.k = nn.Linear(config.hidden_size, groups, bias=False)
        self.v = nn.Linear(config.hidden_size, groups, bias=False)


class Attention(nn.Module):
    """Self attention over the chunk's range and cross attention over its caption."""

    def __init__(self, config: DiTConfig, index: int) -> None:
        super().__init__()
        self.index = index
        self.groups, self.head_dim = config.num_query_groups, config.head_dim
        size = config.num_attention_heads * config.head_dim
        eps = config.layernorm_epsilon
        self.linear_qkv = SharedProjections(config)
        self.linear_kv_xattn = nn.Linear(config.hidden_size, 2 * self.groups * self.head_dim, bias=False)
        self.linear_proj = Float32Linear(2 * size, config.hidden_size, bias=False)
        self.q_layernorm = ZeroCentredLayerNorm(self.head_dim, eps, single=True)
        self.q_layernorm_xattn = ZeroCentredLayerNorm(self.head_dim, eps, single=False)
        self.k_layernorm = ZeroCentredLayerNorm(self.head_dim, eps, single=True)
        self.k_layernorm_xattn = ZeroCentredLayerNorm(self.head_dim, eps, single=False)

    def caption_key_value(self, captions: Tensor) -> KeyValue:
        """(B, L, D) -> keys and values (B, L, groups, head_dim) for cross attention."""
        pairs = self.linear_kv_xattn(captions).unflatten(-1, (self.groups, 2, self.head_dim))
        key, value = pairs.unbind(-2)
        return KeyValue(self.k_layernorm_xattn(key), value.contiguous())  # a view would keep the unnormed keys alive

    def forward(self, x: Tensor, step: Pass, gate: Tensor, post_norm: ZeroCentredLayerNorm) -> Tensor:
        """x (N, K, T, D) plus the gated attention of it; gate (N, K, D)."""
        parts = pieces(x.shape[1], x.shape[2], step.attention_slice)
        project = self.linear_qkv
        if len(parts) == 1:
            projected = quant.shared_forward([project.q, project.qx, project.k, project.v], x, project.layer_norm)
            key, value = projected[2:]
        else:  # keys of every token first, in slices; queries follow slice by slice, their norm taken again
            some = [quant.shared_forward([project.k, project.v], x[part], project.layer_norm) for part in parts]
            key, value = (torch.cat([pair[i].flatten(1, 2) for pair in some], dim=1) for i in (0, 1))
            del some  # the slices' memory, before the queries need it
        heads = (*x.shape[:3], self.groups, self.head_dim)
        key = normed_heads(key.view(heads), self.k_layernorm, step.table)
        readers = step.backend.readers(self._reach(step, key, value.view(heads)))

        def attend(part: Piece) -> Tensor:
            if len(parts) == 1:
                q, qx = projected[:2]
            else:
                q, qx = quant.shared_forward([project.q, project.qx], x[part], project.layer_norm)
            # The one quantization that nothing before it takes along: attention kernels end before the two outputs are
            # interleaved, and a token's scale must know both.
            mixed = self._mix(part, step, readers, q, qx)
            return gated_residual(x[part], self.linear_proj(mixed), gate[:, part.chunks, None], post_norm)

        return by_pieces(x, parts, attend)

    def _reach(self, step: Pass, key: Tensor, value: Tensor) -> list[Reach]:
        """For each chunk of the pass, the keys and values of its range; views, and shared, wherever there are some."""
        chunks, tokens = key.shape[1:3]
        begin, end = step.first_chunk, step.first_chunk + chunks
        assert all(last <= end for _, last in step.kv_ranges)
        if step.write:
            assert step.store is not None
            step.store.write(self.index, begin, key.flatten(1, 2), value.flatten(1, 2))
        furthest: dict[int, int] = {}
        for first, last in step.kv_ranges:
            furthest[first] = max(last, furthest.get(first, 0))
        wholes: dict[tuple[int, int], KeyValue] = {}

        def whole(first: int, last: int) -> KeyValue:
            own = slice(max(0, first - begin), last - begin)
            if first >= begin:
                return KeyValue(key[:, own].flatten(1, 2), value[:, own].flatten(1, 2))
            assert step.store is not None
            if step.write or last <= begin:
                return KeyValue(*(part.to(key.dtype) for part in step.store.read(self.index, first, last)))
            past = step.store.read(self.index, first, begin)
            both = zip(past, (key, value), strict=True)
            return KeyValue(*(torch.cat([old.to(key.dtype), new[:, own].flatten(1, 2)], dim=1) for old, new in both))

        def see(first: int, last: int) -> Reach:
            # All ranges that begin with one chunk share the longest's; but a store gives what it has in any order.
            in_order = first >= begin or (last > begin and not step.write)
            asked = (first, furthest[first] if in_order else last)
            if asked not in wholes:
                wholes[asked] = whole(*asked)
            return Reach(*wholes[asked], (last - first) * tokens)

        seen = {reach: see(*reach) for reach in dict.fromkeys(step.kv_ranges)}
        return [seen[reach] for reach in step.kv_ranges]

    def _mix(self, part: Piece, step: Pass, readers: list[Reader], q: Tensor, qx: Tensor) -> Tensor:
        """Both attentions of a piece's tokens, interleaved by group for `linear_proj`: (N, C, T, 2 * size)."""
        heads = (-1, self.head_dim)
        query = normed_heads(q.unflatten(-1, heads), self.q_layernorm, step.table[part[1:]])
        cross_query = normed_heads(qx.unflatten(-1, heads), self.q_layernorm_xattn)
        chunks = range(part.chunks.start, part.chunks.stop)
        own = self._self_attention(query, [step.kv_ranges[c] for c in chunks], [readers[c] for c in chunks])
        cross = self._cross_attention(cross_query, step, chunks)
        n, tokens = q.shape[0], q.shape[2]
        if torch.is_grad_enabled():
            both = [torch.cat(parts, dim=1).view(n, len(chunks), tokens, self.groups, -1) for parts in (own, cross)]
            return torch.stack(both, dim=4).flatten(3)
        mixed = q.new_empty(n, len(chunks), tokens, self.groups, 2, q.shape[3] // self.groups)
        for which, parts in enumerate((own, cross)):
            start = 0
            for output in parts:  # straight from the kernels' own tensors, one copy
                stop = start + output.shape[1] // tokens
                mixed[:, start:stop, ..., which, :] = output.reshape(n, stop - start, tokens, self.groups, -1)
                start = stop
        return mixed.flatten(3)

    def _self_attention(self, query: Tensor, ranges: list[tuple[int, int]], readers: list[Reader]) -> list[Tensor]:
        """(N, C, T, heads, head_dim) -> (N, chunks * T, heads, head_dim) of some chunks each, in order.

        Neighbours with the same range go in one call.
        """
        outputs = []
        start = 0
        for stop in range(1, len(ranges) + 1):
            if stop == len(ranges) or ranges[stop] != ranges[start]:
                outputs.append(readers[start](query[:, start:stop].flatten(1, 2)))
                start = stop
        return outputs

    def _cross_attention(self, query: Tensor, step: Pass, chunks: range) -> list[Tensor]:
        """As `_self_attention`, over the context; its row n * K + c serves batch row n, chunk c."""
        context = step.context
        flat = query.flatten(0, 1)
        whole = (query.shape[0], -1, *query.shape[3:])
        rows = [n * len(step.kv_ranges) + c for n in range(query.shape[0]) for c in chunks]
        every = len(rows) == len(context)
        lengths = context.lengths
        if every and len(set(lengths)) == 1:
            key, value = context.batch(self.index)
            return [step.backend(flat, key[:, : lengths[0]], value[:, : lengths[0]]).reshape(whole)]
        if every and len(rows) > MOST_CALLS:
            return [masked_sdpa(flat, *context.batch(self.index), context.mask(flat.device)).reshape(whole)]
        outputs = [step.backend(flat[i : i + 1], *context.row(self.index, row)) for i, row in enumerate(rows)]
        return outputs if query.shape[0] == 1 else [torch.cat(outputs).reshape(whole)]


class TransformerLayer(nn.Module):
    """Attention and MLP, both gated by the condition."""

    def __init__(self, config: DiTConfig, index: int) -> None:
        super().__init__()
        hidden, eps = config.hidden_size, config.layernorm_epsilon
        self.ada_modulate_layer = Modulation(config.cond_size, hidden)
        self.self_attention = Attention(config, index)
        self.self_attn_post_norm = ZeroCentredLayerNorm(hidden, eps, single=True)
        self.mlp = MLP(hidden, config.ffn_hidden_size, eps, gated=config.gated_linear_unit)
        self.mlp_post_norm = ZeroCentredLayerNorm(hidden, eps, single=True)

    def caption_key_value(self, captions: Tensor) -> KeyValue:
        """(B, L, D) -> keys and values (B, L, groups, head_dim) for this layer's cross attention."""
        return self.self_attention.caption_key_value(captions)

    def caption_modules(self) -> tuple[nn.Module, ...]:
        """All that `caption_key_value` computes with."""
        return self.self_attention.linear_kv_xattn, self.self_attention.k_layernorm_xattn

    def forward(self, x: Tensor, step: Pass) -> Tensor:
        """x (N, K, T, D) -> the same."""
        attention_gate, mlp_gate = self.ada_modulate_layer(step.condition)
        x = self.self_attention(x, step, attention_gate, self.self_attn_post_norm)

        def feed_forward(part: Piece) -> Tensor:
            return gated_residual(x[part], self.mlp(x[part]), mlp_gate[:, part.chunks, None], self.mlp_post_norm)

        return by_pieces(x, pieces(x.shape[1], x.shape[2], step.mlp_slice), feed_forward)
