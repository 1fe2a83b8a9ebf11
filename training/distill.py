"""Stage three: shortcut distillation. One model for 64, 32, 16 and 8 steps, without guidance passes.

The velocity is given the length of its step. A step of 2s must go where two steps of s go, so its target is their mean
weighted by the time each takes: steps in progress are equal, in t they are not. The shortest step (1/64) learns from
the undistilled model with guidance, which so needs no passes of its own any more. Eight of eleven batches are of the
shortest step, which everything rests on; one each is of 1/32, 1/16 and 1/8. (MAGI-1 report, distillation; shortcut
models.) The two steps of a target are made by the student's own average, without gradient.
"""

from __future__ import annotations

import time
from pathlib import Path

import torch
from torch import Tensor

from magi_lite.models import DiTConfig
from magi_lite.sampling.schedule import step_size_number
from training import checkpoint
from training.checkpoint import Budget, Spent
from training.diffusion import (
    ANY,
    CLEAN,
    FULL_WINDOWS,
    DemoModel,
    Example,
    draw_example,
    draw_pattern,
    flow_loss,
    grid_time,
    predict,
    weighted_error,
)
from training.latents import Pool
from training.optim import Optimizer, update_average, warm_cosine
from training.precision import fast_products, half_is_faster
from training.train_dit import CHUNKS_PER_BATCH, DEMO_DIT, TRANSFORMER, load_pools, make_model

SHORTEST = 64
"""Steps of the schedule that the undistilled model is sampled with."""
SHORTCUTS = (32, 16, 8)
"""Steps of the schedules whose steps are made of two finer ones."""
TEACHER_PARTS = 8
"""Batches of the shortest step for each batch of every shortcut."""
GUIDANCE = 2.0
WARM_SHARE = 0.1
"""Share of the budget in which every step size learns from the undistilled model, which knows few or one of them."""
GUIDED_BELOW = 1.0
"""Text guidance counts while a chunk's t is below this. The published ranges stop at 0.3, for a large model's shapes
are settled by then; this small one's are not (measured: 81 % of shapes right with 0.3, 98 % with guidance throughout).
"""
AVERAGE_DECAY = 0.995
RATE, MATRIX_RATE = 3e-4, 0.003


def progress_on_grid(pattern: tuple[int, ...], batch: int, steps: int, generator: torch.Generator) -> Tensor:
    """(N, K) progress of a window that stands on the grid of a `steps`-step schedule; clean chunks' is 0."""
    per_quarter = steps // 4
    within = torch.randint(per_quarter, (batch, 1), generator=generator)
    anywhere = torch.randint(steps, (batch, 1), generator=generator)
    quarters = torch.tensor([max(q, 0) for q in pattern]).expand(batch, -1)
    made = torch.where(quarters == ANY, anywhere, quarters * per_quarter + within)
    return torch.where(torch.tensor([q == CLEAN for q in pattern]), 0.0, made / steps)


def advanced(example: Example, by: float) -> Tensor:
    """(N, K) times after `by` more progress; clean chunks stay."""
    clean = checkpoint.sent(torch.tensor([q == CLEAN for q in example.pattern]), example.times.device)
    return torch.where(clean, example.times, grid_time((example.progress + by).clamp(max=1.0)))


def per_latent(numbers: Tensor, like: Tensor) -> Tensor:
    """(N, K) -> (N, 1, 6K, 1, 1), to be multiplied with latents."""
    return numbers.repeat_interleave(like.shape[2] // numbers.shape[1], 1)[:, None, :, None, None]


def two_steps(first: Tensor, second: Tensor, start: Tensor, middle: Tensor, end: Tensor) -> Tensor:
    """The one velocity that goes from `start` to `end` where `first` to `middle` and then `second` would go.

    Velocities (N, C, 6K, H, W), times (N, K). Where no time passes (clean chunks) the first velocity is kept.
    """
    whole = end - start
    share = torch.where(whole > 0, (middle - start) / whole.where(whole > 0, 1.0), 1.0)
    share = per_latent(share, first)
    return share * first + (1 - share) * second


@torch.no_grad()
def shortcut_target(model: DemoModel, example: Example, steps: int) -> Tensor:
    """What one step of a `steps`-step schedule must do: what two steps of a schedule twice as fine do."""
    half, number = 0.5 / steps, step_size_number(2 * steps, 1.0)
    start, middle, end = example.times, advanced(example, half), advanced(example, 2 * half)
    first = predict(model, example, number)
    moved = example.noisy + first * per_latent(middle - start, first)
    moved = torch.where(example.fixed, example.noisy, moved)
    second = predict(model, example, number, noisy=moved, times=middle)
    return two_steps(first, second, start, middle, end)


@torch.no_grad()
def guided_target(
    teacher: DemoModel, example: Example, scale: float, step_number: float | None, below: float = GUIDED_BELOW
) -> Tensor:
    """The undistilled model's velocity with text guidance: wordless + scale * (with words - wordless) while noisy."""
    full = predict(teacher, example, step_number)
    if scale == 1.0:
        return full
    plain = predict(teacher, example, step_number, without_words=True)
    scales = torch.where(example.times < below, scale, 1.0)
    return plain + per_latent(scales, full) * (full - plain)


def distillation_loss(
    student: DemoModel,
    average: DemoModel,
    teacher: DemoModel,
    example: Example,
    steps: int,
    guidance: float = GUIDANCE,
    step_number: float | None = step_size_number(SHORTEST, 1.0),
    from_teacher: bool = False,
) -> Tensor:
    """Loss of one batch.

    Args:
        student: is trained. average: the student's averaged weights, which make shortcut targets.
        teacher: the undistilled model. step_number: the step-size number that it was trained with, or None.
        example: drawn with progress on the grid of `steps`.
        steps: of the schedule whose step is trained; `SHORTEST` learns from the teacher, others with `from_teacher`.
    """
    if steps == SHORTEST or from_teacher:
        target = guided_target(teacher, example, guidance, step_number)
    else:
        target = shortcut_target(average, example, steps)
    return weighted_error(predict(student, example, step_size_number(steps, 1.0)), target, example.weight)


def distill(
    work: Path,
    budget: Budget,
    *,
    pool: Pool | None = None,
    config: DiTConfig = DEMO_DIT,
    patterns: tuple = FULL_WINDOWS,
    chunks_per_batch: int = CHUNKS_PER_BATCH,
    guidance: float = GUIDANCE,
    step_number: float | None = step_size_number(SHORTEST, 1.0),
    rates: tuple[float, float] = (RATE, MATRIX_RATE),
    teacher_parts: int = TEACHER_PARTS,
    half: bool | None = None,
    seed: int = 0,
    keep_every: float = 180.0,
    log_every: int = 22,
) -> DemoModel:
    """Distill the averaged weights of `work/dit.safetensors`, or go on doing it; returns the averaged student.

    The text encoder and the special tokens stay as they are: the teacher's words are the student's. With little time,
    fewer `teacher_parts` leave more batches to the shortcuts. It is trained on the device of its pool.

    Raises:
        CheckpointError: there is no trained model in `work`.
    """
    torch.manual_seed(seed)
    pool = pool or load_pools(work, "full")
    taught, _ = checkpoint.load(work / TRANSFORMER)
    models = [make_model(config) for _ in range(3)]
    for model in models:
        model.load_state_dict(taught["average"], strict=False)
        model.to(pool.latents.device)
    student, averaged, teacher = models
    for frozen in (student.text, student.tokens, averaged, teacher):
        frozen.requires_grad_(False)
    parameters = {n: p for n, p in student.named_parameters() if p.requires_grad}
    optimizer = Optimizer(parameters, *rates)
    average = {n: averaged.get_parameter(n) for n in parameters}
    generator = checkpoint.generators(seed + 23)
    path, log = work / "distilled.safetensors", work / "training.jsonl"
    step, spent = 0, Spent({}, "distill")
    if path.is_file():
        groups, facts = checkpoint.load(path)
        student.load_state_dict(groups["model"], strict=False)
        averaged.load_state_dict(groups["average"], strict=False)
        step, spent = int(facts["step"]), Spent.of(facts, "distill")
        optimizer.load_state_dict(groups["optimizer"], step)
        generator.set_state(groups["generator"]["state"])
    if budget.fraction(step, spent.before) >= 1:
        return averaged
    if half is None:
        example = draw_example(pool, (ANY,), max(1, chunks_per_batch // 2), checkpoint.generators(0))
        half, timed = half_is_faster(student, lambda: flow_loss(student, example, None).backward())
        checkpoint.record(log, "distill precision", bfloat16=half, **timed)
    optimizer.half = half
    warm_cycle, cycle = (SHORTEST, *SHORTCUTS), (*[SHORTEST] * teacher_parts, *SHORTCUTS)

    def keep() -> None:
        groups = {
            "model": dict(student.named_parameters()),
            "average": dict(averaged.named_parameters()),
            "optimizer": optimizer.state_dict(),
            "generator": {"state": generator.get_state()},
        }
        checkpoint.save(path, groups, {"step": step, "guidance": guidance, "spent": spent.note()})

    running: dict[int, Tensor] = {}
    spent.begin()
    kept = time.monotonic()
    with fast_products(models, half):
        while (fraction := budget.fraction(step, spent.seconds)) < 1:
            warming = fraction < WARM_SHARE
            steps = warm_cycle[step % len(warm_cycle)] if warming else cycle[step % len(cycle)]
            pattern = draw_pattern(patterns, pool.seconds, generator)
            batch = max(1, chunks_per_batch // len(pattern))
            where = progress_on_grid(pattern, batch, steps, generator)
            example = draw_example(pool, pattern, batch, generator, text_drop=0.0, progress=where)
            loss = distillation_loss(student, averaged, teacher, example, steps, guidance, step_number, warming)
            student.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step(warm_cosine(fraction, step, warm=20, flat=0.4))
            step += 1
            with torch.no_grad():
                update_average(average, parameters, step, AVERAGE_DECAY)
            loss = loss.detach()
            running[steps] = 0.9 * running.get(steps, loss) + 0.1 * loss
            if step % log_every == 0:
                losses = {str(s): round(float(v), 4) for s, v in sorted(running.items())}
                checkpoint.record(log, "distill", step=step, loss_by_steps=losses, used=round(fraction, 3))
            if time.monotonic() - kept > keep_every:
                keep()
                kept = time.monotonic()
    keep()
    return averaged
