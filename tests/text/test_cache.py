"""The embedding cache: returns what was put, forgets what was used longest ago, never fails a run."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import torch

from magi_lite.text import cache as module
from magi_lite.text.cache import EmbeddingCache
from tests.bad_input.test_no_ordinary_files import put


def test_round_trip_and_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache, embedding = EmbeddingCache(tmp_path / "new" / "folder"), torch.randn(7, 16)
    assert cache.get("model", "prompt") is None
    cache.put("model", "prompt", embedding)
    assert torch.equal(cache.get("model", "prompt"), embedding)
    assert cache.get("other model", "prompt") is None
    assert cache.get("model", "Prompt") is None
    monkeypatch.setattr(module, "CLEANING_VERSION", module.CLEANING_VERSION + 1)
    assert cache.get("model", "prompt") is None


def test_oldest_use_is_dropped_first(tmp_path: Path) -> None:
    cache = EmbeddingCache(tmp_path)
    for number in range(3):
        cache.put("m", str(number), torch.randn(8, 16))
        os.utime(cache.path("m", str(number)), (number, number))
    cache.max_bytes = cache.size()
    assert cache.get("m", "0") is not None  # used just now: 1 is the oldest
    cache.put("m", "3", torch.randn(8, 16))
    assert [cache.get("m", str(number)) is not None for number in range(4)] == [True, False, True, True]
    assert cache.size() <= cache.max_bytes


def test_what_was_kept_before_a_clock_was_put_back_goes_first(tmp_path: Path) -> None:
    cache, ahead = EmbeddingCache(tmp_path), time.time() + 9 * 3600
    for number in range(2):
        cache.put("m", str(number), torch.randn(8, 16))
        os.utime(cache.path("m", str(number)), (ahead + number, ahead + number))
    cache.max_bytes = cache.size()
    assert cache.get("m", "0") is not None  # used just now
    cache.put("m", "2", torch.randn(8, 16))
    assert [cache.get("m", str(number)) is not None for number in range(3)] == [True, False, True]


def test_too_large_is_not_kept(tmp_path: Path) -> None:
    cache = EmbeddingCache(tmp_path, max_bytes=200)
    cache.put("m", "p", torch.randn(100, 16))
    assert cache.get("m", "p") is None


@pytest.mark.parametrize("content", [b"", b"<html>", b"\x08\0\0\0\0\0\0\0{}      "])
def test_damaged_files_are_misses_and_go(tmp_path: Path, content: bytes) -> None:
    cache = EmbeddingCache(tmp_path)
    cache.put("m", "p", torch.randn(4, 4))
    cache.path("m", "p").write_bytes(content)
    assert cache.get("m", "p") is None
    assert not cache.path("m", "p").exists()
    cache.put("m", "p", torch.ones(4, 4))
    assert torch.equal(cache.get("m", "p"), torch.ones(4, 4))


def test_a_folder_that_cannot_be_made_does_no_harm(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    cache = EmbeddingCache(tmp_path / "file")
    cache.put("m", "p", torch.ones(4, 4))
    assert cache.get("m", "p") is None


def test_a_dying_writer_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = EmbeddingCache(tmp_path)

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", die)
    with pytest.raises(KeyboardInterrupt):
        cache.put("m", "p", torch.ones(4, 4))
    assert list(tmp_path.iterdir()) == []


def test_clear(tmp_path: Path) -> None:
    cache = EmbeddingCache(tmp_path)
    cache.put("m", "p", torch.ones(4, 4))
    cache.clear()
    assert cache.size() == 0


@pytest.mark.parametrize(
    "kept",
    [
        torch.zeros(0, 16), torch.zeros(16), torch.tensor(1.0), torch.zeros(1, 7, 16), torch.zeros(7, 0),
        torch.zeros(7, 16, dtype=torch.int8), torch.zeros(7, 16, dtype=torch.complex64),
        torch.full((7, 16), float("nan")), torch.full((7, 16), float("inf")),
    ],
)  # fmt: skip
def test_what_is_no_embedding_is_a_miss_and_is_replaced(tmp_path: Path, kept: torch.Tensor) -> None:
    cache, embedding = EmbeddingCache(tmp_path), torch.randn(7, 16)
    cache.put("model", "a", kept)
    assert cache.get("model", "a") is None
    cache.put("model", "a", embedding)
    assert torch.equal(cache.get("model", "a"), embedding)


@pytest.mark.parametrize("kind", ["folder", "pipe", "loop", "/dev/null", "/dev/zero"])
def test_what_is_no_file_keeps_nobody_waiting(tmp_path: Path, kind: str) -> None:
    cache = EmbeddingCache(tmp_path)
    put(kind, cache.path("model", "a"))
    assert cache.get("model", "a") is None
    cache.put("model", "b", torch.randn(7, 16))
    cache.clear()
    assert cache.get("model", "b") is None
