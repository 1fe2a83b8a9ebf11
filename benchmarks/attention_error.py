"""How far attention in 8 bits is from float64: `python -m benchmarks.attention_error [--out FILE]`.

SageAttention 2's arithmetic is written out, which needs no card: so this says what the numbers allow, not what a build
of the package does (its trial on a card does, `magi_lite/attention_trial.py`). Queries and keys become 8-bit integers
with a scale for each 32 queries and 64 keys, keys after their mean is taken out, weights and values 8-bit floats,
values with a scale per channel; "of a longer range" is what a range gets whose keys and values were quantized together
with as many again behind it (`magi_lite/attention_shared.py`). bf16 is what every other kernel computes with. Errors
are |found - exact| / |exact|.

`errors`, made up, the median over seeds: queries and keys are normed per head, times a learned gain; keys may share an
offset. Values are random with a mean of their own per channel: where it is nothing, averages are small and relative
errors large.

`recorded`: the same of calls that the shipped demo model makes in a video, every seventh in all its layers and steps,
and the spread over them.

`videos`: videos of the demo model with every self attention in 8 bits, and with its linears quantized, beside the same
with exact ones in float32: relative error of the latents and how far the frames are (peak signal-to-noise ratio).
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from benchmarks.figures import RESULTS, save
from benchmarks.reuse import PROMPTS, Film, film
from magi_lite.attention import Backend, sdpa
from magi_lite.attention_shared import Reach, Reader
from magi_lite.pipeline.decoding import psnr

WIDTH, QUERIES, KEYS = 128, 256, 12150
QUERY_BLOCK, KEY_BLOCK = 32, 64
CASES = {
    "plain": (0.0, 0.0, 0.0),
    "gains": (0.35, 0.0, 0.0),
    "gains, keys with an offset": (0.35, 6.0, 0.0),
    "gains, values with a mean": (0.35, 0.0, 1.0),
    "all": (0.35, 6.0, 1.0),
}
"""Spread of the logarithm of the gains, offset of every sixteenth channel of the keys, spread of the values' means."""


RECORDED = 7
"""Of the calls that the demo model makes, every seventh is looked at."""
VIDEO: dict[str, Any] = {"seconds": 3, "size": "96x96", "steps": 8, "window": 4}


def exact(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The formula in float64."""
    q, k, v = (x.double() for x in (q, k, v))
    return torch.softmax(q @ k.T / math.sqrt(q.shape[1]), dim=-1) @ v


def in_bf16(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Arguments and weights rounded to bfloat16, sums exact: what fused kernels do."""
    q, k, v = (x.bfloat16().double() for x in (q, k, v))
    scores = q @ k.T / math.sqrt(q.shape[1])
    weights = torch.exp(scores - scores.amax(-1, keepdim=True))
    return (weights.bfloat16().double() @ v / weights.sum(-1, keepdim=True)).bfloat16()


def in_8_bits(q: Tensor, k: Tensor, v: Tensor, *, seen: int | None = None, smooth: bool = True) -> Tensor:
    """SageAttention 2.

    Args:
        seen: keys that the range has, of all that are quantized; None: all. smooth: with the mean of the keys taken
            out, which changes no weight.
    """
    q, k, v = (x.bfloat16().double() for x in (q, k, v))
    k = k - k.mean(0) if smooth else k
    scores = _integers(q, QUERY_BLOCK) @ _integers(k, KEY_BLOCK)[:seen].T / math.sqrt(q.shape[1])
    weights = torch.exp(scores - scores.amax(-1, keepdim=True))
    scale = v.abs().amax(0).clamp_min(1e-30) / 448
    values = (_e4m3(v / scale) * scale)[:seen]
    return (_e4m3(448 * weights) / 448) @ values / weights.sum(-1, keepdim=True)


def _integers(x: Tensor, block: int) -> Tensor:
    """Rounded to 8-bit integers times a scale for each block of rows."""
    return torch.cat([(part / (s := part.abs().max().clamp_min(1e-30) / 127)).round() * s for part in x.split(block)])


def _e4m3(x: Tensor) -> Tensor:
    return x.to(torch.float8_e4m3fn).double()


Arithmetic = Callable[[Tensor, Tensor, Tensor, int], Tensor]
"""Of one head: queries, all keys and values, and how many of them the range has."""
WAYS: dict[str, Arithmetic] = {
    "bf16": lambda q, k, v, seen: in_bf16(q, k[:seen], v[:seen]),
    "8 bits": lambda q, k, v, seen: in_8_bits(q, k[:seen], v[:seen]),
    "8 bits, of a longer range": lambda q, k, v, seen: in_8_bits(q, k, v, seen=seen),
    "8 bits, keys as they are": lambda q, k, v, seen: in_8_bits(q, k[:seen], v[:seen], smooth=False),
}


def off(found: Tensor, wanted: Tensor) -> float:
    """Relative error."""
    return ((found.double() - wanted).norm() / wanted.norm()).item()


def example(seed: int, gains: float, offset: float, mean: float) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, and keys and values of one head, twice as many as a range has."""
    random = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(rows, WIDTH, generator=random) for rows in (QUERIES, 2 * KEYS, 2 * KEYS))
    gain = torch.exp(gains * torch.randn(WIDTH, generator=random))
    k, q = k * gain, q * gain
    k[:, ::16] += offset
    return q, k, v + mean * torch.randn(WIDTH, generator=random)


def measure(case: tuple[float, float, float], seeds: int) -> dict[str, float]:
    """Errors of one case by kind of arithmetic; the range is the first half of the keys."""
    errors: dict[str, list[float]] = {name: [] for name in WAYS}
    for seed in range(seeds):
        q, k, v = example(seed, *case)
        wanted = exact(q, k[:KEYS], v[:KEYS])
        for name, way in WAYS.items():
            errors[name].append(off(way(q, k, v, KEYS), wanted))
    return {name: statistics.median_low(found) for name, found in errors.items()}


def by_heads(way: Arithmetic, query: Tensor, reach: Reach) -> Tensor:
    """All heads of a call."""
    output = torch.empty_like(query)
    share = query.shape[2] // reach.key.shape[2]
    for n in range(query.shape[0]):
        for head in range(query.shape[2]):
            k, v = (x[n, :, head // share] for x in (reach.key, reach.value))
            output[n, :, head] = way(query[n, :, head], k, v, reach.length).to(query.dtype)
    return output


def recorded() -> dict[str, Any]:
    """Errors of the demo model's own calls: median, 90th percentile and largest over calls."""
    errors: dict[str, list[float]] = {name: [] for name in WAYS}
    calls = 0

    def look(query: Tensor, reach: Reach) -> Tensor:
        nonlocal calls
        calls += 1
        if calls % RECORDED == 0:
            wanted = by_heads(lambda q, k, v, seen: exact(q, k[:seen], v[:seen]), query, reach)
            for name, way in WAYS.items():
                errors[name].append(off(by_heads(way, query, reach), wanted.double()))
        return sdpa(query, *reach.seen)

    made_with(look, prompt=PROMPTS[0], seed=0)
    found = {
        name: {"median": float(np.median(e)), "90 %": float(np.quantile(e, 0.9)), "largest": max(e)}
        for name, e in errors.items()
    }
    return {"calls": len(errors["bf16"]), **found}


def made_with(attend: Callable[[Tensor, Reach], Tensor], **asked: Any) -> Film:
    """A video of the demo model whose self attention is `attend`."""

    def share(reaches: Sequence[Reach]) -> list[Reader]:
        return [lambda query, reach=reach: attend(query, reach) for reach in reaches]

    backend = Backend("sdpa", sdpa, share=share)
    with mock.patch("magi_lite.pipeline.engine.choose_attention", lambda *_: backend):
        return film(**VIDEO, **asked)


def videos(prompts: int) -> dict[str, dict[str, float]]:
    """How far videos are from exact ones, means over prompts."""
    table: dict[str, list[dict[str, float]]] = {}
    for seed, prompt in enumerate(PROMPTS[:prompts]):
        asked = {"prompt": prompt, "seed": seed}
        wanted = film(**VIDEO, **asked, scheme="float32")
        made = {f"attention in {name}": made_with(_way(way), **asked, scheme="float32") for name, way in WAYS.items()}
        made |= {f"linears in {scheme}": film(**VIDEO, **asked, scheme=scheme) for scheme in ("bf16", "fp8", "int8")}
        for name, one in made.items():
            error = float(np.linalg.norm(one.latents - wanted.latents) / np.linalg.norm(wanted.latents))
            table.setdefault(name, []).append({"latents": error, "psnr_db": psnr(one.frames, wanted.frames)})
    return {name: {key: statistics.mean(row[key] for row in rows) for key in rows[0]} for name, rows in table.items()}


def _way(way: Arithmetic) -> Callable[[Tensor, Reach], Tensor]:
    return lambda query, reach: by_heads(way, query, reach)


def main(arguments: list[str] | None = None) -> int:
    """Measure, print a table, write the JSON."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--out", type=Path, default=RESULTS / "attention_error.json")
    made.add_argument("--seeds", type=int, default=5)
    made.add_argument("--prompts", type=int, choices=range(1, len(PROMPTS) + 1), default=2, help="videos of each way")
    options = made.parse_args(arguments)
    torch.set_num_threads(1)
    about = "relative L2 error of attention against float64; arithmetic written out, no card"
    data: dict[str, Any] = {
        "about": about, "seeds": options.seeds, "keys": KEYS, "torch": torch.__version__,
        "errors": rounded_more({name: measure(case, options.seeds) for name, case in CASES.items()}),
        "recorded": rounded_more(recorded()),
        "videos": rounded_more(videos(options.prompts)), "prompts": list(PROMPTS[: options.prompts]), **VIDEO,
    }  # fmt: skip
    print(save(options.out, data))
    return 0


def rounded_more(value: Any) -> Any:
    """Errors with four figures."""
    if isinstance(value, dict):
        return {name: rounded_more(part) for name, part in value.items()}
    return float(f"{value:.4g}")


if __name__ == "__main__":
    raise SystemExit(main())
