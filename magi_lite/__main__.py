"""The command line: `python -m magi_lite generate | plan | info | download`."""

from __future__ import annotations

import sys

from magi_lite.cli import main

if __name__ == "__main__":
    sys.exit(main())
