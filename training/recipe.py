"""The recipe's stages, their budgets and the gates between them; `python -m training` runs them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from magi_lite.errors import InputError
from magi_lite.models import SCALE_FACTOR
from magi_lite.vae.model import ViTVAE
from training import checkpoint
from training.checkpoint import Budget
from training.neighbours import look_around
from training.photographs import Album, album
from training.reel import HELD_OUT, Reel
from training.takes import Takes
from training.train_vae import (
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
    true_latents,
)

STAGES = ("vae", "fold", "decoder", "pool", "dit", "distill", "tune", "export")
STEPS = {"vae": 700, "decoder": 2000, "single": 7300, "windows": 4000, "full": 9350, "distill": 500, "tune": 1600}
"""Steps of every stage; after those of the whole autoencoder its decoder goes on alone."""
FOLDED, FINAL, TUNED = "vae_folded.safetensors", "vae_final.safetensors", "vae_tuned.safetensors"
FOLD_CLIPS = 96
"""Clips of each kind that the latents' mean and deviation are taken from."""
SIZED_CLIPS = 24
"""Half seconds on which it is measured what every channel shows."""
GATE_CLIPS = 32
"""Clips of each kind that the gates are measured on."""
TUNING_RATES = (1e-3, 0.006)
FIRST_TAKES, CHECKED_TAKES = 100, 32
"""Seconds as the transformer makes them: with which the tuning begins, and on which it is measured."""


@dataclass(frozen=True)
class Recipe:
    """A training run: its folder, the share of every budget, the guidance that is distilled in, what is exported.

    `before`: the model folder that the run has gone on from, if the mean of both is to be exported.
    """

    work: Path
    share: float = 1.0
    guidance: float = 2.0
    out: Path | None = None
    distilled: bool = True
    before: Path | None = None

    def steps(self, stage: str) -> int:
        return max(1, round(STEPS[stage] * self.share))

    def album(self) -> Album:
        """The photographs in the work folder, or none: the world alone can be trained on."""
        try:
            return album(self.work / "photos", self.work / "album.safetensors")
        except InputError:
            return Album((), (), (), ())

    def log(self, what: str, **facts: object) -> None:
        checkpoint.record(self.work / "training.jsonl", what, **facts)


def run(stage: str, recipe: Recipe) -> None:
    """Run a stage of `STAGES`, or go on with it; one that is done does nothing."""
    recipe.work.mkdir(parents=True, exist_ok=True)
    {
        "vae": train_autoencoder,
        "fold": fold,
        "decoder": sharpen,
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
    reel = Reel(pictures.trained)
    clips = held_out_clips(pictures.held_back, GATE_CLIPS)
    check = {name: some[:12] for name, some in clips.items()}
    for times in (1, 2):
        vae = train_vae(recipe.work, Budget(steps=times * recipe.steps("vae")), reel, check=check)
        measured = measure_vae(vae, clips)
        recipe.log("gates of the autoencoder", budget=times, passed=Gates().passed(measured), **measured)
        if reached(measured, Gates(), times == 2):
            return


def fold(recipe: Recipe) -> None:
    """Write the autoencoder whose latents' channels have unit variance or, where they show more, a larger one."""
    if (recipe.work / FOLDED).is_file():
        return
    groups, facts = checkpoint.load(recipe.work / "vae.safetensors")
    vae = make_vae()
    vae.load_state_dict(groups["average"])
    reel = Reel(recipe.album().trained, first=FOLD_CLIPS, seed=700_001)
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


def load_folded(work: Path, name: str = FOLDED) -> ViTVAE:
    """The autoencoder whose latents the transformer is trained on."""
    vae = make_vae()
    vae.load_state_dict(checkpoint.load(work / name)[0]["model"])
    return vae.eval()


def sharpen(recipe: Recipe) -> None:
    """Train the decoder alone; the gates are measured once more, and the better decoder is kept."""
    if (recipe.work / FINAL).is_file():
        return
    pictures = recipe.album()
    clips = held_out_clips(pictures.held_back, GATE_CLIPS)
    folded = load_folded(recipe.work)
    reel = Reel(pictures.trained, seed=50_000)
    check = {name: some[:12] for name, some in clips.items()}
    budget = Budget(steps=recipe.steps("decoder"))
    vae = refine_decoder(recipe.work, budget, true_latents(reel), folded.state_dict(), check=check)
    measured = measure_vae(vae, clips)
    recipe.log("gates of the decoder", passed=Gates().passed(measured), **measured)
    checkpoint.save(recipe.work / FINAL, {"model": vae.state_dict()}, {"step": recipe.steps("decoder")})


def fill_pool(recipe: Recipe) -> None:
    """Film and encode clips of five seconds."""
    from training.latents import make_pools

    make_pools(recipe.work, load_folded(recipe.work), recipe.album().trained, recipe.share)


def train_transformer(recipe: Recipe) -> None:
    """Single chunks, windows, full windows: each phase's steps behind those of the phases before."""
    from training.train_dit import train_dit

    until = 0
    for phase, peak in (("single", 1.0), ("windows", 0.7), ("full", 0.5)):
        begin, until = until, until + recipe.steps(phase)
        train_dit(recipe.work, Budget(steps=until - begin, first_step=begin), phase=phase, peak=peak)


def train_student(recipe: Recipe) -> None:
    """One model for 8 to 64 steps."""
    from training.distill import distill

    distill(recipe.work, Budget(steps=recipe.steps("distill")), guidance=recipe.guidance)


def tune(recipe: Recipe) -> None:
    """Set the decoder anew, looking around, and train it on what the distilled transformer makes; the latents stay."""
    from training.text_model import make_tokenizer
    from training.train_dit import make_model

    if (recipe.work / TUNED).is_file():
        return
    vae = load_folded(recipe.work, FINAL if (recipe.work / FINAL).is_file() else FOLDED)
    student, tokenizer, pictures = make_model().eval(), make_tokenizer(), recipe.album()
    student.load_state_dict(checkpoint.load(recipe.work / "distilled.safetensors")[0]["average"], strict=False)
    held_back = Takes(student, vae, tokenizer, pictures.held_back, first=CHECKED_TAKES, seed=HELD_OUT)
    recipe.log("takes of the decoder", **measure_takes(vae, held_back))
    takes = Takes(student, vae, tokenizer, pictures.trained, first=FIRST_TAKES)
    look_around(vae, *takes.halves())  # takes need its encoder alone
    tuned = refine_decoder(
        recipe.work,
        Budget(steps=recipe.steps("tune")),
        made_latents(takes, Reel(pictures.trained, seed=60_000)),
        vae.state_dict(),
        name="tune",
        judged_from=1.0,
        rates=TUNING_RATES,
        by_width=True,
        check=held_out_clips(pictures.held_back, 12),
    )
    clips = held_out_clips(pictures.held_back, GATE_CLIPS)
    recipe.log("takes of the tuned decoder", **measure_takes(tuned, held_back), **measure_vae(tuned, clips))
    checkpoint.save(recipe.work / TUNED, {"model": tuned.state_dict()}, {"step": recipe.steps("tune")})


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
