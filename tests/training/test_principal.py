"""The linear start: what it makes is what a principal component analysis in float64 makes, but for the norms' bend."""

import numpy as np
import torch

from tests.training.conftest import TINY_VAE
from training.principal import patches, principal_components, start_from_components
from training.train_vae import make_vae


def pictures(clips: int, seed: int) -> torch.Tensor:
    """Signed clips (N, 3, 12, 64, 64) in which every patch is a mixture of a few patterns and a little noise."""
    rng = np.random.default_rng(seed)
    patterns = rng.standard_normal((6, 3, 4, 8, 8))
    weights = rng.standard_normal((clips, 3, 8, 8, 6)) * np.array([0.2, 0.1, 0.1, 0.05, 0.05, 0.02])
    made = np.einsum("nthwk,kcabd->nctahbwd", weights, patterns).reshape(clips, 3, 12, 64, 64)
    return torch.from_numpy(made + 0.005 * rng.standard_normal(made.shape)).float().clamp(-1, 1)


def test_patches_are_those_that_the_embedding_sees():
    x = pictures(2, 1)
    embed = make_vae(TINY_VAE).encoder.patch_embed.proj
    rows = patches(x, (4, 8, 8))
    with torch.no_grad():
        wanted = embed(x).flatten(2).transpose(1, 2).flatten(0, 1)
        assert torch.allclose(rows @ embed.weight.flatten(1).t() + embed.bias, wanted, atol=1e-4)


def test_components_are_those_of_an_independent_decomposition():
    rows = torch.randn(500, 12) @ torch.randn(12, 12)
    mean, components, variances = principal_components(rows)
    wide = rows.double().numpy()
    _, sizes, vectors = np.linalg.svd(wide - wide.mean(0), full_matrices=False)
    assert np.allclose(mean, wide.mean(0), atol=1e-4)
    assert np.allclose(variances, sizes**2 / 500, rtol=1e-4)
    assert np.allclose(np.abs((components.double().numpy() * vectors).sum(1)), 1, atol=1e-4)


@torch.no_grad()
def test_the_start_is_the_linear_autoencoder():
    seed = int(torch.randint(1_000_000, ()))
    x = pictures(6, seed)
    vae = make_vae(TINY_VAE)
    untrained = (vae.decode(vae.encode(x)) - x).square().mean()
    start_from_components(vae, x)
    made = vae.decode(vae.encode(x))
    rows = patches(x, (4, 8, 8)).double()
    mean = rows.mean(0)
    _, _, vectors = torch.linalg.svd(rows - mean, full_matrices=False)
    best = (rows - mean) @ vectors[:16].t() @ vectors[:16] + mean
    wanted = best.float()
    error = (patches(made, (4, 8, 8)) - wanted).square().mean() / (wanted - wanted.mean()).square().mean()
    assert error < 0.05 and (made - x).square().mean() < 0.1 * untrained
    latents = vae.encode(x)
    assert torch.allclose(latents.std((0, 2, 3, 4))[:4], torch.ones(4), atol=0.25)


@torch.no_grad()
def test_at_the_start_the_noise_of_the_latents_is_small():
    vae = make_vae(TINY_VAE)
    x = pictures(4, 3)
    start_from_components(vae, x)
    assert (0.5 * vae.moments(x)[1]).exp().max() < 0.2
