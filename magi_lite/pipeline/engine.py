"""Transformer and autoencoder of one run, where the plan wants them: loaded, used and let go."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from magi_lite import attention_choice, fused, planner
from magi_lite.attention import choose as choose_attention
from magi_lite.dit.model import DiT
from magi_lite.errors import InputError, OutputError
from magi_lite.files import output_errors
from magi_lite.machine import devices, findings
from magi_lite.models import quantizable
from magi_lite.pipeline.decoding import decode_chunk, decode_preview, encode_pixels
from magi_lite.planner import Plan
from magi_lite.planner.execution import Execution
from magi_lite.request.request import GenerationRequest
from magi_lite.sampling.kv_store import KVRing
from magi_lite.sampling.results import Caption
from magi_lite.text.special_tokens import null_caption
from magi_lite.weights.layout import ModelFiles
from magi_lite.weights.loader import (
    DTYPES,
    load_dit,
    load_vae,
)
from magi_lite.weights.pickles import Progress
from magi_lite.weights.residency import Residency, drop_weights
from magi_lite.weights.t5 import text_checkpoint
from magi_lite.weights.text_files import conversion_bytes


def plan_for(files: ModelFiles, request: GenerationRequest) -> Plan:
    """Memory and time of a request on this machine.

    Raises:
        PlanError, InputError, PresetError: it cannot be carried out here.
    """
    plan = planner.plan(request, request.preset, None, files.spec)
    execution = plan.execution
    backend = choose_attention(execution.attention, execution.device, DTYPES[execution.dtype])
    if backend.name != execution.kernel:  # tried just now: memory and time are those of the kernel that serves
        plan = planner.plan(request, request.preset, None, files.spec)
    return plan


def meets_a_new_card() -> bool:
    """Whether the next plan will try this card's attention kernels, which takes a while."""
    device = devices.detect()
    return device.kind == "cuda" and not attention_choice.known(device.name)


def converts_text_encoder(files: ModelFiles, execution: Execution) -> bool:
    """Whether the 16-bit copy of pickled text encoder weights is to be made."""
    return execution.t5 != "float32" and conversion_bytes(files.text_encoder) > 0


def convert_text_encoder(files: ModelFiles, progress: Progress, cancelled: Callable[[], bool]) -> None:
    """Make the 16-bit copy of pickled text encoder weights, where the folder can be written; see `load_text_encoder`.

    Raises:
        CheckpointError, OutputError, LoadCancelled: as `t5.load_t5`.
    """
    text_checkpoint(files.text_encoder, torch.bfloat16, progress, cancelled)


@dataclass(frozen=True)
class Engine:
    """Transformer and autoencoder of a run, placed as the plan says."""

    files: ModelFiles
    execution: Execution
    dit: DiT
    home: Residency
    notices: tuple[str, ...] = ()
    """What makes this run slower than it need be, and what mends it, one sentence each."""
    side: Any | None = None
    """The stream that decodes beside the steps; None: they share one, or there is no card."""

    @property
    def device(self) -> torch.device:
        """Where latents live while they are denoised."""
        return self.home.device

    @property
    def writes_beside(self) -> bool:
        """Whether finished seconds are encoded and written while the next steps compute: on a card, which would wait.

        Without one the steps have the processor to themselves, and nothing would be gained.
        """
        return self.device.type == "cuda"

    @property
    def decodes_beside(self) -> bool:
        """Whether they are decoded there as well, which takes memory beside the steps: the plan decides."""
        return self.execution.decode_beside

    def null_caption(self) -> Caption:
        """The caption of clean passes: the model's learned null caption."""
        return Caption(null_caption(self.dit.y_embedder.null_caption_embedding))

    def store(self, slots: int) -> KVRing:
        """A KV store for `slots` clean chunks, as the plan says."""
        execution = self.execution
        return KVRing(
            slots, dtype=execution.kv_dtype, place=execution.kv_place, device=self.device, streams=devices,
            host=self.home.memory, layers=self.dit.config.num_layers,
        )  # fmt: skip

    @torch.inference_mode()
    def encode(self, pixels: np.ndarray) -> Tensor:
        """(T, H, W, 3) uint8 to scaled latents (1, 16, T/4 or 1, H/8, W/8) on `device`."""
        with self.home.vae_at_work("encoder") as vae:
            return encode_pixels(vae, pixels, self.home.vae_device, self.execution.vae_tile_batch).to(self.device)

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> np.ndarray:
        """Scaled latents (1, 16, t, h, w) to frames (T, H, W, 3) uint8 in host memory."""
        with self.home.vae_at_work("decoder") as vae:
            return decode_chunk(vae, latents.to(self.home.vae_device), self.execution.vae_tile_batch)

    def decoding(self, latents: Tensor) -> Callable[[], np.ndarray]:
        """What decodes `latents` (see `decode`), for one thread beside this one: once they are computed, on `side`."""
        computed = devices.record_event(devices.current_stream(self.device))
        devices.keep_for(latents, self.side)

        def decode() -> np.ndarray:
            if self.side is not None and computed is not None:
                self.side.wait_event(computed)
            with devices.on_stream(self.side):
                return self.decode(latents)

        return decode

    @property
    def has_stills(self) -> bool:
        """Whether unfinished seconds can be decoded for a look: not where the decoder had to be brought, or is slow."""
        return self.execution.vae != "swapped" and self.home.vae_device == self.device

    @torch.inference_mode()
    def preview(self, latents: Tensor) -> np.ndarray | None:
        """A small picture of unfinished latents; None without stills."""
        if not self.has_stills:
            return None
        with self.home.vae_at_work("decoder") as vae:
            return decode_preview(vae, latents.to(self.home.vae_device))


@contextmanager
def engine(files: ModelFiles, execution: Execution, cancelled: Callable[[], bool] = lambda: False) -> Iterator[Engine]:
    """Load transformer and autoencoder, place them, and free both at the end, even where someone still holds them.

    Raises:
        LoadCancelled: `cancelled()`, asked between tensors.
    """
    compute = DTYPES[execution.dtype]
    loaded: list[nn.Module] = []
    try:
        with Residency(execution) as home:
            dit = home.place_dit(load_dit(files, execution, cancelled=cancelled))
            loaded.append(dit)
            dit.backend = choose_attention(execution.attention, execution.device, compute)
            loaded.append(home.place_vae(load_vae(files.vae, compute, cancelled=cancelled)))
            side = devices.new_stream(home.device) if execution.decode_beside else None
            with devices.freed_memory_kept() if execution.device == "cpu" else nullcontext():
                yield Engine(files, execution, dit, home, tune(dit, home.device, execution.scheme), side)
    finally:
        for model in loaded:
            drop_weights(model)
        devices.free_memory()


def tune(dit: DiT, device: torch.device, scheme: str) -> tuple[str, ...]:
    """Choose between ways of multiplying that only a measurement on the card can tell apart; `Engine.notices`."""
    import quant

    if device.type == "cuda" and scheme == "fp8" and devices.capability(device.index) >= (8, 9):
        index = device.index or 0
        name = f"FP8 row scales, {devices.identity(index)}"
        found = findings.find(name, lambda: {"by": quant.faster_row_scales(index)})
        quant.set_row_scales_(dit, "afterwards" if found == {"by": "afterwards"} else "product")
    sentences = (dit.backend.notice, *quant.slow_paths(dit, device), _unused_kernels(dit, device))
    return tuple(sentence for sentence in sentences if sentence)


def _unused_kernels(dit: DiT, device: torch.device) -> str:
    """Why a kernel of ours is not used for this model on its card; empty: all are, or there is no card."""
    if device.type != "cuda":
        return ""
    weights = dit.get_parameter("videodit_blocks.layers.0.self_attention.q_layernorm.weight").dtype
    with torch.inference_mode():
        rotated = dit.rope(0, 1, 1, 1).shape[-1]
    config = dit.config
    return fused.notice(device.index or 0, dit.dtype, weights, config.head_dim, rotated, config.hidden_size)


@contextmanager
def decoder(files: ModelFiles, execution: Execution) -> Iterator[Callable[[Tensor], np.ndarray]]:
    """Load the autoencoder alone: scaled latents (1, 16, t, h, w) to frames (T, H, W, 3) uint8 in host memory."""
    vae = load_vae(files.vae, DTYPES[execution.dtype])
    try:
        with Residency(execution) as home:
            home.place_vae(vae)

            @torch.inference_mode()
            def decode(latents: Tensor) -> np.ndarray:
                with home.vae_at_work("decoder") as network:
                    return decode_chunk(network, latents.to(home.vae_device), execution.vae_tile_batch)

            yield decode
    finally:
        drop_weights(vae)
        devices.free_memory()


@contextmanager
def recorded(networks: Engine, file: Path | None) -> Iterator[None]:
    """Write what the quantizable linears see during the block to `file`, for calibrating static FP8; None: nothing.

    Raises:
        InputError: the weights are quantized already.
        OutputError: the file cannot be written.
    """
    if file is None:
        yield
        return
    from quant import QuantError, Recorder

    try:
        recorder = Recorder(networks.dit, quantizable(networks.files.spec.dit))
    except QuantError as error:
        raise InputError("Activations can be recorded with unquantized weights only; add --scheme bf16.") from error
    with recorder:
        yield
    try:
        with output_errors(file):
            recorder.recording().write(file)
    except QuantError as error:
        raise OutputError(str(error)) from error
