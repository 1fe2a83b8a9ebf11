"""The house rules: imports point down, importing is free of side effects, and settings are not read from the air."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
READS_JSON = "quant.storage.files"
READS_REQUESTS = "magi_lite.ui.guard"
"""Reads what a page sends, which is no file."""
LEVELS: dict[int, tuple[str, ...]] = {
    0: (
        "magi_lite",
        "magi_lite.models",
        "magi_lite.config_files",
        "magi_lite.errors",
        "magi_lite.events",
        "magi_lite.timeline*",
        "magi_lite.control",
        "magi_lite.clock",
        "magi_lite.files",
        "magi_lite.finite",
        "magi_lite.kept",
        "magi_lite.resources",
        "magi_lite.request",
        "magi_lite.request.request",
        "magi_lite.request.json",
        "magi_lite.request.options",
        "magi_lite.sentences",
        "magi_lite.text_files",
        "magi_lite.sampling",
        "magi_lite.planner.execution",
        "magi_lite.dit",
        "magi_lite.dit.slicing",
        "magi_lite.weights",
        "magi_lite.weights.layout",
        "magi_lite.weights.text_files",
        "magi_lite.weights.token_files",
        "quant.errors",
        "quant.schemes",
        "quant.storage*",
    ),
    1: (
        "magi_lite.attention_choice",
        "magi_lite.machine*",
        "magi_lite.planner*",
        "magi_lite.request.*",
        "magi_lite.sampling.schedule",
        "magi_lite.sampling.guidance",
        "magi_lite.text.cleaning",
        "magi_lite.weights.contents",
        "magi_lite.weights.pickle_tables",
    ),
    2: (
        "magi_lite.attention*",
        "magi_lite.fused",
        "magi_lite.kernels",
        "magi_lite.text*",
        "magi_lite.dit*",
        "magi_lite.vae*",
        "magi_lite.sampling.kv_store",
    ),
    3: ("magi_lite.weights.*", "quant*"),
    4: ("magi_lite.sampling*", "magi_lite.video*", "magi_lite.project*"),
    5: ("magi_lite.pipeline*",),
    6: ("magi_lite.jobs*", "magi_lite.workers*"),
    7: (
        "magi_lite.ui*",
        "training*",
        "magi_lite.__main__",
        "magi_lite.library",
        "magi_lite.cli*",
        "app",
        "benchmarks*",
    ),
}
ALLOWED_UP: set[tuple[str, str]] = set()
"""Pairs (module, imported) that may point up; empty, and meant to stay so."""


def modules() -> dict[str, Path]:
    """Every module of ours by its dotted name."""
    tops = ("magi_lite", "quant", "benchmarks", "training")
    files = [ROOT / "app.py", *(f for top in tops for f in (ROOT / top).rglob("*.py"))]
    names = {
        ".".join(f.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): f for f in files if f.exists()
    }
    return dict(sorted(names.items()))


def level(name: str) -> int | None:
    """The floor a module lives on: the longest pattern that fits wins."""
    best: tuple[int, int] | None = None
    for floor, patterns in LEVELS.items():
        for pattern in patterns:
            stem = pattern.removesuffix("*")
            if (name == pattern or (pattern.endswith("*") and name.startswith(stem))) and (
                best is None or len(stem) > best[0]
            ):
                best = (len(stem), floor)
    return best[1] if best else None


def imports_of(path: Path) -> set[str]:
    """Modules that a file imports, at its top or inside a function; type-checking imports do not count."""
    found: set[str] = set()
    tree = ast.parse(path.read_text())
    skipped = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


@pytest.mark.parametrize("name", list(modules()))
def test_imports_point_down(name: str) -> None:
    ours = modules()
    mine = level(name)
    assert mine is not None, f"{name} lives on no floor: add it to LEVELS"
    for imported in imports_of(ours[name]) & set(ours):
        if imported in ("magi_lite", "quant") or (name, imported) in ALLOWED_UP:
            continue
        assert level(imported) <= mine, f"{name} (floor {mine}) imports {imported} (floor {level(imported)})"


def test_quant_knows_nothing_of_magi_lite() -> None:
    for name, path in modules().items():
        if name.startswith("quant"):
            assert not [i for i in imports_of(path) if i.startswith("magi_lite")], name


SETS_IT = "magi_lite.cli.app"
"""The one module that may set variables (for Gradio, before its import), and read none."""


def test_quant_imports_in_no_circle() -> None:
    """Counting imports inside functions, which hide a circle from Python."""
    ours = {name: path for name, path in modules().items() if name.startswith("quant.")}
    needs = {name: imports_of(path) & set(ours) - {name} for name, path in ours.items()}
    while free := [name for name, wanted in needs.items() if not wanted & set(needs)]:
        for name in free:
            del needs[name]
    assert not needs, f"these import each other: {', '.join(sorted(needs))}"


@pytest.mark.parametrize("name", [n for n in modules() if n.startswith("magi_lite") and not n.endswith("__main__")])
def test_settings_are_not_read_from_the_environment(name: str) -> None:
    text = modules()[name].read_text()
    reads = r"os\.(getenv|environ(?!\[\"\w+\"\] = |\.setdefault\())" if name == SETS_IT else r"os\.(environ|getenv)"
    assert not re.search(reads, text), f"{name} reads the environment; settings come in as arguments"


@pytest.mark.parametrize(
    "name",
    [n for n in modules() if n.startswith(("magi_lite", "quant", "app")) and n not in (READS_JSON, READS_REQUESTS)],
)
def test_json_is_read_by_one_function(name: str) -> None:
    """It takes marks in front and any Unicode encoding, and turns a document nested too deeply into a ValueError."""
    text = modules()[name].read_text()
    assert not re.search(r"json\.loads?\(", text), f"{name} reads JSON itself; use quant.storage.files.parse_json"


OPENS_MEDIA = "magi_lite.video.containers"
"""Its readers are limited to formats that name no other files, and to sizes that are judged by the caller."""
OPENS_ITS_OWN = "training.photographs"
"""Reads the pictures that came with packages, in a program of its own."""
PICTURES = {"imageio", "imageio.v2", "imageio.v3", "PIL.Image"}


def media_opened(path: Path) -> list[str]:
    """Calls that open media or pictures to read them, other than through Picture, which opens them by `open_header`."""
    tree = ast.parse(path.read_text())
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.asname or alias.name: alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        module, _, function = ast.unparse(node.func).rpartition(".")
        called = f"{names.get(module, module)}.{function}" if module else names.get(function, function)
        module, _, function = called.rpartition(".")
        written = any(isinstance(value, ast.Constant) and value.value == "w" for value in node.args[1:2])
        ours = any(key.arg == "plugin" and ast.unparse(key.value) == "Picture" for key in node.keywords)
        if (module in ("av", "av.container") and function == "open" and not written) or (
            module in PICTURES
            and (function == "open" or function.startswith(("imopen", "imread", "imiter", "improps", "imm", "mim")))
            and not (written or ours)
        ):
            found.append(f"line {node.lineno}: {ast.unparse(node)}")
    return found


@pytest.mark.parametrize("name", [n for n in modules() if n not in (OPENS_MEDIA, OPENS_ITS_OWN)])
def test_media_are_opened_by_one_module(name: str) -> None:
    """A "sound" or a "video" can be a list that names other files of the machine."""
    found = media_opened(modules()[name])
    assert not found, f"{name} opens media itself, use {OPENS_MEDIA}: {found}"


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_package_is_light() -> None:
    began = time.perf_counter()
    out = run_python("import sys, magi_lite; print('torch' in sys.modules)")
    assert out.strip() == "False"
    assert time.perf_counter() - began < 5  # generous: the point is that torch (seconds) is not loaded


LIGHT = [n for n in modules() if (level(n) or 0) <= 1 and n.startswith("magi_lite")]


def test_planning_needs_no_torch() -> None:
    out = run_python(f"import sys\nfor n in {LIGHT!r}: __import__(n)\nprint('torch' in sys.modules)")
    assert out.strip() == "False"


def test_importing_starts_no_thread_and_touches_no_gpu() -> None:
    names = [n for n in modules() if not n.endswith("__main__") and not n.startswith(("app", "benchmarks"))]
    code = (
        "import threading, torch\n"
        "def refuse(*a, **k): raise AssertionError('CUDA was initialised')\n"
        "torch.cuda._lazy_init = refuse\n"
        "import gradio, transformers\n"
        "before = threading.active_count()\n"
        f"for n in {names!r}: __import__(n)\n"
        "print(threading.active_count() - before)"
    )
    assert run_python(code).strip() == "0"
