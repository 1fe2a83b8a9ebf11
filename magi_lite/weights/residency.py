"""Where a run's models live while they are not computing, as the plan says.

The text encoder is loaded, used and dropped; the transformer is resident or streams its layers; the autoencoder is
resident, decoder only, swapped in for each use, or stays on the CPU. Keys and values are the KV store's business. How
weights travel, and why not by accelerate's hooks: `streaming`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Literal, TypeVar

import torch
from torch import nn

from magi_lite.dit.block import TransformerLayer
from magi_lite.dit.model import DiT
from magi_lite.machine import cards, devices
from magi_lite.planner.execution import Execution
from magi_lite.weights.assign import unchanged
from magi_lite.weights.streaming import LayerStreamer, PinnedMemory, SwappedModule, packed_size

Loaded = TypeVar("Loaded")


class Residency:
    """Puts a run's models where its plan says, and takes them away again.

    Args:
        execution: the plan's.
        pinned_cap_bytes: most pinned memory; None: `cards.PINNED_SHARE` of the RAM.
        pin: whether host buffers are pinned; None: where there is a card.
    """

    def __init__(
        self, execution: Execution, *, pinned_cap_bytes: int | None = None, pin: bool | None = None, device: Any = None
    ) -> None:
        self.execution = execution
        self.device = torch.device(device if device is not None else execution.device)
        if pinned_cap_bytes is None:
            pinned_cap_bytes = int(cards.PINNED_SHARE * devices.ram_bytes())
        self.memory = PinnedMemory(pinned_cap_bytes, pin=pin)
        self._streamer: LayerStreamer | None = None
        self._vae: nn.Module | None = None
        self._swapped: dict[str, SwappedModule] = {}

    def __enter__(self) -> Residency:
        if self.device.type == "cuda":
            devices.grow_segments()
            devices.stay_on_card()
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    # --- text ----------------------------------------------------------------------------------------------------

    @contextmanager
    def text_encoder(self, load: Callable[[], Loaded]) -> Iterator[Loaded]:
        """The text encoder, loaded for the block and gone after it, even where someone still refers to it.

        Args:
            load: makes the encoder; where it has a `model`, that module's weights are dropped at the end.
        """
        encoder = load()
        model = getattr(encoder, "model", encoder)
        try:
            with unchanged(model) if isinstance(model, nn.Module) else nullcontext():
                yield encoder
        finally:
            if isinstance(model, nn.Module):
                drop_weights(model)
            del encoder, model
            devices.free_memory()

    # --- transformer -----------------------------------------------------------------------------------------------

    def place_dit(self, dit: DiT) -> DiT:
        """The transformer, resident on the device or with its layers streamed to it."""
        if self.execution.layers == "resident":
            move_except(dit, [], self.device)
            return dit
        layers = list(dit.videodit_blocks.layers)
        self._streamer = LayerStreamer(
            layers, self.device, self.memory, part_methods=("caption_key_value",), part=TransformerLayer.caption_modules
        )
        move_except(dit, layers, self.device)
        return dit

    # --- autoencoder -----------------------------------------------------------------------------------------------

    @property
    def vae_device(self) -> torch.device:
        """Where latents must be for decoding, and frames for encoding."""
        return torch.device("cpu") if self.execution.vae == "cpu" else self.device

    def place_vae(self, vae: nn.Module) -> nn.Module:
        """The autoencoder: resident, its decoder only, swapped in for each use, or left on the CPU.

        An encoder that is swapped in stays in ordinary memory: it works once in a run, the decoder for every chunk.
        """
        self._vae = vae
        kept = {"resident": ("encoder", "decoder"), "decoder": ("decoder",)}.get(self.execution.vae, ())
        for name in ("encoder", "decoder"):
            part = getattr(vae, name)
            if name in kept:
                move_except(part, [], self.device)
            elif self.execution.vae == "cpu":
                move_except(part, [], "cpu")
            else:
                memory = self.memory if name == "decoder" else PinnedMemory(pin=False)
                memory.expect([packed_size(part)])
                self._swapped[name] = SwappedModule(part, self.device, memory)
        return vae

    @contextmanager
    def vae_at_work(self, part: Literal["encoder", "decoder"]) -> Iterator[Any]:
        """The autoencoder with `part` on `vae_device`, for one use."""
        assert self._vae is not None
        if part in self._swapped:
            with self._swapped[part].at_work():
                yield self._vae
        else:
            with unchanged(self._vae):
                yield self._vae

    # --- leaving ---------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Stop streaming and let go of everything; models that nobody else holds are freed."""
        if self._streamer is not None:
            self._streamer.close()
        self._streamer, self._vae = None, None
        self._swapped.clear()
        devices.free_memory()


def drop_weights(module: nn.Module) -> None:
    """Free a module's tensors at once: each becomes empty. For modules that will not be used again."""
    for owner in module.modules():
        for table in (owner._parameters, owner._buffers):
            for name in list(table):
                table[name] = None


def move_except(module: nn.Module, kept: Sequence[nn.Module], device: torch.device | str) -> None:
    """Move a module's tensors to a device, but not those of the modules in `kept`."""
    inside = {id(m) for top in kept for m in top.modules()}
    for owner in module.modules():
        if id(owner) in inside:
            continue
        for table, is_parameter in ((owner._parameters, True), (owner._buffers, False)):
            for name, tensor in table.items():
                if tensor is not None and tensor.device != torch.device(device):
                    moved = tensor.detach().to(device)
                    table[name] = nn.Parameter(moved, requires_grad=False) if is_parameter else moved  # type: ignore[assignment]
