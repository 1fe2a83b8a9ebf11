"""The whole transformer once more, in float64, from the formulas: slow, plain, sharing nothing with the package.

One video at a time, one chunk after the other, every head by itself, keys of all chunks in a list.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from magi_lite.models import DiTConfig


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-6) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight + bias


def silu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


def gelu(x: Tensor) -> Tensor:
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def softmax_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """q (S, d), k and v (L, d)."""
    return torch.softmax(q @ k.T / math.sqrt(q.shape[1]), dim=-1) @ v


def angles(bands: Tensor, start: int, frames: int, height: int, width: int) -> Tensor:
    """(tokens, 3 * bands): one token after the other."""
    def stretched(i: int, size: int) -> float:
        reference = size / math.sqrt(height * width / 256)
        centred = i - (size - 1) / 2
        return centred * (reference - 1) / (size - 1) if size > 1 else centred

    rows = []
    for t in range(start, start + frames):
        for h in range(height):
            for w in range(width):
                rows.append(torch.cat([t * bands, stretched(h, height) * bands, stretched(w, width) * bands]))
    return torch.stack(rows)


def rotated(x: Tensor, angle: Tensor) -> Tensor:
    """x (S, d), angle (S, r): the pairs (i, r + i) turn, what is behind 2 r stays."""
    r = angle.shape[1]
    result = x.clone()
    result[:, :r] = x[:, :r] * angle.cos() - x[:, r : 2 * r] * angle.sin()
    result[:, r : 2 * r] = x[:, r : 2 * r] * angle.cos() + x[:, :r] * angle.sin()
    return result


@dataclass
class Chunk:
    """One chunk of one video: latents (C, T, H, W), its words (L, channels), its absolute number and range."""

    latents: Tensor
    t: float
    words: Tensor
    dropped: bool
    number: int
    sees: tuple[int, int]
    step_size: float | None = None


class Formula:
    """A state dict and a config; `velocities` of the chunks of one video, which see each other by number."""

    def __init__(self, config: DiTConfig, state: dict[str, Tensor]) -> None:
        self.config = config
        self.state = {name: tensor.double() for name, tensor in state.items()}

    def velocities(self, chunks: list[Chunk]) -> list[Tensor]:
        c, w = self.config, self.state
        x = {chunk.number: self.tokens(chunk) for chunk in chunks}
        for index in range(c.num_layers):
            keys = {chunk.number: self.keys(index, chunk, x[chunk.number]) for chunk in chunks}
            x = {chunk.number: self.layer(index, chunk, x[chunk.number], keys) for chunk in chunks}
        result = []
        for chunk in chunks:
            out = self.post_norm("videodit_blocks.final_layernorm", x[chunk.number]) @ w["final_linear.linear.weight"].T
            result.append(self.picture(out, chunk) / c.x_rescale_factor)
        return result

    def tokens(self, chunk: Chunk) -> Tensor:
        latents = chunk.latents.double() * self.config.x_rescale_factor
        latents = torch.cat([latents, latents]) if self.config.half_channel_vae else latents
        kernel = self.state["x_embedder.weight"]
        return torch.nn.functional.conv3d(latents, kernel, stride=kernel.shape[2:]).flatten(1).T

    def picture(self, out: Tensor, chunk: Chunk) -> Tensor:
        _, frames, height, width = chunk.latents.shape
        picture = torch.empty(self.config.out_channels, frames, height, width, dtype=torch.float64)
        token = 0
        for t in range(frames):
            for h in range(height // 2):
                for v in range(width // 2):
                    patch = out[token].view(2, 2, -1)
                    picture[:, t, 2 * h : 2 * h + 2, 2 * v : 2 * v + 2] = patch.permute(2, 0, 1)
                    token += 1
        return picture[: self.config.latent_channels]

    def timestep(self, number: float) -> Tensor:
        w = self.state
        frequency = torch.tensor([10000 ** (-i / 128) for i in range(128)], dtype=torch.float64)
        angle = 1000 * number * frequency
        hidden = w["t_embedder.mlp.0.weight"] @ torch.cat([angle.cos(), angle.sin()]) + w["t_embedder.mlp.0.bias"]
        return w["t_embedder.mlp.2.weight"] @ silu(hidden) + w["t_embedder.mlp.2.bias"]

    def condition(self, chunk: Chunk) -> Tensor:
        w = self.state
        row = w["y_embedder.null_caption_embedding"][-1 if chunk.dropped else -2]
        learned = w["y_embedder.y_proj_adaln.0.weight"] @ row + w["y_embedder.y_proj_adaln.0.bias"]
        size = self.timestep(chunk.step_size) if chunk.step_size is not None else 0
        return self.timestep(chunk.t) + size + learned

    def heads(self, x: Tensor, linear: str, norm: str | None, layer: int, angle: Tensor | None = None) -> list[Tensor]:
        """x -> one (S, d) per head: projected, normed, rotated."""
        w, prefix = self.state, f"videodit_blocks.layers.{layer}.self_attention"
        parts = (x @ w[f"{prefix}.linear_qkv.{linear}.weight"].T).split(self.config.head_dim, dim=1)
        if norm is None:
            return list(parts)
        normed = [layer_norm(p, w[f"{prefix}.{norm}.weight"] + 1, w[f"{prefix}.{norm}.bias"]) for p in parts]
        return [rotated(part, angle) for part in normed] if angle is not None else normed

    def angle(self, chunk: Chunk) -> Tensor:
        _, frames, height, width = chunk.latents.shape
        return angles(self.state["rope.bands"], chunk.number * frames, frames, height // 2, width // 2)

    def normed(self, layer: int, x: Tensor) -> Tensor:
        name = f"videodit_blocks.layers.{layer}.self_attention.linear_qkv.layer_norm"
        return layer_norm(x, self.state[f"{name}.weight"], self.state[f"{name}.bias"])

    def keys(self, layer: int, chunk: Chunk, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        x = self.normed(layer, x)
        return self.heads(x, "k", "k_layernorm", layer, self.angle(chunk)), self.heads(x, "v", None, layer)

    def layer(self, layer: int, chunk: Chunk, x: Tensor, keys: dict[int, tuple[list[Tensor], list[Tensor]]]) -> Tensor:
        c, w, prefix = self.config, self.state, f"videodit_blocks.layers.{layer}"
        normed = self.normed(layer, x)
        queries = self.heads(normed, "q", "q_layernorm", layer, self.angle(chunk))
        cross = self.heads(normed, "qx", "q_layernorm_xattn", layer)
        name = "y_embedder.y_proj_xattn.0"
        words = silu(chunk.words.double() @ w[f"{name}.weight"].T + w[f"{name}.bias"])
        pairs = words @ w[f"{prefix}.self_attention.linear_kv_xattn.weight"].T
        per_group, d = c.num_attention_heads // c.num_query_groups, c.head_dim
        mixed = []
        for group in range(c.num_query_groups):
            seen = range(*chunk.sees)
            k = torch.cat([keys[number][0][group] for number in seen])
            v = torch.cat([keys[number][1][group] for number in seen])
            pair = pairs[:, 2 * d * group : 2 * d * (group + 1)]
            norm = f"{prefix}.self_attention.k_layernorm_xattn"
            word_k = layer_norm(pair[:, :d], w[f"{norm}.weight"] + 1, w[f"{norm}.bias"])
            own = range(group * per_group, (group + 1) * per_group)
            mixed += [softmax_attention(queries[head], k, v) for head in own]
            mixed += [softmax_attention(cross[head], word_k, pair[:, d:]) for head in own]
        attention = torch.cat(mixed, dim=1) @ w[f"{prefix}.self_attention.linear_proj.weight"].T
        gates = f"{prefix}.ada_modulate_layer.proj.0"
        gate = torch.tanh(w[f"{gates}.weight"] @ silu(self.condition(chunk)) + w[f"{gates}.bias"])
        x = x + self.post_norm(f"{prefix}.self_attn_post_norm", attention * gate[: c.hidden_size])
        return x + self.post_norm(f"{prefix}.mlp_post_norm", self.mlp(prefix, x) * gate[c.hidden_size :])

    def post_norm(self, name: str, x: Tensor) -> Tensor:
        return layer_norm(x, self.state[f"{name}.weight"] + 1, self.state[f"{name}.bias"])

    def mlp(self, prefix: str, x: Tensor) -> Tensor:
        w = self.state
        normed = layer_norm(x, w[f"{prefix}.mlp.layer_norm.weight"], w[f"{prefix}.mlp.layer_norm.bias"])
        inner = normed @ w[f"{prefix}.mlp.linear_fc1.weight"].T
        if self.config.gated_linear_unit:
            half = inner.shape[1] // 2
            inner = silu(inner[:, :half]) * inner[:, half:]
        else:
            inner = gelu(inner)
        return inner @ w[f"{prefix}.mlp.linear_fc2.weight"].T
