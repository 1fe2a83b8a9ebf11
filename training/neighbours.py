"""An autoencoder that looks around from its first step: attention that is set, not left to be found.

Left to itself, attention over the 432 latents of half a second stays even in a short training (after 3,400 steps its
entropy was 5.9 to 6.0 of 6.07 in 14 of 16 heads; two looked at the class token alone), so that every patch is painted
from its own 16 numbers, with edges between the patches. Here every head but two begins with one neighbour in space or
time. A position is the cosines and sines of some frequencies, and to ask for the position beside it is a rotation of
these. What the first layer's heads find, the latents on the four sides, is laid beside the patch's own; the last linear
is fitted to all of them by least squares. From there 300 steps came as far as 3,400 had come from the linear decoder
without neighbours. The encoder asks for its neighbours in the same way, and is at first brought nothing by them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from magi_lite.vae.layers import Transformer
from magi_lite.vae.model import ViTDecoder, ViTVAE
from training.principal import four_channels, pass_colours, patches, set_painter, signs, stream

SIDES = ((0, 0, -1), (0, 0, 1), (0, -1, 0), (0, 1, 0))
LAYERS: tuple[tuple[tuple[int, int, int] | None, ...], ...] = (
    SIDES,
    ((-1, 0, 0), (1, 0, 0), (0, 0, -1), (0, 0, 1)),
    ((0, -1, 0), (0, 1, 0), None, None),
    SIDES,
)
"""Which neighbour (steps in time, down and to the right) every head of every layer looks at; None: at all alike."""
FREQUENCIES = 24
TRIES = 200
"""Sets of frequencies that are drawn; the one is kept in which a position is mistaken least for another."""
FOUND = 40
"""Entries of a head that bring something from its neighbour, behind the first layer."""
CONSTANT, PASSED_ON = 1.75, 1.3
"""Size of a head's constant entries, which keep its norm nearly linear, and the factor that undoes this norm."""
FAINT = 0.02


def position_codes(grid: Sequence[int], frequencies: Tensor) -> Tensor:
    """(T*H*W, 2F): cosines, then sines, of F frequencies (F, 3) at every place of a grid."""
    places = torch.stack(torch.meshgrid(*(torch.arange(n).float() for n in grid), indexing="ij"), -1).view(-1, 3)
    angles = places @ frequencies.t()
    return torch.cat([angles.cos(), angles.sin()], 1)


def draw_frequencies(grid: Sequence[int], seed: int = 0) -> Tensor:
    """(F, 3) frequencies that distinguish the places of a grid best."""
    generator = torch.Generator().manual_seed(seed)
    drawn = [(torch.rand(FREQUENCIES, 3, generator=generator) * 2 - 1) * math.pi for _ in range(TRIES)]

    def attended(frequencies: Tensor) -> float:
        codes = position_codes(grid, frequencies)
        codes = (codes - codes.mean(1, keepdim=True)) / codes.std(1, keepdim=True, unbiased=False)
        return float((codes @ codes.t() / codes.shape[1] * 8).softmax(-1).diagonal().mean())

    return max(drawn, key=attended)


@torch.no_grad()
def look_around(vae: ViTVAE, latents: Tensor, frames: Tensor) -> None:
    """Set the decoder anew for the latents that the encoder makes.

    Args:
        vae: of the demo model's size: four layers of four heads of 64, with the class token and `use_final_proj`.
        latents: (N, 16, 3, h, w), unscaled. frames: what they show, signed (N, 3, 12, H, W).
    """
    decoder, channels = vae.decoder, latents.shape[1]
    signal, carrier, _ = stream(vae.config.embed_dim)
    read = channels * (1 + len(SIDES))
    decoder.proj_in.weight.zero_()
    decoder.proj_in.weight[:channels] = torch.diag(1 / latents.std((0, 2, 3, 4)))
    decoder.proj_in.bias.copy_(torch.cat([torch.zeros(signal), carrier]))
    _set_places(decoder, channels, read, brings=True)
    torch.nn.init.normal_(decoder.last_layer.weight, std=0.01)
    pass_colours(decoder)
    _fit(decoder, read, latents, frames, (vae.config.patch_length, vae.config.patch_size, vae.config.patch_size))


@torch.no_grad()
def look_around_encoder(vae: ViTVAE) -> None:
    """Let an encoder that starts from components ask for its neighbours too; what it makes of a picture stays."""
    encoder, channels = vae.encoder, vae.config.z_chans
    read = channels * (1 + len(SIDES))
    encoder.patch_embed.proj.weight[read : read + 2 * FREQUENCIES] = 0
    encoder.patch_embed.proj.bias[read : read + 2 * FREQUENCIES] = 0
    _set_places(encoder, channels, read, brings=False)


def _set_places(half: Transformer, channels: int, read: int, *, brings: bool) -> None:
    """Codes of the places behind entry `read` of the stream, and heads that ask for the places beside them."""
    frequencies = draw_frequencies(half.grid)
    half.pos_embed.zero_()
    half.pos_embed[0, 1:, read : read + 2 * FREQUENCIES] = position_codes(half.grid, frequencies)
    _set_blocks(half, channels, read, frequencies, brings=brings)


def _set_blocks(half: Transformer, channels: int, read: int, frequencies: Tensor, *, brings: bool) -> None:
    """Queries and keys for the neighbours; the first layer `brings` their latents, the others nothing yet."""
    generator = torch.Generator().manual_seed(0)
    one, two = torch.arange(FREQUENCIES), torch.arange(FREQUENCIES, 2 * FREQUENCIES)
    both = torch.arange(2 * FREQUENCIES)
    for number, (block, sides) in enumerate(zip(half.blocks, LAYERS, strict=True)):
        heads = len(sides)
        width = block.attn.proj.in_features // heads
        weight = block.attn.qkv.weight.view(3, heads, width, -1)
        bias = block.attn.qkv.bias.view(3, heads, width)
        for linear in (block.attn.qkv, block.attn.proj, block.mlp.fc2):
            linear.weight.zero_()
            linear.bias.zero_()
        for head, side in enumerate(sides):
            if side is None:  # not zero: the norm of nothing has no gradient
                weight[:2, head] = FAINT * torch.randn(weight[:2, head].shape, generator=generator)
            else:
                turn = frequencies @ torch.tensor(side).float()
                weight[0, head, one, read + one] = turn.cos()
                weight[0, head, one, read + two] = -turn.sin()
                weight[0, head, two, read + one] = turn.sin()
                weight[0, head, two, read + two] = turn.cos()
                weight[1, head, both, read + both] = 1
            found = FOUND
            if number == 0 and brings:
                found = channels
                beside = channels * (1 + head)
                weight[2, head, :channels, :channels] = torch.eye(channels)
                block.attn.proj.weight[beside : beside + channels, head * width :][:, :channels] = (
                    PASSED_ON * torch.eye(channels)
                )
            else:
                mixed = torch.linalg.qr(torch.randn(read, read, generator=generator))[0]
                weight[2, head, :found, :read] = mixed[:found]
            bias[2, head, found:] = CONSTANT * signs(width - found)


def _fit(decoder: ViTDecoder, read: int, latents: Tensor, frames: Tensor, size: tuple[int, int, int]) -> None:
    """Fit the last linear: the patches from what the last norm lets through, by least squares."""
    seen: list[Tensor] = []
    watch = decoder.norm.register_forward_hook(lambda module, inputs, out: seen.append(out[:, 1:, :read].flatten(0, 1)))
    for some in latents.split(8):
        decoder(some)
    watch.remove()
    rows = F.pad(torch.cat(seen).double(), (0, 1), value=1.0)
    shown = torch.cat([patches(some, size) for some in frames.split(8)]).double()
    ridge = 1e-6 * len(rows) * torch.eye(rows.shape[1], dtype=torch.float64)
    found = torch.linalg.solve(rows.t() @ rows + ridge, rows.t() @ shown).float()
    pictures, level = four_channels(found[:-1]), four_channels(found[-1:])[..., 0]
    whole = torch.zeros(*pictures.shape[:2], decoder.final_proj.in_features)
    whole[..., :read] = pictures
    set_painter(decoder, whole, level)
    sizes: list[Tensor] = []
    watch = decoder.final_norm.register_forward_hook(lambda module, inputs, out: sizes.append(inputs[0].std(-1).mean()))
    decoder(latents[:8])
    watch.remove()
    decoder.final_norm.weight.fill_(float(sizes[0]))
