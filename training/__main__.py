"""Train the demo model: `python -m training all --work DIR`.

The recipe, each stage resumable (call the same again; checkpoints and the log `training.jsonl` lie in DIR):

    vae       autoencoder on half seconds of the world and of photographs, until its gates are passed, then `fold`
    fold      latents to zero mean and the sizes that suit, inside the autoencoder's own linears (once)
    pool      film and encode clips of five seconds
    dit       transformer, text encoder and special tokens: single chunks, then windows, then full windows
    distill   one model for 8 to 64 steps
    tune      the decoder alone, on latents as that model makes them
    export    what DIR holds as a model folder (--out, default DIR/demo); with --before FOLDER the mean with that model
    all       everything that is not done yet, in this order

On a card: `python -m training all --work DIR --device cuda --minutes 17` films with half of the processor's cores
meanwhile, keeps the clips in the card's memory (3.3 MB each) and shares the minutes among the stages.

With --carry FOLDER the transformer begins with that model's, fitted to the latents of DIR's autoencoder, and learns
full windows alone.

Photographs lie in DIR/photos, unpacked from the packages that training/CREDITS.md names. `--share 0.5` halves every
budget of steps. A gate that is not passed after twice its budget (with --minutes, after its share of them) is stated in
the log, and the training goes on.
"""

from __future__ import annotations

import argparse
from contextlib import nullcontext
from pathlib import Path

import torch

from magi_lite.errors import MagiLiteError
from training.recipe import STAGES, Recipe, run


def main() -> int:
    """Parse the command line and run a stage; user's mistakes are one sentence."""
    parser = argparse.ArgumentParser(
        prog="python -m training", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stage", choices=(*STAGES, "all"))
    parser.add_argument("--work", type=Path, required=True, help="folder of photographs, checkpoints, clips and log")
    parser.add_argument("--share", type=float, default=1.0, help="of every budget of steps")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--guidance", type=float, default=2.0, help="text guidance that is distilled in")
    parser.add_argument("--out", type=Path, default=None, help="where a model folder is written")
    parser.add_argument("--undistilled", action="store_true", help="export the model before distillation")
    parser.add_argument("--before", type=Path, default=None, help="the model that training went on from, for the mean")
    parser.add_argument("--carry", type=Path, default=None, help="the model whose transformer is gone on with")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--minutes", type=float, default=None, help="for all stages, in place of numbers of steps")
    parser.add_argument("--clips", type=int, default=12_000, help="that a card keeps, of five seconds each")
    arguments = parser.parse_args()
    for name in ("share", "threads", "minutes", "clips"):
        value = getattr(arguments, name)
        if value is not None and not value > 0:
            parser.error(f"--{name} must be more than 0, not {value:g}")
    torch.set_num_threads(arguments.threads)
    recipe = Recipe(
        arguments.work,
        arguments.share,
        arguments.guidance,
        arguments.out,
        not arguments.undistilled,
        arguments.before,
        minutes=arguments.minutes,
        carry=arguments.carry,
    )
    try:
        with recipe.on_card(arguments.clips) if arguments.device == "cuda" else nullcontext(recipe) as recipe:
            for stage in STAGES if arguments.stage == "all" else (arguments.stage,):
                run(stage, recipe)
    except MagiLiteError as error:
        print(error)
        return error.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
