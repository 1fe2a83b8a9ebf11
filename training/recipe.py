"""The recipe's stages, their budgets and the gates between them; `python -m training` runs them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from magi_lite.errors import InputError
from magi_lite.models import SCALE_FACTOR
from magi_lite.vae.model import ViTVAE
from training import checkpoint
from training.checkpoint import Budget
from training.footage import CLIP_BYTES, Footage
from training.latents import Pool
from training.photographs import Album, album
from training.reel import HELD_OUT, Reel
from training.takes import Takes
from training.train_dit import CHUNKS_PER_BATCH, TRANSFORMER
from training.train_vae import (
    BATCH,
    MATRIX_RATE,
    RATE,
    Gates,
    coarse_to_fine,
    fold_normalization,
    fold_sizes,
    held_out_clips,
    made_latents,
    make_vae,
    measure_takes,
    measure_vae,
    reached,
    refine_decoder,
    train_vae,
)

STAGES = ("vae", "fold", "pool", "dit", "distill", "tune", "export")
STEPS = {"vae": 700, "single": 7300, "windows": 4000, "full": 9350, "carried": 3400, "distill": 500, "tune": 1600}
"""Steps of every stage on a processor."""
TIME = {"vae": 0.25, "single": 0.04, "windows": 0.11, "full": 0.38, "carried": 0.53, "distill": 0.10, "tune": 0.12}
"""Shares of the minutes that are given."""
FILMED_SHARE = 0.6
"""Of a card's free memory, for what is filmed."""
PHASES = (("single", "single", 1.0), ("windows", "windows", 0.7), ("full", "full", 0.5))
"""Of the transformer: the budget's name, which windows are drawn, the peak of the rates."""
CARRIED_PHASES = (("carried", "full", 0.7),)
FOLDED, TUNED = "vae_folded.safetensors", "vae_tuned.safetensors"
FOLD_CLIPS = 96
"""Clips of each kind that the latents' mean and deviation are taken from."""
SIZED_CLIPS = 24
"""Half seconds on which it is measured what every channel shows."""
GATE_CLIPS = 32
"""Clips of each kind that the gates are measured on."""


@dataclass(frozen=True)
class Scale:
    """How much is learned from at once, and how fast: half seconds of the autoencoder, seconds of the transformer."""

    halves: int
    chunks: int
    takes: int
    vae_rates: tuple[float, float]
    log_every: int
    check_every: int


PROCESSOR = Scale(BATCH, CHUNKS_PER_BATCH, 1, (RATE, MATRIX_RATE), 50, 250)
CARD = Scale(64, 160, 32, (1e-3, 0.01), 200, 4000)
FIRST_TAKES, CHECKED_TAKES = 100, 32
"""Seconds as the transformer makes them: with which the tuning begins, and on which it is measured."""


@dataclass(frozen=True)
class Recipe:
    """A training run: its folder, the share of every budget, the guidance that is distilled in, what is exported.

    `before`: the model folder that the run has gone on from, if the mean of both is to be exported. `footage`: what is
    filmed for a card; None: the processor trains, and films for itself. `minutes`: for all stages together, in place of
    numbers of steps. `carry`: the model folder whose transformer is gone on with on another autoencoder's latents.
    """

    work: Path
    share: float = 1.0
    guidance: float = 2.0
    out: Path | None = None
    distilled: bool = True
    before: Path | None = None
    footage: Footage | None = None
    minutes: float | None = None
    carry: Path | None = None

    @property
    def device(self) -> torch.device:
        return self.footage.device if self.footage else torch.device("cpu")

    @property
    def scale(self) -> Scale:
        return CARD if self.device.type == "cuda" else PROCESSOR

    def budget(self, stage: str, times: int = 1, first_step: int = 0) -> Budget:
        """How long a stage lasts."""
        if self.minutes is not None:
            return Budget(None, first_step, seconds=60 * self.minutes * TIME[stage])
        return Budget(times * max(1, round(STEPS[stage] * self.share)), first_step)

    def reel(self, pictures: Album, first: int = 120, seed: int = 0) -> Reel | Footage:
        """What the autoencoder learns from."""
        return self.footage or Reel(pictures.trained, first=first, seed=seed)

    def pool(self) -> Pool | None:
        """What the transformer learns from, where it is filmed already; None: the pools in the work folder."""
        return self.footage.pool(load_folded(self)) if self.footage else None

    def album(self) -> Album:
        """The photographs in the work folder, or none: the world alone can be trained on."""
        try:
            return album(self.work / "photos", self.work / "album.safetensors")
        except InputError:
            return Album((), (), (), ())

    @contextmanager
    def on_card(self, clips: int) -> Iterator[Recipe]:
        """The same on a card, with `clips` filmed by half of the processor's cores while the context lasts.

        With all of them filming, the one that feeds the card waited: a step took twice as long.

        Raises:
            InputError: there is no card, or it cannot hold so many.
        """
        from training.text_model import make_tokenizer

        if not torch.cuda.is_available():
            raise InputError("There is no CUDA card here; leave --device out to train on the processor.")
        room = int(torch.cuda.mem_get_info()[0] * FILMED_SHARE / CLIP_BYTES)
        if clips > room:
            raise InputError(
                f"This card has room for {room} clips beside the training, not for {clips}; give --clips {room}."
            )
        torch.backends.cuda.enable_cudnn_sdp(False)  # it plans anew for every shape, and windows have many
        films = max(1, (os.cpu_count() or 2) // 2)
        card = torch.device("cuda")
        with Footage(self.album().trained, clips, make_tokenizer(), card, films) as footage:
            yield replace(self, footage=footage)

    def log(self, what: str, **facts: object) -> None:
        checkpoint.record(self.work / "training.jsonl", what, **facts)


def run(stage: str, recipe: Recipe) -> None:
    """Run a stage of `STAGES`, or go on with it; one that is done does nothing."""
    recipe.work.mkdir(parents=True, exist_ok=True)
    {
        "vae": train_autoencoder,
        "fold": fold,
        "pool": fill_pool,
        "dit": train_transformer,
        "distill": train_student,
        "tune": tune,
        "export": write_model,
    }[stage](recipe)


def train_autoencoder(recipe: Recipe) -> None:
    """Until the gates are passed, at most twice the budget."""
    if (recipe.work / FOLDED).is_file():
        return
    pictures = recipe.album()
    reel, scale = recipe.reel(pictures), recipe.scale
    clips = held_out_clips(pictures.held_back, GATE_CLIPS)
    check = {name: some[:12] for name, some in clips.items()}
    for times in (1, 2):
        vae = train_vae(
            recipe.work,
            recipe.budget("vae", times),
            reel,
            batch=scale.halves,
            rates=scale.vae_rates,
            check=check,
            log_every=scale.log_every,
            check_every=scale.check_every,
        )
        measured = measure_vae(vae, clips)
        recipe.log("gates of the autoencoder", budget=times, passed=Gates().passed(measured), **measured)
        if reached(measured, Gates(), times == 2 or recipe.minutes is not None):
            return


def fold(recipe: Recipe) -> None:
    """Write the autoencoder whose latents' channels have unit variance or, where they show more, a larger one."""
    if (recipe.work / FOLDED).is_file():
        return
    groups, facts = checkpoint.load(recipe.work / "vae.safetensors")
    vae = make_vae().to(recipe.device)
    vae.load_state_dict(groups["average"])
    reel = recipe.reel(recipe.album(), FOLD_CLIPS, 700_001)
    generator = checkpoint.generators(1)
    with torch.no_grad():
        latents = torch.cat([vae.encode(reel.batch(8, False, generator)) for _ in range(FOLD_CLIPS // 4)])
    fold_normalization(vae, latents)
    with torch.no_grad():
        few = vae.encode(reel.batch(SIZED_CLIPS, False, generator)) * SCALE_FACTOR
    sizes = coarse_to_fine(vae, few)
    fold_sizes(vae, sizes)
    recipe.log("sizes of the latents' channels", sizes=[round(size, 2) for size in sizes.tolist()])
    checkpoint.save(recipe.work / FOLDED, {"model": vae.state_dict()}, {"step": facts["step"]})


def load_folded(recipe: Recipe) -> ViTVAE:
    """The autoencoder whose latents the transformer is trained on."""
    vae = make_vae()
    vae.load_state_dict(checkpoint.load(recipe.work / FOLDED)[0]["model"])
    return vae.to(recipe.device).eval()


def fill_pool(recipe: Recipe) -> None:
    """Film and encode clips of five seconds; what a card has as footage is encoded when it is needed."""
    from training.latents import make_pools

    if recipe.footage is None:
        make_pools(recipe.work, load_folded(recipe), recipe.album().trained, recipe.share)
    else:
        recipe.log("footage", clips=recipe.footage.count)


def train_transformer(recipe: Recipe) -> None:
    """Single chunks, windows, full windows: each phase's steps behind those of the phases before.

    One that is carried over knows the world, and learns full windows alone.
    """
    from training.train_dit import train_dit

    if recipe.carry and not (recipe.work / TRANSFORMER).is_file():
        carry(recipe, recipe.carry)
    first, scale = 0, recipe.scale
    for stage, phase, peak in CARRIED_PHASES if recipe.carry else PHASES:
        budget = recipe.budget(stage, first_step=first)
        train_dit(
            recipe.work,
            budget,
            phase=phase,
            peak=peak,
            pool=recipe.pool(),
            chunks_per_batch=scale.chunks,
            log_every=scale.log_every,
        )
        first += budget.steps or 0


def carry(recipe: Recipe, before: Path) -> None:
    """Begin the transformer with that of the model folder `before`, fitted to the latents of this autoencoder.

    Raises:
        InputError: there is no such model.
    """
    from training.carry import carry_over, fit, latents_of, nearest_rotation, read_autoencoder, read_transformer

    old, model = read_autoencoder(before), read_transformer(before)
    clips = Reel(recipe.album().trained, first=FOLD_CLIPS).batch(FOLD_CLIPS, False, checkpoint.generators(2))
    matrix = fit(*(latents_of(vae, clips) * SCALE_FACTOR for vae in (old, load_folded(recipe).cpu())))
    carry_over(model, matrix)
    apart = float((matrix - nearest_rotation(matrix)).norm() / matrix.norm())
    recipe.log("carried over", before=before.name, apart_from_a_rotation=round(apart, 3))
    weights = {name: tensor.detach() for name, tensor in model.named_parameters()}
    checkpoint.save(recipe.work / TRANSFORMER, {"model": weights, "average": weights}, {"step": 0, "phase": "full"})


def train_student(recipe: Recipe) -> None:
    """One model for 8 to 64 steps."""
    from training.distill import distill

    distill(
        recipe.work,
        recipe.budget("distill"),
        guidance=recipe.guidance,
        pool=recipe.pool(),
        chunks_per_batch=recipe.scale.chunks,
    )


def tune(recipe: Recipe) -> None:
    """Train the decoder on what the distilled transformer makes; the latents stay."""
    from training.text_model import make_tokenizer
    from training.train_dit import make_model

    if (recipe.work / TUNED).is_file():
        return
    vae, scale = load_folded(recipe), recipe.scale
    student, tokenizer, pictures = make_model().to(recipe.device).eval(), make_tokenizer(), recipe.album()
    student.load_state_dict(checkpoint.load(recipe.work / "distilled.safetensors")[0]["average"], strict=False)
    held_back = Takes(student, vae, tokenizer, pictures.held_back, first=CHECKED_TAKES, seed=HELD_OUT)
    recipe.log("takes of the decoder", **measure_takes(vae, held_back))
    takes = Takes(student, vae, tokenizer, pictures.trained, FIRST_TAKES, footage=recipe.footage, together=scale.takes)
    tuned = refine_decoder(
        recipe.work,
        recipe.budget("tune"),
        made_latents(takes, recipe.reel(pictures, seed=60_000), scale.halves),
        vae.state_dict(),
        check=held_out_clips(pictures.held_back, 12),
        log_every=scale.log_every,
        check_every=scale.check_every,
        device=recipe.device,
    )
    clips = held_out_clips(pictures.held_back, GATE_CLIPS)
    recipe.log("takes of the tuned decoder", **measure_takes(tuned, held_back), **measure_vae(tuned, clips))
    _, facts = checkpoint.load(recipe.work / "tune.safetensors")
    checkpoint.save(recipe.work / TUNED, {"model": tuned.state_dict()}, {"step": facts["step"]})


def write_model(recipe: Recipe) -> None:
    """The model folder.

    Raises:
        InputError: it is the one that the mean is to be made with, or that one does not fit.
    """
    from training.export import average_with, export, from_work

    folder = recipe.out or recipe.work / "demo"
    if recipe.before and recipe.before.resolve() == folder.resolve():
        raise InputError(f"{folder} would be overwritten before the mean with it is made; choose another --out.")
    export(folder, from_work(recipe.work, distilled=recipe.distilled))
    if recipe.before:
        average_with(folder, recipe.before)
