"""Configuration files of checkpoints, read with suspicion: every value of its kind and above 0, or one sentence.

They come from other people's tools. A layer count in quotes or a null would fail deep inside a network, with a message
about tensors; here it is named, with the file it stands in.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from magi_lite.errors import CheckpointError
from magi_lite.sentences import shown
from magi_lite.text_files import decode
from quant.storage.files import parse_json, read_small

_LARGEST = 1 << 24
_LARGEST_NUMBER = 1e30
_MOST = {"num_layers": 1000, "depth": 1000, "chunk_width": 1000, "num_steps": 10_000, "window_size": 1000}
"""Of whole numbers: what is counted one by one takes time and memory before it is compared with the weights."""


def read_json(path: Path, what: str, most: int = 4 << 20) -> dict[str, Any]:
    """The object in a JSON file of at most `most` bytes; what it is read into may take thirty times as much.

    Raises:
        CheckpointError: it cannot be read, or is no object: "PATH is not WHAT".
    """
    try:
        content = parse_json(decode(read_small(path, most)))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not {what}; download it again.") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is not {what}; download it again.")
    return content


class Part:
    """An object of a configuration file.

    Args:
        content: what stands there.
        place: its name and file, as a sentence begins with it.

    Raises:
        CheckpointError: by all methods: a value is missing (where there is no default), of another kind, or senseless.
    """

    def __init__(self, content: Any, place: str) -> None:
        if not isinstance(content, dict):
            raise CheckpointError(f"{place} is {shown(content)}, not an object; use the configuration as published.")
        self.content, self.place = content, place

    def need(self, names: Iterable[str]) -> None:
        """Refuse a part without these values."""
        missing = sorted(set(names) - set(self.content))
        if missing:
            raise CheckpointError(f"{self.place} lacks {', '.join(missing)}; use the configuration as published.")

    def whole(self, name: str, default: Any = MISSING, least: int = 1) -> int:
        value, most = self._value(name, default), _MOST.get(name, _LARGEST)
        right = isinstance(value, int) and not isinstance(value, bool) and least <= value <= most
        return value if right else self._refuse(name, f"a whole number from {least} to {most}")

    def number(self, name: str, default: Any = MISSING) -> float:
        value = self._value(name, default)
        return value if _is_number(value) and value > 0 else self._refuse(name, "a number above 0")

    def flag(self, name: str, default: Any = MISSING) -> bool:
        value = self._value(name, default)
        return value if isinstance(value, bool) else self._refuse(name, "true or false")

    def one_of(self, name: str, choices: tuple[Any, ...], default: Any = MISSING) -> Any:
        value = self._value(name, default)
        right = any(value == choice and type(value) is type(choice) for choice in choices)  # True is no 1
        return value if right else self._refuse(name, " or ".join(map(repr, choices)))

    def numbers(self, name: str, default: tuple[float, ...]) -> tuple[float, ...]:
        value = self._value(name, default)
        right = isinstance(value, list | tuple) and all(map(_is_number, value))
        return tuple(value) if right else self._refuse(name, "a list of numbers")

    def wholes(self, name: str, default: tuple[int, ...]) -> tuple[int, ...]:
        values = self.numbers(name, default)
        right = all(isinstance(value, int) and value > 0 for value in values)
        return values if right else self._refuse(name, "a list of whole numbers above 0")  # type: ignore[return-value]

    def multiple(self, name: str, of: int) -> None:
        """Refuse a number that is there and no multiple of another."""
        if self.content.get(name, 0) % of:
            self._refuse(name, f"a multiple of {of}")

    def fields_of(self, cls: type, names: Mapping[str, str]) -> dict[str, Any]:
        """Values for a dataclass of ints, floats and bools; `names`: what its fields are called here, if otherwise."""
        called = {field.name: names.get(field.name, field.name) for field in fields(cls)}
        self.need(called[field.name] for field in fields(cls) if field.default is MISSING)
        readers = {"int": self.whole, "float": self.number, "bool": self.flag}
        return {field.name: readers[str(field.type)](called[field.name], field.default) for field in fields(cls)}

    def _value(self, name: str, default: Any) -> Any:
        if name not in self.content and default is MISSING:
            self.need([name])
        return self.content.get(name, default)

    def _refuse(self, name: str, wanted: str) -> Any:
        raise CheckpointError(
            f"{self.place} has {name} {shown(self.content.get(name))}, which must be {wanted}; "
            "use the configuration as published."
        )


def _is_number(value: Any) -> bool:
    right = isinstance(value, int | float) and not isinstance(value, bool)
    return right and -_LARGEST_NUMBER < value < _LARGEST_NUMBER  # not NaN, and integers of any length
