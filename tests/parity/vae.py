"""The autoencoder: whole, resized, tiled, by the chunk; and its units."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from magi_lite.models import VAEConfig
from magi_lite.vae.layers import normalize_heads, resize_positions
from magi_lite.vae.model import ViTDecoder, ViTVAE
from magi_lite.vae.tiling import Tiling, decode_tiled, encode_tiled, to_uint8
from tests.parity.report import CaseResult, compare, unclaimed

EVERY_OTHER_FRAME = "even frames 0::2 only"
EVERY_SIXTEENTH = 16


def load_vae(folder: Path) -> ViTVAE:
    """The float32 autoencoder of a diffusers folder, strictly."""
    ddconfig = json.loads((folder / "config.json").read_text())["ddconfig"]
    weights = {k: v.float() for f in sorted(folder.glob("*.safetensors")) for k, v in load_file(f).items()}
    vae = ViTVAE(VAEConfig(**ddconfig))
    vae.load_state_dict(weights)
    return vae.eval()


def run(folder: Path, root: Path) -> Iterator[CaseResult]:
    sidecar = json.loads((folder / "vae.json").read_text())
    tensors = load_file(folder / sidecar["file"])
    vae = load_vae(folder / "ckpt") if sidecar["cases"] else None
    for name, case in sidecar["cases"].items():
        inputs = {key: tensors[entry["tensor"]] for key, entry in case["inputs"].items()}
        outputs = outputs_of(vae, case, inputs)
        yield from compare_all(name, case["outputs"], outputs, tensors)
    units = sidecar.get("units")
    if units:
        inputs = {key: tensors[entry["tensor"]] for key, entry in units["inputs"].items()}
        yield from compare_all("unit", units["outputs"], unit_outputs(units, inputs), tensors)
    claimed = {"vae.json", sidecar["file"]}
    if vae:  # whose loading took every weights file of its folder
        claimed |= {f"ckpt/{path.name}" for path in (folder / "ckpt").glob("*.safetensors")} | {"ckpt/config.json"}
    yield from unclaimed("vae", folder, claimed)


def compare_all(
    name: str, entries: dict[str, Any], outputs: dict[str, Tensor], tensors: dict[str, Tensor]
) -> Iterator[CaseResult]:
    """Every output of the sidecar; one that we do not make is a failure."""
    for key, entry in entries.items():
        if key not in outputs:
            yield CaseResult("vae", f"{name}.{key}", False, {}, {}, "an output that is not known")
            continue
        ours = outputs[key]
        if entry.get("frames") == EVERY_OTHER_FRAME:
            ours = ours[:, :, ::2] if ours.ndim == 5 else ours[::2]
        yield compare("vae", f"{name}.{key}", ours, tensors[entry["tensor"]], entry["tolerance"])


def outputs_of(vae: ViTVAE, case: dict[str, Any], inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    operation = case["op"]
    if operation == "encode":
        return encode_outputs(vae, inputs["video"].float() / 127.5 - 1)
    if operation == "decode":
        z = inputs["z"]
        return {"video": vae.decode(z), **trace(vae.decoder, lambda: vae.decode(z))}
    arguments = case["args"]
    tiling = Tiling(
        frames=arguments.get("tile_t", 16),
        height=arguments.get("tile_h", 256),
        width=arguments.get("tile_w", 256),
        overlap=arguments.get("overlap", 0.25),
        overlap_time=arguments.get("overlap_t", 0.0),
    )
    scale = arguments.get("scale_factor", 1.0)
    if operation == "encode_tiled":
        return {"z": encode_tiled(vae, inputs["video"].float() / 127.5 - 1, tiling=tiling, scale_factor=scale)}
    if operation == "decode_tiled":
        video = decode_tiled(vae, inputs["latent"], tiling=tiling, scale_factor=scale, every_frame=False)
        frames = to_uint8(video).permute(0, 1, 4, 2, 3).flatten(0, 1)
        return {"video": video.transpose(1, 2).flatten(0, 1), "video_uint8": frames}
    return {}


def encode_outputs(vae: ViTVAE, frames: Tensor) -> dict[str, Tensor]:
    if frames.shape[2] == 1:
        return {"z": vae.encode(frames)}
    moments = vae.encoder(frames)
    return {"moments": moments, "z": vae.encode(frames), **trace(vae.encoder, lambda: vae.encode(frames))}


def trace(half: torch.nn.Module, call) -> dict[str, Tensor]:
    """The intermediate tensors that the sidecar records, every sixteenth token."""
    seen: dict[str, Tensor] = {}
    block = half.blocks[0]

    def qkv_seen(_: Any, __: Any, output: Tensor) -> None:
        seen["mid.block0_qkv_normed"] = normalize_heads(output.unflatten(-1, (3, block.attn.heads, -1)))

    hooks = [
        block.register_forward_pre_hook(lambda _, arguments: seen.__setitem__("mid.tokens_in", arguments[0])),
        block.attn.qkv.register_forward_hook(qkv_seen),
        block.attn.register_forward_hook(lambda _, __, output: seen.__setitem__("mid.block0_attn", output)),
        block.register_forward_hook(lambda _, __, output: seen.__setitem__("mid.block0_out", output)),
        half.norm.register_forward_hook(lambda _, __, output: seen.__setitem__("mid.final_norm", output)),
    ]
    try:
        call()
    finally:
        for hook in hooks:
            hook.remove()
    return {key: value[:, ::EVERY_SIXTEENTH] for key, value in seen.items()}


def resize_grids(about: str) -> list[tuple[int, ...]]:
    """The trained grid and the two targets, stated in words as: "(1,2*3*3,8) ... (3,5,2) and (1,2,7)"."""
    trained = re.search(r"(\d+)\*(\d+)\*(\d+)", about)
    targets = re.findall(r"\((\d+),(\d+),(\d+)\)", about)
    return [tuple(map(int, trained.groups())), *(tuple(map(int, target)) for target in targets)]


def unit_outputs(units: dict[str, Any], inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Single functions: head norm, position table, unpatchify with four channels, posterior."""
    trained, up, down = resize_grids(units["about"]["resize_pos_embed"])
    table = inputs["resize_pos_embed.p"]
    head = ViTDecoder(VAEConfig(**units["head_ddconfig"]))
    head.load_state_dict({k.removeprefix("head.w."): v.float() for k, v in inputs.items() if k.startswith("head.w.")})
    log_variance = inputs["posterior.moments"].chunk(2, dim=1)[1].clamp(-30, 20)
    return {
        "manual_ln.y": normalize_heads(inputs["manual_ln.x"]),
        "resize_pos_embed.up": resize_positions(table, trained, up),
        "resize_pos_embed.down": resize_positions(table, trained, down),
        "head.video": head(inputs["head.z"]),
        "posterior.std": (0.5 * log_variance).exp(),
    }
