"""Run every golden of a folder; exit code 1 if any falls short or a file is of a kind that is not known."""

from __future__ import annotations

import importlib
import sys
import time
from pathlib import Path

import torch

from tests.parity.report import NOT_GOLDENS, CaseResult

KINDS = ("schedule", "keys", "ckpt", "text", "dit_forward", "sampler", "vae", "fp8")
"""Each is a subfolder of the goldens and a module here with `run(folder, root) -> Iterator[CaseResult]`."""

def unknown_files(root: Path) -> list[Path]:
    """Files that no kind claims: a golden that is silently not run would be a check that cannot fail."""
    files = [f for f in sorted(root.rglob("*")) if f.is_file() and f.name not in NOT_GOLDENS]
    return [f for f in files if f.relative_to(root).parts[0] not in KINDS]


def run(root: Path) -> list[CaseResult]:
    """All cases of a folder, printed as they finish. A crash of one kind is one failed line, not the end."""
    results: list[CaseResult] = []
    for kind in KINDS:
        folder = root / kind
        if not folder.is_dir():
            continue
        before = len(results)
        try:
            for result in importlib.import_module(f"tests.parity.{kind}").run(folder, root):
                print(result.line(), flush=True)
                results.append(result)
        except Exception as error:
            results.append(CaseResult(kind, "crashed", False, {}, {}, f"{type(error).__name__}: {error}"))
            print(results[-1].line(), flush=True)
        if len(results) == before:
            results.append(CaseResult(kind, "no case found", False, {}, {}))
            print(results[-1].line(), flush=True)
    for path in unknown_files(root):
        results.append(CaseResult("unknown", str(path.relative_to(root)), False, {}, {}, "a file of a kind not known"))
        print(results[-1].line(), flush=True)
    return results


def main(arguments: list[str]) -> int:
    if len(arguments) != 1 or not Path(arguments[0]).is_dir():
        print("usage: python -m tests.parity FOLDER (a folder of the layout of the goldens)", file=sys.stderr)
        return 2
    began = time.monotonic()
    with torch.inference_mode():
        results = run(Path(arguments[0]))
    failed = sum(not result.passed for result in results)
    print(f"{len(results) - failed} passed, {failed} failed in {time.monotonic() - began:.0f} s")
    return 1 if failed or not results else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
