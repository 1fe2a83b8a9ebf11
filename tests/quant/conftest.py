"""Fresh random numbers every run; the seed is printed with a failure."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
import torch


@pytest.fixture
def generator() -> Iterator[torch.Generator]:
    seed = random.SystemRandom().randrange(2**31)
    print(f"seed {seed}")
    torch.set_num_threads(1)
    yield torch.Generator().manual_seed(seed)
