"""Parity of the transformer's forward: the published program's calls, mapped onto ours.

Everything is read from the sidecars: shapes, configs, ranges, which tensors were kept and how they were thinned.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from magi_lite.attention import SDPA, Backend
from magi_lite.dit.model import DiT, parameter_dtype
from magi_lite.dit.rope import rope_table
from magi_lite.models import DiTConfig
from quant.storage.shards import Checkpoint
from tests.parity.dit_calls import Call, NotUnderstood, PlainStore, run_dispatch, run_forward
from tests.parity.dit_recorder import Recorder
from tests.parity.report import CaseResult, compare, unclaimed

KIND = "dit_forward"
KNOWN_ARGUMENTS = {
    "chunk_width",
    "fwd_extra_1st_chunk",
    "num_steps",
    "distill_interval",
    "slice_point",
    "distill_nearly_clean_chunk",
    "range_num",
    "denoising_range_num",
    "extract_prefix_video_feature",
}
KNOWN_INPUTS = {"x", "t", "y", "caption_dropout_mask", "xattn_mask", "kv_range"}


def main_weights(ckpt: Path) -> dict[str, Tensor]:
    """The tiny checkpoint shared by most cases: whichever unquantized folder is there."""
    for name in ("inference_weight", "inference_weight.distill"):
        if (ckpt / name).is_dir():
            checkpoint = Checkpoint.open(ckpt / name)
            return {key: checkpoint.read(key) for key in checkpoint.tensors}
    raise NotUnderstood(f"no weights under {ckpt}")


def load_weights(ckpt: Path, name: str) -> dict[str, Tensor]:
    if name == "main":
        return main_weights(ckpt)
    if name == "gated":
        return main_weights(ckpt) | load_file(ckpt / "gated_override.safetensors")
    raise NotUnderstood(f"weights {name!r}")


def build(config: DiTConfig, tensors: dict[str, Tensor], dtype: torch.dtype) -> DiT:
    """A DiT of these weights, strict but for layers beyond the config's (the gated case keeps 2 of 4)."""
    with torch.device("meta"):
        dit = DiT(config)
    wanted = dit.state_dict().keys()
    beyond = re.compile(r"videodit_blocks\.layers\.(\d+)\.")
    extra = [n for n in tensors.keys() - wanted if not ((m := beyond.match(n)) and int(m[1]) >= config.num_layers)]
    if extra:
        raise NotUnderstood(f"unexpected tensors {sorted(extra)[:3]}")
    state = {name: tensors[name].to(parameter_dtype(name, dtype)) for name in wanted}
    dit.load_state_dict(state, assign=True)
    return dit.requires_grad_(False)


def single_sdpa(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention as in the golden bfloat16 runs: probabilities in float32, only the output rounded."""
    return SDPA(query.float(), key.float(), value.float()).to(query.dtype)


def run_case(dit: DiT, case: dict[str, Any], tensors: dict[str, Tensor], store: PlainStore) -> dict[str, Tensor]:
    """Every output that the sidecar of this case names, at full size, by its name there."""
    unknown = (case["kwargs"].keys() - KNOWN_ARGUMENTS) | (case["inputs"].keys() - KNOWN_INPUTS)
    if unknown:
        raise NotUnderstood(f"arguments {sorted(unknown)}")
    inputs = {name: tensors[entry["tensor"]] for name, entry in case["inputs"].items()}
    arguments, (_, chunks) = dict(case["kwargs"]), inputs["t"].shape
    if arguments["denoising_range_num"] != chunks or arguments["range_num"] != arguments["slice_point"] + chunks:
        raise NotUnderstood(f"{chunks} timesteps with {case['kwargs']}")
    with Recorder(dit) as recorder:
        call = Call(dit, arguments, case["config"]["engine_config"]["distill"], store, recorder)
        if case["fn"] == "forward":
            out = run_forward(call, inputs)
        elif case["fn"] == "dispatch":
            out = run_dispatch(call, inputs, case["config"])
        else:
            raise NotUnderstood(f"function {case['fn']!r}")
        found = {"out": out} | {f"mid.{name}": value for name, value in call.passes.items()}
        if case["fn"] == "forward":
            own = {place: pair for place, pair in call.keys.items() if place[1] >= arguments["slice_point"]}
            found |= {f"mid.{name}": value for name, value in recorder.tensors(own).items()}
    for layer, slots in case["save_cache"]:
        pairs = [store.chunks[layer, chunk] for chunk in range(slots // store.tokens)]
        found[f"kv_cache.layer{layer}"] = torch.cat([torch.cat(pair, dim=-1)[0] for pair in pairs])
    return found


def thin(value: Tensor, entry: dict[str, Any]) -> Tensor:
    """The rows and groups of a tensor that the golden kept, as its sidecar says in words."""
    cache = re.search(r"slots (\d+)::(\d+) of \[0,n\), kv group (\d+) only", entry.get("meaning", ""))
    if cache:
        start, step, group = map(int, cache.groups())
        return value[start::step, group]
    if entry.get("rows"):
        rows = re.fullmatch(r"token rows (\d+)::(\d+) only", entry["rows"])
        if not rows:
            raise NotUnderstood(f"rows {entry['rows']!r}")
        return value[int(rows[1]) :: int(rows[2])]
    return value


def bf16_limits(entry: dict[str, Any]) -> dict[str, float]:
    """Twice what separates two correct bfloat16 runs, plus a few float32 roundings."""
    noise = entry.get("bf16_vs_bf16_noise", entry.get("bf16_deviation", {}))
    return {metric: 2 * value + 1e-6 for metric, value in noise.items()}


def compare_case(
    name: str,
    case: dict[str, Any],
    found: dict[str, Tensor],
    tensors: dict[str, Tensor],
    *,
    bf16: bool,
    kind: str = KIND,
) -> Iterator[CaseResult]:
    """One result for each tensor kept of a case, in float32 or of the run as shipped."""
    for output, entry in case["outputs"].items():
        if bf16 and "bf16_tensor" not in entry:
            continue
        label = f"{name}.{'bf16.' if bf16 else ''}{output}"
        if output not in found:
            yield CaseResult(kind, label, False, {}, {}, "an intermediate that is not known")
            continue
        tolerance = bf16_limits(entry) if bf16 else entry["tolerance"]
        golden = tensors[entry["bf16_tensor" if bf16 else "tensor"]]
        try:
            ours = thin(found[output], entry)
        except (NotUnderstood, IndexError) as error:
            yield CaseResult(kind, label, False, {}, {}, f"{type(error).__name__}: {error}")
            continue
        yield compare(kind, label, ours, golden, tolerance)


def run_rope_tables(sidecar: dict[str, Any], tensors: dict[str, Tensor], bands: Tensor) -> Iterator[CaseResult]:
    for name, entry in sidecar.get("rope_tables", {}).items():
        start = entry["slice_point"] * entry["chunk_width"]
        table = rope_table(bands, start, entry["T"], entry["H"], entry["W"])
        yield compare(KIND, name, table, tensors[entry["tensor"]], entry["tolerance"])


def run_cases(
    sidecar: dict[str, Any], tensors: dict[str, Tensor], ckpt: Path, dtype: torch.dtype
) -> Iterator[CaseResult]:
    """All cases in order; those that share a cache share a store."""
    bf16 = dtype == torch.bfloat16
    models: dict[tuple[str, str], DiT] = {}
    stores: dict[str, PlainStore] = {}
    cases = sidecar["cases"]
    kept = {case["cache"] for case in cases.values() if any("bf16_tensor" in e for e in case["outputs"].values())}
    for name, case in cases.items():
        own = any("bf16_tensor" in entry for entry in case["outputs"].values())
        if bf16 and not own and (case["cache"] is None or case["cache"] not in kept):
            continue
        try:
            config = DiTConfig.from_published(case["config"]["model_config"])
            key = (case["weights"], json.dumps(case["config"]["model_config"], sort_keys=True))
            if key not in models:
                models[key] = build(config, load_weights(ckpt, case["weights"]), dtype)
                models[key].backend = Backend("float32 sdpa", single_sdpa) if bf16 else SDPA
            store = stores.setdefault(case["cache"], PlainStore()) if case["cache"] else PlainStore()
            found = run_case(models[key], case, tensors, store)
        except Exception as error:  # one case that cannot run must not hide the others
            yield CaseResult(KIND, name + (".bf16" if bf16 else ""), False, {}, {}, f"{type(error).__name__}: {error}")
            continue
        yield from compare_case(name, case, found, tensors, bf16=bf16)


def run(folder: Path, root: Path) -> Iterator[CaseResult]:
    """Every case of every sidecar in the folder: float32, then bfloat16 where the golden kept that too."""
    claimed: set[str] = set()
    for path in sorted(folder.glob("*.json")):
        sidecar = json.loads(path.read_text())
        claimed |= {path.name, sidecar.get("file", "")}
        if not {"cases", "file", "weights"} <= sidecar.keys():
            yield CaseResult(KIND, path.name, False, {}, {}, "not a sidecar of this kind")
            continue
        tensors = load_file(folder / sidecar["file"])
        ckpt = (folder / sidecar["weights"]).resolve().parent
        yield from run_rope_tables(sidecar, tensors, main_weights(ckpt)["rope.bands"])
        yield from run_cases(sidecar, tensors, ckpt, torch.float32)
        yield from run_cases(sidecar, tensors, ckpt, torch.bfloat16)
    yield from unclaimed(KIND, folder, claimed)
