"""What every operation of a forward costs on a card at best: `python benchmarks/roofline.py --card "RTX 4090"`.

The full-size transformer runs on the meta device, where tensors have shapes and no numbers. Every operation that it
issues is priced at the larger of its floating-point work over the card's rate and its bytes over the card's bandwidth
(`machine/cards.py`). Quantization, fused with the operation before it where our kernels do so, is one read and one
write; views cost nothing; a tensor that is written in place is read and written. The floor is what the matrix products
and attentions alone take at their rates: the ratio of the two says what everything else costs.

Passes are those of the sampler's schedule: the window at every step of a full stage, the copy of the oldest chunk and
the clean pass. Prints a table by operation; `--out FILE` writes it as JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from magi_lite.attention import SHORT_KEYS, Backend, sdpa
from magi_lite.dit.model import DiT
from magi_lite.machine import cards
from magi_lite.machine.cards import Device
from magi_lite.models import MODELS, PIXELS_PER_LATENT, DiTConfig, ModelSpec, quantizable
from magi_lite.sampling.kv_store import KVRing
from magi_lite.sampling.schedule import Schedule
from quant.convert import convert_
from quant.fusion import Operation
from quant.schemes import SCHEMES

META = torch.device("meta")
SAGE_RATE = 2.6
"""SageAttention's rate against bf16's: 431 of 165 TOP/s measured on an RTX 4090."""
FLOAT32_RATE = 0.5
"""Rate of float32 products against bf16's with float32 accumulation."""
CAPTION_TOKENS = 128
aten = torch.ops.aten


@dataclass
class Price:
    """One kind of operation: launches, seconds, floating-point work and bytes moved."""

    launches: int = 0
    seconds: float = 0.0
    flops: float = 0.0
    bytes: float = 0.0
    floor: float = 0.0
    """Seconds at the card's rate alone; of matrix products and attentions only."""

    def add(self, seconds: float, flops: float, moved: float, floor: float, times: float = 1.0) -> None:
        self.launches += round(times)
        self.seconds += times * seconds
        self.flops += times * flops
        self.bytes += times * moved
        self.floor += times * floor


@dataclass
class Bill:
    """Prices by operation."""

    rows: dict[str, Price] = field(default_factory=lambda: defaultdict(Price))

    def add(self, other: Bill, times: float = 1.0) -> None:
        """Add another bill `times` times."""
        for name, price in other.rows.items():
            row = self.rows[name]
            row.launches += round(times * price.launches)
            row.seconds += times * price.seconds
            row.flops += times * price.flops
            row.bytes += times * price.bytes
            row.floor += times * price.floor

    def total(self, name: str) -> float:
        return sum(getattr(price, name) for price in self.rows.values())

    @property
    def seconds(self) -> float:
        return self.total("seconds")

    @property
    def floor(self) -> float:
        """Seconds of matrix products and attentions at the card's rates."""
        return self.total("floor")

    @property
    def ratio(self) -> float:
        return self.seconds / self.floor

    def to_json(self) -> dict[str, Any]:
        rows = sorted(self.rows.items(), key=lambda row: -row[1].seconds)
        return {
            "seconds": self.seconds,
            "floor_seconds": self.floor,
            "ratio": self.ratio,
            "launches": int(self.total("launches")),
            "operations": {name: vars(price) for name, price in rows},
        }


def rate_of(card: Device, dtype: torch.dtype) -> float:
    """FLOP/s of matrix products of this type on a card; what it cannot multiply goes at bf16's rate."""
    tflops = {
        torch.float8_e4m3fn: card.fp8_tflops or card.bf16_tflops,
        torch.int8: card.int8_tops,
        torch.float32: FLOAT32_RATE * card.bf16_tflops,
    }.get(dtype, card.bf16_tflops)
    return tflops * 1e12


def bytes_of(tensor: Tensor) -> int:
    """Bytes that reading all of a tensor moves: what is expanded lies in memory once."""
    numbers = math.prod(size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride)
    return numbers * tensor.element_size()


PRODUCTS = {"mm", "addmm", "bmm", "baddbmm", "_scaled_mm", "_int_mm", "linear", "convolution"}
FREE = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "detach", "_unsafe_view"}
NAMES = {
    "_to_copy": "casts",
    "native_layer_norm": "layer norms",
    "copy_": "copies",
    "clone": "copies",
    "cat": "concatenations",
    "add": "additions",
    "add_": "additions",
    "mul": "multiplications",
    "mul_": "multiplications",
    "gelu_": "activation functions",
    "gelu": "activation functions",
    "silu": "activation functions",
}


class Pricer(TorchDispatchMode):
    """Prices every operation inside on a card."""

    def __init__(self, card: Device) -> None:
        super().__init__()
        self.card, self.bill, self.counting = card, Bill(), True

    def charge(self, name: str, flops: float, moved: float, rate: float | None = None) -> None:
        """Book one launch; `rate`: FLOP/s of a matrix product or attention, None for all else."""
        if not self.counting:
            return
        at_rate = flops / rate if rate else 0.0
        seconds = max(at_rate, moved / (self.card.bandwidth_gbs * 1e9))
        self.bill.rows[name].add(seconds, flops, moved, at_rate)

    @contextmanager
    def uncounted(self) -> Iterator[None]:
        """What runs inside costs nothing."""
        before, self.counting = self.counting, False
        try:
            yield
        finally:
            self.counting = before

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if self.counting:
            self._price(func, args, kwargs, out)
        return out

    def _price(self, func: Any, args: tuple, kwargs: dict, out: Any) -> None:
        name = func._schema.name.rpartition("::")[2]
        if name in FREE or _is_view(func):
            return
        given = [x for x in _leaves((args, list(kwargs.values()))) if x.is_meta]
        made = [x for x in _leaves(out) if x.is_meta]
        if not given and not made:
            return
        if name in ("copy_", "fill_", "zero_"):
            moved = sum(map(bytes_of, given[1:])) + bytes_of(made[0])
        elif name in ("native_layer_norm",):
            moved = sum(map(bytes_of, given)) + bytes_of(made[0])
        else:
            moved = sum(map(bytes_of, given)) + sum(bytes_of(x) for x in made)
        if name in PRODUCTS:
            left = next(x for x in given if x.ndim >= 2)
            rows = made[0].numel()
            flops = 2.0 * rows * left.shape[-1]
            kind = str(left.dtype).removeprefix("torch.")
            self.charge(f"products {kind}", flops, moved, rate_of(self.card, left.dtype))
            return
        self.charge(NAMES.get(name, name), 0.0, moved)


def _is_view(func: Any) -> bool:
    """Whether an operation's result shares its argument's memory and writes nothing."""
    returns = [item.alias_info for item in func._schema.returns]
    return bool(returns) and all(alias is not None and not alias.is_write for alias in returns)


def _leaves(values: Any) -> list[Tensor]:
    if isinstance(values, Tensor):
        return [values]
    if isinstance(values, list | tuple):
        return [leaf for value in values for leaf in _leaves(value)]
    return []


class FusedQuantization:
    """Stands in for `quant.kernels` on the meta device: one read and one write, with the operation before it."""

    def __init__(self, pricer: Pricer) -> None:
        self.pricer = pricer

    def quantize_rows(self, x: Tensor, kind: torch.dtype, operation: Operation | None = None) -> tuple[Tensor, Tensor]:
        return self._values(x, kind, operation), torch.empty(x.shape[0], 1, device=META)

    def quantize_static(self, x: Tensor, divisor: Tensor, twice: bool, operation: Operation | None = None) -> Tensor:
        return self._values(x, torch.float8_e4m3fn, operation)

    def scale_product(self, product: Tensor, scale: Tensor, weight_scale: Tensor, result: Tensor) -> None:
        self.pricer.charge("scaling of products", 0.0, bytes_of(product) + bytes_of(result))

    def _values(self, x: Tensor, kind: torch.dtype, operation: Operation | None) -> Tensor:
        features = x.shape[1] if operation is None else operation.features(x.shape[1])
        values = torch.empty(x.shape[0], features, dtype=kind, device=META)
        before = "" if operation is None else f"{operation.formula} + "
        self.pricer.charge(f"{before}quantization", 0.0, bytes_of(x) + bytes_of(values))
        return values


class FusedLayers:
    """Stands in for `magi_lite.kernels`: heads and residual stream are read and written once, tables and gates read."""

    def __init__(self, pricer: Pricer) -> None:
        self.pricer = pricer

    def norm_heads_(
        self, x: Tensor, weight: Tensor, bias: Tensor, eps: float, *, table: Tensor | None = None, **_: bool
    ) -> Tensor:
        angles = 0 if table is None else bytes_of(table)
        self.pricer.charge("norms and rotations of heads", 0.0, 2 * bytes_of(x) + angles)
        return x

    def add_gated_(self, x: Tensor, branch: Tensor, gate: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        moved = 2 * bytes_of(x) + bytes_of(branch) + bytes_of(gate) + bytes_of(weight) + bytes_of(bias)
        self.pricer.charge("gated residuals", 0.0, moved)
        return x


class Attention(TorchFunctionMode):
    """Prices attention as a fused kernel: queries, keys and values read once, the output written once."""

    def __init__(self, pricer: Pricer, rate: float = 1.0) -> None:
        super().__init__()
        self.pricer, self.rate = pricer, rate

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs)
        query, key, value = args[:3]
        n, heads, rows, width = query.shape
        flops = 4.0 * n * heads * rows * key.shape[2] * width
        moved = 2 * bytes_of(query) + bytes_of(key) + bytes_of(value)
        rate = self.rate if key.shape[2] >= SHORT_KEYS else 1.0
        self.pricer.charge("attention", flops, moved, rate * self.pricer.card.bf16_tflops * 1e12)
        with self.pricer.uncounted():
            return torch.empty(n, rows, heads, width, dtype=query.dtype, device=META).transpose(1, 2)


@contextmanager
def priced(card: Device, attention: str = "sdpa") -> Iterator[Pricer]:
    """Everything inside runs without numbers and is priced as on a card with our kernels."""
    pricer = Pricer(card)
    kernels = FusedQuantization(pricer)
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())  # inference mode would hide casts inside composite operations
        for place in ("quant.activations.fast_kernels", "quant.gate.product_kernels"):
            stack.enter_context(mock.patch(place, lambda *_, **__: kernels))
        layers = FusedLayers(pricer)
        for place in ("for_heads", "for_residual"):
            stack.enter_context(mock.patch(f"magi_lite.fused.{place}", lambda *_: layers))
        stack.enter_context(pricer)
        stack.enter_context(Attention(pricer, SAGE_RATE if attention == "sage" else 1.0))
        yield pricer


def meta_dit(config: DiTConfig, scheme: str) -> DiT:
    """The transformer in bf16 as the loader makes it, without numbers."""
    with META:
        dit = DiT(config)
    dit.to_precision(torch.bfloat16)
    if scheme in SCHEMES:
        convert_(dit, SCHEMES[scheme], quantizable(config))
    return dit.requires_grad_(False).eval()


@dataclass(frozen=True)
class Case:
    """What is priced."""

    card: Device
    model: ModelSpec = MODELS["4.5B-distill"]
    width: int = 720
    height: int = 720
    window: int = 4
    steps: int = 8
    scheme: str = "fp8"
    attention: str = "sdpa"
    slices: int | None = None
    """Tokens of a slice of MLP and attention; None: all at once."""


def price(case: Case) -> dict[str, Bill]:
    """Bills of the mean pass over a full window, of the clean pass, of the copy, and of a second of video."""
    settings = replace(case.model.sampler, steps=case.steps, window=case.window)
    schedule, dit = Schedule(settings), meta_dit(case.model.dit, case.scheme)
    dit.mlp_slice = dit.attention_slice = case.slices
    dit.backend = Backend(case.attention, sdpa)
    stage = schedule.stage(case.window + max(settings.noise_to_clean_ranges))
    forward = _Forward(case, dit, schedule)
    window, alone = Bill(), Bill()
    copies = 0
    for step in range(schedule.steps_per_stage):
        window.add(forward(stage.first, schedule.kv_ranges(stage, step)), 1 / schedule.steps_per_stage)
        copies += settings.nearly_clean and schedule.timesteps(stage, step)[0] > settings.nearly_clean_threshold
    own = ((stage.first, stage.first + 1),)
    clean = forward(stage.first, own, write=True)
    bills = {"window pass": window, "clean pass": clean}
    second = Bill()
    passes = 1 if settings.guidance is None else 2
    second.add(window, passes * schedule.steps_per_stage)
    second.add(clean, passes)
    if copies:
        alone = bills["copy pass"] = forward(stage.first, own)
        second.add(alone, copies)
    return {**bills, "second of video": second}


class _Forward:
    """Forwards of a transformer without numbers, its KV store filled."""

    def __init__(self, case: Case, dit: DiT, schedule: Schedule) -> None:
        self.case, self.dit, self.schedule = case, dit, schedule
        self.size = (case.height // PIXELS_PER_LATENT, case.width // PIXELS_PER_LATENT)

    def __call__(self, first: int, ranges: tuple[tuple[int, int], ...], *, write: bool = False) -> Bill:
        config, chunks, width = self.dit.config, len(ranges), self.case.model.sampler.chunk_width
        tokens = min(CAPTION_TOKENS, config.caption_max_length)
        with priced(self.case.card, self.case.attention) as pricer:
            with pricer.uncounted():
                latents = torch.empty(1, config.latent_channels, chunks * width, *self.size, device=META)
                embeddings = torch.empty(chunks, tokens, config.caption_channels, device=META)
                context = self.dit.encode_captions(embeddings, [tokens] * chunks)
                times = torch.empty(1, chunks, device=META)
                store = self._store(first)
                self.dit.rope(first * width // config.t_patch_size, *self._grid(chunks * width))  # kept from here on
            self.dit(
                latents, times, context, first_chunk=first, kv_ranges=ranges, store=store, write=write,
                step_size=self.schedule.step_size(0),
            )  # fmt: skip
        return pricer.bill

    def _grid(self, frames: int) -> tuple[int, int, int]:
        config = self.dit.config
        return frames // config.t_patch_size, self.size[0] // config.patch_size, self.size[1] // config.patch_size

    def _store(self, first: int) -> KVRing:
        """The clean chunks that the window sees."""
        config, slots = self.dit.config, self.schedule.reach
        ring = KVRing(slots, dtype="bf16", device=META)
        tokens = math.prod(self._grid(self.case.model.sampler.chunk_width))
        for layer in range(config.num_layers):
            for chunk in range(first - slots, first):
                shape = (1, tokens, config.num_query_groups, config.head_dim)
                key, value = (torch.empty(shape, dtype=torch.bfloat16, device=META) for _ in range(2))
                ring.write(layer, chunk, key, value)
        return ring


def table(bill: Bill, say: Callable[[str], None] = print) -> None:
    """One line per operation, dearest first."""
    say(f"{'operation':<32}{'launches':>9}{'ms':>10}{'share':>8}{'TFLOP':>10}{'GB':>9}")
    for name, row in sorted(bill.rows.items(), key=lambda item: -item[1].seconds):
        share = row.seconds / bill.seconds
        say(
            f"{name:<32}{row.launches:>9}{1e3 * row.seconds:>10.2f}{share:>8.1%}"
            f"{row.flops / 1e12:>10.1f}{row.bytes / 1e9:>9.1f}"
        )
    say(
        f"{'all':<32}{bill.total('launches'):>9}{1e3 * bill.seconds:>10.2f}; floor {1e3 * bill.floor:.2f} ms, "
        f"ratio {bill.ratio:.3f}\n"
    )


def main() -> None:
    """Price, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--card", default="RTX 4090", help="a card of machine/cards.py")
    parser.add_argument("--model", default="4.5B-distill", choices=list(MODELS))
    parser.add_argument("--size", default="720x720", metavar="WxH")
    parser.add_argument("--window", type=int, default=4)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--scheme", default="fp8", choices=["bf16", *SCHEMES])
    parser.add_argument("--attention", default="sdpa", choices=["sdpa", "sage"])
    parser.add_argument("--slices", type=int, help="tokens of a slice; default: all at once")
    parser.add_argument("--out", type=Path, help="write the bills as JSON")
    args = parser.parse_args()
    width, height = map(int, args.size.lower().split("x"))
    case = Case(
        cards.known_card(args.card), MODELS[args.model], width, height, args.window, args.steps, args.scheme,
        args.attention, args.slices,
    )  # fmt: skip
    bills = price(case)
    for name, bill in bills.items():
        print(f"{name}, {args.size}, window {args.window}, {args.scheme}, {args.attention}, {case.card.name}")
        table(bill)
    if args.out is not None:
        about = {**vars(args), "out": None, "card": case.card.name}
        found = {"what": "priced operations", "case": about, **{name: bill.to_json() for name, bill in bills.items()}}
        args.out.write_text(json.dumps(found, indent=1, default=str) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
