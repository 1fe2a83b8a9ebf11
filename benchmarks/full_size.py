"""A whole model of the published size on this machine, with random weights: does it load, run, and keep to the plan?

`python benchmarks/full_size.py` writes the 4.5B model in the published layout with its true tensor names, shard by
shard, and makes two seconds of video as a run does, text encoder and decoding included, for each precision that a
processor has, and another one, whose plan knows what the first run took. Beside each plan stands the truth: seconds,
the peak of anonymous memory (what cannot be dropped) and of resident memory (mapped files included), and what was read
from the disk. All is deleted in the end. It needs 40 GB of disk and 16 GB of RAM and says so; each precision runs in a
process of its own, which is ended after `--minutes`. `--tiny` does the same with a small configuration, for the tests.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.figures import RESULTS, save

if TYPE_CHECKING:
    from magi_lite.planner import Plan

ROOT = Path(__file__).resolve().parents[1]
DISK_GB, RAM_GB = 40, 16
SCHEMES = ("bf16", "fp8", "int8", "nf4")
SHARD_BYTES = 2 << 30
EVERY = 0.05
"""Seconds between looks at the memory."""
FAMILY = Path("ckpt/magi/4.5B_distill/inference_weight.distill")


def main(arguments: list[str] | None = None) -> int:
    """Write, measure, delete; the results as JSON."""
    from magi_lite.machine import devices

    parser = argparse.ArgumentParser(description="Load and step a model of the published size, with random weights.")
    parser.add_argument("--tiny", action="store_true", help="a small configuration: seconds instead of an hour")
    parser.add_argument("--schemes", nargs="+", choices=SCHEMES, default=list(SCHEMES))
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="where weights go meanwhile")
    parser.add_argument("--minutes", type=float, default=60.0, help="most for each precision")
    parser.add_argument("--out", type=Path, default=RESULTS / "full_size.json", help="the results, as JSON")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    asked = parser.parse_args(arguments)
    if asked.measure:
        print(json.dumps(measure(Path(asked.measure), asked.schemes[0])))
        return 0
    problem = "" if asked.tiny else shortage(asked.folder)
    if problem:
        print(problem, file=sys.stderr)
        return 1
    root = Path(tempfile.mkdtemp(prefix="magi-full-size-", dir=asked.folder))
    try:
        began = time.monotonic()
        write_model(root, tiny=asked.tiny)
        os.sync()  # else the disk is busy with it while the first precision is measured
        size = sum(path.stat().st_size for path in root.rglob("*") if path.is_file())
        found: dict[str, Any] = {
            "tiny": asked.tiny,
            "processor": {"cores": devices.usable_cores()},
            "model_bytes": size,
            "write_seconds": round(time.monotonic() - began, 1),
            "schemes": {scheme: in_child(root, scheme, asked.minutes) for scheme in asked.schemes},
        }
    finally:
        shutil.rmtree(root, ignore_errors=True)
    print(save(asked.out, found))
    return 0


def shortage(folder: Path) -> str:
    """What is missing for the full size, in a sentence; empty: nothing."""
    from magi_lite.machine import devices

    disk, ram = shutil.disk_usage(folder).free / 1e9, devices.free_ram_bytes() / 1e9
    if disk >= DISK_GB and ram >= RAM_GB:
        return ""
    return (
        f"This needs {DISK_GB} GB of disk and {RAM_GB} GB of RAM; {folder} has {disk:.0f} GB and {ram:.0f} GB of RAM "
        "are free. Choose another --folder, close other programs, or try --tiny."
    )


# --- writing ---------------------------------------------------------------------------------------------------------


def write_model(root: Path, *, tiny: bool) -> None:
    """A model in the published layout under `root`: true names and shapes, random numbers, one shard at a time."""
    from magi_lite.weights.demo import make_untrained

    make_untrained(root)  # tokenizer, special tokens and the form of the configurations; the rest is replaced
    small = root / "ckpt" / "magi" / "demo"
    config = json.loads((small / "config.json").read_text())
    family = root / FAMILY
    family.mkdir(parents=True)
    (family.parent / "config.json").write_text(json.dumps(config if tiny else published(config)))
    shutil.rmtree(small)
    write_transformer(family)
    if not tiny:
        write_text_encoder(root / "ckpt" / "t5" / "demo")
        write_autoencoder(root / "ckpt" / "vae")
        write_tokens(root)


def published(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration with the published 4.5B shape in place of the small one."""
    from magi_lite.models import MODELS

    shape = dataclasses.asdict(MODELS["4.5B-distill"].dit)
    return config | {"model_config": {("kv_channels" if k == "head_dim" else k): v for k, v in shape.items()}}


def write_transformer(folder: Path) -> None:
    """The transformer that the configuration beside the folder describes, in 16 bits."""
    import torch

    from magi_lite.dit.model import DiT, parameter_dtype
    from magi_lite.models import DiTConfig

    shape = DiTConfig.from_published(json.loads((folder.parent / "config.json").read_text())["model_config"])
    with torch.device("meta"):
        state = DiT(shape).state_dict()
    write_shards(folder, state, lambda name: parameter_dtype(name, torch.bfloat16))


def write_text_encoder(folder: Path) -> None:
    """T5-XXL's encoder in 16 bits, with the small tokenizer that is there."""
    import torch
    from transformers import T5Config, T5EncoderModel

    from magi_lite.models import T5_XXL as shape

    config = T5Config(
        vocab_size=shape.vocabulary, d_model=shape.width, d_kv=shape.head_dim, d_ff=shape.feed_forward,
        num_layers=shape.layers, num_heads=shape.heads, feed_forward_proj="gated-gelu",
    )  # fmt: skip
    with torch.device("meta"):
        state = T5EncoderModel(config).state_dict()
    state.pop("encoder.embed_tokens.weight")  # the same tensor as shared.weight
    (folder / "model.safetensors").unlink()
    (folder / "config.json").write_text(json.dumps(config.to_dict()))
    write_shards(folder, state, lambda name: torch.bfloat16)


def write_autoencoder(folder: Path) -> None:
    """The published autoencoder in 32 bits."""
    import torch

    from magi_lite.models import VAE_PUBLISHED
    from magi_lite.vae.model import ViTVAE

    with torch.device("meta"):
        state = ViTVAE(VAE_PUBLISHED).state_dict()
    for path in folder.glob("*.safetensors"):
        path.unlink()
    content = {"_class_name": "ViTVAE", "ddconfig": dataclasses.asdict(VAE_PUBLISHED)}
    (folder / "config.json").write_text(json.dumps(content))
    write_shards(folder, state, lambda name: torch.float32)


def write_tokens(root: Path) -> None:
    """Special tokens of the published width."""
    import torch

    from magi_lite.files import write_tensors
    from magi_lite.models import T5_XXL

    rows = {"caption_token": 1, "logo_token": 1, "other_tokens": 100}
    made = {name: torch.randn(count, T5_XXL.width).half() for name, count in rows.items()}
    write_tensors(root / "special_tokens.safetensors", made)


def write_shards(folder: Path, state: Mapping[str, Any], dtype: Callable[[str], Any]) -> None:
    """Random tensors of a state dict's names and shapes, one in memory at a time, with an index."""
    import torch

    from quant.storage.tensors import Declared, write_made

    shards: list[dict[str, Declared]] = [{}]
    for name, tensor in state.items():
        declared = Declared(tuple(tensor.shape), dtype(name))
        if shards[-1] and sum(one.bytes for one in shards[-1].values()) + declared.bytes > SHARD_BYTES:
            shards.append({})
        shards[-1][name] = declared

    def make(name: str) -> torch.Tensor:
        shape, kind = tuple(state[name].shape), dtype(name)
        if len(shape) < 2:
            return torch.ones(shape, dtype=kind)
        return (torch.randn(shape) / torch.Size(shape[1:]).numel() ** 0.5).to(kind)

    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        write_made(folder / file, shard, make)
        weight_map |= dict.fromkeys(shard, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


# --- measuring -------------------------------------------------------------------------------------------------------


def in_child(root: Path, scheme: str, minutes: float) -> dict[str, Any]:
    """`measure` in a process of its own, whose memory is nobody else's; what it says where it fails."""
    command = [sys.executable, str(Path(__file__).resolve()), "--measure", str(root), "--schemes", scheme]
    try:
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False, timeout=60 * minutes)
    except subprocess.TimeoutExpired:
        return {"error": f"not done after {minutes:g} minutes; --minutes allows more"}
    lines = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines()
    last = lines[-1] if lines else f"ended with {done.returncode}"
    found: dict[str, Any] = json.loads(last) if done.returncode == 0 else {"error": last}
    return found


def measure(root: Path, scheme: str) -> dict[str, Any]:
    """Make two seconds of video, and then one more in a run of its own; bytes and seconds, beside the plans for them.

    Nothing is known of the machine at first; the second run's plan is made of what the first one has shown.
    """
    from magi_lite.machine import findings
    from magi_lite.pipeline import prompts
    from magi_lite.planner import learned, speed

    known = root / "known" / scheme
    learned.FILE, findings.FILE = known / "speeds.json", known / "findings.json"
    prompts.EMBEDDINGS_FOLDER = root / "embeddings" / scheme
    read = disk_read()
    with watched() as memory:
        plan, at = run(root, scheme, 2)
    read = disk_read() - read
    again, then = run(root, scheme, 1)
    asked = plan.request, plan.model, plan.execution, plan.device
    return {
        "plan": {
            "ram_bytes": plan.peak_ram_bytes,
            "seconds_to_first_second": round(plan.time_to_first_chunk, 2),
            "text_seconds": float(f"{speed.text_seconds(*asked):.3g}"),
            "load_seconds": float(f"{speed.load_seconds(plan.model, plan.execution):.3g}"),
            "seconds_per_second": round(plan.seconds_per_chunk, 2),
            "execution": dataclasses.asdict(plan.execution),
        },
        "peak_anonymous_bytes": memory.anonymous,
        "peak_resident_bytes": memory.resident,
        "disk_read_bytes": read,
        "resident_over_plan": round(memory.resident / plan.peak_ram_bytes, 3),
        "text_seconds": round(at["load"] - at["text"], 2),
        "load_seconds": round(at["denoise"] - at["load"], 2),
        "seconds_to_first_step": round(at["step"], 2),
        "seconds_to_first_second": round(at["second"], 2),
        "time_over_plan": round(at["second"] / plan.time_to_first_chunk, 3),
        "second_run": {
            "planned_seconds_to_first_second": round(again.time_to_first_chunk, 2),
            "seconds_to_first_second": round(then["second"], 2),
            "time_over_plan": round(then["second"] / again.time_to_first_chunk, 3),
        },
    }


def run(root: Path, scheme: str, seconds: int) -> tuple[Plan, dict[str, float]]:
    """Make a video of so many seconds, with a prompt of its own.

    Returns:
        Its plan, and seconds from the start until each phase began and a step and a second were first done.
    """
    from magi_lite.events import ChunkFinished, PhaseStarted, PlanReady, Progress
    from magi_lite.pipeline import generate
    from magi_lite.request.request import GenerationRequest, Overrides
    from magi_lite.timeline.text import parse

    request = GenerationRequest(
        parse(f"[0s-{seconds}s: a red ball, for {seconds} s]"), seconds, width=128, height=128, steps=8, window=1,
        model=str(root / FAMILY), overrides=Overrides(device="cpu", scheme=scheme),  # type: ignore[arg-type]
    )  # fmt: skip
    plan, began = None, time.monotonic()
    at: dict[str, float] = {}
    for event in generate(request, projects_folder=root / "runs" / scheme):
        now = time.monotonic() - began
        if isinstance(event, PlanReady):
            plan = event.plan
        elif isinstance(event, PhaseStarted):
            at.setdefault(event.phase, now)
        elif isinstance(event, Progress):
            at.setdefault("step", now)
        elif isinstance(event, ChunkFinished):
            at.setdefault("second", now)
    assert plan is not None
    return plan, at


def disk_read() -> int:
    """Bytes that came from the disk for this process so far: more than its files where the system dropped pages."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("read_bytes:"))


@dataclasses.dataclass
class Memory:
    """Peaks of this process's memory in bytes, from Linux's own account."""

    anonymous: int = 0
    resident: int = 0

    def look(self) -> None:
        lines = Path("/proc/self/status").read_text().splitlines()
        sizes = {line.split(":")[0]: int(line.split()[1]) << 10 for line in lines if line.endswith(" kB")}
        self.anonymous = max(self.anonymous, sizes["RssAnon"])
        self.resident = max(self.resident, sizes["VmRSS"])


@contextlib.contextmanager
def watched() -> Iterator[Memory]:
    """The peaks while the block runs."""
    memory, done = Memory(), threading.Event()

    def watch() -> None:
        memory.look()
        while not done.wait(EVERY):
            memory.look()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield memory
    finally:
        done.set()
        thread.join()


if __name__ == "__main__":
    sys.exit(main())
