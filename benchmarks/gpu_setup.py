"""What `gpu.py` measures with: the full-size model on a card, or tiny ones on the CPU in its dry mode."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from benchmarks.gpu_models import random_dit, random_vae, timed
from magi_lite import planner
from magi_lite.machine import cards, devices
from magi_lite.models import DIT_4_5B, MODELS, VAE_PUBLISHED, DiTConfig, ModelSpec, VAEConfig
from magi_lite.planner.execution import Execution
from magi_lite.request.request import GenerationRequest
from magi_lite.timeline import Timeline

TIME_LIMIT = 400.0
"""Seconds after which nothing more is begun."""
LAST_SECOND = 475.0
"""Seconds after which the process ends, whatever it does."""
TINY_DIT = DiTConfig(
    num_layers=4, hidden_size=128, ffn_hidden_size=256, num_attention_heads=8, num_query_groups=4, head_dim=16,
    in_channels=16, out_channels=16, caption_channels=64, caption_max_length=16, gated_linear_unit=False,
    half_channel_vae=False, x_rescale_factor=1.0,
)  # fmt: skip
TINY_VAE = VAEConfig(video_size=32, video_length=8, embed_dim=256, depth=1, num_heads=4, z_chans=16)


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

    @property
    def dry(self) -> bool:
        return self.kind == "cpu"

    def left(self) -> float:
        """Seconds until the whole command should have ended."""
        return self.deadline - time.perf_counter()

    def timed(self, work: Callable[[], Any], budget: float = 0.5, most: int = 20) -> dict[str, Any]:
        """Median and spread of the seconds of `work`; in the dry mode it runs once."""
        return timed(work, budget=0.0 if self.dry else budget, most=most)

    def model(self) -> ModelSpec:
        return replace(MODELS["4.5B-distill"], dit=self.dit, vae=self.vae)

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

    def forward_seconds(self, plan: planner.Plan) -> float:
        """What the plan thinks one window pass takes: to leave out what would take too long."""
        return plan.seconds_per_chunk * plan.window / plan.request.steps

    def plan(self, size: tuple[int, int], window: int, execution: Execution) -> planner.Plan:
        """The plan of three seconds with one given execution."""
        request = GenerationRequest(Timeline(), width=size[0], height=size[1], window=window, steps=8, seconds=3)
        return planner.plan_execution(request, window, self.model(), execution, self.device)

    def fits(self, scheme: str, size: tuple[int, int], window: int) -> bool:
        """Whether a pass fits the card with nothing offloaded."""
        peak = self.plan(size, window, self.execution(scheme)).peak_per_phase["denoise"]
        return self.dry or peak < 0.92 * self.device.vram_bytes


def setup(dry: bool) -> Setup:
    """The card's, or the dry one.

    Raises:
        SystemExit: no card and not dry.
    """
    end = time.perf_counter() + TIME_LIMIT
    four_bits = ["nf4"] if importlib.util.find_spec("bitsandbytes") else []
    quantized = ["fp8", "int8", *four_bits]
    if dry:
        return Setup(
            cards.cpu_device(), "cpu", torch.float32, TINY_DIT, TINY_VAE, ((64, 32),), ("float32", *quantized), end
        )
    if not devices.cuda_available():
        raise SystemExit("No CUDA card is here; --dry runs everything with tiny models on the CPU.")
    devices.grow_segments()  # as a run does
    device = devices.detect()
    schemes = ("bf16", *(quantized if device.has_fp8 else quantized[1:]))
    sizes = ((256, 256), (384, 384), (480, 480), (720, 720))
    return Setup(device, "cuda", torch.bfloat16, DIT_4_5B, VAE_PUBLISHED, sizes, schemes, end)
