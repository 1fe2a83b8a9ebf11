"""The published program's calls of the transformer, in its own terms, carried out with ours.

The published call merges a clean chunk in front and a "nearly clean" copy behind into one pass; ours are passes of
their own, and the three passes of the base model's guidance are three calls.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from magi_lite.dit.captions import CaptionContext
from magi_lite.dit.model import DiT
from magi_lite.models import Guidance
from magi_lite.sampling.guidance import blend_nearly_clean, guidance_weights
from tests.parity.dit_recorder import Recorder

NEARLY_CLEAN_SCALE = 0.7
"""Published default of the weight of the velocity that sees the other chunks."""


class NotUnderstood(Exception):
    """A golden asks for something that this adapter does not know; it must not pass by being skipped."""


class PlainStore:
    """Every chunk's keys and values, kept as they came; a chunk that was never written cannot be read."""

    def __init__(self, tokens: int = 0, chunks: dict[tuple[int, int], tuple[Tensor, Tensor]] | None = None) -> None:
        self.tokens = tokens
        self.chunks = dict(chunks or {})

    def write(self, layer: int, first_chunk: int, key: Tensor, value: Tensor) -> None:
        count = key.shape[1] // self.tokens
        for i, pair in enumerate(zip(key.chunk(count, 1), value.chunk(count, 1), strict=True)):
            self.chunks[layer, first_chunk + i] = (pair[0].clone(), pair[1].clone())

    def read(self, layer: int, first: int, last: int) -> tuple[Tensor, Tensor]:
        pairs = [self.chunks[layer, chunk] for chunk in range(first, last)]
        return torch.cat([pair[0] for pair in pairs], 1), torch.cat([pair[1] for pair in pairs], 1)

    def prefetch(self, layer: int) -> None:
        pass


@dataclass
class Call:
    """One call of the published program, in its own terms."""

    dit: DiT
    arguments: dict[str, Any]
    distilled: bool
    store: PlainStore
    recorder: Recorder
    last_is_copy: bool = False
    """With `distill_nearly_clean_chunk` the published forward does not cache the pass's last chunk."""
    keeps_keys: bool = False
    passes: dict[str, Tensor] = field(default_factory=dict)
    keys: dict[tuple[int, int], tuple[Tensor, Tensor]] = field(default_factory=dict)
    """Keys and values of the last forward, by layer and chunk."""

    @property
    def writes(self) -> bool:
        """The published program fills its cache only where something precedes, or will."""
        a = self.arguments
        return bool(a["slice_point"] or a["fwd_extra_1st_chunk"] or a.get("extract_prefix_video_feature"))

    @property
    def step_size(self) -> float | None:
        if not self.distilled:
            return None
        steps = self.arguments["num_steps"]
        return 2 * (4 / self.arguments["distill_interval"]) if steps == 12 else 2 * (steps / 4)

    def chunk_ranges(self, ranges: Tensor, tokens: int) -> list[tuple[int, int]]:
        if (ranges % tokens).any():
            raise NotUnderstood(f"KV ranges {ranges.tolist()} are not whole chunks of {tokens} tokens")
        return [(first // tokens, last // tokens) for first, last in ranges.tolist()]

    def forward(
        self, x: Tensor, t: Tensor, captions: CaptionContext, ranges: list[tuple[int, int]], write: bool
    ) -> Tensor:
        """The published forward; a clean chunk in front, if any, runs first and alone."""
        width, begin, extra = (self.arguments[k] for k in ("chunk_width", "slice_point", "fwd_extra_1st_chunk"))
        n, chunks = t.shape
        self.store.tokens = self._tokens(x)
        caches = write and self.writes
        store = PlainStore(self.store.tokens, self.store.chunks)
        alone = extra and chunks > 1 and ranges[0][1] <= begin + 1
        parts = []
        for first, last in ((0, 1), (1, chunks)) if alone else ((0, chunks),):
            parts.append(
                self.dit(
                    x[:, :, first * width : last * width],
                    t[:, first:last],
                    captions.select([i * chunks + k for i in range(n) for k in range(first, last)]),
                    first_chunk=begin + first,
                    kv_ranges=ranges[first:last],
                    store=store,
                    write=caches or self.keeps_keys or (alone and first == 0),
                    step_size=self.step_size,
                )
            )
            self.recorder.end_pass()
        if caches:
            end = begin + chunks - int(self.last_is_copy and self.arguments["distill_nearly_clean_chunk"])
            self.store.chunks |= {place: pair for place, pair in store.chunks.items() if begin <= place[1] < end}
        self.keys = store.chunks
        return torch.cat(parts, dim=2)

    def _tokens(self, x: Tensor) -> int:
        config = self.dit.config
        per_frame = x.shape[3] // config.patch_size * (x.shape[4] // config.patch_size)
        return self.arguments["chunk_width"] // config.t_patch_size * per_frame


def dropped_rows(mask: Tensor, n: int, chunks: int) -> Tensor:
    """The published dropout mask, one for all, for each batch row or for each caption, as one per caption."""
    flat = mask.bool().flatten()
    if flat.numel() == 1:
        return flat.expand(n * chunks)
    if flat.numel() == n:
        return flat.repeat_interleave(chunks)
    if flat.numel() == n * chunks:
        return flat
    raise NotUnderstood(f"a dropout mask of {flat.numel()} for {n} x {chunks} captions")


def encode(dit: DiT, y: Tensor, mask: Tensor, dropped: bool | Tensor) -> CaptionContext:
    return dit.encode_captions(y.flatten(0, 1).to(torch.float32), mask.flatten(0, 1), dropped)


def run_forward(call: Call, inputs: dict[str, Tensor]) -> Tensor:
    """`VideoDiTModel.forward`."""
    x, t = inputs["x"], inputs["t"]
    dropped = dropped_rows(inputs["caption_dropout_mask"], *t.shape)
    captions = encode(call.dit, inputs["y"], inputs["xattn_mask"], dropped)
    call.last_is_copy = call.keeps_keys = True
    call.recorder.captions(captions)
    return call.forward(x, t, captions, call.chunk_ranges(inputs["kv_range"], call._tokens(x)), write=True)


def run_dispatch(call: Call, inputs: dict[str, Tensor], config: dict[str, Any]) -> Tensor:
    """`VideoDiTModel.forward_dispatcher`: one pass (distilled) or three (base)."""
    number = config["runtime_config"]["cfg_number"]
    if number == 1:
        return dispatch_one(call, inputs)
    if number == 3:
        return dispatch_three(call, inputs, config["runtime_config"])
    raise NotUnderstood(f"cfg_number {number}")


def halves(inputs: dict[str, Tensor]) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Conditional and null captions with their masks."""
    y, mask = inputs["y"], inputs["xattn_mask"]
    half = y.shape[0] // 2
    if half != inputs["t"].numel():
        raise NotUnderstood(f"{y.shape[0]} caption rows for {inputs['t'].numel()} chunks with two captions each")
    return (y[:half], mask[:half]), (y[half:], mask[half:])


def dispatch_one(call: Call, inputs: dict[str, Tensor]) -> Tensor:
    x, t, width = inputs["x"], inputs["t"], call.arguments["chunk_width"]
    (words, mask), _ = halves(inputs)
    captions = encode(call.dit, words, mask, False)
    velocity = call.forward(x, t, captions, call.chunk_ranges(inputs["kv_range"], call._tokens(x)), write=True)
    extra = int(call.arguments["fwd_extra_1st_chunk"])
    if call.arguments["distill_nearly_clean_chunk"]:
        oldest = slice(extra * width, (extra + 1) * width)
        place = call.arguments["slice_point"] + extra
        alone = call.dit(
            x[:, :, oldest],
            t[:, extra : extra + 1],
            captions.select([n * t.shape[1] + extra for n in range(t.shape[0])]),
            first_chunk=place,
            kv_ranges=[(place, place + 1)],
            step_size=call.step_size,
        )
        velocity[:, :, oldest] = blend_nearly_clean(velocity[:, :, oldest], alone, NEARLY_CLEAN_SCALE)
    elif extra:
        velocity[:, :, :width] = x[:, :, :width]  # the published dispatcher hands the clean latents back
    return velocity


def dispatch_three(call: Call, inputs: dict[str, Tensor], runtime: dict[str, Any]) -> Tensor:
    x, t, width = inputs["x"], inputs["t"], call.arguments["chunk_width"]
    (words, mask), (null, null_mask) = halves(inputs)
    ranges = call.chunk_ranges(inputs["kv_range"], call._tokens(x))
    extra = int(call.arguments["fwd_extra_1st_chunk"])
    n, chunks = t.shape
    if n != 1:
        raise NotUnderstood("three-pass guidance of more than one video")
    call.last_is_copy = True
    full = call.forward(x, t, encode(call.dit, words, mask, False), ranges, write=False)
    nothing = encode(call.dit, null, null_mask, True)
    previous = call.forward(x, t, nothing, ranges, write=True)
    fresh = x[:, :, extra * width :]
    each = torch.cat(fresh.split(width, dim=2))
    times = t[0, extra:, None]
    lone = call.dit(
        each,
        times,
        nothing.select(range(extra, chunks)),
        first_chunk=0,
        kv_ranges=[(0, 1)],
        step_size=call.step_size,
    )
    uncond = torch.cat(lone.split(1), dim=2)
    call.passes = {"cond_pre_and_text": full, "cond_pre": previous, "uncond": uncond}
    scales = (runtime["cfg_t_range"], runtime["prev_chunk_scales"], runtime["text_scales"])
    guidance = Guidance(*(tuple(scale) for scale in scales))
    parts = [x[:, :, : extra * width]]
    for i, time in enumerate(t[0, extra:].tolist()):
        weights = guidance_weights(guidance, time)
        here, there = slice(i * width, (i + 1) * width), slice((i + extra) * width, (i + extra + 1) * width)
        guided = weights.uncond * uncond[:, :, here] + weights.prev * previous[:, :, there]
        parts.append(guided + weights.full * full[:, :, there])
    return torch.cat(parts, dim=2)
