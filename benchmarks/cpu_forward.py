"""The transformer's forward on a CPU against its floor: its own matrix products and attentions and nothing else.

`python benchmarks/cpu_forward.py [--cases demo medium] [--repeats N] [--out FILE]`

The products and attentions of one forward are recorded as they are dispatched, and replayed with tensors of the same
shapes (weights are the model's own). Forward and floor take turns in one run, on one thread, and are timed in CPU
seconds of that thread, so that other work on the machine disturbs the ratio as little as possible. The second figure
compares captions encoded once with captions encoded for every step (forward plus encoding, over forward).
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.figures import RESULTS, save
from magi_lite.dit.model import DiT
from magi_lite.machine import devices
from magi_lite.models import DiTConfig
from magi_lite.weights.opening import open_model

FLOOR_OPERATIONS = ("mm", "addmm", "bmm", "baddbmm", "linear", "scaled_dot_product")
"""Parts of the names of the operations that nobody can leave out."""


@dataclass(frozen=True)
class Case:
    """One size: a model and a window of chunks."""

    name: str
    config: DiTConfig
    chunks: int
    side: int
    """Latent height and width."""
    ranges: tuple[tuple[int, int], ...]
    caption_tokens: int

    @property
    def tokens(self) -> int:
        """Tokens of a chunk."""
        return 6 * (self.side // 2) ** 2


def _config(layers: int, hidden: int, ffn: int, heads: int, groups: int, head_dim: int, tokens: int) -> DiTConfig:
    return DiTConfig(
        num_layers=layers,
        hidden_size=hidden,
        ffn_hidden_size=ffn,
        num_attention_heads=heads,
        num_query_groups=groups,
        head_dim=head_dim,
        in_channels=16,
        out_channels=16,
        caption_channels=64,
        caption_max_length=tokens,
        gated_linear_unit=False,
        half_channel_vae=False,
        x_rescale_factor=1.0,
    )


CASES = {
    case.name: case
    for case in (
        Case("demo", open_model("demo").spec.dit, 4, 12, ((0, 1), (0, 2), (0, 3), (0, 4)), 24),
        Case("medium", _config(6, 1024, 4096, 16, 8, 64, 128), 3, 32, ((0, 1), (0, 2), (0, 3)), 128),
    )
}


class Recorder(TorchDispatchMode):
    """Notes every product and attention of what runs inside it."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if any(part in func.__name__ for part in FLOOR_OPERATIONS):
            self.calls.append((func, args, kwargs or {}))
        return func(*args, **(kwargs or {}))


class Floor:
    """Replays recorded calls. Activations are replaced by one random tensor per shape and stride; weights stay."""

    def __init__(self, calls: list[tuple[Any, tuple[Any, ...], dict[str, Any]]], weights: set[int]) -> None:
        self.weights = weights
        self.pool: dict[tuple[Any, ...], Tensor] = {}
        self.calls = [(func, tuple(self._stand_in(arg) for arg in args), kwargs) for func, args, kwargs in calls]

    def _stand_in(self, argument: Any) -> Any:
        if not isinstance(argument, Tensor) or argument.untyped_storage().data_ptr() in self.weights:
            return argument
        key = (argument.shape, argument.stride(), argument.dtype)
        if key not in self.pool:
            size = sum((n - 1) * s for n, s in zip(argument.shape, argument.stride(), strict=True)) + 1
            self.pool[key] = torch.randn(size, dtype=argument.dtype).as_strided(argument.shape, argument.stride())
        return self.pool[key]

    def __call__(self) -> None:
        for func, args, kwargs in self.calls:
            func(*args, **kwargs)


def cpu_seconds(work: Callable[[], Any]) -> float:
    """CPU seconds of this thread."""
    begin = time.thread_time()
    work()
    return time.thread_time() - begin


def take_turns(first: Callable[[], Any], second: Callable[[], Any], repeats: int) -> tuple[list[float], list[float]]:
    """Times of both, in alternating order after one unmeasured round."""
    first(), second()
    times: tuple[list[float], list[float]] = ([], [])
    for repeat in range(repeats):
        for which in (0, 1) if repeat % 2 == 0 else (1, 0):
            times[which].append(cpu_seconds((first, second)[which]))
    return times


def ratio(over: list[float], under: list[float]) -> dict[str, float]:
    """The middle of the ratios of neighbouring turns, their quartiles, and the ratio of the best times."""
    ratios = sorted(a / b for a, b in zip(over, under, strict=True))
    low, high = (ratios[0], ratios[-1]) if len(ratios) < 4 else statistics.quantiles(ratios, n=4)[::2]
    return {
        "ratio": round(statistics.median(ratios), 4),
        "ratio_quartiles": [round(low, 4), round(high, 4)],
        "ratio_of_best": round(min(over) / min(under), 4),
    }


def measure(case: Case, repeats: int) -> dict[str, Any]:
    """Forward against floor, and captions kept against captions encoded anew, at one size."""
    torch.manual_seed(0)
    dit = DiT(case.config).requires_grad_(False).eval()
    latents = torch.randn(1, 16, 6 * case.chunks, case.side, case.side)
    timesteps = torch.linspace(0.8, 0.1, case.chunks)[None]
    captions = torch.randn(case.chunks, case.caption_tokens, case.config.caption_channels)
    kept = dit.encode_captions(captions)

    def forward() -> Tensor:
        return dit(latents, timesteps, kept, first_chunk=0, kv_ranges=case.ranges, step_size=4.0)

    with Recorder() as recorder:
        forward()
    parameters = {parameter.untyped_storage().data_ptr() for parameter in dit.parameters()}
    floor = Floor(recorder.calls, parameters)
    whole, least = take_turns(forward, floor, repeats)
    encoding = [cpu_seconds(lambda: dit.encode_captions(captions)) for _ in range(repeats)]
    anew = [once + extra for once, extra in zip(whole, encoding, strict=True)]
    layers, hidden = case.config.num_layers, case.config.hidden_size
    return {
        "size": f"{layers} layers, hidden {hidden}, {case.chunks} x {case.tokens} tokens",
        "calls_in_floor": len(floor.calls),
        "forward_seconds": round(min(whole), 5),
        "floor_seconds": round(min(least), 5),
        **ratio(whole, least),
        "captions_encoded_each_step": ratio(anew, whole),
        "repeats": repeats,
    }


def machine() -> str:
    """The machine without its name."""
    return f"{platform.machine()} CPU, {torch.backends.cpu.get_cpu_capability()}, {os.cpu_count()} cores, 1 thread used"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=Path, default=RESULTS / "cpu_forward.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    load = round(os.getloadavg()[0], 1)  # above the number of cores, caches are shared and ratios spread
    with torch.inference_mode(), devices.freed_memory_kept():  # as runs do
        cases = {name: measure(CASES[name], arguments.repeats) for name in arguments.cases}
    result = {"machine": machine(), "torch": torch.__version__, "type": "float32", "load_average": load, "cases": cases}
    print(save(arguments.out, result))


if __name__ == "__main__":
    main()
