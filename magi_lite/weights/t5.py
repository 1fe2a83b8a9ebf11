"""The text encoder's folder: transformers layout, safetensors or the pickled weights that were published.

Pickles are never executed: they are read with `weights_only` and written once as safetensors beside themselves, without
the decoder and in the type that will be used, so that every later start maps them from disk.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from magi_lite.config_files import Part, read_json
from magi_lite.errors import CheckpointError, OutputError
from magi_lite.files import output_errors, write_atomic
from magi_lite.text.encoder import PromptEncoder
from magi_lite.weights.checkpoint import Checkpoint, Expected
from magi_lite.weights.layout import has_weights
from magi_lite.weights.tensor_files import write_tensors

_EMBEDDING = "shared.weight"
_TIED = "encoder.embed_tokens.weight"
_SIZES = ("num_layers", "d_model", "num_heads", "d_kv", "d_ff", "vocab_size")
_SAMPLE = 1 << 16
_WHOLE = 64 << 20
"""Weight files up to this many bytes go into the fingerprint whole."""


def load_t5(
    folder: Path,
    scheme: str = "float32",
    device: torch.device | str = "cpu",
    max_length: int = 800,
    batch_tokens: int = 0,
) -> PromptEncoder:
    """A T5 encoder with its tokenizer, weights memory-mapped where the type allows.

    Args:
        folder: transformers layout: config.json, a tokenizer (spiece.model or tokenizer.json), weights.
        scheme: float32, bf16, int8 or nf4; the quantized ones convert block by block, so no second copy is held.
        device: where it will run.
        max_length: tokens after which a prompt is cut: the model's `caption_max_length`.
        batch_tokens: see `PromptEncoder`.

    Raises:
        CheckpointError: a file is missing, damaged or of another model.
        OutputError: pickled weights cannot be converted for want of space or permission.
    """
    folder = Path(folder)
    config = _config(folder)
    tokenizer = load_tokenizer(folder)
    dtype = torch.float32 if scheme == "float32" else torch.bfloat16
    checkpoint = text_checkpoint(folder, dtype)
    model = _build(config)
    if scheme in ("float32", "bf16"):
        _assign(model, checkpoint, dtype, device)
    else:
        _assign(model, checkpoint, None, "cpu")  # as stored and mapped: only a block at a time becomes memory
        _quantize(model, scheme, device, dtype)
    model.requires_grad_(False).eval()
    return PromptEncoder(model, tokenizer, max_length, device, batch_tokens, fingerprint(folder, scheme))


def load_tokenizer(folder: Path):  # type: ignore[no-untyped-def] - transformers' tokenizers share no public type
    """The tokenizer of a folder: tokenizer.json, or spiece.model as T5 was published.

    Raises:
        CheckpointError: neither is there, or it cannot be read.
    """
    from transformers import AutoTokenizer

    names = ("tokenizer.json", "spiece.model")
    if not any((folder / name).is_file() for name in names):
        raise CheckpointError(
            f"There is no tokenizer in {folder}: looked for {' and '.join(names)}; download it again."
        )
    try:
        return AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # whatever a damaged vocabulary raises inside the libraries below
        raise CheckpointError(f"The tokenizer in {folder} cannot be read ({error}); download it again.") from error


def text_checkpoint(folder: Path, dtype: torch.dtype) -> Checkpoint:
    """The encoder's safetensors; pickled weights are converted first, once for each type.

    Raises:
        CheckpointError, OutputError: as `load_t5`.
    """
    if has_weights(folder):
        return Checkpoint.open(folder)
    converted = folder / f"converted-{str(dtype).removeprefix('torch.')}"
    if not has_weights(converted):
        _convert_pickles(folder, converted, dtype)
    return Checkpoint.open(converted)


def fingerprint(folder: Path, scheme: str) -> str:
    """What tells one encoder's embeddings from another's: configuration, tokenizer, weights and scheme.

    Large weight files are sampled at their start, middle and end: reading 19 GB for a cache key would cost more than
    the encoding it saves.
    """
    digest = hashlib.sha256(scheme.encode())
    for path in sorted(path for path in Path(folder).iterdir() if path.is_file() and not path.name.startswith(".")):
        size = path.stat().st_size
        digest.update(json.dumps([path.name, size]).encode())
        with path.open("rb") as file:
            if size <= _WHOLE:
                digest.update(file.read())
                continue
            for offset in (0, size // 2, size - _SAMPLE):
                file.seek(offset)
                digest.update(file.read(_SAMPLE))
    return digest.hexdigest()


def t5_numbers(folder: Path) -> dict[str, int]:
    """Sizes of a text encoder by their names in its config.json, without loading anything.

    Raises:
        CheckpointError: the file is missing, damaged, of another model, or a size in it is senseless.
    """
    return {name: _part(folder).whole(name) for name in _SIZES}


def _part(folder: Path) -> Part:
    path = folder / "config.json"
    part = Part(read_json(path, "a T5 configuration"), str(path))
    kind = part.content.get("model_type", "t5")
    if kind != "t5":
        raise CheckpointError(f"{path} is of a {kind} model where T5 is needed.")
    return part


def _config(folder: Path):  # type: ignore[no-untyped-def]
    from transformers import T5Config

    t5_numbers(folder)
    try:
        return T5Config(**_part(folder).content)
    except Exception as error:  # whatever the library's own checks raise
        raise CheckpointError(f"{folder / 'config.json'} is not a T5 configuration; download it again.") from error


def _build(config) -> nn.Module:  # type: ignore[no-untyped-def]
    from transformers import T5EncoderModel

    with torch.device("meta"):
        return T5EncoderModel(config)


def _assign(model: nn.Module, checkpoint: Checkpoint, dtype: torch.dtype | None, device: torch.device | str) -> None:
    """Give the model its tensors; the two names of the one embedding table count as one, a decoder is left out."""
    wanted = {name: Expected(tuple(t.shape)) for name, t in model.state_dict().items() if name != _TIED}
    stored = {_EMBEDDING: _TIED if _EMBEDDING not in checkpoint.tensors else _EMBEDDING}
    expected = {stored.get(name, name): want for name, want in wanted.items()}
    checkpoint.require(expected, "the T5 encoder", ignore=_surplus)
    state = {name: checkpoint.read(stored.get(name, name)).to(device=device, dtype=dtype) for name in wanted}
    model.load_state_dict(state | {_TIED: state[_EMBEDDING]}, strict=True, assign=True)
    model.tie_weights()


def _surplus(name: str) -> bool:
    """Parts of a whole T5 that the encoder does not use."""
    return name.startswith(("decoder.", "lm_head.")) or name in (_TIED, _EMBEDDING)


# --- pickled weights -----------------------------------------------------------------------------------------------


def _convert_pickles(folder: Path, target: Path, dtype: torch.dtype) -> None:
    """Write the encoder's part of pickled weights as safetensors; `target` appears only when it is whole."""
    pickles = _pickles(folder)
    with output_errors(target):
        temporary = Path(tempfile.mkdtemp(dir=folder, prefix=".converting-"))
    try:
        weight_map = {}
        for number, path in enumerate(pickles, 1):
            name = f"model-{number:05}-of-{len(pickles):05}.safetensors"
            tensors = dict(_encoder_tensors(_read_pickle(path), dtype))
            weight_map |= dict.fromkeys(tensors, name)
            write_tensors(temporary / name, tensors)
        write_atomic(temporary / "model.safetensors.index.json", json.dumps({"weight_map": weight_map}).encode())
        with output_errors(target):
            temporary.replace(target)
    except OutputError:
        if not has_weights(target):  # else another process was faster
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _pickles(folder: Path) -> list[Path]:
    index = folder / "pytorch_model.bin.index.json"
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, AttributeError) as error:
            raise CheckpointError(f"The index {index} cannot be read; download it again.") from error
        missing = [name for name in names if Path(name).name != name or not (folder / name).is_file()]
        if missing:
            raise CheckpointError(f"The shard {missing[0]} that {index} names is missing; download the model again.")
        return [folder / name for name in names]
    single = folder / "pytorch_model.bin"
    if not single.is_file():
        raise CheckpointError(
            f"Found no text encoder weights in {folder}: looked for *.safetensors and pytorch_model.bin; "
            "download the model again."
        )
    return [single]


def _read_pickle(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a .bin file; nothing but tensors is ever built from it."""
    try:
        try:
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:  # written before torch 1.6: it cannot be mapped
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} holds more than tensors and is not executed; use safetensors weights."
        ) from error
    except (OSError, RuntimeError, EOFError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged or cut short; download it again.") from error
    if not isinstance(content, dict) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise CheckpointError(f"{path} does not hold a table of tensors; download it again.")
    return content


def _encoder_tensors(content: dict[str, torch.Tensor], dtype: torch.dtype) -> Iterator[tuple[str, torch.Tensor]]:
    for name, tensor in content.items():
        if name.startswith(("decoder.", "lm_head.")) or (name == _TIED and _EMBEDDING in content):
            continue
        yield name, tensor.to(dtype).contiguous().clone() if tensor.dtype == dtype else tensor.to(dtype).contiguous()


# --- quantization --------------------------------------------------------------------------------------------------


def _quantize(model: nn.Module, scheme: str, device: torch.device | str, dtype: torch.dtype) -> None:
    """Convert the linears of one block after the other where they will run; the embedding stays as it is."""
    from quant import QuantError, convert_, scheme_named

    for block in model.encoder.block:
        block.to(device)
        try:
            convert_(block, scheme_named(scheme), lambda name: True)
        except QuantError as error:
            raise CheckpointError(f"The text encoder cannot be run as {scheme}: {error}") from error
        block.layer[-1].DenseReluDense.wo = _WithoutWeight(block.layer[-1].DenseReluDense.wo)
    model.to(device, dtype)  # quantized numbers keep their type


class _WithoutWeight(nn.Module):
    """Hides a quantized weight from transformers' T5, which casts the activations to the type of `wo.weight`."""

    weight = None

    def __init__(self, linear: nn.Module) -> None:
        super().__init__()
        self.linear = linear

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.linear(hidden)
