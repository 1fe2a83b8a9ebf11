"""The text encoder's folder: transformers layout, safetensors or the pickled weights that were published."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from magi_lite.config_files import read_json
from magi_lite.errors import CheckpointError, OutputError
from magi_lite.files import storage_errors
from magi_lite.text.encoder import PromptEncoder
from magi_lite.text_files import decode
from magi_lite.weights.assign import Conversion, assign
from magi_lite.weights.identity import sampled
from magi_lite.weights.layout import text_shape
from magi_lite.weights.pickles import Pickles, Progress, converted
from magi_lite.weights.text_files import EMBEDDING, TIED, TOKENIZERS, is_surplus
from quant import scheme_named
from quant.errors import DiskError, WeightsError, brief
from quant.storage.files import is_denied, open_plain, read_small
from quant.storage.shards import Checkpoint, has_weights
from quant.storage.tensors import kind_of


@storage_errors()
def load_t5(
    folder: Path,
    scheme: str = "float32",
    device: torch.device | str = "cpu",
    max_length: int = 800,
    batch_tokens: int = 0,
    *,
    progress: Progress = lambda done, total: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> PromptEncoder:
    """A T5 encoder with its tokenizer, weights memory-mapped where the type allows.

    Args:
        folder: transformers layout: config.json, a tokenizer (spiece.model or tokenizer.json), weights.
        scheme: float32, bf16, int8 or nf4; the quantized ones convert tensor by tensor, so no second copy is held.
        device: where it will run.
        max_length: tokens after which a prompt is cut: the model's `caption_max_length`.
        batch_tokens: see `PromptEncoder`.
        progress: of converting pickled weights, which happens once.
        cancelled: asked between tensors.

    Raises:
        CheckpointError: a file is missing, damaged or of another model.
        OutputError: pickled weights cannot be converted for want of space.
        LoadCancelled: `cancelled()`.
    """
    folder = Path(folder)
    model = _build(folder)
    tokenizer = load_tokenizer(folder)
    _check_ids(tokenizer, text_shape(folder).vocabulary, folder)
    dtype = torch.float32 if scheme == "float32" else torch.bfloat16
    checkpoint = text_checkpoint(folder, dtype, progress, cancelled)
    conversion = None if scheme in ("float32", "bf16") else _conversion(model, scheme, device)
    assign(
        model,
        checkpoint,
        lambda name: dtype,
        device,
        "the T5 encoder",
        conversion=conversion,
        tied={TIED: EMBEDDING},  # one table with two names, of which a file may have either or both
        stored_as={EMBEDDING: EMBEDDING if EMBEDDING in checkpoint.tensors else TIED},
        ignore=lambda name: name in (TIED, EMBEDDING) or is_surplus(name),
        cancelled=cancelled,
    )
    if conversion is not None:
        hide_weights(model)
    return PromptEncoder(model, tokenizer, max_length, device, batch_tokens, fingerprint(folder, scheme))


def load_tokenizer(folder: Path) -> Any:  # transformers' tokenizers share no public type
    """The tokenizer of a folder: tokenizer.json, or spiece.model as T5 was published.

    Raises:
        CheckpointError: neither is there, or it cannot be read.
    """
    from transformers import AutoTokenizer, T5Config

    if not any((folder / name).is_file() for name in TOKENIZERS):
        raise CheckpointError(
            f"There is no tokenizer in {folder}: looked for {' and '.join(TOKENIZERS)}; download it again."
        )
    try:
        with _plain(folder) as place:
            return AutoTokenizer.from_pretrained(
                str(place), config=T5Config(), local_files_only=True, trust_remote_code=False
            )
    except Exception as error:  # whatever a damaged vocabulary raises inside the libraries below
        reason = brief(error)
        raise CheckpointError(f"The tokenizer in {folder} cannot be read ({reason}); download it again.") from error


def _check_ids(tokenizer: Any, rows: int, folder: Path) -> None:
    """Refuse a tokenizer that gives numbers beyond the encoder's table of words."""
    largest = max(tokenizer.get_vocab().values(), default=0)
    if largest >= rows:
        raise CheckpointError(
            f"The tokenizer in {folder} has a token {largest} where the text encoder knows {rows}; they belong to "
            "different models, so download the folder again."
        )


def _first_byte(path: Path) -> bytes:
    with open_plain(path) as file:
        return file.read(1)


@contextlib.contextmanager
def _plain(folder: Path) -> Iterator[Path]:
    """The folder, or one with copies of its small files, where the library's own reader would stumble over a mark."""
    texts = [path for path in folder.glob("*.json") if not path.name.endswith(".index.json")]
    if all(_first_byte(path) == b"{" for path in texts):
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="magi-lite-") as name:
        for path in texts:
            (Path(name) / path.name).write_text(decode(read_small(path)), encoding="utf-8")
        for path in folder.glob("*.model"):
            shutil.copyfile(path, Path(name) / path.name)
        yield Path(name)


@storage_errors()
def text_checkpoint(
    folder: Path,
    dtype: torch.dtype,
    progress: Progress = lambda done, total: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> Checkpoint:
    """The encoder's tensors, for computing in `dtype`: its safetensors, a converted copy, or the pickles themselves.

    Raises:
        CheckpointError, OutputError, LoadCancelled: as `load_t5`.
    """
    if has_weights(folder):
        return Checkpoint.open(folder)
    earlier = folder / f"converted-{kind_of(dtype)}"
    if dtype == torch.float32:
        try:
            return Checkpoint.open(earlier)
        except WeightsError:  # there is none, or it is damaged
            return Pickles(folder)
    try:
        return Checkpoint.open(converted(folder, progress, cancelled))
    except (DiskError, OutputError) as error:
        if is_denied(error) or is_denied(error.__cause__ or error):  # a folder that cannot be written
            return Pickles(folder)
        raise


def fingerprint(folder: Path, scheme: str) -> str:
    """What tells one encoder's embeddings from another's: configuration, tokenizer, weights and scheme.

    Raises:
        CheckpointError: a file cannot be read.
    """
    try:
        return _fingerprint(Path(folder), scheme)
    except OSError as error:
        raise CheckpointError(
            f"{error.filename or folder} cannot be read: {error.strerror or error}; make it readable, or remove it."
        ) from error


def _fingerprint(folder: Path, scheme: str) -> str:
    digest = hashlib.sha256(scheme.encode())
    for path in sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")):
        size = path.stat().st_size
        digest.update(json.dumps([path.name, size]).encode())
        for part in sampled(path):
            digest.update(part)
    return digest.hexdigest()


_DECISIVE = (
    "num_layers", "d_model", "num_heads", "d_kv", "d_ff", "vocab_size", "relative_attention_num_buckets",
    "relative_attention_max_distance", "layer_norm_epsilon", "feed_forward_proj", "dense_act_fn", "is_gated_act",
)  # fmt: skip
"""What of a configuration the encoder's numbers depend on; what other programs noted beside it does no harm."""


def _build(folder: Path) -> nn.Module:
    """The encoder that a folder's configuration describes, without numbers."""
    from transformers import T5Config, T5EncoderModel

    text_shape(folder)
    content = read_json(folder / "config.json", "a T5 configuration")
    try:
        with torch.device("meta"):
            return T5EncoderModel(T5Config(**{name: content[name] for name in _DECISIVE if name in content}))
    except Exception as error:  # whatever the library's own checks, or an activation that is none, raise
        raise CheckpointError(f"{folder / 'config.json'} is not a T5 configuration; download it again.") from error


def _conversion(model: nn.Module, scheme: str, device: torch.device | str) -> Conversion:
    """All linears of the blocks; the embedding stays as it is."""
    linears = (name for name, part in model.named_modules() if isinstance(part, nn.Linear))
    layers = frozenset(name for name in linears if name.startswith("encoder.block."))
    return Conversion(scheme_named(scheme), layers, device, lambda name: "The text encoder")


def hide_weights(model: Any) -> None:
    """Hide the quantized weights of transformers' T5 from it: it casts the activations to the type of `wo.weight`."""
    for block in model.encoder.block:
        block.layer[-1].DenseReluDense.wo = _WithoutWeight(block.layer[-1].DenseReluDense.wo)


class _WithoutWeight(nn.Module):
    """A linear that shows no weight."""

    weight = None

    def __init__(self, linear: nn.Module) -> None:
        super().__init__()
        self.linear = linear

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.linear(hidden)
