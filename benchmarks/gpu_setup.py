"""What `gpu.py` measures with: the full-size model on a card, or tiny ones on the CPU in its dry mode."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from benchmarks.gpu_models import random_dit, random_t5, random_vae, timed
from magi_lite import planner
from magi_lite.machine import cards, devices
from magi_lite.models import DIT_4_5B, MODELS, T5_XXL, VAE_PUBLISHED, DiTConfig, ModelSpec, T5Shape, VAEConfig
from magi_lite.planner.execution import Execution
from magi_lite.request.request import GenerationRequest
from magi_lite.timeline import Timeline

TIME_LIMIT = 400.0
"""Seconds after which nothing more is begun."""
RESERVE = 20.0
"""Seconds that must be left after what is begun."""
SECONDS = 8
"""Of the videos that are planned: enough for windows of four chunks that look back as far as they may."""
LAST_SECOND = 475.0
"""Seconds after which the process ends, whatever it does."""
TINY_DIT = DiTConfig(
    num_layers=4, hidden_size=128, ffn_hidden_size=256, num_attention_heads=8, num_query_groups=4, head_dim=16,
    in_channels=16, out_channels=16, caption_channels=64, caption_max_length=16, gated_linear_unit=False,
    half_channel_vae=False, x_rescale_factor=1.0,
)  # fmt: skip
TINY_VAE = VAEConfig(video_size=32, video_length=8, embed_dim=256, depth=1, num_heads=4, z_chans=16)
TINY_T5 = T5Shape(layers=2, width=64, heads=4, head_dim=16, feed_forward=128, vocabulary=100)
NOT_IN_A_PASS = {"VAE", "VAE encoder", "VAE decoder", "decoding", "latents", "rotary tables", "captions"}
"""Of a plan's denoising: what is not there, or smaller, where only the transformer is built and run."""


@dataclass(frozen=True)
class Setup:
    """What is measured: full size on a card, tiny on the CPU."""

    device: cards.Device
    kind: str
    dtype: torch.dtype
    dit: DiTConfig
    vae: VAEConfig
    sizes: tuple[tuple[int, int], ...]
    schemes: tuple[str, ...]
    deadline: float
    t5: T5Shape = T5_XXL
    pace: dict[str, float] = field(default_factory=dict)
    """How many times longer than planned "passes" took here: what is still to come is expected to, too."""

    @property
    def dry(self) -> bool:
        return self.kind == "cpu"

    def left(self) -> float:
        """Seconds until the whole command should have ended."""
        return self.deadline - time.perf_counter()

    def affords(self, seconds: float) -> bool:
        """Whether work of so many seconds still ends in time."""
        return self.left() > RESERVE + seconds

    def within(self, seconds: float) -> Setup:
        """The same with so many seconds left at most, for a section that must leave time to others."""
        return replace(self, deadline=min(self.deadline, time.perf_counter() + RESERVE + seconds))

    def attempt(self, row: dict[str, Any], seconds: float, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """`row` with what `work` finds in about `seconds`, or why there is nothing: time, memory or an error."""
        if not self.affords(seconds):
            return {**row, "skipped": "out of time"}
        try:
            return {**row, **work()}
        except Exception as error:  # one measurement that fails must not hide the others
            reason = "out of memory" if devices.is_out_of_memory(error) else type(error).__name__
            return {**row, "failed": f"{reason}: {error}"}

    def timed(
        self, work: Callable[[], Any], budget: float = 0.5, most: int = 20, warm: bool = True
    ) -> dict[str, Any]:
        """Median and spread of the seconds of `work`; in the dry mode it runs once."""
        return timed(work, budget=0.0 if self.dry else budget, most=most, warm=warm)

    def model(self) -> ModelSpec:
        return replace(MODELS["4.5B-distill"], dit=self.dit, vae=self.vae, t5=self.t5)

    def execution(self, scheme: str, **changes: Any) -> Execution:
        plain = "bf16" if self.dtype == torch.bfloat16 else "float32"
        usual = Execution(
            device="cpu" if self.dry else "cuda", dtype="bfloat16" if plain == "bf16" else "float32", kv_dtype=plain,
            scheme=scheme, mlp_slice=8192, attention_slice=8192,
        )  # fmt: skip
        return replace(usual, **changes)

    def build(self, scheme: str, config: DiTConfig | None = None) -> Any:
        """A transformer with random weights, made outside inference mode as the loader does: its tensors move later."""
        with torch.inference_mode(False):
            dit = random_dit(config or self.dit, scheme, self.dtype, self.kind)
        dit.mlp_slice = dit.attention_slice = 8192 if not self.dry else 16
        return dit

    def build_vae(self) -> Any:
        """An autoencoder with random weights."""
        with torch.inference_mode(False):
            return random_vae(self.vae, self.dtype, self.kind)

    def build_t5(self, scheme: str, shape: T5Shape | None = None) -> Any:
        """A text encoder with random weights."""
        with torch.inference_mode(False):
            return random_t5(shape or self.t5, scheme, self.dtype, self.kind)

    def chunk_seconds(self, plan: planner.Plan) -> float:
        """What a second of video is expected to take: to leave out what would take too long."""
        return plan.seconds_per_chunk * max(1.0, self.pace.get("passes", 1.0))

    def forward_seconds(self, plan: planner.Plan) -> float:
        """The same for one window pass."""
        return self.chunk_seconds(plan) * plan.window / plan.request.steps

    def plan(
        self, size: tuple[int, int], window: int, execution: Execution, seconds: int = SECONDS
    ) -> planner.Plan:
        """The plan of a video with one given execution."""
        request = GenerationRequest(Timeline(), width=size[0], height=size[1], window=window, steps=8, seconds=seconds)
        return planner.plan_execution(request, window, self.model(), execution, self.device)

    def fits(self, scheme: str, size: tuple[int, int], window: int) -> bool:
        """Whether a pass fits the card with nothing offloaded."""
        peak = self.plan(size, window, self.execution(scheme)).peak_per_phase["denoise"]
        return self.dry or peak < 0.92 * self.device.vram_bytes


def pass_bytes(plan: planner.Plan) -> int:
    """The card's bytes that a plan promises for a window pass of the transformer alone, as it is measured here."""
    return sum(
        item.bytes
        for item in plan.items
        if item.phase == "denoise" and item.place == "vram" and item.component not in NOT_IN_A_PASS
    )


def setup(dry: bool) -> Setup:
    """The card's, or the dry one.

    Raises:
        SystemExit: no card and not dry.
    """
    end = time.perf_counter() + TIME_LIMIT
    four_bits = ["nf4"] if importlib.util.find_spec("bitsandbytes") else []
    quantized = ["fp8", "int8", *four_bits]
    if dry:
        schemes = ("float32", *quantized)
        return Setup(
            cards.cpu_device(), "cpu", torch.float32, TINY_DIT, TINY_VAE, ((64, 32),), schemes, end, TINY_T5
        )
    if not devices.cuda_available():
        raise SystemExit("No CUDA card is here; --dry runs everything with tiny models on the CPU.")
    devices.grow_segments()  # as a run does
    devices.stay_on_card()
    device = devices.detect()
    schemes = ("bf16", *(quantized if device.has_fp8 else quantized[1:]))
    sizes = ((256, 256), (384, 384), (480, 480), (720, 720))
    return Setup(device, "cuda", torch.bfloat16, DIT_4_5B, VAE_PUBLISHED, sizes, schemes, end)
