"""The documents are complete and their links lead somewhere."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
DOCUMENTS = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("quant/*.md"), *ROOT.glob("presets/**/*.md"))
)


def modules() -> list[str]:
    """Every module that holds something."""
    tops = ("app.py", "magi_lite/*.py", "quant/*.py", "training/*.py", "benchmarks/*.py")
    listed = subprocess.run(["git", "ls-files", *tops], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    present = [name for name in listed.splitlines() if (ROOT / name).is_file()]
    return [name for name in present if ast.parse((ROOT / name).read_text(encoding="utf-8")).body]


def test_every_module_is_named_once() -> None:
    named = re.findall(r"^- `([\w/]+\.py)`: .", ARCHITECTURE, re.MULTILINE)
    assert not sorted(set(modules()) - set(named)), "add a line for each to docs/architecture.md"
    assert not sorted(set(named) - set(modules())), "these are no more: take their lines out of docs/architecture.md"
    assert len(named) == len(set(named))


def anchors(text: str) -> set[str]:
    """The addresses of a document's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document: str) -> None:
    path = ROOT / document
    for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", path.read_text(encoding="utf-8")):
        file, _, anchor = target.partition("#")
        linked = path.parent / file if file else path
        assert linked.exists(), target
        if anchor:
            assert anchor in anchors(linked.read_text(encoding="utf-8")), target


def test_files_named_in_the_documents_exist() -> None:
    for document in ("CONTRIBUTING.md", "docs/architecture.md"):
        text = (ROOT / document).read_text(encoding="utf-8")
        for name in re.findall(r"`((?:magi_lite|quant|tests|benchmarks|training|presets)/[\w/.]+\.\w+)`", text):
            assert (ROOT / name).exists(), f"{document} names {name}"
