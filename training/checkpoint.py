"""A training run on disk: weights, average, optimizer and generator as safetensors, to go on from bit for bit."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from magi_lite.errors import CheckpointError
from magi_lite.files import write_tensors


@dataclass(frozen=True)
class Budget:
    """How long a stage lasts: until `steps` steps are made behind the first `first_step`, in one run or in many."""

    steps: int
    first_step: int = 0

    def fraction(self, step: int) -> float:
        """How much of the budget is used at `step`; 1 and more: stop."""
        return (step - self.first_step) / self.steps


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


@contextmanager
def nothing() -> Iterator[None]:
    """A context that does nothing."""
    yield


def record(path: Path, what: str, **facts: object) -> None:
    """Append a JSON line with the time of day to a run's log and show it."""
    line = json.dumps({"at": time.strftime("%Y-%m-%d %H:%M:%S"), "what": what, **facts})
    print(line, flush=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")
