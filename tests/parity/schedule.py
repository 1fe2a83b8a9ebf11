"""Schedule goldens: every table of schedule.json against `magi_lite.sampling.schedule`, integers exactly."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from magi_lite.models import Guidance, SamplerSettings
from magi_lite.sampling import schedule as ours
from magi_lite.sampling.guidance import guidance_scales
from tests.parity.report import CaseResult, exact

FLOAT_LIMIT = 1e-7
"""The sidecar's own tolerance for float tables."""
KNOWN_NOTES = {"about", "kvrange_note"}
Row = dict[str, Any]


def _floats(name: str, found: tuple[float, ...], golden: list[float], limit: float = FLOAT_LIMIT) -> CaseResult:
    if len(found) != len(golden):
        return CaseResult("schedule", name, False, {}, {}, f"{len(found)} numbers instead of {len(golden)}")
    worst = max(abs(a - b) for a, b in zip(found, golden, strict=True))
    return CaseResult("schedule", name, worst <= limit, {"max_abs": worst}, {"max_abs": limit})


def _strictly(row: Row, *names: str) -> tuple[Any, ...]:
    """The named entries of a row; any other entry is something we would silently not check."""
    if set(row) != set(names):
        raise ValueError(f"a row has the entries {sorted(row)} where {sorted(names)} are known")
    return tuple(row[name] for name in names)


def _init_t(row: Row) -> CaseResult:
    steps, shortcut, t = _strictly(row, "num_steps", "shortcut_mode", "t")
    return _floats(f"init_t {steps} {shortcut}".rstrip(), ours.time_grid(steps, shortcut), t, limit=0.0)


def _init_t_other(row: Row) -> CaseResult:
    config, steps, shortcut, t = _strictly(row, "t_schedule_config", "num_steps", "shortcut_mode", "t")
    unknown = set(config) - {"tSchedulerFunc", "shift"}
    if unknown:
        raise ValueError(f"unknown schedule options {sorted(unknown)}")
    found = ours.time_grid(steps, shortcut, config.get("tSchedulerFunc", "sd3"), config.get("shift", 3.0))
    return _floats(f"init_t {steps} {config}", found, t)


def _intervals(row: Row) -> CaseResult:
    steps, shortcut, golden = _strictly(row, "num_steps", "shortcut_mode", "interval")
    return exact("schedule", f"interval {steps} {shortcut}", ours.step_intervals(steps, shortcut) == tuple(golden))


def _step_size(row: Row) -> CaseResult:
    steps, interval, golden = _strictly(row, "num_steps", "interval", "dt")
    return exact("schedule", f"step size {steps}/{interval}", ours.step_size_number(steps, interval) == golden)


def _time_embedding(row: Row, table: Row) -> CaseResult:
    """The sinusoid is what the embedding hands to its layers, so they are taken out."""
    import torch

    from magi_lite.dit.layers import TimestepEmbedding

    t, golden = _strictly(row, "t", "embedding")
    known = {"dim": 256, "max_period": 10000, "rescale": 1000, "order": "cat[cos(128), sin(128)]"}
    if {name: table[name] for name in known} != known:
        raise ValueError("the time embedding has other numbers than the published ones")
    embedding = TimestepEmbedding(1)
    embedding.mlp = torch.nn.Identity()
    found = embedding(torch.tensor([t], dtype=torch.float32), torch.float32).flatten().tolist()
    return _floats(f"time embedding of {t}", tuple(found), golden)


def _plan(steps: int, window: int, chunks: int, offset: int) -> ours.Schedule:
    return ours.Schedule(SamplerSettings(steps=steps, window=window), offset, chunks)


def _sequences(row: Row) -> CaseResult:
    names = ("clip_start", "clip_end", "t_start", "t_end")
    chunks, window, offset, *golden = _strictly(row, "chunk_num", "window_size", "chunk_offset", *names)
    stages = list(_plan(4 * window, window, chunks, offset).stages())
    found = [[getattr(s, name) for s in stages] for name in ("first", "last", "newest", "oldest")]
    return exact("schedule", f"stages of {chunks} chunks, window {window}, offset {offset}", found == list(golden))


def _timesteps(row: Row) -> CaseResult:
    steps, window, shortcut, per_stage, newest, oldest, step, has_clean, clean_t, golden = _strictly(
        row, "num_steps", "window_size", "shortcut_mode", "denoise_step_per_stage", "start", "end", "denoise_idx",
        "has_clean_t", "clean_t", "t",
    )  # fmt: skip
    if steps != window * per_stage:
        raise ValueError("steps are not window times steps per stage")
    grid = ours.time_grid(steps, shortcut)
    found = [grid[number] for number in ours.chunk_steps(per_stage, newest, oldest, step)]
    clean = [ours.f32(clean_t)] if has_clean else []
    return _floats(f"t of stages {newest}-{oldest}, step {step} of {steps}/{window}", tuple(clean + found), golden, 0.0)


def _made(row: Row) -> CaseResult:
    steps, per_stage, newest, oldest, step, has_clean, golden = _strictly(
        row, "num_steps", "denoise_step_per_stage", "t_start", "t_end", "denoise_idx", "has_clean_t", "steps"
    )
    found = [steps] * bool(has_clean) + list(ours.chunk_steps(per_stage, newest, oldest, step))
    name = f"steps made {newest}-{oldest}, step {step} of {steps}, clean {has_clean}"
    return exact("schedule", name, found == golden)


def _tokens(ranges: tuple[tuple[int, int], ...], latent_hw: list[int]) -> list[list[int]]:
    """Chunk ranges as token ranges: chunks of 6 latent frames in 2x2 patches."""
    tokens = 6 * (latent_hw[0] // 2) * (latent_hw[1] // 2)
    return [[first * tokens, last * tokens] for first, last in ranges]


def _noise_to_clean(row: Row) -> CaseResult:
    ranges, clean, steps, first, count, made, latent_hw, golden = _strictly(
        row, "noise2clean_kvrange", "clean_chunk_kvrange", "num_steps", "slice_point", "denoising_range_num",
        "denoise_step_of_each_chunk", "latent_hw", "k_range",
    )  # fmt: skip
    found = ours.kv_ranges(first, tuple(made), steps, tuple(ranges), clean)
    name = f"kv ranges {ranges} clean {clean}, {made} of {steps} from {first}"
    return exact("schedule", name, len(made) == count and _tokens(found, latent_hw) == golden)


def _default_ranges(row: Row) -> CaseResult:
    first, count, latent_hw, golden = _strictly(row, "slice_point", "denoising_range_num", "latent_hw", "k_range")
    found = ours.kv_ranges(first, (0,) * count, 1, ())
    return exact("schedule", f"default kv ranges {first}+{count} {latent_hw}", _tokens(found, latent_hw) == golden)


def _prefix_ranges(row: Row) -> CaseResult:
    ranges, clean, count, latent_hw, golden = _strictly(
        row, "noise2clean_kvrange", "clean_chunk_kvrange", "range_num", "latent_hw", "k_range"
    )
    found = ours.prefix_kv_ranges(count, tuple(ranges), clean)
    return exact("schedule", f"prefix kv ranges {ranges} clean {clean}, {count}", _tokens(found, latent_hw) == golden)


def _forwards(row: Row) -> CaseResult:
    steps, window, chunks, prefix, total, columns, truncated, golden = _strictly(
        row, "num_steps", "window_size", "chunk_num", "prefix_length", "total", "row_columns", "rows_truncated", "rows"
    )
    expected_columns = [
        "denoise_step_per_stage", "denoise_stage", "denoise_idx", "chunk_offset", "chunk_start", "chunk_end", "t_start",
        "t_end", "fwd_extra_1st_chunk",
    ]  # fmt: skip
    if columns != expected_columns:
        raise ValueError(f"unknown columns {columns}")
    plan = _plan(steps, window, chunks, (prefix or 0) // 6)
    found = [
        [*(plan.steps_per_stage, s.index, step, plan.offset, s.first, s.last, s.newest, s.oldest), int(clean_pass)]
        for s in plan.stages()
        for step in range(plan.steps_per_stage)
        for clean_pass in [step == 0 and s.clean is not None]
    ]
    same = len(found) == total == plan.total_steps
    rows_agree = all(row in found for row in golden) if truncated else found == golden
    return exact("schedule", f"forwards {steps}/{window}, {chunks} chunks, prefix {prefix}", same and rows_agree)


def _chunk_count(row: Row) -> CaseResult:
    frames, prefix, width, chunks, clean = _strictly(
        row, "num_frames", "prefix", "chunk_width", "infer_chunk_num", "clean_chunk_num"
    )
    found = (ours.chunk_count(frames, prefix, width), prefix // width)
    return exact("schedule", f"chunks for {frames} frames, prefix {prefix}", found == (chunks, clean))


def _scales(row: Row, table: Row) -> CaseResult:
    t, prev, text = _strictly(row, "t", "prev_chunk_scale", "text_scale")
    settings = {name: column for name, column in table.items() if name != "cases"}
    columns = _strictly(settings, "cfg_t_range", "prev_chunk_scales", "text_scales")
    found = guidance_scales(Guidance(*(tuple(column) for column in columns)), t)
    return exact("schedule", f"guidance scales at {t}", found == (prev, text))


def _threshold(row: Row) -> CaseResult:
    steps, shortcut, index, t = _strictly(row, "num_steps", "shortcut_mode", "first_index_above", "t")
    grid = ours.time_grid(steps, shortcut)
    limit = SamplerSettings().nearly_clean_threshold
    first = next(i for i, value in enumerate(grid) if value > limit)
    return exact("schedule", f"nearly clean from {steps} {shortcut}", (first, grid[first]) == (index, t))


TABLES: dict[str, tuple[str | None, Callable[..., CaseResult], bool]] = {
    "init_t": (None, _init_t, False),
    "init_t_other_schedules": (None, _init_t_other, False),
    "init_intervel": (None, _intervals, False),
    "distill_dt": ("table", _step_size, False),
    "timestep_embedding": ("cases", _time_embedding, True),
    "generate_sequences": (None, _sequences, False),
    "get_timestep": (None, _timesteps, False),
    "get_denoise_step_of_each_chunk": (None, _made, False),
    "generate_noise2clean_kvrange": (None, _noise_to_clean, False),
    "generate_default_kvrange": (None, _default_ranges, False),
    "generate_kvrange_for_prefix_video": (None, _prefix_ranges, False),
    "total_forward_step": (None, _forwards, False),
    "infer_chunk_num": ("table", _chunk_count, False),
    "get_cfg_scale": ("cases", _scales, True),
    "nearly_clean_threshold": ("cases", _threshold, False),
}
"""Table -> (where its rows are, the comparison of a row, whether that needs the table's other entries)."""


def run(folder: Path, root: Path) -> Iterator[CaseResult]:
    """One result per row of every table of every JSON file; a table or file that is not known fails."""
    for path in sorted(folder.iterdir()):
        if path.name != "schedule.json":
            yield CaseResult("schedule", path.name, False, {}, {}, "a file of a kind not known")
            continue
        document = json.loads(path.read_text())
        for name, table in document.items():
            if name in KNOWN_NOTES:
                continue
            if name not in TABLES:
                yield CaseResult("schedule", name, False, {}, {}, "a table of a kind not known")
                continue
            where, compare_row, needs_table = TABLES[name]
            for number, row in enumerate(table[where] if where else table):
                try:
                    yield compare_row(row, table) if needs_table else compare_row(row)
                except Exception as error:  # one bad row must not hide the others
                    note = f"{type(error).__name__}: {error}"
                    yield CaseResult("schedule", f"{name} row {number}", False, {}, {}, note)
