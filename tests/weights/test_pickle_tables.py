"""Pickled weights are known by their table alone: as torch reads it, and nothing but tensors is taken."""

from __future__ import annotations

import os
import pickle
import random
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from magi_lite.errors import CheckpointError
from magi_lite.weights.pickle_tables import read_table
from quant.storage.tensors import kind_of


def linear() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4))


BASE = torch.arange(24.0).reshape(4, 6)
TABLES: dict[str, Callable[[], Any]] = {
    "a state dict with its versions": lambda: linear().state_dict(),
    "parameters": lambda: OrderedDict(linear().named_parameters()),
    "views of one storage": lambda: {"a": BASE[1:], "b": BASE.T, "c": BASE[::2, ::3], "d": BASE},
    "every type": lambda: {
        str(kind): torch.ones(2, 3, dtype=kind)
        for kind in (torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.int32, torch.int16,
                     torch.int8, torch.uint8, torch.bool)
    },
    "no numbers": lambda: {"a": torch.ones(0, 5), "b": torch.tensor(1.0), "": torch.ones(1)},
    "none": dict,
    "many": lambda: {f"layer.{n}.weight": torch.ones(n % 5 + 1, 3) for n in range(700)},
}  # fmt: skip


@pytest.mark.parametrize("case", TABLES)
def test_a_table_is_what_torch_reads(case: str, tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    torch.save(TABLES[case](), path)
    loaded = torch.load(path, weights_only=True)
    wanted = {name: (tuple(t.shape), kind_of(t.dtype), t.nbytes) for name, t in loaded.items()}
    found = read_table(path)
    assert found is not None
    assert {name: (info.shape, info.kind, info.bytes) for name, info in found.items()} == wanted


def test_what_is_older_says_nothing(tmp_path: Path) -> None:
    torch.save({"a": BASE}, tmp_path / "a.bin", _use_new_zipfile_serialization=False)
    assert read_table(tmp_path / "a.bin") is None


def test_numbers_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    torch.save({"a": torch.ones(1 << 16)}, path)
    data = path.read_bytes()
    path.write_bytes(data.replace(torch.ones(1 << 16).numpy().tobytes(), bytes(4 << 16)))
    found = read_table(path)
    assert found is not None and found["a"].shape == (1 << 16,)


class Call:
    """Were this pickle executed, it would call."""

    def __init__(self, function: Callable[..., Any], *given: Any) -> None:
        self.called = function, given

    def __reduce__(self) -> Any:
        return self.called


def archive(path: Path, program: bytes, members: dict[str, bytes] | None = None) -> None:
    with zipfile.ZipFile(path, "w") as made:
        made.writestr("a/data.pkl", program)
        for name, data in (members or {}).items():
            made.writestr(f"a/data/{name}", data)


def table(shape: bytes, count: bytes = b"K\x01", member: bytes = b"X\x01\0\0\x000") -> bytes:
    """A program for {"x": a tensor} of a shape, its storage of so many numbers in a member."""
    storage = b"(X\7\0\0\0storagectorch\nFloatStorage\n" + member + b"X\3\0\0\0cpu" + count + b"tQ"
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\0" + shape + b"K\1\x85\x89N" + b"tR"
    return b"\x80\2}X\1\0\0\0x" + tensor + b"s."


ONE = {"0": bytes(4)}
HOSTILE: dict[str, tuple[Callable[[Path], object], str]] = {
    "a call": (lambda p: torch.save({"a": Call(os.mkdir, str(p.with_name("made")))}, p), "holds more than tensors"),
    "a call for a name": (lambda p: torch.save({Call(str, "a"): BASE}, p), "holds more than tensors"),
    "a class": (lambda p: torch.save({"a": BASE, "b": os.mkdir}, p), "does not hold a table of tensors"),
    "a list": (lambda p: torch.save([BASE], p), "does not hold a table of tensors"),
    "a number": (lambda p: torch.save({"a": 1}, p), "does not hold a table of tensors"),
    "tables in it": (lambda p: torch.save({"a": {"b": BASE}}, p), "does not hold a table of tensors"),
    "a number for a name": (lambda p: torch.save({1: BASE}, p), "damaged"),
    "another protocol": (lambda p: torch.save({"a": BASE}, p, pickle_protocol=4), "holds more than tensors"),
    "a whole network": (lambda p: torch.save(linear(), p), "holds more than tensors"),
    "another archive": (lambda p: zipfile.ZipFile(p, "w").writestr("a.txt", "a"), "damaged"),
    "two tables": (
        lambda p: [zipfile.ZipFile(p, "a").writestr(f"{n}/data.pkl", pickle.dumps({}, 2)) for n in "ab"], "damaged"
    ),
    "an endless program": (lambda p: archive(p, b"\x80\2" + b"}" * 100), "damaged"),
    "a program of nothing": (lambda p: archive(p, b""), "damaged"),
    "a program of 40 MB": (lambda p: archive(p, pickle.dumps(["a" * 40_000_000], 2)), "holds more than tensors"),
    "the numbers are not there": (lambda p: archive(p, table(b"K\1\x85")), "damaged"),
    "fewer numbers than it says": (lambda p: archive(p, table(b"K\1\x85", b"K\x02"), ONE), "damaged"),
    "a larger shape": (lambda p: archive(p, table(b"K\x02\x85"), ONE), "damaged"),
    "a side below zero": (lambda p: archive(p, table(b"J\xff\xff\xff\xff\x85"), ONE), "damaged"),
    "a side of 2000 bits": (lambda p: archive(p, table(b"\x8a\xff" + b"\x7f" * 255 + b"\x85"), ONE), "damaged"),
    "no shape": (lambda p: archive(p, table(b"K\1"), ONE), "damaged"),
    "a million sides": (lambda p: archive(p, table(b"(" + b"K\1" * 1_000_000 + b"t"), ONE), "damaged"),
    "a member of members": (
        lambda p: archive(p, table(b"K\1\x85", member=b")" + b"q\0h\0\x86" * 400), ONE), "damaged"
    ),
    "lists of themselves": (lambda p: archive(p, b"\x80\2]q\0(h\0h\0eh\0(h\0h\0e."), "damaged"),
    "a table in no table": (lambda p: archive(p, b"\x80\2K\1X\1\0\0\0aK\1s."), "damaged"),
}  # fmt: skip


def test_the_program_of_these_cases_is_a_table(tmp_path: Path) -> None:
    archive(tmp_path / "a.bin", table(b"K\1\x85"), ONE)
    found = read_table(tmp_path / "a.bin")
    assert found is not None and found["x"].shape == (1,)


@pytest.mark.parametrize("case", HOSTILE)
def test_anything_else_is_refused_in_a_sentence(case: str, tmp_path: Path) -> None:
    make, sentence = HOSTILE[case]
    make(tmp_path / "a.bin")
    with pytest.raises(CheckpointError, match=rf"a\.bin .*{sentence}|a\.bin {sentence}") as caught:
        read_table(tmp_path / "a.bin")
    assert "\n" not in str(caught.value) and str(caught.value).endswith(".")
    assert [path.name for path in tmp_path.iterdir()] == ["a.bin"]


def test_changed_and_cut_files_are_tables_or_refused(tmp_path: Path) -> None:
    path, drawn = tmp_path / "a.bin", random.Random(11)
    torch.save(linear().state_dict(), path)
    whole = path.read_bytes()
    with zipfile.ZipFile(path) as read:
        program = read.read("a/data.pkl")
        members = {n.removeprefix("a/data/"): read.read(n) for n in read.namelist() if n.startswith("a/data/")}
    refused = 0
    for number in range(600):
        if number % 3:
            changed = bytearray(program)
            for _ in range(number % 3):
                changed[drawn.randrange(len(changed))] = drawn.randrange(256)
            archive(path, bytes(changed), members)
        else:
            path.write_bytes(whole[: drawn.randrange(len(whole))])
        try:
            read_table(path)
        except CheckpointError:
            refused += 1
    assert 200 < refused < 600
