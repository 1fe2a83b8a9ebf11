"""Shortcut distillation: the target is the two-step average, clean latents stay, and a few steps do teach."""

import pytest
import torch

from magi_lite.errors import CheckpointError
from magi_lite.sampling.schedule import time_grid
from tests.training.conftest import TINY_DIT
from training import checkpoint
from training.checkpoint import Budget
from training.diffusion import CLEAN, draw_example, predict
from training.distill import (
    SHORTCUTS,
    advanced,
    distill,
    distillation_loss,
    guided_target,
    progress_on_grid,
    shortcut_target,
    two_steps,
)
from training.optim import Optimizer
from training.train_dit import make_model

WIDTH = 6


@pytest.fixture
def model():
    torch.manual_seed(torch.seed() % 100_000)
    made = make_model(TINY_DIT)
    torch.nn.init.normal_(made.dit.final_linear.linear.weight, std=0.2)
    return made


def example_on_grid(pool, pattern, steps, seed=0, rows=4):
    generator = torch.Generator().manual_seed(seed)
    where = progress_on_grid(pattern, rows, steps, generator)
    return draw_example(pool, pattern, rows, generator, text_drop=0.0, progress=where)


@pytest.mark.parametrize("steps", [8, 16, 32])
@pytest.mark.parametrize("pattern", [(4,), (3, 2), (CLEAN, 3, 2)])
@torch.no_grad()
def test_one_step_goes_where_two_half_steps_go(model, tiny_pool, pattern, steps):
    """Independent of the formula: make the two Euler steps on the sampler's own grid and compare where they end."""
    example = example_on_grid(tiny_pool, pattern, steps)
    fine = torch.tensor(time_grid(2 * steps))
    at = (example.progress * 2 * steps).round().long()
    clean = torch.tensor([q == CLEAN for q in pattern]).expand_as(at)
    t = [torch.where(clean, 0.9999, fine[(at + i).clamp(max=2 * steps)]) for i in range(3)]
    x = example.noisy
    for i in range(2):
        velocity = predict(model, example, steps, noisy=x, times=t[i])
        length = (t[i + 1] - t[i]).repeat_interleave(WIDTH, 1)[:, None, :, None, None]
        moved = x + velocity * length
        x = torch.where(example.fixed, example.noisy, moved) if i == 0 else moved
    target = shortcut_target(model, example, steps)
    length = (t[2] - t[0]).repeat_interleave(WIDTH, 1)[:, None, :, None, None]
    counted = (example.weight > 0).expand_as(x)
    assert counted.any()
    assert torch.allclose((example.noisy + target * length)[counted], x[counted], atol=2e-4)


def test_the_mean_is_weighted_by_time_and_clean_chunks_keep_the_first():
    first, second = torch.randn(2, 16, 12, 2, 2), torch.randn(2, 16, 12, 2, 2)
    start = torch.tensor([[0.0, 0.9999], [0.2, 0.9999]])
    middle = torch.tensor([[0.1, 0.9999], [0.3, 0.9999]])
    end = torch.tensor([[0.4, 0.9999], [0.4, 0.9999]])
    mean = two_steps(first, second, start, middle, end)
    assert torch.allclose(mean[0, :, :6], 0.25 * first[0, :, :6] + 0.75 * second[0, :, :6], atol=1e-5)
    assert torch.allclose(mean[1, :, :6], 0.5 * first[1, :, :6] + 0.5 * second[1, :, :6], atol=1e-5)
    assert torch.equal(mean[:, :, 6:], first[:, :, 6:])


def test_progress_stands_on_the_grid_of_its_steps(tiny_pool):
    for steps in (64, *SHORTCUTS):
        where = progress_on_grid((CLEAN, 3, 2), 50, steps, torch.Generator().manual_seed(steps))
        assert torch.equal(where * steps, (where * steps).round())
        assert (
            (where[:, 0] == 0).all()
            and ((where[:, 1] * 4).floor() == 3).all()
            and ((where[:, 2] * 4).floor() == 2).all()
        )
        example = draw_example(tiny_pool, (CLEAN, 3, 2), 50, torch.Generator(), progress=where)
        later = advanced(example, 1 / steps)
        assert (later[:, 1:] > example.times[:, 1:]).all() and torch.equal(later[:, 0], example.times[:, 0])


@torch.no_grad()
def test_guidance_pushes_away_from_the_wordless_velocity_while_noisy(model, tiny_pool):
    example = example_on_grid(tiny_pool, (3, 2), 64, rows=6)
    full, plain = predict(model, example, 32.0), predict(model, example, 32.0, without_words=True)
    guided = guided_target(model, example, 3.0, 32.0, below=0.3)
    early = (example.times < 0.3).repeat_interleave(WIDTH, 1)[:, None, :, None, None].expand_as(full)
    assert early.any() and (~early).any()
    assert torch.allclose(guided[early], (plain + 3 * (full - plain))[early], atol=1e-5)
    assert torch.allclose(guided[~early], full[~early], atol=1e-5)


def test_only_the_student_learns(model, tiny_pool):
    student, average = make_model(TINY_DIT), make_model(TINY_DIT)
    torch.nn.init.normal_(student.dit.final_linear.linear.weight, std=0.2)
    for steps in (8, 64):
        loss = distillation_loss(student, average, model, example_on_grid(tiny_pool, (4,), steps), steps)
        loss.backward()
        assert all(p.grad is None for p in (*average.parameters(), *model.parameters()))
        assert student.dit.final_linear.linear.weight.grad.abs().max() > 0


@pytest.mark.parametrize("steps", [8, 64])
def test_a_student_learns_its_target(model, tiny_pool, steps):
    student = make_model(TINY_DIT)
    example = example_on_grid(tiny_pool, (4,), steps, rows=6)
    optimizer = Optimizer(dict(student.named_parameters()), 3e-3, 0.02)
    losses = []
    for _ in range(12):
        loss = distillation_loss(student, model, model, example, steps, guidance=3.0)
        student.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step(1.0)
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_distillation_resumes_and_keeps_the_words(tmp_path, model, tiny_pool):
    weights = dict(model.named_parameters())
    options = {"pool": tiny_pool, "config": TINY_DIT, "chunks_per_batch": 3, "half": False}
    checkpoint.save(tmp_path / "dit.safetensors", {"average": weights}, {"step": 0})
    once = distill(tmp_path, Budget(2), **options)
    moved = dict(once.named_parameters())
    assert checkpoint.load(tmp_path / "distilled.safetensors")[1]["step"] == 2
    resumed = distill(tmp_path, Budget(4), **options)
    assert checkpoint.load(tmp_path / "distilled.safetensors")[1]["step"] == 4
    for name, p in resumed.named_parameters():
        if name.startswith(("text.", "tokens.")):
            assert torch.equal(p, weights[name]), "the student reads the teacher's words"
    assert any(not torch.equal(moved[name], p) for name, p in resumed.named_parameters())


def test_distillation_needs_a_trained_model(tmp_path, tiny_pool):
    with pytest.raises(CheckpointError, match="earlier stage"):
        distill(tmp_path, Budget(1), pool=tiny_pool, config=TINY_DIT)
