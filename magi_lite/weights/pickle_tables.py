"""Names and shapes in pickled weights, read as data: no class is looked up and nothing is called. No torch.

A .bin file of torch 1.6 or later is an archive. One small member is a program for a stack machine, which builds the
table of tensors; the numbers of each tensor are a member of their own. The few instructions that such tables consist of
are followed here, and any other is refused, as torch's own safe reader refuses it. So a file of 19 GB is known for
reading some kilobytes.
"""

from __future__ import annotations

import math
import pickletools
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from magi_lite.errors import CheckpointError
from quant.storage.headers import TensorInfo

_LARGEST = 4 << 20
"""Bytes of a table; that of a T5 with both halves has 0.1 MB."""
_MOST_SIDES, _LONGEST_SIDE = 8, 1 << 40
_KINDS = {
    "Float": ("float32", 4), "Half": ("float16", 2), "BFloat16": ("bfloat16", 2), "Double": ("float64", 8),
    "Long": ("int64", 8), "Int": ("int32", 4), "Short": ("int16", 2), "Char": ("int8", 1), "Byte": ("uint8", 1),
    "Bool": ("bool", 1),
}  # fmt: skip
"""Kinds of storage: torch's name of the type, and bytes of a number."""
_DICT, _TENSOR, _PARAMETER = (
    "collections OrderedDict", "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter"
)  # fmt: skip
_PLAIN = {"BINUNICODE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "NONE", "NEWTRUE", "NEWFALSE"}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}


_DAMAGE = (
    OSError, EOFError, ValueError, LookupError, TypeError, AttributeError, RuntimeError, zipfile.BadZipFile, zlib.error
)  # fmt: skip
"""What archives and programs raise that are cut or changed."""


class _MoreThanTensors(Exception):
    """The program does something that no table of tensors needs."""


@dataclass(frozen=True)
class _Global:
    """A class or function that the program names; it is never looked up."""

    name: str


@dataclass(frozen=True)
class _Storage:
    """Numbers that lie in a member of the archive."""

    kind: str
    member: str
    count: int


@dataclass(frozen=True)
class _Tensor:
    storage: _Storage
    shape: tuple[int, ...]


def read_table(path: Path) -> dict[str, TensorInfo] | None:
    """The tensors of a .bin file; None: it is older than torch 1.6, and all numbers would have to be read.

    Raises:
        CheckpointError: it is damaged, or holds something else than a table of tensors.
    """
    try:
        if not zipfile.is_zipfile(path):
            return None
        with zipfile.ZipFile(path) as archive:
            sizes = {info.filename: info.file_size for info in archive.infolist()}
            (program,) = (name for name in sizes if name.count("/") == 1 and name.endswith("/data.pkl"))
            with archive.open(program) as opened:
                code = opened.read(_LARGEST + 1)
        if len(code) > _LARGEST:
            raise _MoreThanTensors
        content = _follow(code)
        if not isinstance(content, dict) or not all(isinstance(value, _Tensor) for value in content.values()):
            raise CheckpointError(f"{path} does not hold a table of tensors; download it again.")
        if not all(isinstance(name, str) for name in content):
            raise ValueError("a name that is none")
        found = {}
        for number, (name, tensor) in enumerate(content.items()):
            kind, width = _KINDS[tensor.storage.kind]
            held = sizes[f"{program.removesuffix('data.pkl')}data/{tensor.storage.member}"]
            size = math.prod(tensor.shape) * width
            if held < tensor.storage.count * width or held < size:
                raise ValueError("fewer numbers than the table says")
            found[name] = TensorInfo(name, tensor.shape, kind, path, number, size)
        return found
    except _MoreThanTensors:
        raise CheckpointError(f"{path} holds more than tensors and is not executed; use safetensors weights.") from None
    except _DAMAGE:
        raise CheckpointError(f"{path} is damaged or cut short; download it again.") from None


def _follow(code: bytes) -> Any:
    """What the program builds: dicts, lists, tuples and plain values, with `_Tensor` where tensors would be."""
    stack: list[Any] = []
    below: list[list[Any]] = []
    memo: dict[int, Any] = {}
    for operation, held, _ in pickletools.genops(code):
        name, argument = operation.name, cast(Any, held)
        if name in _PLAIN:
            stack.append(_CONSTANTS.get(name, argument))
        elif name == "PROTO":
            pass
        elif name == "MARK":
            below.append(stack)
            stack = []
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name in ("EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE"):
            stack.append({"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}[name]())
        elif name == "TUPLE":
            inner, stack = tuple(stack), below.pop()
            stack.append(inner)
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            count = int(name[-1])
            stack[-count:] = [tuple(stack[-count:])]
        elif name in ("SETITEM", "SETITEMS"):
            given, stack = (stack[-2:], stack[:-2]) if name == "SETITEM" else (stack, below.pop())
            stack[-1].update(zip(given[::2], given[1::2], strict=True))
        elif name in ("APPEND", "APPENDS"):
            given, stack = (stack[-1:], stack[:-1]) if name == "APPEND" else (stack, below.pop())
            stack[-1].extend(given)
        elif name == "GLOBAL":
            stack.append(_Global(argument))
        elif name == "BINPERSID":
            stack[-1] = _storage(*stack[-1])
        elif name == "REDUCE":
            stack[-2:] = [_made(*stack[-2:])]
        elif name == "BUILD":  # a state dict's notes on versions
            if not isinstance(stack[-2], dict):
                raise _MoreThanTensors
            stack.pop()
        elif name == "STOP":
            (made,) = stack
            return made
        else:
            raise _MoreThanTensors
    raise ValueError("no end")


def _storage(what: Any, kind: Any, member: Any, _place: Any, count: Any) -> _Storage:
    if what != "storage" or not isinstance(kind, _Global) or not kind.name.startswith("torch "):
        raise _MoreThanTensors
    if not isinstance(member, str) or not isinstance(count, int) or count < 0:
        raise ValueError("a storage that is none")
    return _Storage(kind.name.removeprefix("torch ").removesuffix("Storage"), member, count)


def _made(function: Any, given: Any) -> Any:
    """What a call would have made."""
    called = function.name if isinstance(function, _Global) else ""
    if called == _DICT and given == ():
        return {}
    if called == _PARAMETER and isinstance(given[0], _Tensor):
        return given[0]
    if called != _TENSOR or not isinstance(given[0], _Storage):
        raise _MoreThanTensors
    shape = given[2]
    if not isinstance(shape, tuple) or len(shape) > _MOST_SIDES:
        raise ValueError("a shape that is none")
    if not all(isinstance(side, int) and 0 <= side < _LONGEST_SIDE for side in shape):
        raise ValueError("a side that is none")
    return _Tensor(given[0], shape)
