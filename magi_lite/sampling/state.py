"""What a sampler holds between stages, and its form on disk: plain numbers and plain tensors.

Keys and values are not part of it. Those of a clean chunk are a pure function of its latents, and a noisy chunk's are
never stored, so latents and captions bring everything back.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from magi_lite.errors import InputError
from magi_lite.models import SamplerSettings
from magi_lite.sampling.results import Caption, SamplerState
from quant.storage.files import parse_json

FORMAT = 1


@dataclass
class Progress:
    """Where a run stands at a stage boundary. Chunk numbers are absolute."""

    window: Tensor
    """Chunks in flight, oldest first: (1, C, chunks * chunk_width, H, W) float32."""
    next_stage: int = 0
    offset: int = 0
    """Whole chunks before the first one that is denoised: of the prefix, and the `kept` seconds."""
    kept: int = 0
    """New seconds that were finished before, and are no longer part of the schedule."""
    prefix_part: Tensor | None = None
    """The prefix frames that chunk `offset` begins with: (1, C, frames, H, W)."""
    clean: dict[int, Tensor] = field(default_factory=dict)
    """Clean chunks that a range can still reach."""
    captions: dict[int, Caption] = field(default_factory=dict)
    """Of the chunks in flight, oldest first."""


def pack(
    progress: Progress, settings: SamplerSettings, total: int | None, seed: int, shot: int
) -> SamplerState:
    """The state as numbers for JSON and tensors for safetensors (copies on the CPU)."""
    position = {
        "format": FORMAT,
        "settings": _plain(settings),
        "latents": list(progress.window.shape),
        "next_stage": progress.next_stage,
        "offset": progress.offset,
        "kept": progress.kept,
        "shot": shot,
        "total": total,
        "seed": seed,
        "clean": sorted(progress.clean),
        "captions": list(progress.captions),
        "prefix_part": progress.prefix_part is not None,
    }
    tensors = {"window": progress.window}
    tensors |= {f"clean.{chunk}": latents for chunk, latents in progress.clean.items()}
    tensors |= {f"caption.{chunk}": caption.embeddings for chunk, caption in progress.captions.items()}
    if progress.prefix_part is not None:
        tensors["prefix_part"] = progress.prefix_part
    copies = {name: t.detach().to("cpu", copy=True).contiguous() for name, t in tensors.items()}
    return SamplerState(position, copies)


def unpack(
    state: SamplerState,
    settings: SamplerSettings,
    chunk_shape: tuple[int, ...],
    chunks: int | None,
    device: torch.device,
    shot: int = 0,
) -> Progress:
    """The reverse, checked against the sampler that takes it over.

    Args:
        chunk_shape: (1, C, chunk_width, H, W); chunks: new chunks wanted by that sampler, None when endless;
        shot: the second that its shot begins with.

    Raises:
        InputError: another format, shot, schedule or size; a tensor is missing; or a chunk that is wanted now missed
            its entry into the window.
    """
    position = state.position
    if position.get("format") != FORMAT:
        raise InputError("The saved state is of another version of this program; start the run again.")
    if not _is_whole(position):
        raise InputError("The saved state is damaged; take an earlier one.")
    if position.get("shot", 0) != shot:
        began = position.get("shot", 0)
        raise InputError(f"The saved state is of the shot that begins at {began} s, not {shot} s; take another one.")
    if position["settings"] != _plain(settings):
        old, new = position["settings"], _plain(settings)
        changed = sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))
        raise InputError(f"The saved state was made with other settings ({', '.join(changed)}); continue with those.")
    in_flight, offset, next_stage = position["captions"], position["offset"], position["next_stage"]
    kept = position.get("kept", 0)
    expected = {"window": (*chunk_shape[:2], len(in_flight) * chunk_shape[2], *chunk_shape[3:])}
    expected |= {f"clean.{chunk}": chunk_shape for chunk in position["clean"]}
    for name, shape in expected.items():
        if name not in state.tensors:
            raise InputError(f"The saved state lacks the tensor {name}; take an earlier one.")
        if tuple(state.tensors[name].shape) != shape:
            found = tuple(state.tensors[name].shape)
            raise InputError(f"The saved state has {name} of shape {found}, not {shape}; continue at the same size.")
    absent = [chunk for chunk in in_flight if f"caption.{chunk}" not in state.tensors]
    if absent or (position["prefix_part"] and "prefix_part" not in state.tensors):
        raise InputError("The saved state lacks captions or its prefix; take an earlier one.")
    entered = next_stage if position["total"] is None else min(next_stage, position["total"] - offset)
    wanted = next_stage if chunks is None else min(next_stage, chunks - kept)
    if wanted != entered:
        raise InputError(
            f"The saved state is of stage {kept + next_stage} with {kept + entered} seconds begun, "
            f"but {kept + wanted} are wanted by then; "
            "take an earlier state, or the old length."
        )

    def placed(name: str) -> Tensor:
        return state.tensors[name].to(device, copy=True)

    return Progress(
        window=placed("window"),
        next_stage=next_stage,
        offset=offset,
        kept=kept,
        prefix_part=placed("prefix_part") if position["prefix_part"] else None,
        clean={chunk: placed(f"clean.{chunk}") for chunk in position["clean"]},
        captions={chunk: Caption(placed(f"caption.{chunk}")) for chunk in in_flight},
    )


def _is_whole(position: dict[str, Any]) -> bool:
    """Whether a position has all that `pack` gives it, each of its kind."""
    kinds = {"settings": dict, "next_stage": int, "offset": int, "clean": list, "captions": list, "prefix_part": bool}
    return (
        all(isinstance(position.get(name), kind) for name, kind in kinds.items())
        and all(type(chunk) is int for chunk in (*position["clean"], *position["captions"]))
        and isinstance(position.get("total", "absent"), int | None)
        and isinstance(position.get("kept", 0), int)
    )


def _plain(settings: SamplerSettings) -> dict[str, Any]:
    """Settings as they come back from JSON; without reuse as they were before there was any."""
    plain: dict[str, Any] = parse_json(json.dumps(asdict(settings)))
    if not settings.reuse:
        del plain["reuse"]
    return plain
