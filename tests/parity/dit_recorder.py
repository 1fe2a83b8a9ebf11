"""What happens inside a forward, under the names of the published intermediates."""

from __future__ import annotations

from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from magi_lite.attention import Backend
from magi_lite.dit.captions import CaptionContext
from magi_lite.dit.model import DiT


class Recorder:
    """Hooks on a DiT while it is entered. Tensors of several passes are joined along their chunks.

    Everything is kept as (N, chunks, tokens, ...) or (N, chunks, ...) and handed out in the published layout: tokens
    first, then N.
    """

    def __init__(self, dit: DiT) -> None:
        self.dit = dit
        self._passes: list[dict[str, Tensor]] = []
        self._now: dict[str, Tensor] = {}
        self._calls: dict[int, list[tuple[Tensor, Tensor, Tensor]]] = {}
        self._layer = 0
        self._handles: list[Any] = []
        self._fixed: dict[str, Tensor] = {}

    def __enter__(self) -> Recorder:
        dit = self.dit
        self._backend = dit.backend
        dit.backend = Backend("recording", self._attend)
        self._hook(dit.t_embedder, lambda out: self._now.setdefault("t_embed", out.clone()))
        self._hook(dit.rope, lambda out: self._keep("rope", out))
        before_gates = dit.gate_activation.register_forward_pre_hook(lambda _m, given: self._keep("condition", *given))
        self._handles.append(before_gates)
        self._hook(dit.y_embedder.y_proj_xattn, lambda out: self._fixed.setdefault("words", out.clone()))
        self._hook(dit.videodit_blocks.final_layernorm, lambda out: self._keep("final_layernorm", out))
        for index, layer in enumerate(dit.videodit_blocks.layers):
            self._watch_layer(index, layer)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.dit.backend = self._backend
        for handle in self._handles:
            handle.remove()

    def captions(self, context: CaptionContext) -> None:
        """The captions of the whole call, for the intermediates that are theirs."""
        self._fixed["y_adaln"] = context.modulation
        words = self._fixed.pop("words")
        self._fixed["y_xattn_flat"] = torch.cat([words[row, :length] for row, length in enumerate(context.lengths)])

    def end_pass(self) -> None:
        self._passes.append(self._now)
        self._now = {}

    def tensors(self, keys: dict[tuple[int, int], tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
        """By published name, in published layout; `keys`: keys and values by layer and chunk, as a store has them."""
        names = [name for name in self._passes[0] if name != "rope"]
        joined = {name: torch.cat([p[name] for p in self._passes], dim=1) for name in names}
        by_token = [name for name in names if not name.endswith(NOT_BY_TOKEN)]
        found = {name: tokens_first(joined[name]) for name in by_token}
        n, chunks = joined["condition"].shape[:2]
        found["condition"] = joined["condition"]
        found["t_embed"] = joined["t_embed"].flatten(0, 1)
        found["y_adaln"] = self._fixed["y_adaln"].view(n, chunks, -1)
        found["y_xattn_flat"] = self._fixed["y_xattn_flat"]
        found["rope"] = torch.cat([p["rope"] for p in self._passes])
        width = joined["final_layernorm"].shape[2]
        found["condition_map"] = tokens_first(torch.arange(n * chunks).view(n, chunks, 1).expand(n, chunks, width))
        for index in range(len(self.dit.videodit_blocks.layers)):
            found[f"layer{index}_gate_raw"] = joined[f"layer{index}_gate_raw"]
            own = [torch.cat(keys[place], dim=-1) for place in sorted(keys) if place[0] == index]
            found[f"layer{index}_kv"] = torch.cat(own, dim=1).flatten(0, 1)
            found[f"layer{index}_q"] = joined[f"layer{index}_q"].flatten(0, 2)
        return found

    def _hook(self, module: torch.nn.Module, work: Any) -> None:
        self._handles.append(module.register_forward_hook(lambda _m, _i, out: (work(out), None)[1]))

    def _keep(self, name: str, value: Tensor) -> None:
        self._now[name] = value.clone()

    def _watch_layer(self, index: int, layer: torch.nn.Module) -> None:
        def begin(_module: Any, inputs: tuple[Any, ...]) -> None:
            self._layer, self._calls[index] = index, []
            if index == 0:
                self._keep("x_embed", inputs[0])

        def end(_module: Any, _inputs: tuple[Any, ...], out: Any) -> None:
            self._keep(f"layer{index}_out", out)
            self._end_layer(index, out.shape)

        attention = layer.self_attention
        self._handles.append(layer.register_forward_pre_hook(begin))
        self._handles.append(layer.register_forward_hook(end))
        self._hook(layer.ada_modulate_layer.proj, lambda out: self._keep(f"layer{index}_gate_raw", out))
        self._hook(layer.mlp, lambda out: self._keep(f"layer{index}_mlp_out", out))
        self._hook(attention.linear_qkv.layer_norm, lambda out: self._keep(f"layer{index}_qkv_ln", out))
        self._hook(attention.linear_proj, lambda out: self._keep(f"layer{index}_attn_proj", out))

        def mixed(_module: Any, inputs: tuple[Tensor, ...]) -> None:
            x = inputs[0].unflatten(-1, (attention.groups, 2, -1))
            self._keep(f"layer{index}_self_attn", x[..., 0, :].flatten(3))
            self._keep(f"layer{index}_cross_attn", x[..., 1, :].flatten(3))

        self._handles.append(attention.linear_proj.register_forward_pre_hook(mixed))

    def _attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        self._calls.setdefault(self._layer, []).append((query, key, value))
        return self._backend(query, key, value)

    def _end_layer(self, index: int, shape: torch.Size) -> None:
        """Queries from the calls of the attention kernel; self attention's come first."""
        chunks, tokens = shape[1:3]
        queries: list[Tensor] = []
        for query, _, _ in self._calls[index]:
            if sum(q.shape[1] for q in queries) < chunks * tokens:
                queries.append(query)
        self._keep(f"layer{index}_q", torch.cat(queries, 1).unflatten(1, (chunks, tokens)))


NOT_BY_TOKEN = ("condition", "t_embed", "_gate_raw", "_q")
"""Intermediates that are published by chunk or by (batch row, token)."""


def tokens_first(value: Tensor) -> Tensor:
    """(N, chunks, tokens, ...) -> (chunks * tokens, N, ...)."""
    return value.flatten(1, 2).transpose(0, 1)
