"""`python -m tests`: install what the tests need, then lint, check types, compare with the goldens and run every test.

    python -m tests              all of it, as CI does
    python -m tests --fast       without the browser and the tests marked `slow`
    python -m tests --all        also those marked `thorough`, which take minutes each
    python -m tests -k queue     other arguments go to pytest

What cannot be installed is named; the steps that need it then fail. Exit code 0: everything passed.
"""

from __future__ import annotations

import argparse
import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
GOLDENS = ROOT / "tests" / "goldens"
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
"""Each of several processes on one thread: the models are tiny, and more threads only wait for each other."""


@dataclass(frozen=True)
class Manager:
    """A package manager: how it installs, and its names for a Chromium and for Node.js with npm."""

    program: str
    install: tuple[str, ...]
    browser: tuple[str, ...]
    node: tuple[str, ...]
    refresh: tuple[str, ...] = ()
    needs_root: bool = True


MANAGERS = (
    Manager(
        "apt-get",
        ("install", "-y", "-qq", "--no-install-recommends"),
        browser=("chromium",),
        node=("nodejs", "npm"),
        refresh=("update", "-qq"),
    ),
    Manager("dnf", ("install", "-y", "-q"), browser=("chromium",), node=("nodejs", "npm")),
    Manager("brew", ("install", "-q"), browser=("--cask", "chromium"), node=("node",), needs_root=False),
    Manager(
        "winget",
        ("install", "--silent", "--accept-package-agreements", "--accept-source-agreements", "--id"),
        browser=("Google.Chrome",),
        node=("OpenJS.NodeJS.LTS",),
        needs_root=False,
    ),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Install and run every step; the exit code is 0 only when all of them passed."""
    options, passed_on = parse(sys.argv[1:] if arguments is None else arguments)
    missing = [] if options.no_install else install(with_browser=not options.fast)
    for sentence in missing:
        print(f"missing: {sentence}", flush=True)
    failed = [name for name, step in steps(options, passed_on) if not step()]
    if missing or failed:
        print("failed: " + ", ".join([*failed, *(["installing"] if missing else [])]), file=sys.stderr)
    return 1 if missing or failed else 0


def parse(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Our options, and the arguments that are pytest's."""
    parser = argparse.ArgumentParser(prog="python -m tests", description=(__doc__ or "").split("\n\n")[0])
    much = parser.add_mutually_exclusive_group()
    much.add_argument("--fast", action="store_true", help="without the browser and the tests marked slow")
    much.add_argument("--all", action="store_true", help="also the tests marked thorough, minutes each")
    parser.add_argument("--no-install", action="store_true", help="install nothing")
    parser.add_argument("--goldens", type=Path, action="append", default=[], metavar="FOLDER", help="more goldens")
    parser.add_argument("--processes", type=int, default=min(8, os.cpu_count() or 1), help="for most tests")
    options, passed_on = parser.parse_known_args(list(arguments))
    return options, [argument for argument in passed_on if argument != "--"]


def install(with_browser: bool = True) -> list[str]:
    """Install what is missing: Python packages, Node.js with npm, the JavaScript tools, a browser.

    Returns:
        One sentence for each thing that could not be had.
    """
    missing = []
    if not run([sys.executable, "-m", "pip", "install", "-q", "-r", str(ROOT / "requirements-dev.txt")]):
        missing.append(
            "pip could not install requirements-dev.txt; in a virtual environment (python -m venv .venv) it can."
        )
        return missing
    if not shutil.which("npm"):
        install_with_manager("node")
    npm = shutil.which("npm")
    if not npm:
        missing.append("Node.js with npm could not be installed here; install it from https://nodejs.org.")
    elif not run([npm, "ci", "--silent", "--no-audit", "--no-fund"], cwd=ROOT):
        missing.append("npm could not install the tools of package.json; check the connection to its registry.")
    if with_browser and not browser():
        install_with_manager("browser")
        if not browser():
            run([sys.executable, "-m", "playwright", "install", "chromium"])
        if not browser():
            missing.append("No Chromium could be installed here; install Chromium or Chrome so that it is on PATH.")
    return missing


def install_with_manager(what: str) -> None:
    """Install `node` or `browser` with the first package manager of this system, if it has one."""
    manager = next((manager for manager in MANAGERS if shutil.which(manager.program)), None)
    if manager is None:
        return
    root = not manager.needs_root or (hasattr(os, "geteuid") and os.geteuid() == 0)
    command = [*([] if root else ["sudo"]), manager.program]
    if not root and not shutil.which("sudo"):
        return
    if manager.refresh:
        run([*command, *manager.refresh])
    names = manager.node if what == "node" else manager.browser
    run([*command, *manager.install, *names], env={"DEBIAN_FRONTEND": "noninteractive"}, quiet=True)


def browser() -> bool:
    """Whether the tests find a browser."""
    code = "from tests.browsers import find; raise SystemExit(find() is None)"
    return run([sys.executable, "-c", code], quiet=True)


def steps(options: argparse.Namespace, passed_on: Sequence[str]) -> list[tuple[str, Callable[[], bool]]]:
    """All steps by name, the quick ones first; pytest's summary is the last thing that is printed."""
    python, npm = sys.executable, shutil.which("npm") or "npm"
    checks: list[tuple[str, list[str]]] = [
        ("ruff", [python, "-m", "ruff", "check", "."]),
        ("JavaScript", [npm, "run", "--silent", "lint"]),
        ("JavaScript's tests", [npm, "test", "--silent"]),
        ("types", [python, "-m", "mypy"]),
        *((f"parity on {folder}", [python, "-m", "tests.parity", str(folder)]) for folder in goldens(options)),
    ]
    return [
        *((name, functools.partial(step, name, command)) for name, command in checks),
        ("pytest", lambda: pytest(options, passed_on)),
    ]


def goldens(options: argparse.Namespace) -> list[Path]:
    """The folders of goldens that are compared."""
    return [GOLDENS.relative_to(ROOT), *options.goldens]


def pytest(options: argparse.Namespace, passed_on: Sequence[str]) -> bool:
    """Tests that can share the machine in several processes, then, one at a time, those that need it alone.

    No test is run a second time. A selection may be empty in one of the two, not in both.
    """
    codes = []
    for name, selection in selections(options):
        heading(name)
        command = [sys.executable, "-m", "pytest", *selection, *passed_on]
        codes.append(subprocess.run(command, cwd=ROOT, env=os.environ | ONE_THREAD, check=False).returncode)
    nothing = 5  # pytest's code for "no test was collected"
    return any(code == 0 for code in codes) and all(code in (0, nothing) for code in codes)


def selections(options: argparse.Namespace) -> list[tuple[str, list[str]]]:
    """The runs of pytest by name, with the arguments that divide the tests between them."""
    leave_out = "" if options.all else " and not thorough"
    sharing = ["-n", str(options.processes), "--dist", "loadscope", "--no-loadscope-reorder"]
    if options.fast:
        return [("pytest", ["-m", f"not alone and not slow{leave_out}", *sharing])]
    return [
        ("pytest, in several processes", ["-m", f"not alone{leave_out}", *sharing]),
        ("pytest, the tests that need the machine alone", ["-m", f"alone{leave_out}"]),
    ]


def step(name: str, command: Sequence[str]) -> bool:
    """Run one check under a heading; whether it passed."""
    heading(name)
    for stub in (ROOT / "magi_lite").rglob("*.pyi"):
        stub.unlink()  # written by Gradio beside its components; mypy would read it in place of the source
    return run(command)


def heading(text: str) -> None:
    """Name the step that begins."""
    print(f"== {text}", flush=True)


def run(command: Sequence[str], *, cwd: Path = ROOT, env: dict[str, str] | None = None, quiet: bool = False) -> bool:
    """Run a command; whether there is such a program and it succeeded."""
    output = subprocess.DEVNULL if quiet else None
    try:
        done = subprocess.run(command, cwd=cwd, env=os.environ | (env or {}), check=False, stdout=output)
    except OSError as error:
        print(f"{command[0]} cannot be run: {error.strerror or error}.", file=sys.stderr)
        return False
    return done.returncode == 0


if __name__ == "__main__":
    sys.exit(main())
