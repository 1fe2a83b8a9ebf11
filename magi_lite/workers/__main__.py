"""A worker process, started by the app: `python -m magi_lite.workers`. It talks over its standard input and output."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys


def main() -> int:
    """Choose the card and quiet the processor's threads before any library is loaded, then work."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--card", type=int, help="number of the one CUDA card to use")
    parser.add_argument("--cuda", action="store_true", help="refuse jobs where no CUDA card can be used")
    parser.add_argument("--threads", type=int, help="threads for products on the processor")
    parser.add_argument("--silence", type=float, default=900.0, help="seconds without a sign after which a run hangs")
    arguments = parser.parse_args()
    if arguments.card is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = visible(arguments.card, os.environ.get("CUDA_VISIBLE_DEVICES", ""))
    if arguments.threads:
        os.environ.setdefault("OMP_NUM_THREADS", str(arguments.threads))
    # Threads that wait for one another sleep instead of spinning: on a busy machine spinning takes ten times the work.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("KMP_BLOCKTIME", "0")
    with contextlib.suppress(OSError, AttributeError):
        os.nice(5)  # the page answers first

    from magi_lite.workers.process import main as work

    return work(vars(arguments))


def visible(card: int, known: str) -> str:
    """What makes card number `card` of those in `known` (a list as CUDA_VISIBLE_DEVICES has it) the only one."""
    names = [name.strip() for name in known.split(",") if name.strip()]
    return names[card] if card < len(names) else str(card)


if __name__ == "__main__":
    sys.exit(main())
