"""The transformer's stages as one rank runs them: importable by name, as processes that are started need it."""

from __future__ import annotations

import argparse

from training.checkpoint import Budget
from training.distill import distill
from training.train_dit import Ranks, train_dit


def train(arguments: argparse.Namespace, ranks: Ranks) -> None:
    """The transformer's stages, as one of the ranks."""
    budget = Budget(minutes=arguments.minutes, steps=arguments.steps)
    if arguments.stage == "distill":
        distill(arguments.work, budget, ranks=ranks, teacher_parts=arguments.teacher_parts, guidance=arguments.guidance)
    else:
        train_dit(arguments.work, budget, ranks=ranks, phase=arguments.phase, peak=arguments.peak, flat=arguments.flat)
