"""The autoencoder against the goldens' units and an independent float64 formula, on fresh random weights and inputs."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from magi_lite.models import VAE_PUBLISHED, VAEConfig
from magi_lite.vae.layers import FrameConvolution, PatchConvolution, resize_positions
from magi_lite.vae.model import ViTVAE
from magi_lite.vae.tiling import Tiling, decode_tiled, encode_tiled, to_signed, to_uint8
from tests.parity import vae as parity

TINY = VAEConfig(video_size=32, video_length=8, embed_dim=256, depth=2, num_heads=4, z_chans=16)
NARROW = VAEConfig(
    video_size=32, video_length=8, embed_dim=96, depth=1, num_heads=4, z_chans=16, use_final_proj=True, ln_in_attn=False
)
FLOAT32_TOLERANCE = 5e-6


def random_vae(config: VAEConfig, seed: int) -> ViTVAE:
    torch.manual_seed(seed)
    vae = ViTVAE(config)
    for parameter in vae.parameters():
        torch.nn.init.normal_(parameter, std=1 / math.sqrt(max(parameter[0].numel(), 16)))
    return vae.eval()


def relative_error(ours: Tensor, reference: Tensor) -> float:
    return ((ours.double() - reference).norm() / reference.norm()).item()


def reference_transform(w: dict[str, Tensor], config: VAEConfig, tokens: Tensor, prefix: str) -> Tensor:
    """The blocks written out in float64 for the grid that the position table was learned for."""

    def norm(x: Tensor, name: str) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / torch.sqrt(centred.pow(2).mean(-1, keepdim=True) + 1e-5)
        return scaled * w[f"{name}.weight"] + w[f"{name}.bias"]

    def linear(x: Tensor, name: str) -> Tensor:
        return torch.einsum("...i,oi->...o", x, w[f"{name}.weight"]) + w[f"{name}.bias"]

    x = torch.cat([w[f"{prefix}.cls_token"].expand(len(tokens), -1, -1), tokens], 1) + w[f"{prefix}.pos_embed"]
    head = config.embed_dim // config.num_heads
    for i in range(config.depth):
        name = f"{prefix}.blocks.{i}"
        qkv = linear(x if config.ln_in_attn else norm(x, f"{name}.norm1"), f"{name}.attn.qkv")
        q, k, v = (part.unflatten(-1, (config.num_heads, head)) for part in qkv.chunk(3, -1))
        if config.ln_in_attn:
            q, k, v = (
                (p - p.mean(-1, keepdim=True)) / (p.std(-1, correction=0, keepdim=True) + 1e-5) for p in (q, k, v)
            )
        weights = torch.einsum("nqhd,nkhd->nhqk", q, k).div(math.sqrt(head)).softmax(-1)
        x = x + linear(torch.einsum("nhqk,nkhd->nqhd", weights, v).flatten(2), f"{name}.attn.proj")
        hidden = linear(norm(x, f"{name}.norm2"), f"{name}.mlp.fc1")
        x = x + linear(hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2))), f"{name}.mlp.fc2")
    return norm(x, f"{prefix}.norm")[:, 1:]


@pytest.mark.parametrize("config", [TINY, NARROW], ids=["published form", "final projection, norms before attention"])
def test_both_halves_equal_the_formula_in_float64(config: VAEConfig) -> None:
    vae = random_vae(config, seed=1)
    w = {name: tensor.double() for name, tensor in vae.state_dict().items()}
    frames = torch.randn(2, 3, 8, 32, 32).clamp(-1, 1)
    latents = torch.randn(2, 16, 2, 4, 4)
    with torch.no_grad():
        encoded, decoded = vae.encode(frames), vae.decode(latents)

    patches = (
        frames.double()
        .unfold(2, 4, 4)
        .unfold(3, 8, 8)
        .unfold(4, 8, 8)
        .permute(0, 2, 3, 4, 1, 5, 6, 7)
        .flatten(4)
        .flatten(1, 3)
    )
    kernel = w["encoder.patch_embed.proj.weight"].flatten(1)
    tokens = patches @ kernel.T + w["encoder.patch_embed.proj.bias"]
    moments = (
        reference_transform(w, config, tokens, "encoder") @ w["encoder.last_layer.weight"].T
        + w["encoder.last_layer.bias"]
    )
    mean = moments[..., :16].transpose(1, 2).unflatten(2, (2, 4, 4))
    assert relative_error(encoded, mean) < FLOAT32_TOLERANCE

    tokens = latents.double().flatten(2).transpose(1, 2) @ w["decoder.proj_in.weight"].T + w["decoder.proj_in.bias"]
    x = reference_transform(w, config, tokens, "decoder")
    if config.use_final_proj:
        x = x @ w["decoder.final_proj.weight"].T + w["decoder.final_proj.bias"]
        x = (x - x.mean(-1, keepdim=True)) / torch.sqrt(x.var(-1, correction=0, keepdim=True) + 1e-5)
        x = x * w["decoder.final_norm.weight"] + w["decoder.final_norm.bias"]
    pixels = torch.einsum("nthwabcx->nxtahbwc", x.view(2, 2, 4, 4, 4, 8, 8, -1)).reshape(2, -1, 8, 32, 32)
    expected = torch.nn.functional.conv3d(
        pixels, w["decoder.last_layer.weight"], w["decoder.last_layer.bias"], padding=1
    )
    assert relative_error(decoded, expected) < FLOAT32_TOLERANCE


def test_units_equal_the_goldens() -> None:
    goldens = Path(__file__).parents[1] / "goldens"
    results = list(parity.run(goldens / "vae", goldens))
    assert len(results) >= 5
    assert [result.line() for result in results if not result.passed] == []


def test_published_shape_is_614_million_parameters() -> None:
    with torch.device("meta"):
        vae = ViTVAE(VAE_PUBLISHED)
    assert sum(p.numel() for p in vae.parameters()) == 613_755_239


def test_one_image_is_one_latent_frame_and_back() -> None:
    vae = random_vae(TINY, seed=2)
    with torch.no_grad():
        image = torch.rand(1, 3, 1, 32, 48) * 2 - 1
        latents = vae.encode(image)
        assert latents.shape == (1, 16, 1, 4, 6)
        assert torch.equal(latents, vae.encode(image.expand(-1, -1, 4, -1, -1))[:, :, :1])
        assert vae.decode(latents).shape == (1, 3, 1, 32, 48)


@pytest.mark.parametrize(("height", "width"), [(16, 16), (48, 32), (80, 112)])
def test_any_multiple_of_16_comes_back_at_its_size(height: int, width: int) -> None:
    vae = random_vae(TINY, seed=3)
    tiling = Tiling(frames=8, height=32, width=32)
    with torch.no_grad():
        latents = encode_tiled(vae, torch.zeros(1, 3, 8, height, width), tiling=tiling)
        assert latents.shape == (1, 16, 2, height // 8, width // 8)
        assert decode_tiled(vae, latents, tiling=tiling).shape == (1, 3, 8, height, width)


@pytest.mark.parametrize("latent_frames", range(1, 9))
def test_every_latent_frame_but_a_lone_one_gives_four(latent_frames: int) -> None:
    vae = random_vae(TINY, seed=4)
    with torch.no_grad():
        frames = decode_tiled(vae, torch.randn(1, 16, latent_frames, 2, 2), tiling=Tiling(frames=12))
    assert frames.shape[2] == (1 if latent_frames == 1 else 4 * latent_frames)


def test_batched_tiles_equal_single_ones() -> None:
    vae = random_vae(TINY, seed=5)
    tiling = Tiling(frames=8, height=32, width=32)
    latents = torch.randn(1, 16, 4, 8, 10)
    with torch.no_grad():
        single = decode_tiled(vae, latents, tiling=tiling)
        batched = decode_tiled(vae, latents, tiling=tiling, tile_batch=4)
    assert relative_error(batched, single.double()) < FLOAT32_TOLERANCE


class _Counter(torch.nn.Module):
    """Stands for an autoencoder whose tiles disagree: tile number n is the constant n."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = -1

    def decode(self, latents: Tensor) -> Tensor:
        self.calls += 1
        n, _, t, h, w = latents.shape
        return torch.full((n, 3, 4 * t, 8 * h, 8 * w), float(self.calls))

    def encode(self, frames: Tensor) -> Tensor:
        self.calls += 1
        n, _, t, h, w = frames.shape
        return torch.full((n, 16, t // 4, h // 8, w // 8), float(self.calls))


def test_overlapping_tiles_fade_linearly_into_each_other() -> None:
    tiling = Tiling(frames=8, height=32, width=32)
    row = decode_tiled(_Counter(), torch.zeros(1, 16, 2, 4, 7), tiling=tiling, scale_factor=1.0)[0, 0, 0, 0]
    assert torch.equal(row[:24], torch.zeros(24))
    assert torch.allclose(row[24:32], torch.arange(8) / 8)
    assert torch.equal(row[32:48], torch.ones(16))


def test_encoding_blends_with_blended_neighbours_and_decoding_with_plain_ones() -> None:
    """With three quarters of overlap the two rules differ from the third tile on."""
    tiling = Tiling(frames=8, height=32, width=32, overlap=0.75)
    encoded = encode_tiled(_Counter(), torch.zeros(1, 3, 8, 32, 40), tiling=tiling, scale_factor=1.0)[0, 0, 0, 0]
    # tile 1 became 0, 1/3, 2/3, 1; tile 2 fades in from its last three latents
    assert torch.allclose(encoded[:3], torch.tensor([0.0, 0.0, 1 / 3]))
    decoded = decode_tiled(_Counter(), torch.zeros(1, 16, 2, 4, 5), tiling=tiling, scale_factor=1.0)[0, 0, 0, 0]
    assert torch.allclose(decoded[16:24], 1 + torch.arange(8) / 24)  # tile 2 fades in from a plain 1


def test_positions_follow_a_half_pixel_trilinear_formula() -> None:
    table = torch.randn(1, 4, 3)  # a 1 x 1 x 4 grid
    stretched = resize_positions(table, (1, 1, 4), (1, 1, 6))
    for i in range(6):
        at = min(max((i + 0.5) * 4 / 6 - 0.5, 0), 3)
        low = int(at)
        expected = table[0, low] * (1 - (at - low)) + table[0, min(low + 1, 3)] * (at - low)
        assert torch.allclose(stretched[0, i], expected, atol=1e-6)


def test_bytes_survive_the_way_to_signed_and_back() -> None:
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16, 1).expand(1, 2, 16, 16, 3)
    back = to_uint8(to_signed(pixels))
    assert back.shape == pixels.shape
    assert (back.int() - pixels.int()).abs().max() <= 1  # truncation, as published


def test_bytes_are_encoded_tile_by_tile_to_the_same_bits() -> None:
    vae = random_vae(TINY, seed=8)
    pixels = torch.randint(0, 256, (1, 16, 48, 80, 3), dtype=torch.uint8)
    tiling = Tiling(frames=8, height=32, width=32)
    with torch.no_grad():
        for frames in (pixels, pixels[:, :1]):
            whole = encode_tiled(vae, to_signed(frames), tiling=tiling)
            assert torch.equal(encode_tiled(vae, frames, tiling=tiling, device="cpu"), whole)


def test_weights_follow_their_dtype() -> None:
    vae = random_vae(TINY, seed=6).to(torch.bfloat16)
    frames = torch.rand(1, 3, 8, 32, 32) * 2 - 1
    with torch.no_grad():
        half = vae.encode(frames)
        full = vae.float().encode(frames)
    assert half.dtype == torch.bfloat16
    assert relative_error(half.float(), full.double()) < 0.03


@pytest.mark.parametrize("frames", [1, 2, 5])
def test_convolutions_equal_torchs_in_float64(frames: int) -> None:
    generator = torch.Generator().manual_seed(frames)
    for made, sides in (
        (FrameConvolution(4, 3, kernel_size=3, padding=1), (frames, 7, 9)),
        (PatchConvolution(3, 10, kernel_size=(4, 2, 3), stride=(4, 2, 3)), (4 * frames, 6, 9)),
    ):
        x = torch.randn(2, made.in_channels, *sides, generator=generator, dtype=torch.float64)
        made = made.double().requires_grad_(False)
        wanted = F.conv3d(x, made.weight, made.bias, made.stride, made.padding)
        found = made(x.transpose(3, 4).contiguous().transpose(3, 4))  # not contiguous
        assert found.shape == wanted.shape
        assert (found - wanted).abs().max() < 1e-12
