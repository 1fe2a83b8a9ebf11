"""A transformer that is carried over says of new latents what it said of the old ones, in the new ones' terms."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from magi_lite.dit.model import DiT
from magi_lite.errors import InputError
from magi_lite.weights.layout import DEMO_FOLDER
from tests.training.conftest import TINY_DIT
from tests.training.test_export import randomize
from training import checkpoint, recipe
from training.carry import carry_over, fit, nearest_rotation, read_autoencoder, read_transformer
from training.diffusion import CLEAN, DemoModel, draw_example, predict
from training.latents import Pool
from training.text_model import make_encoder


def rotation(channels: int) -> torch.Tensor:
    return torch.linalg.qr(torch.randn(channels, channels, dtype=torch.float64)).Q


def test_the_fit_is_that_of_the_normal_equations() -> None:
    """Against X^T X M = X^T Y on centred data, in float64; a constant beside the matrix changes nothing."""
    old, noise = torch.randn(500, 6) + 3, 0.1 * torch.randn(500, 6)
    new = old @ torch.randn(6, 6) + torch.randn(6) + noise
    x, y = ((rows - rows.mean(0)).double() for rows in (old, new))
    torch.testing.assert_close(fit(old, new), torch.linalg.solve(x.T @ x, x.T @ y), rtol=1e-4, atol=1e-5)


def test_the_nearest_rotation_is_orthogonal_and_nearer_than_others() -> None:
    matrix = torch.randn(5, 5, dtype=torch.float64)
    nearest = nearest_rotation(matrix)
    torch.testing.assert_close(nearest @ nearest.T, torch.eye(5, dtype=torch.float64), rtol=0, atol=1e-12)
    for step in (1e-3, 0.1, 1.0):
        turn = torch.matrix_exp(step * (lambda m: m - m.T)(torch.randn(5, 5, dtype=torch.float64)))
        assert (matrix - nearest).norm() <= (matrix - nearest @ turn).norm() + 1e-12


@torch.no_grad()
def test_turned_latents_get_the_turned_velocity(tiny_pool: Pool) -> None:
    model = DemoModel(randomize(DiT(TINY_DIT), 1), make_encoder())
    example = draw_example(tiny_pool, (CLEAN, 1, 0), 3, checkpoint.generators(0))
    wanted, turn = predict(model, example, None), rotation(16)
    carry_over(model, turn)
    turned = torch.einsum("bctyx,cd->bdtyx", example.noisy, turn.float())
    made = predict(model, replace(example, noisy=turned), None)
    assert wanted.abs().mean() > 0.01
    torch.testing.assert_close(
        made, torch.einsum("bctyx,cd->bdtyx", wanted, turn.float()), rtol=1e-3, atol=1e-3 * float(wanted.std())
    )


@pytest.fixture
def run(tmp_path: Path, tiny_pool: Pool, monkeypatch: pytest.MonkeyPatch) -> recipe.Recipe:
    """A run that goes on with the shipped transformer, on the shipped autoencoder, for one step."""
    monkeypatch.setattr(recipe, "FOLD_CLIPS", 6)
    monkeypatch.setitem(recipe.STEPS, "carried", 1)
    tiny_pool.save(tmp_path / "pool-1.safetensors")
    checkpoint.save(tmp_path / recipe.FOLDED, {"model": read_autoencoder(DEMO_FOLDER).state_dict()}, {"step": 0})
    return recipe.Recipe(tmp_path, carry=DEMO_FOLDER)


def logged(run: recipe.Recipe) -> list[dict]:
    return [json.loads(line) for line in (run.work / "training.jsonl").read_text().splitlines()]


def test_carried_to_its_own_autoencoder_it_is_what_it_was(run: recipe.Recipe) -> None:
    recipe.carry(run, DEMO_FOLDER)
    carried = checkpoint.load(run.work / recipe.TRANSFORMER)[0]["average"]
    shipped = dict(read_transformer(DEMO_FOLDER).named_parameters())
    assert carried.keys() == shipped.keys()
    for name, tensor in shipped.items():
        torch.testing.assert_close(carried[name], tensor.detach(), rtol=1e-4, atol=1e-4)
    assert logged(run)[-1]["apart_from_a_rotation"] < 0.001


def test_it_is_carried_over_once_and_learns_full_windows_alone(run: recipe.Recipe) -> None:
    for _ in range(2):
        recipe.run("dit", run)
    assert [line["what"] for line in logged(run)].count("carried over") == 1
    _, facts = checkpoint.load(run.work / recipe.TRANSFORMER)
    assert (facts["step"], facts["phase"]) == (1, "full")


def test_what_is_no_model_is_named(tmp_path: Path) -> None:
    for read in (read_autoencoder, read_transformer):
        with pytest.raises(InputError, match="is no model folder of this training: it has no ckpt"):
            read(tmp_path)
