"""What a model's files must hold, by its configuration alone: names and shapes of all tensors. No torch.

The server checks with it before a job is queued. The loader, which has the networks themselves, compares once more and
to the type; a test holds the two together.
"""

from __future__ import annotations

from pathlib import Path

from magi_lite.config_files import Part, read_json
from magi_lite.errors import CheckpointError
from magi_lite.files import storage_errors
from magi_lite.models import DiTConfig, T5Shape, VAEConfig, layer_linears, linear_name
from magi_lite.planner.shapes import shell_linears
from magi_lite.weights.layout import ModelFiles, text_shape
from magi_lite.weights.pickle_tables import read_table
from magi_lite.weights.text_files import EMBEDDING, TIED, check_text_files, is_surplus, pickled_files, sound_copy
from magi_lite.weights.token_files import check_token_file
from quant.schemes import quantized_names
from quant.storage.shards import Checkpoint, Expected, has_weights

Shapes = dict[str, tuple[int, ...]]


@storage_errors()
def check_contents(files: ModelFiles) -> None:
    """Refuse a model whose files lack a tensor, hold a foreign one or one of another shape; reads headers only.

    Of quantized layers the loader knows what they consist of; here they are taken as they are. Of pickled weights of
    before torch 1.6 nothing is known without reading all.

    Raises:
        CheckpointError: names the tensor, the file and what is wrong.
    """
    transformer = Checkpoint.open(files.weights)
    quantized = quantized_names(transformer.tensors)
    wanted = {name: shape for name, shape in dit_shapes(files.spec.dit).items() if _layer(name) not in quantized}
    what = f"this model ({files.weights.parent.name})"
    transformer.require(_expected(wanted), what, lambda name: _layer(name) in quantized)
    Checkpoint.open(files.vae).require(_expected(vae_shapes(files.spec.vae)), "the autoencoder")
    check_text_contents(files.text_encoder)
    check_token_file(files.special_tokens, files.spec.dit.caption_channels)
    if files.spec.t5.width != files.spec.dit.caption_channels:
        raise CheckpointError(
            f"The text encoder in {files.text_encoder} gives {files.spec.t5.width} channels where the model needs "
            f"{files.spec.dit.caption_channels}; put the text encoder of this model there."
        )


@storage_errors()
def check_text_contents(folder: Path) -> None:
    """As `check_contents`, of a text encoder's folder.

    Raises:
        CheckpointError: one sentence.
    """
    check_text_files(folder)
    place = folder if has_weights(folder) else sound_copy(folder)
    checkpoint = _pickled(folder) if place is None else Checkpoint.open(place)
    if checkpoint is None:
        return
    part = Part(read_json(folder / "config.json", "a T5 configuration"), str(folder / "config.json"))
    gated = str(part.content.get("feed_forward_proj", "relu")).startswith("gated-")
    shapes = t5_shapes(text_shape(folder), part.whole("relative_attention_num_buckets", 32), gated)
    table = EMBEDDING if EMBEDDING in checkpoint.tensors else TIED  # one table with two names
    shapes[table] = shapes.pop(EMBEDDING)
    checkpoint.require(_expected(shapes), "the T5 encoder", lambda name: name in (TIED, EMBEDDING) or is_surplus(name))


def _pickled(folder: Path) -> Checkpoint | None:
    """What pickled weights hold; None: they do not say."""
    checkpoint = Checkpoint(folder)
    for path in pickled_files(folder):
        table = read_table(path)
        if table is None:
            return None
        checkpoint.tensors |= table
    return checkpoint


def dit_shapes(dit: DiTConfig) -> Shapes:
    """The transformer's, unquantized."""
    hidden = dit.hidden_size
    found: Shapes = {
        "x_embedder.weight": (hidden, dit.in_channels, dit.t_patch_size, dit.patch_size, dit.patch_size),
        "y_embedder.null_caption_embedding": (dit.caption_max_length, dit.caption_channels),
        "rope.bands": (dit.head_dim // 8,),
        **_norm("videodit_blocks.final_layernorm", hidden),
    }
    for linear in shell_linears(dit):
        found[f"{linear.name}.weight"] = (linear.outputs, linear.inputs)
        if linear.name != "final_linear.linear":
            found[f"{linear.name}.bias"] = (linear.outputs,)
    for layer in range(dit.num_layers):
        for linear in layer_linears(dit):
            found[f"{linear_name(layer, linear)}.weight"] = (linear.outputs, linear.inputs)
            if linear.name.startswith("ada_modulate_layer"):
                found[f"{linear_name(layer, linear)}.bias"] = (linear.outputs,)
        place = f"videodit_blocks.layers.{layer}"
        for name in ("self_attention.linear_qkv.layer_norm", "mlp.layer_norm", "self_attn_post_norm", "mlp_post_norm"):
            found |= _norm(f"{place}.{name}", hidden)
        for name in ("q_layernorm", "k_layernorm", "q_layernorm_xattn", "k_layernorm_xattn"):
            found |= _norm(f"{place}.self_attention.{name}", dit.head_dim)
    return found


def vae_shapes(vae: VAEConfig) -> Shapes:
    """The autoencoder's: encoder and decoder."""
    width, patch = vae.embed_dim, (vae.patch_length, vae.patch_size, vae.patch_size)
    volume = vae.patch_length * vae.patch_size**2
    tokens = (vae.video_length // patch[0]) * (vae.video_size // patch[1]) ** 2 + int(vae.with_cls_token)
    channels = 4 if vae.use_final_proj else width // volume
    found: Shapes = {
        "encoder.patch_embed.proj.weight": (width, vae.in_chans, *patch),
        "encoder.patch_embed.proj.bias": (width,),
        **_linear("encoder.last_layer", vae.z_chans * (2 if vae.double_z else 1), width),
        **_linear("decoder.proj_in", width, vae.z_chans),
        "decoder.last_layer.weight": (vae.in_chans, channels, 3, 3, 3),
        "decoder.last_layer.bias": (vae.in_chans,),
    }
    if vae.use_final_proj:
        found |= _linear("decoder.final_proj", channels * volume, width) | _norm(
            "decoder.final_norm", channels * volume
        )
    hidden = int(width * vae.mlp_ratio)
    for half in ("encoder", "decoder"):
        if vae.with_cls_token:
            found[f"{half}.cls_token"] = (1, 1, width)
        found |= {f"{half}.pos_embed": (1, tokens, width), **_norm(f"{half}.norm", width)}
        for block in (f"{half}.blocks.{number}" for number in range(vae.depth)):
            found |= {} if vae.ln_in_attn else _norm(f"{block}.norm1", width)
            found |= _linear(f"{block}.attn.qkv", 3 * width, width, bias=vae.qkv_bias)
            found |= _linear(f"{block}.attn.proj", width, width) | _norm(f"{block}.norm2", width)
            found |= _linear(f"{block}.mlp.fc1", hidden, width) | _linear(f"{block}.mlp.fc2", width, hidden)
    return found


def t5_shapes(t5: T5Shape, buckets: int = 32, gated: bool = True) -> Shapes:
    """The text encoder's, its table of words by one of its names.

    Args:
        buckets: rows of the relative position table, which the first layer has for all.
        gated: whether the MLP has two linears side by side, as T5 v1.1 has.
    """
    inner = t5.heads * t5.head_dim
    found: Shapes = {EMBEDDING: (t5.vocabulary, t5.width), "encoder.final_layer_norm.weight": (t5.width,)}
    for block in (f"encoder.block.{number}" for number in range(t5.layers)):
        attention, mlp = f"{block}.layer.0", f"{block}.layer.1"
        found |= {f"{attention}.SelfAttention.{name}.weight": (inner, t5.width) for name in "qkv"}
        found[f"{attention}.SelfAttention.o.weight"] = (t5.width, inner)
        found |= {f"{place}.layer_norm.weight": (t5.width,) for place in (attention, mlp)}
        for name in ("wi_0", "wi_1") if gated else ("wi",):
            found[f"{mlp}.DenseReluDense.{name}.weight"] = (t5.feed_forward, t5.width)
        found[f"{mlp}.DenseReluDense.wo.weight"] = (t5.width, t5.feed_forward)
    if t5.layers:
        found["encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"] = (buckets, t5.heads)
    return found


def _norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _linear(name: str, outputs: int, inputs: int, *, bias: bool = True) -> Shapes:
    found: Shapes = {f"{name}.weight": (outputs, inputs)}
    return found | {f"{name}.bias": (outputs,)} if bias else found


def _layer(name: str) -> str:
    return name.rpartition(".")[0]


def _expected(shapes: Shapes) -> dict[str, Expected]:
    return {name: Expected(shape) for name, shape in shapes.items()}
