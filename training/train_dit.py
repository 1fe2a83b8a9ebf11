"""Stage two: the transformer, the text encoder and the special tokens, by flow matching on latents.

First single chunks (cheap, and what a chunk looks like is learned there), then windows of two and three, then full.
Several ranks (processes of one thread each) share the work: on a busy machine they wait for each other once per step
instead of once per operation.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from magi_lite.dit.model import DiT
from magi_lite.models import DiTConfig
from training import checkpoint
from training.checkpoint import Budget
from training.diffusion import (
    FULL_WINDOWS,
    SINGLE,
    STEP_NUMBERS,
    WINDOWS,
    DemoModel,
    draw_example,
    draw_pattern,
    flow_loss,
)
from training.latents import Pool
from training.optim import Optimizer, update_average, warm_cosine
from training.text_model import CAPTION_LENGTH, CHANNELS, make_encoder

DEMO_DIT = DiTConfig(
    num_layers=8,
    hidden_size=128,
    ffn_hidden_size=512,
    num_attention_heads=4,
    num_query_groups=4,
    head_dim=32,
    in_channels=16,
    out_channels=16,
    caption_channels=CHANNELS,
    caption_max_length=CAPTION_LENGTH,
    gated_linear_unit=False,
    half_channel_vae=False,
    x_rescale_factor=1,
)
PHASES = {"single": SINGLE, "windows": WINDOWS, "full": FULL_WINDOWS}
CHUNKS_PER_BATCH = 20
"""Of a rank: 20 single chunks, or 10 windows of two."""
RATE, MATRIX_RATE = 2e-3, 0.015
AVERAGE_DECAY = 0.997


class HalfProduct(torch.autograd.Function):
    """A linear's product in bfloat16 and its sums in float32: eight times as fast on processors with matrix units.

    Only products are rounded; norms, attention and the residual stream stay in float32 (autocast would round the
    attention too, whose backward is slow in bfloat16).
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        x, weight = x.bfloat16(), weight.bfloat16()
        ctx.save_for_backward(x, weight)
        return torch.nn.functional.linear(x, weight).float()

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[no-untyped-def]
        x, weight = ctx.saved_tensors
        gradient = gradient.bfloat16()
        return (gradient @ weight).float(), (gradient.flatten(0, -2).t() @ x.flatten(0, -2)).float()


@contextmanager
def half_products(model: nn.Module) -> Iterator[None]:
    """Let the linears in a transformer's blocks multiply in bfloat16 while the context lasts."""
    changed = [m for n, m in model.named_modules() if isinstance(m, nn.Linear) and "blocks." in n and m.bias is None]
    for module in changed:
        module.forward = lambda x, module=module: HalfProduct.apply(x, module.weight)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for module in changed:
            del module.forward


def make_model(config: DiTConfig = DEMO_DIT) -> DemoModel:
    """An untrained model whose first velocity is zero and whose branches start small."""
    dit = DiT(config)
    nn.init.zeros_(dit.final_linear.linear.weight)
    for layer in dit.videodit_blocks.layers:
        for norm in (layer.self_attn_post_norm, layer.mlp_post_norm):
            nn.init.constant_(norm.weight, -0.7)  # stored minus one: an effective 0.3
    return DemoModel(dit, make_encoder())


@dataclass(frozen=True)
class Ranks:
    """The processes that train together; one by itself needs no group."""

    rank: int = 0
    size: int = 1

    def join(self, meeting: Path) -> None:
        if self.size > 1:
            dist.init_process_group("gloo", f"file://{meeting.resolve()}", rank=self.rank, world_size=self.size)

    def mean(self, parameters: list[nn.Parameter]) -> None:
        """Average the gradients of all ranks, in place."""
        if self.size > 1:
            gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
            flat = torch.cat([g.flatten() for g in gradients])
            dist.all_reduce(flat)
            flat /= self.size
            for p, part in zip(parameters, flat.split([g.numel() for g in gradients]), strict=True):
                p.grad = part.view_as(p)

    def agree(self, number: float) -> float:
        """The first rank's number, for decisions that all must take alike."""
        if self.size > 1:
            tensor = torch.tensor([number], dtype=torch.float64)
            dist.broadcast(tensor, 0)
            return float(tensor)
        return number


ALONE = Ranks()


def load_pools(work: Path, ranks: Ranks) -> Pool:
    """All pools in the work folder; each rank takes its share of the clips."""
    pools = [Pool.load(path) for path in sorted(work.glob("pool-*.safetensors"))]
    seconds = min(pool.seconds for pool in pools)
    cut = [
        Pool(p.latents[:, :, : seconds * 6], p.images[:, :seconds], p.body[:, : seconds * 6], p.tokens[:, :seconds])
        for p in pools
    ]
    whole = Pool.cat(cut)
    return Pool(**{n: getattr(whole, n)[ranks.rank :: ranks.size] for n in Pool.__dataclass_fields__})


def train_dit(
    work: Path,
    budget: Budget,
    *,
    phase: str = "single",
    pool: Pool | None = None,
    config: DiTConfig = DEMO_DIT,
    chunks_per_batch: int = CHUNKS_PER_BATCH,
    rates: tuple[float, float] = (RATE, MATRIX_RATE),
    peak: float = 1.0,
    flat: float = 0.3,
    warm: int = 60,
    half: bool = True,
    ranks: Ranks = ALONE,
    seed: int = 0,
) -> DemoModel:
    """Train, or go on training, the model in `work`; returns it with the averaged weights.

    Args:
        phase: which windows are drawn, a key of `PHASES`. pool: training clips; None: those in `work`.
        peak: of the learning rates, smaller when going on. flat: share of the budget before rates fall.
        warm: steps in which they rise, once.
        half: products in bfloat16.
    """
    torch.manual_seed(seed)
    model = make_model(config)
    pool = pool or load_pools(work, ranks)
    path, log = work / "dit.safetensors", work / "dit.log"
    generator = checkpoint.generators(seed + 17 * (ranks.rank + 1))
    parameters = dict(model.named_parameters())
    optimizer = Optimizer(parameters, *rates)
    average = {n: t.detach().clone() for n, t in parameters.items()}
    step = 0
    if path.is_file():
        groups, facts = checkpoint.load(path)
        model.load_state_dict(groups["model"], strict=False)
        average, step = groups["average"], int(facts["step"])
        if "optimizer" in groups:  # else weights alone: the averages of squares begin anew
            optimizer.load_state_dict(groups["optimizer"], step)
        if f"rank{ranks.rank}" in groups.get("generator", {}):
            generator.set_state(groups["generator"][f"rank{ranks.rank}"])
        if ranks.size > 1:
            generator.manual_seed(seed + step * 31 + ranks.rank)
    budget.first_step = step

    def keep() -> None:
        if ranks.rank == 0:
            groups = {
                "model": dict(parameters),
                "average": average,
                "optimizer": optimizer.state_dict(),
                "generator": {"rank0": generator.get_state()},
            }
            checkpoint.save(path, groups, {"step": step, "phase": phase})

    running = None
    with half_products(model) if half else _nothing():
        while (fraction := ranks.agree(budget.fraction(step))) < 1:
            pattern = draw_pattern(PHASES[phase], pool.seconds, generator)
            example = draw_example(pool, pattern, max(1, chunks_per_batch // len(pattern)), generator)
            told = torch.rand((), generator=generator) < 0.5
            number = STEP_NUMBERS[int(torch.randint(len(STEP_NUMBERS), (), generator=generator))] if told else None
            loss = flow_loss(model, example, number)
            model.zero_grad(set_to_none=True)
            loss.backward()
            ranks.mean(list(parameters.values()))
            optimizer.step(peak * warm_cosine(fraction, step, warm, flat=flat))
            step += 1
            update_average(average, parameters, step, AVERAGE_DECAY)
            running = loss.item() if running is None else 0.98 * running + 0.02 * loss.item()
            if ranks.rank == 0 and step % 25 == 0:
                checkpoint.log(log, f"dit {phase} step {step} loss {running:.4f} used {fraction:.3f}")
            if step % 100 == 0:
                keep()
    keep()
    model.load_state_dict(average, strict=False)
    return model


@contextmanager
def _nothing() -> Iterator[None]:
    yield


def run_ranks(stage: Callable[[Ranks], object], meeting: Path, size: int) -> None:
    """Run a stage of the training in `size` processes of one thread each, which meet at a file.

    `stage` gets the rank and must be picklable: a function of a module, or a partial of one.
    """
    import torch.multiprocessing as processes

    meeting = meeting.with_name(f"{meeting.name}-{os.getpid()}")
    try:
        processes.spawn(_rank, args=(size, meeting, stage), nprocs=size)
    finally:
        meeting.unlink(missing_ok=True)


def _rank(rank: int, size: int, meeting: Path, stage: Callable[[Ranks], object]) -> None:
    torch.set_num_threads(1)
    ranks = Ranks(rank, size)
    ranks.join(meeting)
    try:
        stage(ranks)
    finally:
        if size > 1:
            dist.destroy_process_group()
