"""Random weights of the demo model's make, for where the trained one is not shipped.

They exist so that every part of the program can be tried before there is anything to try: they are written to a cache
folder in the published layout and read by the ordinary loader. `ModelFiles.trained` tells them apart.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from magi_lite.dit.model import DiT, parameter_dtype
from magi_lite.files import write_tensors
from magi_lite.models import DiTConfig, VAEConfig
from magi_lite.vae.model import ViTVAE
from magi_lite.weights.opening import DEMO_WEIGHTS

_SEED = 20250519
_DIT = DiTConfig(
    num_layers=4,
    hidden_size=128,
    ffn_hidden_size=256,
    num_attention_heads=4,
    num_query_groups=2,
    head_dim=32,
    in_channels=16,
    out_channels=16,
    caption_channels=64,
    caption_max_length=64,
    gated_linear_unit=False,
    half_channel_vae=False,
    x_rescale_factor=1,
)
_VAE = VAEConfig(video_size=64, video_length=16, embed_dim=64, depth=1, num_heads=2, z_chans=16, use_final_proj=True)
_VOCABULARY = (
    "a an the and of in on at to with red green blue yellow white black small large ball box triangle circle square "
    "cat dog man woman bird car tree sky sea moves runs walks falls bounces jumps turns stands left right up down "
    "slowly fast"
)


def make_untrained(root: Path, seed: int = _SEED) -> None:
    """Write a tiny random model in the published layout: transformer, autoencoder, text encoder, tokens."""
    weights = root / DEMO_WEIGHTS
    weights.mkdir(parents=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        dit, vae_weights = random_weights(DiT(_DIT)), random_weights(ViTVAE(_VAE))
        text_config, text_weights = _text_encoder()
        rows = {"caption_token": 1, "logo_token": 1, "other_tokens": 100}
        tokens = {name: torch.randn(count, _DIT.caption_channels).half() for name, count in rows.items()}
    stored = {name: tensor.to(parameter_dtype(name, torch.bfloat16)) for name, tensor in dit.items()}
    write_tensors(weights / "model.safetensors", stored)
    model = {("kv_channels" if name == "head_dim" else name): value for name, value in dataclasses.asdict(_DIT).items()}
    _write_json(
        weights.parent / "config.json",
        {
            "model_config": model,
            "runtime_config": {"cfg_number": 1, "num_steps": 8, "window_size": 4, "chunk_width": 6},
            "engine_config": {"distill": True, "fp8_quant": False, "shortcut_mode": "8,16,16"},
        },
    )
    vae, text = root / "ckpt" / "vae", root / "ckpt" / "t5" / "demo"
    vae.mkdir()
    write_tensors(vae / "diffusion_pytorch_model.safetensors", vae_weights)
    _write_json(vae / "config.json", {"_class_name": "ViTVAE", "ddconfig": dataclasses.asdict(_VAE)})
    text.mkdir(parents=True)
    _tokenizer().save_pretrained(text)
    write_tensors(text / "model.safetensors", text_weights)
    _write_json(text / "config.json", text_config)
    write_tensors(root / "special_tokens.safetensors", tokens)


def random_weights(module: nn.Module) -> dict[str, torch.Tensor]:
    """A state dict whose matrices keep activations near unit size; norms and biases as constructed.

    Drawn from the global generator.
    """
    state = {}
    for name, tensor in module.state_dict().items():
        matrix = tensor.ndim > 1
        state[name] = torch.randn(tensor.shape) / tensor[0].numel() ** 0.5 if matrix else tensor.detach().clone()
    return state


def _text_encoder() -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Configuration and weights of a tiny T5 for the demo vocabulary."""
    from transformers import T5Config, T5EncoderModel

    config = T5Config(
        vocab_size=len(_words()),
        d_model=_DIT.caption_channels,
        d_kv=16,
        d_ff=128,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        architectures=["T5EncoderModel"],
    )
    weights = random_weights(T5EncoderModel(config))
    weights.pop("encoder.embed_tokens.weight")  # the same tensor as shared.weight
    return config.to_dict(), weights


def _tokenizer() -> Any:  # transformers' tokenizers share no public type
    """Whole words; anything else is one unknown token."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = _words()
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", words["</s>"])])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def _words() -> dict[str, int]:
    return {word: number for number, word in enumerate(dict.fromkeys(("<pad>", "</s>", "<unk>", *_VOCABULARY.split())))}


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1), encoding="utf-8")
