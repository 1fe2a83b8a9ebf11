"""Stage one: the autoencoder, until it draws what it sees; then its latents are scaled to unit variance.

Batches are half seconds (12 frames, as the tiled decoder works) and, one in eight, images (four frames alike). The loss
is L1 + L2, with a body's pixels counting four times (most pixels are background), and a KL term so small that it only
keeps the latents from drifting. `fold_normalization` then moves the latents' mean and deviation into the encoder's last
and the decoder's first linear, so that encode * 0.18215 has unit variance and nobody needs to know of it.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from magi_lite.models import SCALE_FACTOR, VAEConfig
from magi_lite.vae.model import ViTVAE
from training import checkpoint
from training.checkpoint import Budget
from training.latents import TILE, to_signed
from training.looks import SIZE, background
from training.optim import Optimizer, update_average, warm_cosine
from training.world import make_clip, make_collision

DEMO_VAE = VAEConfig(
    video_size=SIZE, video_length=TILE, embed_dim=192, depth=4, num_heads=4, z_chans=16, use_final_proj=True
)
BATCH = 16
KL_WEIGHT = 2e-5
AVERAGE_DECAY = 0.997
RATE, MATRIX_RATE = 2e-3, 0.02
HELD_OUT = 900_000
"""Seeds from here on are never trained on."""


def make_vae(config: VAEConfig = DEMO_VAE) -> ViTVAE:
    """An untrained autoencoder with small random position tables (the module itself starts them at zero)."""
    vae = ViTVAE(config)
    for name, parameter in vae.named_parameters():
        if "pos_embed" in name or "cls_token" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    return vae


def film(clips: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Seconds of every kind of motion: frames (P, 24, 64, 64, 3) uint8, and where bodies are (P, 24, 64, 64) bool."""
    frames, bodies = [], []
    for number in range(seed, seed + clips):
        clip = make_clip(number, extended=number % 4 == 0) if number % 12 else make_collision(number)
        stage = background(clip.look.background).astype(np.int16)
        frames.append(clip.frames)
        bodies.append(np.abs(clip.frames.astype(np.int16) - stage).max(-1) > 8)
    return np.stack(frames), np.stack(bodies)


def draw_batch(
    frames: np.ndarray, bodies: np.ndarray, size: int, image: bool, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Clips (B, 3, 12, H, W), or images as (B, 3, 4, H, W), in [-1, 1]; and the bodies (B, 1, T, H, W) as 0/1."""
    picks = torch.randint(len(frames), (size,), generator=generator).tolist()
    starts = torch.randint(frames.shape[1] - TILE + 1, (size,), generator=generator).tolist()
    slices = [np.full(4, s) if image else np.arange(s, s + TILE) for s in starts]
    x = np.stack([frames[pick][frame] for pick, frame in zip(picks, slices, strict=True)])
    body = np.stack([bodies[pick][frame] for pick, frame in zip(picks, slices, strict=True)])
    return to_signed(x), torch.from_numpy(body)[:, None].float()


def vae_loss(vae: ViTVAE, x: Tensor, body: Tensor, generator: torch.Generator, decoder_only: bool = False) -> Tensor:
    """Weighted L1 + L2 of the reconstruction plus the KL term."""
    with torch.set_grad_enabled(not decoder_only and torch.is_grad_enabled()):
        mean, log_variance = vae.moments(x)
    log_variance = log_variance.clamp(max=4.0)
    noise = torch.randn(mean.shape, generator=generator)
    difference = vae.decoder(mean + noise * (0.5 * log_variance).exp()) - x
    weight = 1 + 3 * body
    kl = (mean.square() + log_variance.exp() - 1 - log_variance).mean()
    return 0.3 * (weight * difference.abs()).mean() + 2 * (weight * difference.square()).mean() + KL_WEIGHT * kl


@torch.no_grad()
def held_out_psnr(vae: ViTVAE, clips: int = 48) -> Tensor:
    """PSNR in dB of half seconds never trained on, one value a clip."""
    values = []
    for seed in range(HELD_OUT, HELD_OUT + clips):
        x = to_signed(make_clip(seed).frames[None, :TILE])
        error = (vae.decode(vae.encode(x)).clamp(-1, 1) - x).square().mean()
        values.append(10 * torch.log10(4 / error))
    return torch.stack(values)


@torch.no_grad()
def fold_normalization(vae: ViTVAE, clips: int = 96) -> None:
    """Change the encoder's last and the decoder's first linear so that encode * SCALE_FACTOR has mean 0, variance 1.

    Channel c: latent' = (latent - mean) / (deviation * SCALE_FACTOR), undone where the decoder begins. What
    decode(encode(x)) gives does not change.
    """
    frames, _ = film(clips, seed=700_001)
    latents = torch.cat([vae.encode(to_signed(frames[i : i + 8, :TILE])) for i in range(0, clips, 8)])
    mean = latents.mean((0, 2, 3, 4))
    deviation = latents.std((0, 2, 3, 4)) * SCALE_FACTOR
    last, first, channels = vae.encoder.last_layer, vae.decoder.proj_in, len(mean)
    last.bias[:channels] -= mean
    last.bias[:channels] /= deviation
    last.weight[:channels] /= deviation[:, None]
    last.bias[channels:] -= 2 * deviation.log()
    first.bias += first.weight @ mean
    first.weight *= deviation


def train_vae(
    work: Path,
    budget: Budget,
    *,
    config: VAEConfig = DEMO_VAE,
    clips: int = 1400,
    batch: int = BATCH,
    seed: int = 0,
    decoder_only: bool = False,
    warm: int = 60,
    rates: tuple[float, float] = (RATE, MATRIX_RATE),
) -> ViTVAE:
    """Train, or go on training, the autoencoder in `work`; returns the averaged weights.

    `decoder_only` goes on with the latents frozen, so that a transformer trained on them stays valid; do it after
    `fold_normalization`.
    """
    torch.manual_seed(seed)
    vae = make_vae(config)
    path, log = work / "vae.safetensors", work / "vae.log"
    generator = checkpoint.generators(seed + 1)
    trained = {n: p for n, p in vae.named_parameters() if not decoder_only or n.startswith("decoder.")}
    optimizer = Optimizer(trained, *rates)
    average = {n: t.clone() for n, t in vae.state_dict().items()}
    step = 0
    if path.is_file():
        groups, facts = checkpoint.load(path)
        vae.load_state_dict(groups["model"])
        average = groups["average"]
        step = int(facts["step"])
        if bool(facts["decoder_only"]) == decoder_only:
            optimizer.load_state_dict(groups["optimizer"], step)
            generator.set_state(groups["generator"]["state"])
    budget.first_step = step
    frames, bodies = film(clips, seed=100_000)

    def keep() -> None:
        groups = {
            "model": vae.state_dict(),
            "average": average,
            "optimizer": optimizer.state_dict(),
            "generator": {"state": generator.get_state()},
        }
        checkpoint.save(path, groups, {"step": step, "decoder_only": decoder_only})

    while (fraction := budget.fraction(step)) < 1:
        x, body = draw_batch(frames, bodies, batch, step % 8 == 7, generator)
        loss = vae_loss(vae, x, body, generator, decoder_only)
        vae.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step(warm_cosine(fraction, step, warm))
        step += 1
        update_average(average, vae.state_dict(), step, AVERAGE_DECAY)
        if step % 50 == 0:
            checkpoint.log(log, f"vae step {step} loss {loss.item():.4f} used {fraction:.2f}")
        if step % 200 == 0:
            keep()
    keep()
    vae.load_state_dict(average)
    values = held_out_psnr(vae, 16)
    checkpoint.log(log, f"vae done step {step} held-out psnr {values.mean():.2f} +- {values.std() / math.sqrt(16):.2f}")
    return vae
