"""A compiled attention kernel is tried before it is trusted: once for each card, in a process of its own.

That a package imports says little. SageAttention swallows the failed import of its own extensions and fails at the
first call; a kernel that was built for other cards ("no kernel image") can end the process. So the trial runs apart,
with grouped queries, the model's head size and odd lengths, against the plain formula, and what it finds is a sentence.
"""

from __future__ import annotations

import json
import logging
import math
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from quant.storage.files import parse_json

HEADS, GROUPS, HEAD_SIZE, QUERIES, KEYS = 6, 2, 128, 200, 333
LIMITS = {"sage": 0.05}
"""Largest relative error by kernel: SageAttention multiplies in 8 bits."""
LIMIT = 0.01
PATIENCE_SECONDS = 180.0
"""Kernels may be compiled at their first call."""
_TRIAL = "import sys; sys.path.insert(0, sys.argv[1]); from magi_lite.attention_trial import main; main(*sys.argv[2:])"
_log = logging.getLogger(__name__)


def plain(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """The formula in float64; shapes as in `magi_lite.attention`."""
    q, k, v = (x.double().transpose(1, 2) for x in (query, key, value))
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
    weights = torch.softmax(q @ k.transpose(2, 3) / math.sqrt(q.shape[3]), dim=-1)
    return (weights @ v).transpose(1, 2)


def disagreement(
    kernel: Callable[[Tensor, Tensor, Tensor], Tensor], limit: float, device: str, kind: str
) -> str | None:
    """Call a kernel on random queries, keys and values; what is wrong with its answer, or None."""
    random = torch.Generator().manual_seed(0)
    query = torch.randn(1, QUERIES, HEADS, HEAD_SIZE, generator=random)
    key, value = (torch.randn(1, KEYS, GROUPS, HEAD_SIZE, generator=random) for _ in range(2))
    q, k, v = (x.to(device, getattr(torch, kind)) for x in (query, key, value))
    try:
        found = kernel(q, k, v).double().cpu()
    except Exception as error:  # whatever it raises, another kernel serves
        return f"it fails: {_first_line(error)}"
    wanted = plain(*(x.cpu() for x in (q, k, v)))
    if found.shape != wanted.shape:
        return f"it gives {tuple(found.shape)} where {tuple(wanted.shape)} belongs"
    if not found.isfinite().all():
        return "it gives numbers that are not finite"
    off = float((found - wanted).norm() / wanted.norm())
    return None if off < limit else f"its result is {100 * off:.1f} % off"


@lru_cache
def problem(name: str, device: str, kind: str) -> str | None:
    """Why a kernel of `magi_lite.attention` cannot be used on a device with this type; None where it works.

    Args:
        name: "flash" or "sage". device: as torch names it. kind: name of a type, such as "bfloat16".
    """
    root = str(Path(__file__).resolve().parents[1])
    command = [sys.executable, "-c", _TRIAL, root, name, device, kind]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return f"it did not answer within {PATIENCE_SECONDS:.0f} seconds"
    except OSError as error:
        _log.info("The attention kernel %s could not be tried: %s", name, error)
        return None
    if done.returncode:
        return f"it ends the program ({_ending(done.returncode)})"
    found: str | None = parse_json(done.stdout.splitlines()[-1])
    return found


def main(name: str, device: str, kind: str) -> None:
    """The trial itself: print what is wrong, or null, as JSON."""
    from magi_lite.attention import load

    try:
        kernel = load(name)
    except Exception as error:  # packages raise what they like when they are imported
        found: str | None = f"it does not load: {_first_line(error)}"
    else:
        found = disagreement(kernel, LIMITS.get(name, LIMIT), device, kind)
    print(json.dumps(found), flush=True)


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:200] if text else type(error).__name__


def _ending(code: int) -> str:
    try:
        return signal.Signals(-code).name if code < 0 else f"exit code {code}"
    except ValueError:
        return f"signal {-code}"
