"""MAGI Lite's desktop app: `python app.py`, then open http://127.0.0.1:7860. The same as `magi-lite app`."""

from __future__ import annotations

import sys

from magi_lite.cli import main

if __name__ == "__main__":
    sys.exit(main(["app", *sys.argv[1:]]))
