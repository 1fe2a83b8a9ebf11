"""A training run on disk: weights, average, optimizer and generator as safetensors, to go on from bit for bit."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from magi_lite.errors import CheckpointError
from magi_lite.files import write_tensors


@dataclass(frozen=True)
class Budget:
    """How long a stage lasts: until `steps` steps are made behind the first `first_step`, in one run or in many, or
    until its runs have lasted for `seconds` together, whichever comes first; None of one: the other alone counts.
    """

    steps: int | None = None
    first_step: int = 0
    seconds: float | None = None

    def __post_init__(self) -> None:
        if self.steps is None and self.seconds is None:
            raise ValueError("A budget without steps and without seconds never ends.")

    def fraction(self, step: int, passed: float = 0.0) -> float:
        """How much of the budget is used at `step`, after `passed` seconds; 1 and more: stop."""
        of_steps = (step - self.first_step) / self.steps if self.steps is not None else 0.0
        of_time = passed / self.seconds if self.seconds is not None else 0.0
        return max(of_steps, of_time)


def save(path: Path, groups: dict[str, dict[str, Tensor]], facts: dict[str, object]) -> None:
    """Write named groups of tensors and JSON-able facts, whole or not at all."""
    tensors = {f"{g}:{n}": t for g, group in groups.items() for n, t in group.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_tensors(path, tensors, {"facts": json.dumps(facts)})


def load(path: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
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


@dataclass
class Spent:
    """Seconds that every stage of a run has lasted, over all its calls; written with the checkpoint's facts."""

    by_stage: dict[str, float]
    stage: str
    began: float = field(default_factory=time.monotonic)

    @classmethod
    def of(cls, facts: dict[str, Any], stage: str) -> Spent:
        return cls(dict(facts.get("spent", {})), stage)

    def begin(self) -> None:
        """The stage begins, or goes on, now."""
        self.began = time.monotonic()

    @property
    def before(self) -> float:
        return self.by_stage.get(self.stage, 0.0)

    @property
    def seconds(self) -> float:
        """Of this stage until now."""
        return self.before + time.monotonic() - self.began

    def note(self) -> dict[str, float]:
        """For the facts."""
        return self.by_stage | {self.stage: round(self.seconds, 1)}


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the processor's on a device, without waiting until a card has done what it is at."""
    return tensor.to(device, non_blocking=True)


def draw_noise(shape: Sequence[int], generator: torch.Generator, device: torch.device) -> Tensor:
    """Normal numbers on a device; a card draws them itself, from a seed of the generator's."""
    if device.type == "cpu":
        return torch.randn(tuple(shape), generator=generator)
    seed = int(torch.randint(2**62, (), generator=generator))
    return torch.randn(tuple(shape), generator=torch.Generator(device).manual_seed(seed), device=device)


def record(path: Path, what: str, **facts: object) -> None:
    """Append a JSON line with the time of day to a run's log and show it."""
    line = json.dumps({"at": time.strftime("%Y-%m-%d %H:%M:%S"), "what": what, **facts})
    print(line, flush=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")
