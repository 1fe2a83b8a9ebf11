"""Where the autoencoder starts: as the best linear one, from the principal components of patches.

From random weights most of a short training goes into finding again what a principal component analysis gives at once:
after 500 steps the world stood at 22 dB and photographs at 25, where 16 components of a patch give 26 and 30. So the
first and last layers are set to the components, and the blocks between add nothing yet (their last linears are zero).

Layer norms stand in the way, for they take the size out of what passes. Constant entries of alternating sign, large
beside the signal (the carrier), make a norm nearly linear: it then divides by about the carrier's size alone.
"""

from __future__ import annotations

import torch
from torch import Tensor

from magi_lite.vae.model import ViTVAE

CARRIER = 3.0
"""Size of the constant entries, in the blocks' residual stream and before the decoder's last norm."""
ENERGY = 16.0
"""Mean square length of the signal beside the carrier, in a stream of 256."""
LOG_VARIANCE = -7.0
"""Of latents of unit variance: so little noise that it hides nothing."""


def patches(frames: Tensor, size: tuple[int, int, int]) -> Tensor:
    """Signed frames (N, 3, T, H, W) -> (M, 3 * pT * pH * pW), in the order of the patch embedding's weights."""
    for axis, step in enumerate(size, start=2):
        frames = frames.unfold(axis, step, step)
    return frames.permute(0, 2, 3, 4, 1, 5, 6, 7).flatten(4).flatten(0, 3)


def principal_components(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean (D), components (K, D) and their variances (K), largest first, of rows (M, D)."""
    mean = rows.mean(0)
    centred = (rows - mean).double()
    variances, vectors = torch.linalg.eigh(centred.t() @ centred / len(rows))
    return mean, vectors.flip(1).t().float(), variances.flip(0).clamp(min=1e-9).float()


@torch.no_grad()
def start_from_components(vae: ViTVAE, frames: Tensor) -> None:
    """Set the weights of `vae`, made with `use_final_proj`, so that it is the best linear autoencoder of `frames`.

    Args:
        frames: signed, (N, 3, T, H, W), of everything that is to be learned in equal parts.
    """
    config = vae.config
    width, latents = config.embed_dim, config.z_chans
    size = (config.patch_length, config.patch_size, config.patch_size)
    mean, components, variances = principal_components(patches(frames, size))
    seen = width // 2  # of the stream; the carrier is the other half
    carrier = CARRIER * _signs(width - seen)
    scale = (ENERGY / variances[:seen].sum()).sqrt()
    deviation = variances[:latents].sqrt()
    norm = (carrier.square().sum() / width + ENERGY / width).sqrt()
    for half in (vae.encoder, vae.decoder):
        for block in half.blocks:
            for linear in (block.attn.proj, block.mlp.fc2):
                torch.nn.init.zeros_(linear.weight)
                torch.nn.init.zeros_(linear.bias)

    embed, last = vae.encoder.patch_embed.proj, vae.encoder.last_layer
    embed.weight[:seen] = scale * components[:seen].view(seen, *embed.weight.shape[1:])
    embed.bias[:seen] = -scale * components[:seen] @ mean
    embed.weight[seen:] = 0
    embed.bias[seen:] = carrier
    pick = torch.zeros(latents, width)
    pick[:, :latents] = torch.diag(norm / scale / deviation)
    pick[:, seen:] = -(norm / scale / deviation)[:, None] / (width - seen)  # the norm took the mean off: put it back
    last.weight[:latents], last.bias[:latents] = pick, 0
    last.weight[latents:] *= 0.1
    last.bias[latents:] = LOG_VARIANCE

    decoder = vae.decoder
    decoder.proj_in.weight.zero_()
    spread = (ENERGY / latents) ** 0.5
    decoder.proj_in.weight[:latents] = spread * torch.eye(latents)
    decoder.proj_in.bias.copy_(torch.cat([torch.zeros(seen), carrier]))
    channels = decoder.channels
    paint = (components[:latents] * deviation[:, None]).t().view(3, -1, latents).transpose(0, 1)  # pixels, rgb, latents
    picture = torch.cat([paint, -paint.sum(1, keepdim=True)], dim=1)  # a fourth channel keeps the mean at zero
    whole = torch.zeros(*picture.shape[:2], width)
    whole[..., :latents] = picture * norm / spread
    whole[..., seen:] = -whole[..., :latents].sum(-1, keepdim=True) / (width - seen)
    decoder.final_proj.weight.copy_(whole.flatten(0, 1))
    level = mean.view(3, -1).t()
    level = torch.cat([level, -level.sum(1, keepdim=True)], dim=1)
    pattern = CARRIER * 2 * _signs(level.shape[0])[:, None].expand(-1, channels)
    decoder.final_proj.bias.copy_((level + pattern).flatten())
    size_after = (pattern.square().mean() + (picture.square().sum(-1).mean() + level.square().mean())).sqrt()
    decoder.final_norm.weight.fill_(float(size_after))
    decoder.final_norm.bias.copy_(-pattern.flatten())
    smooth = decoder.last_layer
    smooth.weight *= 0.1
    smooth.bias.zero_()
    for colour in range(3):
        smooth.weight[colour, colour, 1, 1, 1] += 1


def _signs(count: int) -> Tensor:
    """Ones of alternating sign, whose sum is zero for an even count."""
    signs = torch.ones(count)
    signs[1::2] = -1
    return signs
