"""Train the demo model: `python -m training STAGE --work DIR --minutes N`.

The recipe, each stage resumable (call it again; checkpoints and logs lie in DIR):

    vae       autoencoder until about 31 dB (620 steps of 16 half seconds), then `fold`
    fold      latents to unit variance, inside the autoencoder's own linears (once)
    pool      film and encode clips: --clips 2600 --seconds 3 --seed 1 (again with another seed for more)
    dit       transformer, text encoder, special tokens: --phase single, then --phase windows --peak 0.6
    distill   one model for 8 to 64 steps
    decoder   the decoder alone goes on, latents frozen: sharper pictures for the same transformer
    export    what DIR holds as a model folder (--out, default DIR/demo)

`--ranks 2` trains the transformer in two processes that average their gradients.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import torch

from magi_lite.errors import MagiLiteError
from magi_lite.vae.model import ViTVAE
from training import checkpoint
from training.checkpoint import Budget

STAGES = ("vae", "fold", "pool", "dit", "distill", "decoder", "export")
FOLDED = "vae_folded.safetensors"
FINAL = "vae_final.safetensors"


def load_folded(work: Path, name: str = FOLDED) -> ViTVAE:
    """The autoencoder whose latents have unit variance."""
    from training.train_vae import make_vae

    vae = make_vae()
    vae.load_state_dict(checkpoint.load(work / name)[0]["model"])
    return vae.eval()


def run(arguments: argparse.Namespace) -> None:
    """Run one stage."""
    work: Path = arguments.work
    work.mkdir(parents=True, exist_ok=True)
    budget = Budget(minutes=arguments.minutes, steps=arguments.steps)
    if arguments.stage == "vae":
        from training.train_vae import train_vae

        train_vae(work, budget)
    elif arguments.stage == "fold":
        fold(work)
    elif arguments.stage == "pool":
        from training.latents import make_pool
        from training.text_model import make_tokenizer

        vae, tokenizer = load_folded(work), make_tokenizer()
        pool = make_pool(vae, tokenizer, arguments.clips, arguments.seconds, arguments.seed, extended=arguments.wider)
        pool.save(work / f"pool-{arguments.seconds}s-{arguments.seed}.safetensors")
    elif arguments.stage in ("dit", "distill"):
        from training.stages import train

        stage = partial(train, arguments)
        if arguments.ranks > 1:
            from training.train_dit import run_ranks

            run_ranks(stage, work / ".meeting", arguments.ranks)
        else:
            from training.train_dit import ALONE

            stage(ALONE)
    elif arguments.stage == "export":
        from training.export import export, from_work

        export(arguments.out or work / "demo", from_work(work, distilled=not arguments.undistilled))
    else:
        refine_decoder(work, budget)


def fold(work: Path) -> None:
    """Write the autoencoder with unit-variance latents: DIR/vae_folded.safetensors."""
    from training.train_vae import fold_normalization, make_vae

    vae = make_vae()
    groups, facts = checkpoint.load(work / "vae.safetensors")
    vae.load_state_dict(groups["average"])
    fold_normalization(vae)
    checkpoint.save(work / FOLDED, {"model": vae.state_dict()}, {"step": facts["step"]})


def refine_decoder(work: Path, budget: Budget) -> None:
    """Train the folded autoencoder's decoder alone, in DIR/decoder; the result is DIR/vae_final.safetensors."""
    from training.train_vae import train_vae

    inner = work / "decoder"
    if not (inner / "vae.safetensors").is_file():
        weights = load_folded(work).state_dict()
        checkpoint.save(
            inner / "vae.safetensors", {"model": weights, "average": weights}, {"step": 0, "decoder_only": False}
        )
    vae = train_vae(inner, budget, decoder_only=True, rates=(1e-3, 0.008))
    checkpoint.save(work / FINAL, {"model": vae.state_dict()}, {"step": 0})


def main() -> int:
    """Parse the command line and run a stage; user's mistakes are one sentence."""
    parser = argparse.ArgumentParser(
        prog="python -m training", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--work", type=Path, required=True, help="folder of checkpoints, pools and logs")
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--steps", type=int, default=None, help="instead of minutes")
    parser.add_argument("--phase", choices=("single", "windows", "full"), default="single")
    parser.add_argument("--peak", type=float, default=1.0, help="share of the usual learning rates")
    parser.add_argument("--flat", type=float, default=0.4, help="share of the budget before rates fall")
    parser.add_argument("--guidance", type=float, default=2.0, help="text guidance that is distilled in")
    parser.add_argument("--teacher-parts", type=int, default=8, help="batches of 1/64 for each of 1/32, 1/16, 1/8")
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clips", type=int, default=2600)
    parser.add_argument("--seconds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--wider", type=float, default=0.4, help="a pool's share of the wider world, half collisions")
    parser.add_argument("--out", type=Path, default=None, help="where a model folder is written")
    parser.add_argument("--undistilled", action="store_true", help="export the model before distillation")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    try:
        run(arguments)
    except MagiLiteError as error:
        print(error)
        return error.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
