"""The files of a text encoder's folder, looked at without opening its weights. No torch."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

from magi_lite.config_files import read_json
from magi_lite.errors import CheckpointError
from magi_lite.files import storage_errors
from quant.storage.files import parse_json, read_small
from quant.storage.headers import check_start_of
from quant.storage.shards import LARGEST_INDEX, MOST_FILES, Checkpoint, has_weights, is_file_name, missing_files

TOKENIZERS = ("tokenizer.json", "spiece.model")
_BESIDE_TOKENIZERS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json")
CONVERTED = ("converted-bfloat16", "converted-float32")
"""Folders with copies of pickled weights that this program made."""

EMBEDDING = "shared.weight"
TIED = "encoder.embed_tokens.weight"
"""Two names of one table; a file may have either or both."""


def is_surplus(name: str) -> bool:
    """Whether a tensor is a part of a whole T5 that the encoder does not use."""
    return name.startswith(("decoder.", "lm_head."))


def missing_text_files(folder: Path) -> list[Path]:
    """Files that a text encoder's folder lacks.

    Raises:
        CheckpointError: an index cannot be read.
    """
    missing = [] if any((folder / name).is_file() for name in TOKENIZERS) else [folder / TOKENIZERS[1]]
    if has_weights(folder):
        with storage_errors():
            return missing + missing_files(folder)
    if sound_copy(folder) is not None:
        return missing
    if not any((folder / name).is_file() for name in PICKLED):
        return [*missing, folder / "*.safetensors"]
    return missing + [file for file in pickled_names(folder) if not file.is_file()]


def check_text_files(folder: Path) -> None:
    """Refuse a text encoder's folder in which a file is missing or plainly damaged.

    Raises:
        CheckpointError: one sentence.
    """
    if not any((folder / name).is_file() for name in TOKENIZERS):
        raise CheckpointError(
            f"There is no tokenizer in {folder}: looked for {' and '.join(TOKENIZERS)}; download it again."
        )
    _check_tokenizer(folder)
    if has_weights(folder):
        with storage_errors():
            Checkpoint.open(folder)
    elif sound_copy(folder) is None:
        pickled_files(folder)


def sound_copy(folder: Path) -> Path | None:
    """The copy of pickled weights that this program made; None: there is none, or it is damaged and can be made again.

    Raises:
        CheckpointError: it is damaged, and what it was made from is gone.
    """
    damage: CheckpointError | None = None
    for place in (folder / name for name in CONVERTED if has_weights(folder / name)):
        try:
            with storage_errors():
                Checkpoint.open(place)
            return place
        except CheckpointError as error:
            damage = error
    if damage is not None and not all(file.is_file() for file in pickled_names(folder)):
        raise damage
    return None


@storage_errors()
def _check_tokenizer(folder: Path) -> None:
    """Refuse a tokenizer that is plainly something else; reading all of it is left to its library."""
    for path in (path for name in (TOKENIZERS[0], *_BESIDE_TOKENIZERS) if (path := folder / name).exists()):
        read_json(path, "a part of a tokenizer", 64 << 20)
    if not (folder / TOKENIZERS[0]).is_file():
        check_start_of(folder / TOKENIZERS[1])


def pickled_names(folder: Path) -> list[Path]:
    """The .bin files that a folder should hold, whether they are there or not.

    Raises:
        CheckpointError: the index cannot be read, or names files of other folders.
    """
    index = folder / PICKLED[1]
    if not index.is_file():
        return [folder / PICKLED[0]]
    try:
        names = sorted({str(name) for name in parse_json(read_small(index, LARGEST_INDEX))["weight_map"].values()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"The index {index} cannot be read; download it again.") from error
    outside = [name for name in names if not is_file_name(name)]
    if len(names) > MOST_FILES:
        raise CheckpointError(f"The index {index} names {len(names)} files; it is not trusted.")
    if outside or not names:
        what = f"names {outside[0][:80]}, which is not a file of its own folder" if outside else "names no file"
        raise CheckpointError(f"The index {index} {what}; it is not trusted.")
    return [folder / name for name in names]


@storage_errors()
def pickled_files(folder: Path) -> list[Path]:
    """The .bin files of a folder: all there, none plainly cut or something else.

    Raises:
        CheckpointError: one is missing, cut short, or is something else; or there are none.
    """
    files = pickled_names(folder)
    missing = [file for file in files if not file.is_file()]
    if missing and (folder / PICKLED[1]).is_file():
        raise CheckpointError(
            f"The shard {missing[0].name} that {folder / PICKLED[1]} names is missing; download the model again."
        )
    if missing:
        raise CheckpointError(
            f"Found no text encoder weights in {folder}: looked for *.safetensors and pytorch_model.bin; "
            "download the model again."
        )
    for file in files:
        try:
            start = check_start_of(file)
            if not start.startswith((b"PK", b"\x80")):  # an archive, or a pickle of before torch 1.6
                raise CheckpointError(f"{file} is not a file of weights; download it again.")
            if start.startswith(b"PK") and not zipfile.is_zipfile(file):  # its table of contents stands at the end
                raise CheckpointError(f"{file} is damaged or cut short; download it again.")
        except OSError as error:
            raise CheckpointError(f"{file} cannot be read: {error.strerror or error}.") from error
    return files


def conversion_bytes(folder: Path) -> int:
    """What the converted copy of a folder's pickled weights will take on the disk, about.

    0: it needs none, or cannot have one, for the folder cannot be written.

    Raises:
        CheckpointError: as `pickled_files`.
    """
    if has_weights(folder) or sound_copy(folder) is not None or not os.access(folder, os.W_OK):
        return 0
    return sum(file.stat().st_size for file in pickled_files(folder)) // 2
