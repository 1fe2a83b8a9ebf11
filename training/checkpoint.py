"""A training run on disk: weights, average, optimizer and generator as safetensors, to go on from bit for bit."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from magi_lite.errors import CheckpointError
from magi_lite.files import write_tensors


@dataclass
class Budget:
    """How long a run lasts: minutes, or a number of steps (then everything is reproducible)."""

    minutes: float | None = None
    steps: int | None = None
    started: float = field(default_factory=time.monotonic)
    first_step: int = 0

    def fraction(self, step: int) -> float:
        """How much of the budget is used at `step`; 1 and more: stop."""
        if self.steps is not None:
            return (step - self.first_step) / self.steps
        assert self.minutes is not None
        return (time.monotonic() - self.started) / (60 * self.minutes)


def save(path: Path, groups: dict[str, dict[str, Tensor]], facts: dict[str, object]) -> None:
    """Write named groups of tensors and JSON-able facts, whole or not at all."""
    tensors = {f"{g}:{n}": t for g, group in groups.items() for n, t in group.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_tensors(path, tensors, {"facts": json.dumps(facts)})


def load(path: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, object]]:
    """Read what `save` wrote.

    Raises:
        CheckpointError: not there, or not a training checkpoint.
    """
    if not path.is_file():
        raise CheckpointError(f"There is no training checkpoint {path}; run the earlier stage of the training first.")
    groups: dict[str, dict[str, Tensor]] = {}
    with safe_open(path, "pt") as file:
        facts = (file.metadata() or {}).get("facts")
        if facts is None:
            raise CheckpointError(f"{path} is not a training checkpoint; name the folder of a training run.")
        for key in file.keys():  # noqa: SIM118 - a safetensors file is no mapping
            group, name = key.split(":", 1)
            groups.setdefault(group, {})[name] = file.get_tensor(key)
    return groups, json.loads(facts)


def generators(seed: int) -> torch.Generator:
    """The generator from which a training run draws everything."""
    return torch.Generator().manual_seed(seed)


def log(path: Path, line: str) -> None:
    """Append a line with the time of day to a run's log and show it."""
    stamp = time.strftime("%H:%M:%S")
    print(stamp, line, flush=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(f"{stamp} {line}\n")
