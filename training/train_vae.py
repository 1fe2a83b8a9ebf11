"""The autoencoder: what it is taught, and the gates that it must pass before anything is built on it.

It starts as the best linear autoencoder (see `principal`) and goes on from there, at small rates.

Batches are half seconds (12 frames, as the tiled decoder works) of the world and of photographs and, one in eight,
images (four frames alike). The loss counts errors, more where something moves; errors of the first difference in
time, weighted strongly, for an error that stays the same is seen far less than one that flickers, and without it the
four frames of a latent come out alike and the picture jumps six times a second; and those of the first differences in
space, for edges. A KL term only keeps the latents from drifting. `fold_normalization` moves the latents' mean and
deviation into the encoder's last and the decoder's first linear, so that encode * 0.18215 has unit variance, and
`fold_sizes` makes channels that show more larger. Last, the decoder alone goes on, on what the transformer makes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from magi_lite.models import SCALE_FACTOR, VAEConfig
from magi_lite.vae.model import ViTVAE
from training import checkpoint
from training.checkpoint import Budget, Spent, draw_noise
from training.footage import Footage
from training.neighbours import look_around, look_around_encoder
from training.optim import Optimizer, update_average, warm_cosine
from training.photographs import draw_shot, film_shot
from training.precision import fast_products, half_is_faster
from training.principal import start_from_components
from training.reel import HELD_OUT, TILE, Reel, to_signed
from training.takes import Takes
from training.world import film_many, make_scene
from training.world.draw import SIZE

DEMO_VAE = VAEConfig(
    video_size=SIZE, video_length=TILE, embed_dim=256, depth=4, num_heads=4, z_chans=16, use_final_proj=True
)
BATCH = 4
STARTED_FROM = 48
"""Seconds from which the first weights are reckoned."""
KL_WEIGHT = 2e-5
AVERAGE_DECAY = 0.997
RATE, MATRIX_RATE = 5e-4, 0.003
"""Small, for a few half seconds of which most is still give a noisy gradient: at 0.01 for the matrices the averaged
weights stood 1.5 dB lower on photographs after 300 steps, and at 0.02 (from random weights) 5 dB lower after 500."""
ABSOLUTE, SQUARED = 0.5, 4.0
TIME_ABSOLUTE, TIME_SQUARED = 1.0, 20.0
SPACE_WEIGHT = 0.5
MOVING_WEIGHT = 3.0
"""How much more a pixel counts that changes from frame to frame: most of the picture stands still and is easy."""
MOVING = 0.03
"""Change of a pixel from frame to frame, of a range of 2, from which it moves."""
TUNING_RATES = (1e-3, 0.006)
"""Of the decoder alone, as `RATE` and `MATRIX_RATE`."""
COARSENESS = 0.4
"""Power of what a channel shows, by which it is larger than the finest one: 0 gives all the same size."""
MOVED = 0.3
"""Deviation of the noise that tells what a channel shows."""
_EDGES = (3, 7, 11, 15, 19)
"""The frames of a second after which the next latent frame begins."""


@dataclass(frozen=True)
class Gates:
    """What the autoencoder must reach: steps across latent borders over those inside, against the truth; PSNR in dB."""

    border: float = 1.15
    world: float = 36.0
    photographs: float = 28.0

    def passed(self, measured: dict[str, float]) -> dict[str, bool]:
        """Which of the gates the figures of `measure_vae` pass; photographs only where there are some."""
        met = {"border": measured["border"] < self.border, "world_psnr": measured["world_psnr"] >= self.world}
        if "photographs_psnr" in measured:
            met["photographs_psnr"] = measured["photographs_psnr"] >= self.photographs
        return met


def make_vae(config: VAEConfig = DEMO_VAE) -> ViTVAE:
    """An untrained autoencoder with small random position tables (the module itself starts them at zero)."""
    vae = ViTVAE(config)
    for name, parameter in vae.named_parameters():
        if "pos_embed" in name or "cls_token" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    return vae


def differences(x: Tensor, axis: int) -> Tensor:
    """First differences along an axis."""
    return x.narrow(axis, 1, x.shape[axis] - 1) - x.narrow(axis, 0, x.shape[axis] - 1)


def reconstruction_loss(made: Tensor, x: Tensor) -> Tensor:
    """Error of a reconstruction (B, 3, T, H, W), of its steps in time and of its edges, more where x moves.

    Absolute and squared errors are mixed. With absolute errors of the steps alone, as strongly weighted, the flicker of
    all still pixels drowns what moves, and nothing is learned: a small autoencoder gets to 18 dB and a border ratio of
    2.8 in 300 steps, with the mixture to 21 dB and 1.2.
    """
    error = made - x
    jumps = differences(error, 2)
    steps = (differences(x, 2).abs().amax(1, keepdim=True) > MOVING).float()
    moves = F.pad(steps, (0, 0, 0, 0, 0, 1)).maximum(F.pad(steps, (0, 0, 0, 0, 1, 0)))
    loss = ((1 + MOVING_WEIGHT * moves) * (ABSOLUTE * error.abs() + SQUARED * error.square())).mean()
    loss = loss + ((1 + MOVING_WEIGHT * steps) * (TIME_ABSOLUTE * jumps.abs() + TIME_SQUARED * jumps.square())).mean()
    return loss + SPACE_WEIGHT * (differences(error, 3).abs().mean() + differences(error, 4).abs().mean())


@torch.no_grad()
def _look_around(vae: ViTVAE, frames: Tensor) -> None:
    """Let both halves of an autoencoder that is the best linear one begin with the neighbours in sight."""
    look_around_encoder(vae)
    halves = torch.cat(frames.split(TILE, dim=2)[: frames.shape[2] // TILE])
    look_around(vae, torch.cat([vae.encode(some) for some in halves.split(8)]), halves)


def vae_loss(vae: ViTVAE, x: Tensor, generator: torch.Generator) -> Tensor:
    """The reconstruction's loss and the KL term."""
    mean, log_variance = vae.moments(x)
    log_variance = log_variance.clamp(max=4.0)
    noise = draw_noise(mean.shape, generator, mean.device)
    kl = (mean.square() + log_variance.exp() - 1 - log_variance).mean()
    return reconstruction_loss(vae.decoder(mean + noise * (0.5 * log_variance).exp()), x) + KL_WEIGHT * kl


# --- what it has learned ---------------------------------------------------------------------------------------------


def held_out_clips(pictures: tuple[np.ndarray, ...], clips: int) -> dict[str, Tensor]:
    """Seconds never trained on, (N, 24, H, W, 3) uint8, of the world and of held-back pictures."""
    rng = np.random.default_rng(HELD_OUT)
    made = {"world": film_many([make_scene(HELD_OUT + n) for n in range(clips)])}
    if pictures:
        made["photographs"] = torch.stack(
            [film_shot(draw_shot(pictures[n % len(pictures)], 1, rng)) for n in range(clips)]
        )
    return made


@torch.no_grad()
def reconstruct(vae: ViTVAE, frames: Tensor) -> Tensor:
    """What is left of seconds (N, 24, H, W, 3) uint8, in tiles of half a second, as signed (N, 3, 24, H, W)."""
    x = to_signed(frames).to(next(vae.parameters()).device)
    parts = [vae.decode(vae.encode(x[:, :, i : i + TILE])) for i in range(0, x.shape[2], TILE)]
    return torch.cat(parts, dim=2).clamp(-1, 1)


def border_ratio(made: Tensor, x: Tensor) -> float:
    """Mean step across latent borders over the mean step inside, of clips (N, 3, 24, H, W), over the truth's own."""
    inside = [i for i in range(x.shape[2] - 1) if i not in _EDGES]
    ratio = []
    for clip in (made, x):
        step = differences(clip, 2).abs().mean((0, 1, 3, 4))
        ratio.append(float(step[list(_EDGES)].mean() / step[inside].mean()))
    return ratio[0] / ratio[1]


def measure_vae(vae: ViTVAE, clips: dict[str, Tensor]) -> dict[str, float]:
    """PSNR in dB, mean over clips, and border ratio of every kind of clip; `border` is the worst of them."""
    facts: dict[str, float] = {}
    for name, frames in clips.items():
        made, x = [], []
        for part in frames.split(4):
            made.append(reconstruct(vae, part).float().cpu())
            x.append(to_signed(part))
        one, two = torch.cat(made), torch.cat(x)
        error = (one - two).square().mean((1, 2, 3, 4))
        facts[f"{name}_psnr"] = round(float((10 * torch.log10(4 / error)).mean()), 2)
        facts[f"{name}_border"] = round(border_ratio(one, two), 3)
    return facts | {"border": max(value for name, value in facts.items() if name.endswith("_border"))}


@torch.no_grad()
def measure_takes(vae: ViTVAE, takes: Takes) -> dict[str, float]:
    """PSNR in dB, mean over the seconds that are kept, and border ratio of what the decoder makes of them."""
    made, x = [], []
    for latents, frames in takes.kept:
        halves = latents.float().chunk(2, dim=1)
        made.append(torch.cat([vae.decoder(half[None]) for half in halves], dim=2).clamp(-1, 1).float().cpu())
        x.append(to_signed(frames[None]).cpu())
    one, two = torch.cat(made), torch.cat(x)
    error = (one - two).square().mean((1, 2, 3, 4))
    psnr = round(float((10 * torch.log10(4 / error)).mean()), 2)
    return {"made_psnr": psnr, "made_border": round(border_ratio(one, two), 3)}


@torch.no_grad()
def fold_normalization(vae: ViTVAE, latents: Tensor) -> None:
    """Change the encoder's last and the decoder's first linear so that encode * SCALE_FACTOR has mean 0, variance 1.

    Channel c: latent' = (latent - mean) / (deviation * SCALE_FACTOR), undone where the decoder begins. What
    decode(encode(x)) gives does not change.

    Args:
        latents: (N, C, T, H, W), unscaled, of many clips.
    """
    _fold(vae, latents.mean((0, 2, 3, 4)), latents.std((0, 2, 3, 4)) * SCALE_FACTOR)


@torch.no_grad()
def fold_sizes(vae: ViTVAE, sizes: Tensor) -> None:
    """Make channel c of the latents `sizes[c]` times as large, undone where the decoder begins."""
    _fold(vae, torch.zeros_like(sizes), 1 / sizes)


def _fold(vae: ViTVAE, mean: Tensor, deviation: Tensor) -> None:
    last, first, channels = vae.encoder.last_layer, vae.decoder.proj_in, len(mean)
    last.bias[:channels] -= mean
    last.bias[:channels] /= deviation
    last.weight[:channels] /= deviation[:, None]
    last.bias[channels:] -= 2 * deviation.log()
    first.bias += first.weight @ mean
    first.weight *= deviation


@torch.no_grad()
def coarse_to_fine(vae: ViTVAE, latents: Tensor, seed: int = 0) -> Tensor:
    """How large every channel of latents of unit variance should be, (C,), the finest 1.

    Of unit variance all, a channel that only sharpens an edge weighs as much in the transformer's loss as one that says
    where a thing is and which colour it has, and is settled at the same noise. What shows more in the decoded picture
    is made larger: it stands out of the noise earlier, and fine things follow where coarse ones are.

    Args:
        latents: (N, C, T, H, W) of a few clips, of unit variance.
    """
    generator = checkpoint.generators(seed)
    plain = vae.decode(latents / SCALE_FACTOR)
    shown = []
    for channel in range(latents.shape[1]):
        moved = latents.clone()
        moved[:, channel] += MOVED * draw_noise(moved[:, channel].shape, generator, moved.device)
        shown.append((vae.decode(moved / SCALE_FACTOR) - plain).square().mean().sqrt())
    table = torch.stack(shown)
    return (table / table.min()) ** COARSENESS


# --- training --------------------------------------------------------------------------------------------------------


def train_vae(
    work: Path,
    budget: Budget,
    reel: Reel | Footage,
    *,
    config: VAEConfig = DEMO_VAE,
    batch: int = BATCH,
    seed: int = 0,
    warm: int = 30,
    rates: tuple[float, float] = (RATE, MATRIX_RATE),
    flat: float = 0.2,
    check: dict[str, Tensor] | None = None,
    half: bool | None = None,
    keep_every: float = 180.0,
    log_every: int = 50,
    check_every: int = 250,
) -> ViTVAE:
    """Train, or go on training, the autoencoder in `work`; returns the averaged weights.

    The budget counts all steps ever made, so that a run that was cut off goes on where it was.

    Args:
        reel: what is filmed; the autoencoder is trained on its device.
        check: clips of `held_out_clips`, measured every `check_every` steps.
        half: products in bfloat16; None: what is faster. keep_every: seconds between checkpoints.
    """
    torch.manual_seed(seed)
    vae = make_vae(config)
    if not (work / "vae.safetensors").is_file():
        frames = to_signed(reel.some(STARTED_FROM).cpu())
        start_from_components(vae, frames)
        if config == DEMO_VAE:
            _look_around(vae, frames)
    vae.to(reel.device)

    def loss_of(step: int, generator: torch.Generator) -> Tensor:
        reel.renew()
        return vae_loss(vae, reel.batch(batch, step % 8 == 7, generator), generator)

    def trial() -> Callable[[], Tensor]:
        x = reel.batch(batch, False, checkpoint.generators(0))
        return lambda: vae_loss(vae, x, checkpoint.generators(0))

    course = Course("vae", "", seed + 1, rates, warm, flat, AVERAGE_DECAY, log_every, check_every, keep_every)
    return _train(work, course, budget, vae, loss_of, trial, check, half)


@dataclass(frozen=True)
class Course:
    """How the autoencoder, or a part of it, is trained.

    `stage`: of the checkpoint and the log. `part`: how the names of the trained weights begin. `seed`: of what is
    drawn. `warm`, `flat`: see `warm_cosine`. `decay`: of the average. `keep_every`: seconds between checkpoints.
    """

    stage: str
    part: str
    seed: int
    rates: tuple[float, float]
    warm: int
    flat: float
    decay: float
    log_every: int
    check_every: int
    keep_every: float


def _train(
    work: Path,
    course: Course,
    budget: Budget,
    vae: ViTVAE,
    loss_of: Callable[[int, torch.Generator], Tensor],
    trial: Callable[[], Callable[[], Tensor]],
    check: dict[str, Tensor] | None,
    half: bool | None,
) -> ViTVAE:
    """Train, or go on, until the budget is used; returns the averaged weights.

    Args:
        loss_of: of a step, which draws with the generator. trial: draws once what steps of both formats are timed with.
    """
    stage, path, log = course.stage, work / f"{course.stage}.safetensors", work / "training.jsonl"
    device, generator = next(vae.parameters()).device, checkpoint.generators(course.seed)
    trained = {n: p for n, p in vae.named_parameters() if n.startswith(course.part)}
    optimizer = Optimizer(trained, *course.rates, by_width=True)
    average = {n: t.clone() for n, t in vae.state_dict().items()}
    step, spent = 0, Spent({}, stage)
    if path.is_file():
        groups, facts = checkpoint.load(path)
        vae.load_state_dict(groups["model"])
        average, step = {n: t.to(device) for n, t in groups["average"].items()}, int(facts["step"])
        spent = Spent.of(facts, stage)
        optimizer.load_state_dict(groups["optimizer"], step)
        generator.set_state(groups["generator"]["state"])
    if budget.fraction(step, spent.before) >= 1:
        vae.load_state_dict(average)
        return vae
    if half is None:
        once = trial()
        half, timed = half_is_faster(vae, lambda: once().backward())
        checkpoint.record(log, f"{stage} precision", bfloat16=half, **timed)
    optimizer.half = half

    def keep() -> None:
        groups = {
            "model": vae.state_dict(),
            "average": average,
            "optimizer": optimizer.state_dict(),
            "generator": {"state": generator.get_state()},
        }
        checkpoint.save(path, groups, {"step": step, "spent": spent.note()})

    running: Tensor | None = None
    spent.begin()
    kept = time.monotonic()
    with fast_products([vae], half):
        while (fraction := budget.fraction(step, spent.seconds)) < 1:
            loss = loss_of(step, generator)
            vae.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step(warm_cosine(fraction, step, course.warm, flat=course.flat))
            step += 1
            update_average(average, vae.state_dict(), step, course.decay)
            loss = loss.detach()
            running = loss if running is None else 0.97 * running + 0.03 * loss
            if step % course.log_every == 0:
                checkpoint.record(log, stage, step=step, loss=round(float(running), 4), used=round(fraction, 3))
            if step % course.check_every == 0 and check:
                measured = make_vae(vae.config).to(device)
                measured.load_state_dict(average)
                checkpoint.record(log, f"{stage} measured", step=step, **measure_vae(measured, check))
            if time.monotonic() - kept > course.keep_every:
                keep()
                kept = time.monotonic()
    keep()
    vae.load_state_dict(average)
    return vae


Draw = Callable[[ViTVAE, int, torch.Generator], tuple[Tensor, Tensor]]
"""A batch for a step of the decoder's training: unscaled latents, and the clips that they should show."""


def true_latents(reel: Reel | Footage, batch: int = BATCH) -> Draw:
    """Half seconds and, one batch in eight, images, with the latents that the encoder makes of them."""

    def draw(vae: ViTVAE, step: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        reel.renew()
        x = reel.batch(batch, step % 8 == 7, generator)
        with torch.no_grad():
            return vae.moments(x)[0], x

    return draw


def made_latents(takes: Takes, reel: Reel | Footage, batch: int = BATCH) -> Draw:
    """Half seconds as the transformer makes them; a quarter of a batch, and one batch in eight, as the encoder does."""

    images, some = true_latents(reel, batch), true_latents(reel, max(1, batch // 4))

    def draw(vae: ViTVAE, step: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        if step % 8 == 7:
            return images(vae, step, generator)
        if step % 2 == 0:
            takes.renew()
        latents, x = some(vae, step, generator)
        made, shown = takes.batch(batch - len(x), generator)
        return torch.cat([made, latents]), torch.cat([shown, x])

    return draw


def refine_decoder(
    work: Path,
    budget: Budget,
    draw: Draw,
    start: dict[str, Tensor],
    *,
    config: VAEConfig = DEMO_VAE,
    seed: int = 3,
    rates: tuple[float, float] = TUNING_RATES,
    check: dict[str, Tensor] | None = None,
    half: bool | None = None,
    keep_every: float = 180.0,
    log_every: int = 50,
    check_every: int = 250,
    device: torch.device | None = None,
) -> ViTVAE:
    """Train the decoder alone from the weights `start`, or go on; returns the averaged weights.

    The latents stay, so that a transformer trained on them stays valid.

    Args:
        check: clips of `held_out_clips`, measured every `check_every` steps.
        device: where it is trained; None: the processor.
    """
    torch.manual_seed(seed)
    vae = make_vae(config)
    vae.load_state_dict(start)
    vae.to(device or "cpu")

    def loss_of(step: int, generator: torch.Generator) -> Tensor:
        latents, x = draw(vae, step, generator)
        return reconstruction_loss(vae.decoder(latents), x)

    def trial() -> Callable[[], Tensor]:
        latents, x = draw(vae, 0, checkpoint.generators(0))
        return lambda: reconstruction_loss(vae.decoder(latents), x)

    course = Course("tune", "decoder.", seed + 1, rates, 20, 0.3, 0.995, log_every, check_every, keep_every)
    return _train(work, course, budget, vae, loss_of, trial, check, half)


def reached(measured: dict[str, float], gates: Gates, twice: bool) -> bool:
    """Whether training may go on: all gates are passed, or they were not after twice the budget."""
    assert not any(math.isnan(value) for value in measured.values()), measured
    return all(gates.passed(measured).values()) or twice
