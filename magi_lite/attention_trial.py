"""An attention kernel is tried before it is trusted: once for each card, in a process of its own.

That a package imports says little. SageAttention swallows the failed import of its own extensions and fails at the
first call; a kernel that was built for other cards ("no kernel image") can end the process; cuDNN has no plan for some
sizes. So the trial runs apart, with grouped queries, the model's head size, odd lengths and the strides of real calls,
against the plain formula, and what it finds is a sentence. A kernel that is right is measured beside PyTorch's own, at
a size where attention is most of a step. What was found is kept until the card, its driver or a package changes
(`machine.findings`), so that the choice, and with it the bits of a video, do not hang on how busy the card was.
"""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import lru_cache, partial
from importlib import metadata
from pathlib import Path

import torch
from torch import Tensor

from magi_lite.attention_choice import SHARED, Trial, question
from magi_lite.attention_shared import Reach, Share
from magi_lite.machine import devices, findings
from quant.storage.files import parse_json

HEADS, GROUPS, HEAD_SIZE, QUERIES, KEYS = 6, 2, 128, 200, 1333
LENGTHS = (KEYS, 311, 1024, 650)
"""Keys of the ranges that share them in a trial: odd, and at a block's end."""
LIMITS = {"sage": 0.08, SHARED: 0.08}
"""Largest relative error by kernel. SageAttention multiplies in 8 bits: its arithmetic, written out, is 3.8 to 4.3 %
off where values average to nothing, as the trial's do (`benchmarks/attention_error.py`)."""
LIMIT = 0.01
MEASURED_HEADS, MEASURED_GROUPS, MEASURED_QUERIES, MEASURED_KEYS = 24, 8, 8192, 16384
"""1.6 TFLOP: 10 ms on an RTX 4090, 80 ms on an RTX 3060."""
SAMPLED = 64
"""Queries of the large call that are compared with the formula."""
MEASUREMENTS = 5
PATIENCE_SECONDS = 180.0
"""Kernels may be compiled at their first call."""
PACKAGES = {"sage": "sageattention", SHARED: "sageattention", "flash": "flash_attn"}
_TRIAL = "import sys; sys.path.insert(0, sys.argv[1]); from magi_lite.attention_trial import main; main(*sys.argv[2:])"
Kernel = Callable[[Tensor, Tensor, Tensor], Tensor]


def plain(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """The formula in float64; shapes as in `magi_lite.attention`."""
    q, k, v = (x.double().transpose(1, 2) for x in (query, key, value))
    rows = q.unflatten(1, (k.shape[1], -1)).flatten(2, 3)  # a group's heads one after the other, as so many queries
    weights = torch.softmax(rows @ k.transpose(2, 3) / math.sqrt(q.shape[3]), dim=-1)
    return (weights @ v).unflatten(2, (-1, q.shape[2])).flatten(1, 2).transpose(1, 2)


def examine(kernel: Kernel, limit: float, device: str, kind: str) -> Trial:
    """Call a kernel on random queries, keys and values; on a card at a large size, too, where it is measured."""
    try:
        fault = disagreement(kernel, limit, _example(device, kind, HEADS, GROUPS, QUERIES, KEYS))
        if fault or torch.device(device).type != "cuda":
            return Trial(fault)
        large = _example(device, kind, MEASURED_HEADS, MEASURED_GROUPS, MEASURED_QUERIES, MEASURED_KEYS)
        fault = disagreement(kernel, limit, large, slice(0, MEASURED_QUERIES, MEASURED_QUERIES // SAMPLED))
        if fault:
            return Trial(fault)
        from magi_lite.attention import sdpa

        return Trial(speedup=round(_seconds(sdpa, large) / _seconds(kernel, large), 3))
    except Exception as error:  # whatever it raises, another kernel serves
        return Trial(f"it fails: {_first_line(error)}", lasting=not devices.is_out_of_memory(error))


def examine_shared(share: Share, limit: float, device: str, kind: str) -> Trial:
    """As `examine`, of ranges that begin together; its time is that of the kernel by itself."""
    try:
        query, key, value = _example(device, kind, HEADS, GROUPS, QUERIES, KEYS)
        reaches = [Reach(key, value, length) for length in LENGTHS]
        for reach, reader in zip(reaches, share(reaches), strict=True):
            fault = disagreement(lambda query, *_, reader=reader: reader(query), limit, (query, *reach.seen))
            if fault:
                return Trial(fault)
        return Trial()
    except Exception as error:  # whatever it raises, the public function serves
        return Trial(f"it fails: {_first_line(error)}", lasting=not devices.is_out_of_memory(error))


def _example(device: str, kind: str, heads: int, groups: int, queries: int, keys: int) -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(0)
    query = torch.randn(1, queries, heads, HEAD_SIZE, generator=random)
    both = (torch.randn(1, 2, keys, groups, HEAD_SIZE, generator=random) for _ in range(2))
    # As the model's: a range of chunks is a view into the tensor of all of them.
    key, value = (x.to(device, getattr(torch, kind))[:, 1:].flatten(1, 2) for x in both)
    return query.to(device, getattr(torch, kind)), key, value


def disagreement(
    kernel: Kernel, limit: float, given: tuple[Tensor, Tensor, Tensor], sampled: slice = slice(None)
) -> str:
    """What is wrong with a kernel's answer, in the sampled queries, or an empty string."""
    query, key, value = given
    found = kernel(query, key, value)
    if found.shape != query.shape:
        return f"it gives {tuple(found.shape)} where {tuple(query.shape)} belongs"
    if not found.isfinite().all():
        return "it gives numbers that are not finite"
    wanted = plain(*(x.cpu() for x in (query[:, sampled], key, value)))
    off = float((found[:, sampled].double().cpu() - wanted).norm() / wanted.norm())
    return "" if off < limit else f"its result is {100 * off:.1f} % off"


def _seconds(kernel: Kernel, given: tuple[Tensor, Tensor, Tensor]) -> float:
    """The median of some calls, after one more."""
    times = []
    for _ in range(MEASUREMENTS + 1):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        kernel(*given)
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return sorted(times[1:])[MEASUREMENTS // 2]


@lru_cache
def trial(name: str, device: str, kind: str) -> Trial:
    """Whether a kernel of `magi_lite.attention` can be used on a device with this type, and how fast it is.

    Args:
        name: "flash", "sage", `SHARED` or "cudnn". device: as torch names it. kind: name of a type, such as "bfloat16".
    """
    if torch.device(device).type != "cuda":
        return _apart(name, device, kind)
    index = torch.device(device).index or 0
    results = []

    def ask() -> findings.Finding | None:
        results.append(_apart(name, device, kind))
        return asdict(results[0]) if results[0].lasting else None

    kept = findings.find(question(name, _version(name), kind, devices.identity(index)), ask)
    if results or kept is None:
        return results[0]
    try:
        return Trial.of(kept)
    except ValueError:
        return _apart(name, device, kind)


def _version(name: str) -> str:
    if name not in PACKAGES:
        return str(torch.backends.cudnn.version())
    for package in (PACKAGES[name], PACKAGES[name].replace("_", "-")):
        try:
            return metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return "unknown"


def _apart(name: str, device: str, kind: str) -> Trial:
    root = str(Path(__file__).resolve().parents[1])
    command = [sys.executable, "-c", _TRIAL, root, name, device, kind]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return Trial(f"it did not answer within {PATIENCE_SECONDS:.0f} seconds", lasting=False)
    except OSError as error:
        return Trial(f"it could not be tried: {error}", lasting=False)
    if done.returncode:
        by_chance = done.returncode == -getattr(signal, "SIGKILL", 9)  # who kills is the system, short of memory
        return Trial(f"it ends the program ({_ending(done.returncode)})", lasting=not by_chance)
    try:
        return Trial.of(parse_json(done.stdout.splitlines()[-1]))
    except (ValueError, IndexError):
        return Trial("its trial gave no answer", lasting=False)


def main(name: str, device: str, kind: str) -> None:
    """The trial itself: print what was found, as JSON."""
    from magi_lite.attention import load, load_share

    limit = LIMITS.get(name, LIMIT)
    try:
        examined = partial(examine_shared, load_share(device)) if name == SHARED else partial(examine, load(name))
    except Exception as error:  # packages raise what they like when they are imported
        found = Trial(f"it does not load: {_first_line(error)}")
    else:
        found = examined(limit, device, kind)
    print(json.dumps(asdict(found)), flush=True)


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:200] if text else type(error).__name__


def _ending(code: int) -> str:
    try:
        return signal.Signals(-code).name if code < 0 else f"exit code {code}"
    except ValueError:
        return f"signal {-code}"
