"""Embeddings on disk, so that a prompt meets the large text encoder once.

One safetensors file per prompt, named by a hash of everything that decides the embedding. A file appears whole or not
at all, and the folder keeps under a size by dropping what was used longest ago.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from pathlib import Path

from safetensors.torch import load, save
from torch import Tensor

from magi_lite.finite import is_finite
from magi_lite.text.cleaning import CLEANING_VERSION
from quant.storage.files import read_small, replacing


class EmbeddingCache:
    """Prompt embeddings by (model, prompt, cleaning version).

    A cache never fails a run: what cannot be read is a miss, what cannot be written is not kept.

    Args:
        folder: made when first written to.
        max_bytes: the folder's size is kept at or under this.
    """

    def __init__(self, folder: Path, max_bytes: int = 512 * 2**20) -> None:
        self.folder = Path(folder)
        self.max_bytes = max_bytes

    def path(self, model: str, prompt: str) -> Path:
        """Where the embedding of `prompt` by the encoder with fingerprint `model` is kept."""
        key = json.dumps([model, prompt, CLEANING_VERSION]).encode()
        return self.folder / f"{hashlib.sha256(key).hexdigest()}.safetensors"

    def get(self, model: str, prompt: str) -> Tensor | None:
        """The embedding (L, C), or None. A damaged file is deleted."""
        path = self.path(model, prompt)
        try:
            embedding = load(read_small(path))["embedding"].clone()
            if embedding.ndim != 2 or not embedding.numel() or not embedding.is_floating_point():
                raise ValueError("no embedding")
            if not is_finite(embedding):
                raise ValueError("numbers that are none")
        except FileNotFoundError:
            return None
        except Exception:  # whatever a damaged file makes the library stumble over
            with contextlib.suppress(OSError):
                path.unlink()
            return None
        with contextlib.suppress(OSError):
            os.utime(path)  # used now: the last to be dropped
        return embedding

    def put(self, model: str, prompt: str, embedding: Tensor) -> None:
        """Keep an embedding, atomically; nothing happens where the folder cannot be written."""
        data = save({"embedding": embedding.detach().cpu().contiguous()})
        if len(data) > self.max_bytes:
            return
        with contextlib.suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
            with replacing(self.path(model, prompt)) as temporary:
                temporary.write_bytes(data)
            self._evict()

    def size(self) -> int:
        """Bytes in use."""
        return sum(size for _, size, _ in self._entries())

    def clear(self) -> None:
        """Delete every kept embedding."""
        for _, _, path in self._entries():
            with contextlib.suppress(OSError):
                path.unlink()

    def _evict(self) -> None:
        entries = sorted(self._entries())
        total = sum(size for _, size, _ in entries)
        for _, size, path in entries:
            if total <= self.max_bytes:
                return
            with contextlib.suppress(OSError):
                path.unlink()
            total -= size

    def _entries(self) -> list[tuple[int, int, Path]]:
        """(last use in ns, bytes, file) of everything kept; files that vanish meanwhile are left out.

        What was used later than now was used before the clock was put back, so longer ago than all else.
        """
        entries, now = [], time.time_ns()
        for path in self.folder.glob("*.safetensors"):
            with contextlib.suppress(OSError):
                status = path.stat()
                used = status.st_mtime_ns
                entries.append((used if used <= now else 0, status.st_size, path))
        return entries
