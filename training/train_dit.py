"""Stage two: the transformer, the text encoder and the special tokens, by flow matching on latents.

First single chunks (cheap, and what a chunk looks like is learned there), then windows of two and three, then full ones
as the sampler has them: four chunks at their own noise levels with clean ones in front.
"""

from __future__ import annotations

import time
from pathlib import Path

import torch
from torch import nn

from magi_lite.dit.model import DiT
from magi_lite.errors import CheckpointError
from magi_lite.models import DiTConfig
from training import checkpoint
from training.checkpoint import Budget, Spent
from training.diffusion import (
    ANY,
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
from training.precision import fast_products, half_is_faster
from training.text_model import CAPTION_LENGTH, CHANNELS, make_encoder

DEMO_DIT = DiTConfig(
    num_layers=10,
    hidden_size=192,
    ffn_hidden_size=768,
    num_attention_heads=6,
    num_query_groups=6,
    head_dim=32,
    in_channels=16,
    out_channels=16,
    caption_channels=CHANNELS,
    caption_max_length=CAPTION_LENGTH,
    gated_linear_unit=False,
    half_channel_vae=False,
    x_rescale_factor=1,
)
TRANSFORMER = "dit.safetensors"
"""Checkpoint in the work folder."""
PHASES = {"single": SINGLE, "windows": WINDOWS, "full": FULL_WINDOWS}
CHUNKS_PER_BATCH = 10
"""Ten single chunks, or five windows of two: more steps are worth more than larger ones."""
RATE, MATRIX_RATE = 2e-3, 0.015
AVERAGE_DECAY = 0.997


def make_model(config: DiTConfig = DEMO_DIT) -> DemoModel:
    """An untrained model whose first velocity is zero and whose branches start small."""
    dit = DiT(config)
    nn.init.zeros_(dit.final_linear.linear.weight)
    for layer in dit.videodit_blocks.layers:
        for norm in (layer.self_attn_post_norm, layer.mlp_post_norm):
            nn.init.constant_(norm.weight, -0.7)  # stored minus one: an effective 0.3
    return DemoModel(dit, make_encoder())


def load_pools(work: Path, phase: str) -> Pool:
    """The pools in the work folder that a phase draws from: of single seconds, or of clips.

    Raises:
        CheckpointError: there are none.
    """
    paths = sorted(work.glob("second-*.safetensors" if phase == "single" else "pool-*.safetensors"))
    if not paths:
        raise CheckpointError(f"There are no clips in {work}; run the stage 'pool' of the training first.")
    return Pool.cat([Pool.load(path) for path in paths])


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
    half: bool | None = None,
    seed: int = 0,
    keep_every: float = 180.0,
    log_every: int = 50,
) -> DemoModel:
    """Train, or go on training, the model in `work`; returns it with the averaged weights.

    Args:
        phase: which windows are drawn, a key of `PHASES`. pool: training clips, on the device that trains; None: those
            in `work`.
        peak: of the learning rates, smaller when going on. flat: share of the budget before rates fall.
        warm: steps in which they rise, once.
        half: products in bfloat16; None: what is faster. keep_every: seconds between checkpoints.

    A budget counts all steps that were ever made, unless its `first_step` says from where.
    """
    torch.manual_seed(seed)
    pool = pool or load_pools(work, phase)
    model = make_model(config).to(pool.latents.device)
    path, log = work / TRANSFORMER, work / "training.jsonl"
    generator = checkpoint.generators(seed + 17)
    parameters = dict(model.named_parameters())
    optimizer = Optimizer(parameters, *rates)
    average = {n: t.detach().clone() for n, t in parameters.items()}
    step, spent = 0, Spent({}, phase)
    if path.is_file():
        groups, facts = checkpoint.load(path)
        model.load_state_dict(groups["model"], strict=False)
        average, step = {n: t.to(pool.latents.device) for n, t in groups["average"].items()}, int(facts["step"])
        spent = Spent.of(facts, phase)
        if "optimizer" in groups:  # else weights alone: the averages of squares begin anew
            optimizer.load_state_dict(groups["optimizer"], step)
            generator.set_state(groups["generator"]["state"])
    if budget.fraction(step, spent.before) >= 1:
        model.load_state_dict(average, strict=False)
        return model
    if half is None:
        example = draw_example(pool, (ANY,), max(1, chunks_per_batch // 2), checkpoint.generators(0))
        half, timed = half_is_faster(model, lambda: flow_loss(model, example, None).backward())
        checkpoint.record(log, "dit precision", bfloat16=half, **timed)
    optimizer.half = half

    def keep() -> None:
        groups = {
            "model": dict(parameters),
            "average": average,
            "optimizer": optimizer.state_dict(),
            "generator": {"state": generator.get_state()},
        }
        checkpoint.save(path, groups, {"step": step, "phase": phase, "spent": spent.note()})

    running: torch.Tensor | None = None
    spent.begin()
    kept = time.monotonic()
    with fast_products([model], half):
        while (fraction := budget.fraction(step, spent.seconds)) < 1:
            pattern = draw_pattern(PHASES[phase], pool.seconds, generator)
            example = draw_example(pool, pattern, max(1, chunks_per_batch // len(pattern)), generator)
            sized = torch.rand((), generator=generator) < 0.5
            number = STEP_NUMBERS[int(torch.randint(len(STEP_NUMBERS), (), generator=generator))] if sized else None
            loss = flow_loss(model, example, number)
            model.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step(peak * warm_cosine(fraction, step, warm, flat=flat))
            step += 1
            update_average(average, parameters, step, AVERAGE_DECAY)
            loss = loss.detach()
            running = loss if running is None else 0.98 * running + 0.02 * loss
            if step % log_every == 0:
                facts = {"step": step, "loss": round(float(running), 4), "used": round(fraction, 3)}
                checkpoint.record(log, f"dit {phase}", **facts)
            if time.monotonic() - kept > keep_every:
                keep()
                kept = time.monotonic()
    keep()
    model.load_state_dict(average, strict=False)
    return model
