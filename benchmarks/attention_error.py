"""How far attention in 8 bits is from float64: `python -m benchmarks.attention_error [--out FILE]`.

SageAttention 2's arithmetic is written out, which needs no card: so this says what the numbers allow, not what a build
of the package does (its trial on a card does, `magi_lite/attention_trial.py`). Queries and keys are what the model's
are: normed per head, times a learned gain; keys may share an offset, which SageAttention takes out. Queries and keys
become 8-bit integers with a scale for each 32 queries and 64 keys, weights and values 8-bit floats, values with a scale
per channel. Values are random with a mean of their own per channel: where it is nothing, averages are small and
relative errors large. bf16 is what every other kernel computes with. Errors are |found - exact| / |exact|, the median
over seeds.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.figures import RESULTS, save

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


def exact(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The formula in float64."""
    q, k, v = (x.double() for x in (q, k, v))
    return torch.softmax(q @ k.T / math.sqrt(WIDTH), dim=-1) @ v


def in_bf16(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Arguments and weights rounded to bfloat16, sums exact: what fused kernels do."""
    q, k, v = (x.bfloat16().double() for x in (q, k, v))
    scores = q @ k.T / math.sqrt(WIDTH)
    weights = torch.exp(scores - scores.amax(-1, keepdim=True))
    return (weights.bfloat16().double() @ v / weights.sum(-1, keepdim=True)).bfloat16()


def in_8_bits(q: Tensor, k: Tensor, v: Tensor, *, smooth: bool = True) -> Tensor:
    """SageAttention 2; smooth: with the mean of the keys taken out, which changes no weight."""
    q, k, v = (x.bfloat16().double() for x in (q, k, v))
    k = k - k.mean(0) if smooth else k
    scores = _integers(q, QUERY_BLOCK) @ _integers(k, KEY_BLOCK).T / math.sqrt(WIDTH)
    weights = torch.exp(scores - scores.amax(-1, keepdim=True))
    scale = v.abs().amax(0) / 448
    return (_e4m3(448 * weights) / 448) @ (_e4m3(v / scale) * scale) / weights.sum(-1, keepdim=True)


def _integers(x: Tensor, block: int) -> Tensor:
    """Rounded to 8-bit integers times a scale for each block of rows."""
    return torch.cat([(part / (s := part.abs().max() / 127)).round() * s for part in x.split(block)])


def _e4m3(x: Tensor) -> Tensor:
    return x.to(torch.float8_e4m3fn).double()


def example(seed: int, gains: float, offset: float, mean: float) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of one head."""
    random = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(rows, WIDTH, generator=random) for rows in (QUERIES, KEYS, KEYS))
    gain = torch.exp(gains * torch.randn(WIDTH, generator=random))
    k, q = k * gain, q * gain
    k[:, ::16] += offset
    return q, k, v + mean * torch.randn(WIDTH, generator=random)


def measure(case: tuple[float, float, float], seeds: int) -> dict[str, float]:
    """Errors of one case by kind of arithmetic."""
    errors: dict[str, list[float]] = {"bf16": [], "8 bits": [], "8 bits, keys as they are": []}
    for seed in range(seeds):
        given = example(seed, *case)
        wanted = exact(*given)
        for name, found in zip(
            errors, (in_bf16(*given), in_8_bits(*given), in_8_bits(*given, smooth=False)), strict=True
        ):
            errors[name].append(((found.double() - wanted).norm() / wanted.norm()).item())
    return {name: sorted(found)[len(found) // 2] for name, found in errors.items()}


def main(arguments: list[str] | None = None) -> int:
    """Measure, print a table, write the JSON."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--out", type=Path, default=RESULTS / "attention_error.json")
    made.add_argument("--seeds", type=int, default=5)
    options = made.parse_args(arguments)
    torch.set_num_threads(1)
    results: dict[str, Any] = {name: measure(case, options.seeds) for name, case in CASES.items()}
    for name, row in results.items():
        print(f"{name:<28}", "  ".join(f"{label} {value:.4f}" for label, value in row.items()), flush=True)
    about = "relative L2 error of attention against float64, median over seeds; arithmetic written out, no card"
    data = {"about": about, "seeds": options.seeds, "keys": KEYS, "torch": torch.__version__, "errors": results}
    save(options.out, data)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
