"""Where the autoencoder starts: nearly as the best linear one, from the principal components of patches.

From random weights most of a short training goes into finding again what a principal component analysis gives at once:
after 500 steps the world stood at 22 dB and photographs at 25, where 16 components of a patch give 26 and 30. So the
first and last layers are set to the components, and the blocks between add nothing yet (their last linears are zero).

Layer norms stand in the way, for they take the size out of what passes. Constant entries of alternating sign, large
beside the signal (the carrier), make a norm nearly linear: it then divides by about the carrier's size alone.
"""

from __future__ import annotations

import torch
from torch import Tensor

from magi_lite.vae.model import ViTDecoder, ViTVAE

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
    """Make `vae`, which has `use_final_proj`, nearly the best linear autoencoder of `frames`.

    Nearly: the norms bend what is large (about 1 dB on the world, 3 on photographs; a few steps mend it).

    Args:
        frames: signed, (N, 3, T, H, W), of everything that is to be learned in equal parts.
    """
    config = vae.config
    size = (config.patch_length, config.patch_size, config.patch_size)
    mean, components, variances = principal_components(patches(frames, size))
    for half in (vae.encoder, vae.decoder):
        for block in half.blocks:
            for linear in (block.attn.proj, block.mlp.fc2):
                torch.nn.init.zeros_(linear.weight)
                torch.nn.init.zeros_(linear.bias)
    _set_encoder(vae, mean, components, variances)
    latents = config.z_chans
    _set_decoder(vae, mean, components[:latents] * variances[:latents, None].sqrt())


def stream(width: int) -> tuple[int, Tensor, Tensor]:
    """How the residual stream is shared: entries of the signal; the carrier behind them; what a norm divides by."""
    signal = width // 2
    carrier = CARRIER * signs(width - signal)
    return signal, carrier, ((carrier.square().sum() + ENERGY) / width).sqrt()


def _set_encoder(vae: ViTVAE, mean: Tensor, components: Tensor, variances: Tensor) -> None:
    """Patches to their leading components, beside the carrier; the first of these, of variance 1, are the latents."""
    width, latents = vae.config.embed_dim, vae.config.z_chans
    signal, carrier, norm = stream(width)
    embed, last = vae.encoder.patch_embed.proj, vae.encoder.last_layer
    scale = (ENERGY / variances[:signal].sum()).sqrt()
    embed.weight[:signal] = scale * components[:signal].view(signal, *embed.weight.shape[1:])
    embed.bias[:signal] = -scale * components[:signal] @ mean
    embed.weight[signal:], embed.bias[signal:] = 0, carrier
    gain = norm / scale / variances[:latents].sqrt()
    last.weight[:latents] = 0
    last.weight[:latents, :latents] = torch.diag(gain)
    last.weight[:latents, signal:] = -gain[:, None] / len(carrier)  # the norm took the mean off: put it back
    last.bias[:latents] = 0
    last.weight[latents:] *= 0.1
    last.bias[latents:] = LOG_VARIANCE


def _set_decoder(vae: ViTVAE, mean: Tensor, paints: Tensor) -> None:
    """Latents to patches: each adds its paint (latents, 3 * pixels) to the mean, and a carrier passes the last norm."""
    width, latents = vae.config.embed_dim, vae.config.z_chans
    signal, carrier, norm = stream(width)
    decoder, spread = vae.decoder, (ENERGY / latents) ** 0.5
    decoder.proj_in.weight.zero_()
    decoder.proj_in.weight[:latents] = spread * torch.eye(latents)
    decoder.proj_in.bias.copy_(torch.cat([torch.zeros(signal), carrier]))

    pictures, level = four_channels(paints), four_channels(mean[None])[..., 0]
    whole = torch.zeros(*pictures.shape[:2], width)
    whole[..., :latents] = pictures * norm / spread
    whole[..., signal:] = -whole[..., :latents].sum(-1, keepdim=True) / len(carrier)
    pattern = set_painter(decoder, whole, level)
    size = (pattern.square().mean() + pictures.square().sum(-1).mean() + level.square().mean()).sqrt()
    decoder.final_norm.weight.fill_(float(size))
    decoder.last_layer.weight *= 0.1
    pass_colours(decoder)


def set_painter(decoder: ViTDecoder, whole: Tensor, level: Tensor) -> Tensor:
    """Let the last linear paint `whole` (pixels, 4, width) on `level` (pixels, 4).

    Returns:
        The pattern that passes the last norm beside them, (pixels, 4), which is taken off behind it; how large it and
        the picture are together, the caller sets as that norm's weight.
    """
    pattern = (2 * CARRIER * signs(len(level)))[:, None].expand(-1, decoder.channels)
    decoder.final_proj.weight.copy_(whole.flatten(0, 1))
    decoder.final_proj.bias.copy_((level + pattern).flatten())
    decoder.final_norm.bias.copy_(-pattern.flatten())
    return pattern


def pass_colours(decoder: ViTDecoder) -> None:
    """Let the last convolution, whose weights are small, pass three of its channels on as they are."""
    smooth = decoder.last_layer
    smooth.bias.zero_()
    for colour in range(3):
        smooth.weight[colour, colour, 1, 1, 1] += 1


def four_channels(rows: Tensor) -> Tensor:
    """Patches (N, 3 * pixels) -> (pixels, 4, N): the fourth keeps the mean over all at zero, which a norm takes off."""
    colours = rows.t().unflatten(0, (3, -1)).transpose(0, 1)
    return torch.cat([colours, -colours.sum(1, keepdim=True)], dim=1)


def signs(count: int) -> Tensor:
    """Ones of alternating sign, whose sum is zero for an even count."""
    signs = torch.ones(count)
    signs[1::2] = -1
    return signs
