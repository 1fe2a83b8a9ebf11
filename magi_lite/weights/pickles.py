"""The text encoder's pickled weights, as they were published: read without being executed, converted once.

They are float32 and hold more than the encoder. Who computes in float32 reads them as they are, mapped; who computes
in 16 bits or less reads a converted copy of half the size beside them, written tensor by tensor:

    FOLDER/converted-bfloat16/             safetensors with an index; appears when it is whole
    FOLDER/.converting-bfloat16/           in the making; what a killed process leaves here is taken up again
    FOLDER/.converting-bfloat16.lock       held by the process at work
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from magi_lite.errors import CheckpointError, LoadCancelled, OutputError
from magi_lite.files import output_errors, write_atomic
from magi_lite.weights.text_files import CONVERTED, EMBEDDING, TIED, is_surplus, pickled_files, sound_copy
from quant.errors import WeightsError
from quant.storage.files import is_leftover, sync_folder
from quant.storage.headers import TensorInfo, read_header
from quant.storage.lock import alone
from quant.storage.shards import Checkpoint, has_weights
from quant.storage.tensors import ALIGNMENT, Declared, kind_of, write_made

_WORK = ".converting-bfloat16"
_SPARE = 256 << 20
"""Bytes that a conversion leaves free on the disk."""

Progress = Callable[[int, int], None]
"""Called with bytes written and bytes in all."""


class Pickles(Checkpoint):
    """Pickled weights as a table of tensors, mapped where their form allows; nothing but tensors is built from them."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._mapped: dict[Path, dict[str, Tensor]] = {}
        self._recent: tuple[Path, dict[str, Tensor]] | None = None
        for path in pickled_files(folder):
            for number, (name, tensor) in enumerate(self._content(path).items()):
                if not is_surplus(name):
                    size = tensor.numel() * tensor.element_size()
                    kind = kind_of(tensor.dtype)
                    self.tensors[name] = TensorInfo(name, tuple(tensor.shape), kind, path, number, size)
        if EMBEDDING in self.tensors:
            self.tensors.pop(TIED, None)

    def read(self, name: str, *, own: bool = False) -> Tensor:
        """As `Checkpoint.read`."""
        tensor = self._content(self.tensors[name].file)[name]
        if own or not tensor.is_contiguous() or tensor.data_ptr() % ALIGNMENT:
            return tensor.clone(memory_format=torch.contiguous_format)
        return tensor

    def release(self, path: Path) -> None:
        """Let go of a file whose tensors were all read."""
        self._mapped.pop(path, None)
        self._recent = None

    def _content(self, path: Path) -> dict[str, Tensor]:
        """What a file holds; of files that cannot be mapped one at a time is in memory."""
        if path in self._mapped:
            return self._mapped[path]
        if self._recent is None or self._recent[0] != path:
            self._recent = None
            content, mapped = _read(path)
            if mapped:
                self._mapped[path] = content
                return content
            self._recent = path, content
        return self._recent[1]


def converted(
    folder: Path, progress: Progress = lambda done, total: None, cancelled: Callable[[], bool] = lambda: False
) -> Path:
    """The folder with the bf16 copy of the pickled weights, made if it is not there.

    One tensor at a time is in memory. Another process at it is waited for.

    Raises:
        CheckpointError: damaged. OutputError: no space or no permission. LoadCancelled: `cancelled()` in between.
        Cancelled: likewise, while waiting.
    """
    target, work = folder / CONVERTED[0], folder / _WORK
    if has_weights(target) and sound_copy(folder) != target:
        with output_errors(target):
            shutil.rmtree(target)  # it was damaged, and is made again
    if has_weights(target) and not any(folder.glob(".converting-*")):
        return target
    with alone(folder / f"{_WORK}.lock", "the text encoder", cancelled):
        for left in folder.glob(".converting-*"):
            if left.is_dir() and (left != work or has_weights(target)):
                shutil.rmtree(left, ignore_errors=True)
        if not has_weights(target):
            with output_errors(work):
                _fill(folder, work, progress, cancelled)
                work.replace(target)
                sync_folder(folder)
    return target


def _fill(folder: Path, work: Path, progress: Progress, cancelled: Callable[[], bool]) -> None:
    """Write what is missing of the converted files."""
    pickles = Pickles(folder)
    note, stamp = work / "source.json", _stamp(folder)
    if os.path.lexists(work) and not (note.is_file() and note.read_bytes() == stamp):
        shutil.rmtree(work) if work.is_dir() and not work.is_symlink() else work.unlink()
    work.mkdir(exist_ok=True)
    for left in work.iterdir():
        if is_leftover(left.name):
            left.unlink()
    write_atomic(note, stamp)
    files = pickled_files(folder)
    total = sum(2 * torch.Size(info.shape).numel() for info in pickles.tensors.values())
    _check_room(work, total)
    weight_map: dict[str, str] = {}
    done = 0
    for number, source in enumerate(files, 1):
        name = f"model-{number:05}-of-{len(files):05}.safetensors"
        held = [info for info in pickles.tensors.values() if info.file == source]
        before = done

        def make(tensor: str, before: int = before) -> Tensor:
            nonlocal done
            if cancelled():
                raise LoadCancelled("Converting the text encoder was stopped; it goes on where it was.")
            made = pickles.read(tensor).to(torch.bfloat16)
            done += made.numel() * 2
            progress(done, total)
            return made

        if not _is_whole(work / name):
            write_made(work / name, {info.name: Declared(info.shape, torch.bfloat16) for info in held}, make)
        done = before + sum(2 * torch.Size(info.shape).numel() for info in held)
        progress(done, total)
        weight_map |= {info.name: name for info in held}
        pickles.release(source)
    write_atomic(work / "model.safetensors.index.json", json.dumps({"weight_map": weight_map}).encode())
    note.unlink()


def _is_whole(path: Path) -> bool:
    try:
        read_header(path)
    except WeightsError:
        return False
    return True


def _stamp(folder: Path) -> bytes:
    """What tells the source of a conversion from another."""
    stats = [(path.name, path.stat()) for path in pickled_files(folder)]
    return json.dumps([[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]).encode()


def _check_room(work: Path, total: int) -> None:
    there = sum(file.stat().st_size for file in work.iterdir())
    free = shutil.disk_usage(work).free
    if total - there + _SPARE > free:
        raise OutputError(
            f"The text encoder is converted to {total / 1e9:.1f} GB in {work.parent}, which has {free / 1e9:.1f} GB "
            "free; free some space."
        )


def _read(path: Path) -> tuple[dict[str, Tensor], bool]:
    """The tensors of a .bin file, and whether they are mapped."""
    mapped = True
    try:
        try:
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:  # written before torch 1.6: it cannot be mapped
            mapped = False
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} holds more than tensors and is not executed; use safetensors weights."
        ) from error
    except (OSError, RuntimeError, EOFError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged or cut short; download it again.") from error
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise CheckpointError(f"{path} does not hold a table of tensors; download it again.")
    return {str(name): tensor for name, tensor in content.items()}, mapped
