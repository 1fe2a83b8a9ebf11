"""Parity of the transformer's forward: the published program's calls, mapped onto ours.

The published call merges a clean chunk in front and a "nearly clean" copy behind into one pass; ours are passes of
their own. Everything is read from the sidecars: shapes, configs, ranges, which tensors were kept and how thinned.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from magi_lite.config import DiTConfig, Guidance
from magi_lite.dit.attention import SDPA, Backend
from magi_lite.dit.captions import CaptionContext
from magi_lite.dit.model import DiT, parameter_dtype
from magi_lite.dit.rope import rope_table
from magi_lite.sampling.guidance import blend_nearly_clean, guidance_weights
from tests.parity.dit_recorder import Recorder
from tests.parity.report import CaseResult, compare

KIND = "dit_forward"
KNOWN_ARGUMENTS = {
    "chunk_width",
    "fwd_extra_1st_chunk",
    "num_steps",
    "distill_interval",
    "slice_point",
    "distill_nearly_clean_chunk",
    "range_num",
    "denoising_range_num",
    "extract_prefix_video_feature",
}
KNOWN_INPUTS = {"x", "t", "y", "caption_dropout_mask", "xattn_mask", "kv_range"}
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


# --- weights, cases, comparison ------------------------------------------------------------------------------------


def main_weights(ckpt: Path) -> dict[str, Tensor]:
    """The tiny checkpoint shared by most cases: whichever unquantized folder is there."""
    for name in ("inference_weight", "inference_weight.distill"):
        shards = sorted((ckpt / name).glob("*.safetensors"))
        if shards:
            return {key: tensor for shard in shards for key, tensor in load_file(shard).items()}
    raise NotUnderstood(f"no weights under {ckpt}")


def load_weights(ckpt: Path, name: str) -> dict[str, Tensor]:
    if name == "main":
        return main_weights(ckpt)
    if name == "gated":
        return main_weights(ckpt) | load_file(ckpt / "gated_override.safetensors")
    raise NotUnderstood(f"weights {name!r}")


def build(config: DiTConfig, tensors: dict[str, Tensor], dtype: torch.dtype) -> DiT:
    """A DiT of these weights, strict but for layers beyond the config's (the gated case keeps 2 of 4)."""
    with torch.device("meta"):
        dit = DiT(config)
    wanted = dit.state_dict().keys()
    beyond = re.compile(r"videodit_blocks\.layers\.(\d+)\.")
    extra = [n for n in tensors.keys() - wanted if not ((m := beyond.match(n)) and int(m[1]) >= config.num_layers)]
    if extra:
        raise NotUnderstood(f"unexpected tensors {sorted(extra)[:3]}")
    state = {name: tensors[name].to(parameter_dtype(name, dtype)) for name in wanted}
    dit.load_state_dict(state, assign=True)
    return dit.requires_grad_(False)


def single_sdpa(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention as in the golden bfloat16 runs: probabilities in float32, only the output rounded."""
    return SDPA(query.float(), key.float(), value.float()).to(query.dtype)


def run_case(dit: DiT, case: dict[str, Any], tensors: dict[str, Tensor], store: PlainStore) -> dict[str, Tensor]:
    """Every output that the sidecar of this case names, at full size, by its name there."""
    unknown = (case["kwargs"].keys() - KNOWN_ARGUMENTS) | (case["inputs"].keys() - KNOWN_INPUTS)
    if unknown:
        raise NotUnderstood(f"arguments {sorted(unknown)}")
    inputs = {name: tensors[entry["tensor"]] for name, entry in case["inputs"].items()}
    arguments, (_, chunks) = dict(case["kwargs"]), inputs["t"].shape
    if arguments["denoising_range_num"] != chunks or arguments["range_num"] != arguments["slice_point"] + chunks:
        raise NotUnderstood(f"{chunks} timesteps with {case['kwargs']}")
    with Recorder(dit) as recorder:
        call = Call(dit, arguments, case["config"]["engine_config"]["distill"], store, recorder)
        if case["fn"] == "forward":
            out = run_forward(call, inputs)
        elif case["fn"] == "dispatch":
            out = run_dispatch(call, inputs, case["config"])
        else:
            raise NotUnderstood(f"function {case['fn']!r}")
        found = {"out": out} | {f"mid.{name}": value for name, value in call.passes.items()}
        if case["fn"] == "forward":
            own = {place: pair for place, pair in call.keys.items() if place[1] >= arguments["slice_point"]}
            found |= {f"mid.{name}": value for name, value in recorder.tensors(own).items()}
    for layer, slots in case["save_cache"]:
        pairs = [store.chunks[layer, chunk] for chunk in range(slots // store.tokens)]
        found[f"kv_cache.layer{layer}"] = torch.cat([torch.cat(pair, dim=-1)[0] for pair in pairs])
    return found


def thin(value: Tensor, entry: dict[str, Any]) -> Tensor:
    """The rows and groups of a tensor that the golden kept, as its sidecar says in words."""
    cache = re.search(r"slots (\d+)::(\d+) of \[0,n\), kv group (\d+) only", entry.get("meaning", ""))
    if cache:
        start, step, group = map(int, cache.groups())
        return value[start::step, group]
    if entry.get("rows"):
        rows = re.fullmatch(r"token rows (\d+)::(\d+) only", entry["rows"])
        if not rows:
            raise NotUnderstood(f"rows {entry['rows']!r}")
        return value[int(rows[1]) :: int(rows[2])]
    return value


def bf16_limits(entry: dict[str, Any]) -> dict[str, float]:
    """Twice what separates two correct bfloat16 runs, plus a few float32 roundings."""
    noise = entry.get("bf16_vs_bf16_noise", entry.get("bf16_deviation", {}))
    return {metric: 2 * value + 1e-6 for metric, value in noise.items()}


def compare_case(
    name: str, case: dict[str, Any], found: dict[str, Tensor], tensors: dict[str, Tensor], *, bf16: bool
) -> Iterator[CaseResult]:
    """One result for each tensor kept of a case, in float32 or of the run as shipped."""
    for output, entry in case["outputs"].items():
        if bf16 and "bf16_tensor" not in entry:
            continue
        label = f"{name}.{'bf16.' if bf16 else ''}{output}"
        if output not in found:
            yield CaseResult(KIND, label, False, {}, {}, "an intermediate that is not known")
            continue
        tolerance = bf16_limits(entry) if bf16 else entry["tolerance"]
        golden = tensors[entry["bf16_tensor" if bf16 else "tensor"]]
        yield compare(KIND, label, thin(found[output], entry), golden, tolerance)


def run_rope_tables(sidecar: dict[str, Any], tensors: dict[str, Tensor], bands: Tensor) -> Iterator[CaseResult]:
    for name, entry in sidecar.get("rope_tables", {}).items():
        start = entry["slice_point"] * entry["chunk_width"]
        table = rope_table(bands, start, entry["T"], entry["H"], entry["W"])
        yield compare(KIND, name, table, tensors[entry["tensor"]], entry["tolerance"])


def run_cases(
    sidecar: dict[str, Any], tensors: dict[str, Tensor], ckpt: Path, dtype: torch.dtype
) -> Iterator[CaseResult]:
    """All cases in order; those that share a cache share a store."""
    bf16 = dtype == torch.bfloat16
    models: dict[tuple[str, str], DiT] = {}
    stores: dict[str, PlainStore] = {}
    cases = sidecar["cases"]
    kept = {case["cache"] for case in cases.values() if any("bf16_tensor" in e for e in case["outputs"].values())}
    for name, case in cases.items():
        own = any("bf16_tensor" in entry for entry in case["outputs"].values())
        if bf16 and not own and (case["cache"] is None or case["cache"] not in kept):
            continue
        try:
            config = DiTConfig.from_published(case["config"]["model_config"])
            key = (case["weights"], json.dumps(case["config"]["model_config"], sort_keys=True))
            if key not in models:
                models[key] = build(config, load_weights(ckpt, case["weights"]), dtype)
                models[key].backend = Backend("float32 sdpa", single_sdpa) if bf16 else SDPA
            store = stores.setdefault(case["cache"], PlainStore()) if case["cache"] else PlainStore()
            found = run_case(models[key], case, tensors, store)
        except Exception as error:  # one case that cannot run must not hide the others
            yield CaseResult(KIND, name + (".bf16" if bf16 else ""), False, {}, {}, f"{type(error).__name__}: {error}")
            continue
        yield from compare_case(name, case, found, tensors, bf16=bf16)


def run(folder: Path, root: Path) -> Iterator[CaseResult]:
    """Every case of every sidecar in the folder: float32, then bfloat16 where the golden kept that too."""
    for path in sorted(folder.glob("*.json")):
        sidecar = json.loads(path.read_text())
        if not {"cases", "file", "weights"} <= sidecar.keys():
            yield CaseResult(KIND, path.name, False, {}, {}, "not a sidecar of this kind")
            continue
        tensors = load_file(folder / sidecar["file"])
        ckpt = (folder / sidecar["weights"]).resolve().parent
        yield from run_rope_tables(sidecar, tensors, main_weights(ckpt)["rope.bands"])
        yield from run_cases(sidecar, tensors, ckpt, torch.float32)
        yield from run_cases(sidecar, tensors, ckpt, torch.bfloat16)
