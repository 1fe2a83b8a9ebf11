"""One vocabulary: the glossary of docs/architecture.md, and none of the private terms that it replaced."""

from __future__ import annotations

import io
import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PRIVATE = re.compile(
    r"\b(reins?|doors?|told|said|obey\w*|house|its face|their faces?|goes on in other numbers|speaks)\b"
    r"|\b(the|its|their|other) words of (the|one|clean|second|chunk)",
    re.IGNORECASE,
)
SOURCES = sorted(
    path
    for top, kind in (
        ("magi_lite", "*.py"),
        ("quant", "*.py"),
        ("benchmarks", "*.py"),
        ("training", "*.py"),
        ("magi_lite/ui/web", "*.js"),
        ("magi_lite/ui/web", "*.html"),
    )
    for path in (ROOT / top).rglob(kind)
    if path.parent.name != "world" and path.name != "text_model.py"  # there are houses in it
)


NAMES = re.compile(r"_?(words|(clean|check)_caption|[a-z_]*obey\w*|told|said)")
"""Names that are not used: a prompt is text, a caption embeddings, a context keys and values."""
NETWORKS = sorted(
    path for top in ("dit", "sampling", "planner", "vae") for path in (ROOT / "magi_lite" / top).rglob("*.py")
)


def prose(path: Path) -> list[tuple[int, str]]:
    """Comments and strings of a Python file with their lines; every line of any other file."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".py":
        return list(enumerate(text.splitlines(), 1))
    kinds = {tokenize.COMMENT, tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING)}
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return [(token.start[0], token.string) for token in tokens if token.type in kinds]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_private_terms(path: Path) -> None:
    found = [f"line {line}: {match[0]}" for line, text in prose(path) for match in PRIVATE.finditer(text)]
    assert not found, f"see the glossary in docs/architecture.md: {found}"


@pytest.mark.parametrize("path", NETWORKS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_names_are_the_glossarys(path: Path) -> None:
    tokens = tokenize.generate_tokens(io.StringIO(path.read_text(encoding="utf-8")).readline)
    found = {token.string for token in tokens if token.type == tokenize.NAME and NAMES.fullmatch(token.string)}
    assert not found, f"see the glossary in docs/architecture.md: {found}"


def test_the_documents_use_the_glossary() -> None:
    for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "presets/demo/README.md"):
        text = (ROOT / name).read_text(encoding="utf-8")
        found = {match[0].lower() for match in PRIVATE.finditer(text)}
        assert found <= ({"house"} if name == "presets/demo/README.md" else set()), name  # its world has houses
