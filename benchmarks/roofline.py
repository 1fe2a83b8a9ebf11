"""What every operation of a forward costs on a card at best: `python benchmarks/roofline.py [--size 480x480 ...]`.

The full-size transformer runs on the meta device, where tensors have shapes and no numbers. Every operation that it
issues is priced at the larger of its floating-point work over the card's rate and its bytes over the card's bandwidth
(`machine/cards.py`). Quantization, fused with the operation before it where our kernels do so, is one read and one
write; views cost nothing; a tensor that is written in place is read and written. The floor is what the matrix products
and attentions alone take at their rates: the ratio of the two says what everything else costs. `passes` says how often
all else reads or writes a token's hidden vector in a layer, which is what the planner counts with; `--plain` prices a
card without our Triton kernels.

Passes of the model are those of the sampler's schedule: the window at every step of a full stage, the copy of the
oldest chunk and the clean pass. Without options all cases are priced that a target stands for, in FP8 on an RTX 4090,
a line each, and stored under benchmarks/results. With any option one case is priced, and a table by operation printed;
`--out FILE` writes that as JSON.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
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

from benchmarks.figures import RESULTS, save
from magi_lite.attention import SHORT_KEYS, Backend, Sharing, sdpa
from magi_lite.attention_shared import CAPABILITIES, Reach, Reader
from magi_lite.dit.model import DiT
from magi_lite.machine.cards import Device, known_card
from magi_lite.models import MODELS, PIXELS_PER_LATENT, DiTConfig, ModelSpec, quantizable
from magi_lite.planner import speed
from magi_lite.sampling.kv_store import KVRing
from magi_lite.sampling.schedule import Schedule
from quant.convert import convert_
from quant.fusion import Operation
from quant.schemes import NF4_BLOCK, SCHEMES

META = torch.device("meta")
SAGE_RATE = 2.6
"""SageAttention's rate against bf16's: 431 of 165 TOP/s measured on an RTX 4090.

Assumed of a whole call. Its attention kernel alone reaches 493 TOP/s from version 2.2 on, so that at 480x480 and more,
where intermediate results leave the cache, the traffic of its other kernels is within that rate. They are launches and
bytes in the bill, and no seconds.
"""
SAGE_KERNELS = "SageAttention's quantization"
EXPANSION = "expansion of weights"
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
        """Sum of one figure over all operations."""
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

    @property
    def product_flops(self) -> float:
        """Floating-point work of all matrix products."""
        return sum(price.flops for name, price in self.rows.items() if name.startswith("products"))

    @property
    def bytes_beside(self) -> float:
        """Bytes that all else moves than matrix products and attentions with what belongs to them."""
        beside = (price for name, price in self.rows.items() if name not in (SAGE_KERNELS, EXPANSION))
        return sum(price.bytes for price in beside if not price.floor)

    def to_json(self) -> dict[str, Any]:
        rows = sorted(self.rows.items(), key=lambda row: -row[1].seconds)
        return {
            "seconds": self.seconds,
            "floor_seconds": self.floor,
            "ratio": self.ratio,
            "launches": int(self.total("launches")),
            "product_flops": self.product_flops,
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

    def charge_launch(self, name: str, moved: float) -> None:
        """Book a launch whose time is part of another's."""
        if self.counting:
            self.bill.rows[name].add(0.0, 0.0, moved, 0.0)

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
        if name == "gemm_4bit":
            self._price_4bit(args, given, made[0])
            return
        if name in PRODUCTS:
            left = next(x for x in given if x.ndim >= 2)
            rows = made[0].numel()
            flops = 2.0 * rows * left.shape[-1]
            kind = str(left.dtype).removeprefix("torch.")
            self.charge(f"products {kind}", flops, moved, rate_of(self.card, left.dtype))
            return
        self.charge(NAMES.get(name, name), 0.0, moved)

    def _price_4bit(self, args: tuple, given: list[Tensor], made: Tensor) -> None:
        """bitsandbytes' product of many rows on a card: scales (two kernels) and weight expanded, then a product.

        For few rows, some hundred at most, it has a kernel that expands within the product.
        """
        x, packed, shape = args[:3]
        scales = sum(bytes_of(each) for each in given if each is not x and each is not packed)
        weight = math.prod(shape) * x.element_size()
        expanded = math.prod(shape) // NF4_BLOCK * 4
        self.charge(EXPANSION, 0.0, scales + expanded)
        self.charge(EXPANSION, 0.0, 2 * expanded)
        self.charge(EXPANSION, 0.0, bytes_of(packed) + expanded + weight)
        kind = str(x.dtype).removeprefix("torch.")
        moved = bytes_of(x) + weight + bytes_of(made)
        self.charge(f"products {kind}", 2.0 * made.numel() * x.shape[-1], moved, rate_of(self.card, x.dtype))


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

    def __init__(self, pricer: Pricer, kernel: str = "sdpa") -> None:
        super().__init__()
        self.pricer, self.kernel = pricer, kernel

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs)
        query, key, value = (x.transpose(1, 2) for x in args[:3])
        if self.kernel == "sage" and key.shape[1] >= SHORT_KEYS:
            for part in sage_kernels(self.pricer.card.capability, query.numel(), key.numel(), key.shape[1]):
                self.pricer.charge_launch(SAGE_KERNELS, part)
            return attended(self.pricer, query, key, value, SAGE_RATE).transpose(1, 2)
        return attended(self.pricer, query, key, value, 1.0).transpose(1, 2)


def attended(pricer: Pricer, query: Tensor, key: Tensor, value: Tensor, rate: float) -> Tensor:
    """Books an attention kernel's launch. Tokens before heads; rate: against that of bf16."""
    n, rows, heads, width = query.shape
    flops = 4.0 * n * heads * rows * key.shape[1] * width
    moved = 2 * bytes_of(query) + bytes_of(key) + bytes_of(value)
    pricer.charge("attention", flops, moved, rate * pricer.card.bf16_tflops * 1e12)
    with pricer.uncounted():
        return torch.empty(n, rows, heads, width, dtype=query.dtype, device=META)


class SharedBySage:
    """Stands in for `attention_shared`: keys and values quantized once for all ranges that begin with them."""

    def __init__(self, pricer: Pricer) -> None:
        self.pricer = pricer

    def share(self, reaches: Sequence[Reach]) -> list[Reader]:
        longest: dict[tuple[int, int], Reach] = {}
        for reach in sorted(reaches, key=lambda reach: reach.length):
            longest[reach.whole] = reach
        for reach in longest.values():
            for part in sage_kernels(self.pricer.card.capability, None, reach.seen[0].numel(), reach.length):
                self.pricer.charge_launch(SAGE_KERNELS, part)
            self.pricer.charge_launch(SAGE_KERNELS, 0)  # scales of the shorter ranges
        return [self._reader(reach) for reach in reaches]

    def _reader(self, reach: Reach) -> Reader:
        def read(query: Tensor) -> Tensor:
            self.pricer.charge_launch(SAGE_KERNELS, 3 * query.numel())
            return attended(self.pricer, query, *reach.seen, SAGE_RATE)

        return read


def sage_kernels(capability: tuple[int, int], queries: int | None, keys: int, length: int) -> list[int]:
    """Bytes of each kernel that one call of SageAttention issues before its attention kernel.

    As `sageattn` of version 2.2 does by its source, arguments in 16 bits, head size 128 and keys smoothed, as it does
    unless asked not to. Cards that it does not know are taken for the last that it does.

    Args:
        capability: of the card. queries, keys: numbers in each; the values are as many as the keys. None: of keys and
            values alone.
        length: keys of each head.
    """
    found = [2 * keys]  # their mean
    if capability < (12, 0):
        found += [4 * keys, 2 * keys + keys]  # the mean subtracted, then to 8 bits
    else:
        found += [2 * keys + keys]  # both at once
    found += [] if queries is None else [2 * queries + queries]
    if capability < (8, 9):
        return [*found, 4 * keys]  # values to float16
    if capability[0] == 9 and length % 128:
        found += [0, 4 * keys]  # zeros, and the values with them
    return [*found, 4 * keys, 2 * keys + keys]  # values transposed, then to 8 bits


@contextmanager
def priced(card: Device, attention: str = "sdpa", *, fused: bool = True) -> Iterator[Pricer]:
    """Everything inside runs without numbers and is priced as on a card, with our kernels or without."""
    pricer = Pricer(card)
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())  # inference mode would hide casts inside composite operations
        if fused:
            stack.enter_context(_our_kernels(pricer))
        stack.enter_context(pricer)
        stack.enter_context(Attention(pricer, attention))
        yield pricer


@contextmanager
def _our_kernels(pricer: Pricer) -> Iterator[None]:
    kernels, layers = FusedQuantization(pricer), FusedLayers(pricer)
    with ExitStack() as stack:
        for place in ("quant.activations.fast_kernels", "quant.gate.product_kernels"):
            stack.enter_context(mock.patch(place, lambda *_, **__: kernels))
        for place in ("for_heads", "for_residual"):
            stack.enter_context(mock.patch(f"magi_lite.fused.{place}", lambda *_: layers))
        yield


def meta_dit(config: DiTConfig, scheme: str, dtype: torch.dtype = torch.bfloat16) -> DiT:
    """The transformer as the loader makes it, without numbers."""
    with META:
        dit = DiT(config)
    dit.to_precision(dtype)
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
    fused: bool = True
    """Whether our Triton kernels serve."""
    dtype: torch.dtype = torch.bfloat16
    """Of the model."""

    @property
    def tokens(self) -> int:
        """Of a chunk."""
        return speed.tokens_per_chunk(self.model, self.width, self.height)

    def passes(self, bill: Bill, chunks: int) -> float:
        """How often all but products and attentions reads or writes a token's hidden vector in a layer, on average.

        Args:
            bill: of a forward of so many chunks.
        """
        dit = self.model.dit
        return bill.bytes_beside / (chunks * self.tokens * dit.hidden_size * self.dtype.itemsize * dit.num_layers)


TARGET_CASES = tuple(
    (f"{side}x{side} {kernel}", Case(known_card("RTX 4090"), width=side, height=side, attention=kernel))
    for side in (720, 480, 256)
    for kernel in ("sdpa", "sage")
)
"""What the default run prices and stores."""


def price(case: Case) -> dict[str, Bill]:
    """Bills of the mean pass over a full window, of the clean pass, of the copy, and of a second of video."""
    forward = _Forward(case)
    settings, schedule, stage = forward.settings, forward.schedule, forward.stage
    window = forward.over_window()
    own = ((stage.first, stage.first + 1),)
    clean = forward(stage.first, own, write=True)
    bills = {"window pass": window, "clean pass": clean}
    second = Bill()
    passes = 1 if settings.guidance is None else 2
    second.add(window, passes * schedule.steps_per_stage)
    second.add(clean, passes)
    times = [schedule.timesteps(stage, step)[0] for step in range(schedule.steps_per_stage)]
    copies = sum(time > settings.nearly_clean_threshold for time in times) if settings.nearly_clean else 0
    if copies:
        bills["copy pass"] = forward(stage.first, own)
        second.add(bills["copy pass"], copies)
    return {**bills, "second of video": second}


def price_window(case: Case) -> Bill:
    """The bill of the mean pass over a full window alone."""
    return _Forward(case).over_window()


class _Forward:
    """Forwards of a transformer without numbers, its KV store filled."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.settings = replace(case.model.sampler, steps=case.steps, window=case.window)
        self.schedule = Schedule(self.settings)
        self.stage = self.schedule.stage(case.window + max(self.settings.noise_to_clean_ranges))
        self.dit = meta_dit(case.model.dit, case.scheme, case.dtype)
        self.dit.mlp_slice = self.dit.attention_slice = case.slices
        self.size = (case.height // PIXELS_PER_LATENT, case.width // PIXELS_PER_LATENT)

    def over_window(self) -> Bill:
        """The mean over the steps of a stage."""
        bill, steps = Bill(), self.schedule.steps_per_stage
        for step in range(steps):
            bill.add(self(self.stage.first, self.schedule.kv_ranges(self.stage, step)), 1 / steps)
        return bill

    def __call__(self, first: int, ranges: tuple[tuple[int, int], ...], *, write: bool = False) -> Bill:
        config, chunks, width = self.dit.config, len(ranges), self.case.model.sampler.chunk_width
        tokens = min(CAPTION_TOKENS, config.caption_max_length)
        with priced(self.case.card, self.case.attention, fused=self.case.fused) as pricer:
            self.dit.backend = self._backend(pricer)
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

    def _backend(self, pricer: Pricer) -> Backend:
        """The kernel, with ranges shared as `attention.choose` gives it."""
        shares = self.case.attention == "sage" and self.case.card.capability in CAPABILITIES
        share = Sharing(SharedBySage(pricer).share, sdpa) if shares else None
        return Backend(self.case.attention, sdpa, share=share)

    def _grid(self, frames: int) -> tuple[int, int, int]:
        config = self.dit.config
        return frames // config.t_patch_size, self.size[0] // config.patch_size, self.size[1] // config.patch_size

    def _store(self, first: int) -> KVRing:
        """The clean chunks that the window sees."""
        config, slots = self.dit.config, self.schedule.reach
        ring = KVRing(slots, dtype="bf16" if self.case.dtype == torch.bfloat16 else "float32", device=META)
        tokens = math.prod(self._grid(self.case.model.sampler.chunk_width))
        for layer in range(config.num_layers):
            for chunk in range(first - slots, first):
                shape = (1, tokens, config.num_query_groups, config.head_dim)
                key, value = (torch.empty(shape, dtype=self.case.dtype, device=META) for _ in range(2))
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


def main(arguments: list[str] | None = None) -> None:
    """Price, print and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, argument_default=argparse.SUPPRESS
    )
    parser.add_argument("--card", help="a card of machine/cards.py; default: RTX 4090")
    parser.add_argument("--model", choices=list(MODELS), help="default: 4.5B-distill")
    parser.add_argument("--size", metavar="WxH", help="default: 720x720")
    parser.add_argument("--window", type=int, help="default: 4")
    parser.add_argument("--steps", type=int, help="default: 8")
    parser.add_argument("--scheme", choices=["float32", "bf16", *SCHEMES], help="default: fp8")
    parser.add_argument("--attention", choices=["sdpa", "sage"], help="default: sdpa")
    parser.add_argument("--slices", type=int, help="tokens of a slice; default: all at once")
    parser.add_argument("--plain", action="store_true", help="without our Triton kernels, as where Triton is missing")
    parser.add_argument("--out", type=Path, help="JSON; by itself: benchmarks/results/roofline.json")
    given = vars(parser.parse_args(arguments))
    out = given.pop("out", None)
    if not given:
        save(out or RESULTS / "roofline.json", targets())
        return
    case = case_of(**given)
    bills = price(case)
    for name, bill in bills.items():
        print(f"{name}, {', '.join(f'{key} {value}' for key, value in about_case(case).items())}")
        table(bill)
    print(f"passes of a token's hidden vector by layer: {case.passes(bills['window pass'], case.window):.2f}")
    if out is not None:
        save(out, {"what": "priced operations", **stored(case, bills)})


def case_of(card: str = "RTX 4090", size: str = "720x720", *, plain: bool = False, **given: Any) -> Case:
    """The case that options describe."""
    width, height = map(int, size.lower().split("x"))
    dtype = torch.float32 if given.get("scheme") == "float32" else torch.bfloat16
    if "model" in given:
        given["model"] = MODELS[given["model"]]
    return Case(known_card(card), width=width, height=height, fused=not plain, dtype=dtype, **given)


def about_case(case: Case) -> dict[str, Any]:
    """A case in JSON."""
    return {
        "card": case.card.name, "model": case.model.name, "size": f"{case.width}x{case.height}", "window": case.window,
        "steps": case.steps, "scheme": case.scheme, "attention": case.attention, "slices": case.slices,
        "fused": case.fused,
    }  # fmt: skip


def stored(case: Case, bills: dict[str, Bill]) -> dict[str, Any]:
    """A case and its bills in JSON."""
    passes = round(case.passes(bills["window pass"], case.window), 2)
    return {"case": about_case(case), "passes": passes, **{name: bill.to_json() for name, bill in bills.items()}}


def targets() -> dict[str, Any]:
    """Price every case that a target stands for, a line each."""
    found = {}
    for name, case in TARGET_CASES:
        bills = price(case)
        window, second = bills["window pass"], bills["second of video"]
        print(
            f"{name:<14} window pass {window.seconds:.3f} s, {window.ratio:.3f} of its floor, "
            f"{int(window.total('launches')):,} launches; second of video {second.seconds:.2f} s, {second.ratio:.3f}"
        )
        found[name] = stored(case, bills)
    return {"what": "priced operations", "cases": found}


if __name__ == "__main__":
    main()
