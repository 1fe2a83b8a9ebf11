"""Whole trajectories of the published sampler against ours: same noise, captions, prefix and weights.

Everything comes from the sidecar. Beside the clean chunks and velocities, the trace of the published program's passes
is compared: its merged pass (clean chunk, window, copy of the oldest chunk) must map onto our separate ones, with the
same chunk numbers, times, ranges, step sizes and caption lengths.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from magi_lite.models import DiTConfig
from magi_lite.request.request import SpecialTokens
from magi_lite.sampling.guidance import guidance_weights
from magi_lite.sampling.results import Caption, CleanChunk, StepDone
from magi_lite.sampling.sampler import Sampler
from magi_lite.sampling.schedule import Schedule, chunk_count, step_size_number, time_grid
from magi_lite.text.special_tokens import SpecialTokenTable, null_caption
from magi_lite.weights.layout import sampler_settings
from tests.parity.dit_forward import NotUnderstood, build, load_weights
from tests.parity.report import CaseResult, compare, exact, unclaimed

KIND = "sampler"
FUNCTION = "extract_feature_for_inference + SampleTransport.walk"
STYLES_OF_SWITCHES = {
    "PAD_STATIC": "static",
    "PAD_DYNAMIC": "dynamic",
    "PAD_BORDERNESS": "borders",
    "PAD_THREE_D_MODEL": "3d",
    "PAD_TWO_D_ANIME": "anime",
}
TOKEN_SWITCHES = {"PAD_HQ", "PAD_DURATION", "NEG_PROMPT", *STYLES_OF_SWITCHES}
KNOWN_INPUTS = {"noise", "caption_embs", "emb_masks", "prefix_video"}
KNOWN_CASE = {"cfg", "env", "doc", "inputs", "outputs", "config", "order_of_emission", "run"}
KNOWN_RUN = {"total_forward_step", "t_total", "time_interval", "trace", "chunk_num", "latent_size"}
KNOWN_PASS = {
    "chunk_width", "fwd_extra_1st_chunk", "slice_point", "range_num", "denoising_range_num", "num_steps", "x_frames",
    "distill_nearly_clean_chunk", "extract_prefix_video_feature", "distill_interval", "t", "kv_range_chunks",
    "mask_token_counts",
}  # fmt: skip


@dataclass(frozen=True)
class Pass:
    """One forward of ours, as the recorder saw it."""

    first: int
    times: tuple[float, ...]
    ranges: tuple[tuple[int, int], ...]
    stored: bool
    write: bool
    step_size: float | None
    caption_lengths: tuple[int, ...]
    latents: Tensor
    velocity: Tensor


class RecordingDiT:
    """The denoiser, and a list of what was asked of it."""

    def __init__(self, dit: Any) -> None:
        self.dit, self.config, self.passes = dit, dit.config, []

    def encode_captions(self, *arguments: Any, **named: Any) -> Any:
        return self.dit.encode_captions(*arguments, **named)

    def __call__(self, latents: Tensor, timesteps: Tensor, captions: Any, **named: Any) -> Tensor:
        velocity = self.dit(latents, timesteps, captions, **named)
        self.passes.append(
            Pass(
                named["first_chunk"],
                tuple(timesteps.flatten().tolist()),
                tuple(named["kv_ranges"]),
                named.get("store") is not None,
                named.get("write", False),
                named.get("step_size"),
                captions.lengths,
                latents.clone(),
                velocity.clone(),
            )
        )
        return velocity


@dataclass(frozen=True)
class Case:
    """A golden case with everything it refers to."""

    name: str
    side: dict[str, Any]
    tensors: dict[str, Tensor]
    weights: dict[str, Tensor]
    table: SpecialTokenTable

    def input(self, name: str) -> Tensor | None:
        entry = self.side["inputs"].get(name)
        return None if entry is None else self.tensors[entry["tensor"]]

    @property
    def width(self) -> int:
        return self.side["config"]["runtime_config"]["chunk_width"]

    @property
    def prefix_frames(self) -> int:
        prefix = self.input("prefix_video")
        return 0 if prefix is None else prefix.shape[2]

    @property
    def offset(self) -> int:
        return self.prefix_frames // self.width


def refuse_unknown(case: Case) -> None:
    """Anything that this adapter would silently ignore is a failure."""
    side = case.side
    for what, found, known in (
        ("entries", set(side), KNOWN_CASE),
        ("inputs", set(side["inputs"]), KNOWN_INPUTS),
        ("run entries", set(side["run"]), KNOWN_RUN),
        ("environment switches", set(side["env"]), TOKEN_SWITCHES),
        ("pass arguments", {name for entry in side["run"]["trace"] for name in entry}, KNOWN_PASS),
        ("configuration parts", set(side["cfg"]), {"runtime_config", "engine_config"}),
    ):
        if found - known:
            raise NotUnderstood(f"{what} {sorted(found - known)}")
    if side["config"]["runtime_config"]["cfg_number"] not in (1, 3):
        raise NotUnderstood(f"cfg_number {side['config']['runtime_config']['cfg_number']}")
    for part, given in side["cfg"].items():
        if any(side["config"][part].get(name) != value for name, value in given.items()):
            raise NotUnderstood(f"the case's {part} differ from its full configuration")


def switched(env: dict[str, str], name: str) -> bool:
    """A published switch: on with 1 or true, off with nothing, 0 or false."""
    value = env.get(name, "").lower()
    if value not in ("", "0", "1", "true", "false"):
        raise NotUnderstood(f"{name}={env[name]}")
    return value in ("1", "true")


def special_tokens(env: dict[str, str]) -> SpecialTokens:
    styles = tuple(style for switch, style in STYLES_OF_SWITCHES.items() if switched(env, switch))
    return SpecialTokens(switched(env, "PAD_HQ"), switched(env, "PAD_DURATION"), styles)


def valid_rows(embeddings: Tensor, mask: Tensor) -> Tensor:
    """(1, 1, L, C) and (1, L) -> the valid rows (L', C), which must come first."""
    count = int(mask.sum())
    if embeddings.shape[:2] != (1, 1) or not bool(mask[0, :count].all()):
        raise NotUnderstood(f"caption embeddings {tuple(embeddings.shape)} with a mask that has gaps")
    return embeddings[0, 0, :count]


def captions_of(case: Case, dit: Any) -> tuple[list[Caption], Caption]:
    """The caption of each new chunk, and the null caption."""
    env, chunks = case.side["env"], case.side["run"]["chunk_num"]
    words = valid_rows(case.input("caption_embs"), case.input("emb_masks"))
    tokens, longest = special_tokens(env), dit.config.caption_max_length
    captions = [
        Caption(case.table.caption(words, tokens, chunks - chunk, longest)) for chunk in range(case.offset, chunks)
    ]
    learned = dit.y_embedder.null_caption_embedding
    null = Caption(null_caption(learned, case.table if switched(env, "NEG_PROMPT") else None))
    return [caption.or_null(null) for caption in captions], null


def sample(case: Case) -> tuple[RecordingDiT, list[Caption], Caption, list[Any]]:
    """Our run of the case: the recorder, the captions, and everything the sampler yielded."""
    config = case.side["config"]
    dit = RecordingDiT(build(DiTConfig.from_published(config["model_config"]), case.weights, torch.float32))
    captions, null = captions_of(case, dit.dit)
    noise, chunks, width = case.input("noise"), case.side["run"]["chunk_num"], case.width
    if list(noise.shape) != case.side["run"]["latent_size"] or noise.shape[2] != chunks * width:
        raise NotUnderstood(f"noise {tuple(noise.shape)} for {chunks} chunks")
    frames = config["runtime_config"]["num_frames"]
    if chunk_count(frames, case.prefix_frames, width) != chunks:
        raise NotUnderstood(f"{chunks} chunks for {frames} frames")
    sampler = Sampler(
        dit,
        sampler_settings(config),
        latent_size=(noise.shape[3], noise.shape[4]),
        chunks=chunks - case.offset,
        caption=lambda chunk, remaining: captions[chunk - case.offset],
        null_caption=null,
        noise=lambda chunk: noise[:, :, chunk * width : (chunk + 1) * width],
        prefix=case.input("prefix_video"),
        emit_prefix="published",
    )
    # Steps refer to buffers that the sampler works on: keep copies.
    yielded = [(e, e.velocity.clone()) if isinstance(e, StepDone) else (e, None) for e in sampler.run()]
    return dit, captions, null, yielded


def padded_captions(case: Case, captions: list[Caption], null: Caption, dit: Any) -> dict[str, Tensor]:
    """Our captions in the published layout: a conditional and a null row of padded embeddings and masks per chunk.

    Padding behind the valid tokens is never read; where the golden keeps it, it is taken from there.
    """
    chunks, longest = case.side["run"]["chunk_num"], dit.config.caption_max_length
    masks = torch.zeros(2, chunks, longest)
    for row, chunk, caption in _placed(case, captions, null, chunks):
        masks[row, chunk, : len(caption.embeddings)] = 1
    found = {"emb_masks_out": masks}
    entry = case.side["outputs"].get("y")
    if entry is not None:
        found["y"] = case.tensors[entry["tensor"]].clone()
        for row, chunk, caption in _placed(case, captions, null, chunks):
            found["y"][row, chunk, : len(caption.embeddings)] = caption.embeddings
        for chunk in range(case.offset):  # a clean chunk has the null embedding and, as a rule, a zero mask
            found["y"][0, chunk, : len(null.embeddings)] = null.embeddings
    return found


def _placed(case: Case, captions: list[Caption], null: Caption, chunks: int) -> Iterator[tuple[int, int, Caption]]:
    yield from ((0, chunk + case.offset, caption) for chunk, caption in enumerate(captions))
    if all(caption is null for caption in captions):  # published: without a valid token, both halves are the null one
        yield from ((0, chunk, null) for chunk in range(case.offset))
    yield from ((1, chunk, null) for chunk in range(chunks))


def published_velocity(case: Case, dit: RecordingDiT, steps: list[tuple[StepDone, Tensor]], index: int) -> Tensor:
    """What the published dispatcher returned at denoising step `index`.

    That is our window's velocity, behind the clean chunk's where one was run in front; with three passes, or without
    the copy of the oldest chunk, its latents stand in for that velocity.
    """
    step, velocity = steps[index]
    entry = [entry for entry in case.side["run"]["trace"] if not entry.get("extract_prefix_video_feature")][index]
    if not entry["fwd_extra_1st_chunk"]:
        return velocity
    clean = [p for p in dit.passes if p.write and p.first == step.oldest_chunk + case.offset - 1][-1]
    one_pass = case.side["config"]["runtime_config"]["cfg_number"] == 1
    front = clean.velocity if one_pass and entry["distill_nearly_clean_chunk"] else clean.latents
    return torch.cat([front, velocity], dim=2)


def outputs_of(
    case: Case, dit: RecordingDiT, captions: list[Caption], null: Caption, yielded: list[Any]
) -> dict[str, Tensor]:
    """Every output that the sidecar names."""
    found = padded_captions(case, captions, null, dit)
    steps = [(event, velocity) for event, velocity in yielded if isinstance(event, StepDone)]
    chunks = [event for event, _ in yielded if isinstance(event, CleanChunk)]
    found |= {f"clean.{chunk.index}": chunk.latents for chunk in chunks}
    places = {"velocity.first": 0, "velocity.mid": len(steps) // 2, "velocity.last": len(steps) - 1}
    for name in case.side["outputs"].keys() & places.keys():
        found[name] = published_velocity(case, dit, steps, places[name])
    return found


# --- the trace -------------------------------------------------------------------------------------------------------


def expected_passes(case: Case, null_length: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """The published passes, pulled apart into those of ours that must have happened, in order.

    Left out are only passes whose outcome nothing reads: prefix chunks out of reach, and, with three passes, those that
    no chunk of the window has a weight for.
    """
    config = case.side["config"]
    settings = sampler_settings(config)
    oldest_needed = case.offset - Schedule(settings, case.offset).slots(0)
    for entry in case.side["run"]["trace"]:
        first, extra = entry["slice_point"], int(entry["fwd_extra_1st_chunk"])
        distilled = config["engine_config"]["distill"]
        size = step_size_number(entry["num_steps"], entry["distill_interval"]) if distilled else None
        places = enumerate(zip(entry["t"], entry["kv_range_chunks"], strict=True), start=first)
        chunks = [{"first": c, "time": t, "range": tuple(r), "size": size} for c, (t, r) in places]
        words, no_words = entry["mask_token_counts"][: len(chunks)], entry["mask_token_counts"][len(chunks) :]
        if entry.get("extract_prefix_video_feature"):
            for chunk in chunks:
                if chunk["first"] >= oldest_needed:
                    yield "clean", chunk | {"words": null_length}
            continue
        front, window = chunks[:extra], chunks[extra:]
        weights = [guidance_weights(settings.guidance, c["time"]) for c in window] if settings.guidance else []
        if not weights or any(w.full for w in weights):
            yield from (("clean", chunk | {"words": words[0]}) for chunk in front)
            yield "window", {"chunks": window, "words": words[extra:]}
        if weights:
            yield from (("clean", chunk | {"words": no_words[0]}) for chunk in front)
            yield "window", {"chunks": window, "words": no_words[extra:]}
            for chunk, weight in zip(window, weights, strict=True):  # published as a batch
                if weight.uncond:
                    yield "alone", {"times": [chunk["time"]], "words": [no_words[-1]], "size": size}
        elif entry["distill_nearly_clean_chunk"]:
            oldest = window[0]
            yield "copy", oldest | {"range": (oldest["first"], oldest["first"] + 1), "words": words[extra]}


def same_pass(kind: str, seen: Pass, wanted: dict[str, Any]) -> bool:
    """Whether one forward of ours is the pass that was wanted."""
    if kind == "alone":  # a chunk by itself, at the beginning of time
        return (seen.times, seen.ranges, seen.stored, seen.step_size, list(seen.caption_lengths)) == (
            tuple(wanted["times"]), ((0, 1),), False, wanted["size"], wanted["words"],
        )  # fmt: skip
    chunks = wanted["chunks"] if kind == "window" else [wanted]
    words = wanted["words"] if kind == "window" else [wanted["words"]]
    return (
        seen.first == chunks[0]["first"]
        and seen.times == tuple(chunk["time"] for chunk in chunks)
        and seen.ranges == tuple(chunk["range"] for chunk in chunks)
        and seen.step_size == chunks[0]["size"]
        and list(seen.caption_lengths) == words
        and (seen.stored, seen.write) == (kind != "copy", kind == "clean")
    )


def compare_trace(case: Case, dit: RecordingDiT, null: Caption) -> CaseResult:
    """Whether our passes are the published ones pulled apart: all of them, in their order, and no other."""
    wanted = list(expected_passes(case, len(null.embeddings)))
    name = f"{case.name} trace"
    for number, ((kind, pass_), seen) in enumerate(zip(wanted, dit.passes, strict=False)):
        if not same_pass(kind, seen, pass_):
            return exact(KIND, name, False, f"pass {number} should be a {kind} pass {pass_}, is {seen}"[:400])
    return exact(KIND, name, len(wanted) == len(dit.passes), f"{len(dit.passes)} passes for {len(wanted)}")


def compare_run(case: Case, yielded: list[Any]) -> Iterator[CaseResult]:
    """Counts, times and the order of emission."""
    run, config = case.side["run"], case.side["config"]
    steps = [event for event, _ in yielded if isinstance(event, StepDone)]
    chunks = [event for event, _ in yielded if isinstance(event, CleanChunk)]
    total = run["total_forward_step"]
    yield exact(KIND, f"{case.name} steps", len(steps) == total == steps[-1].steps_total == steps[-1].steps_done)
    grid = time_grid(config["runtime_config"]["num_steps"], config["engine_config"]["shortcut_mode"])
    yield exact(KIND, f"{case.name} times", list(grid) == run["t_total"])
    emitted = [
        {"emission": i, "chunk_idx": chunk.index, "frames": chunk.latents.shape[2]} for i, chunk in enumerate(chunks)
    ]
    yield exact(KIND, f"{case.name} order of emission", emitted == case.side["order_of_emission"])


# --- the whole -------------------------------------------------------------------------------------------------------


def run_case(case: Case) -> Iterator[CaseResult]:
    refuse_unknown(case)
    dit, captions, null, yielded = sample(case)
    yield from compare_run(case, yielded)
    yield compare_trace(case, dit, null)
    found = outputs_of(case, dit, captions, null, yielded)
    for name, entry in case.side["outputs"].items():
        label = f"{case.name} {name}"
        if name not in found:
            yield CaseResult(KIND, label, False, {}, {}, "an output of a kind not known")
        else:
            yield compare(KIND, label, found[name], case.tensors[entry["tensor"]], entry["tolerance"])
    extra = {name for name in found if name.startswith("clean.")} - case.side["outputs"].keys()
    if extra:
        yield CaseResult(KIND, case.name, False, {}, {}, f"emitted {sorted(extra)} beyond the golden")


def run(folder: Path, root: Path) -> Iterator[CaseResult]:
    """All cases of all sidecars of a folder."""
    claimed = set()
    for path in sorted(folder.glob("*.json")):
        document = json.loads(path.read_text())
        tokens = document["special_tokens"].split(" ")[0]
        claimed |= {path.name, document["file"], tokens}
        if document["function"] != FUNCTION:
            yield CaseResult(KIND, path.name, False, {}, {}, f"function {document['function']!r} is not known")
            continue
        place = re.fullmatch(r"(\S+) \((\w+)\)", document["weights"])
        if place is None:
            yield CaseResult(KIND, path.name, False, {}, {}, f"weights {document['weights']!r} are not known")
            continue
        try:
            weights = load_weights(folder / place[1], place[2])
        except NotUnderstood as error:
            yield CaseResult(KIND, path.name, False, {}, {}, str(error))
            continue
        tensors, table = load_file(folder / document["file"]), SpecialTokenTable.load(folder / tokens)
        for name, side in document["cases"].items():
            try:
                yield from run_case(Case(name, side, tensors, weights, table))
            except Exception as error:  # one case that cannot run must not hide the others
                yield CaseResult(KIND, name, False, {}, {}, f"{type(error).__name__}: {error}")
    yield from unclaimed(KIND, folder, claimed)
