"""A fault in mapped memory as a sentence with an exit code, where the program would end without a word.

Weights are mapped from their files, and the system ends (SIGBUS) who reads behind the end of a mapped file that was cut
meanwhile, or whose disk fails. The pipeline looks at the files before every step, which covers nearly all; this covers
the step itself. Python's own handlers run between its instructions, to which the faulting one never returns, so the C
library is given one that is called in its place. That this calls Python is sound here: the fault comes in the middle of
arithmetic on the weights, whose threads hold no lock and let others have the interpreter.

The roads not taken: reading all weights into memory of their own takes gigabytes that the system cannot take back when
memory is short; a child that does the work, watched by its parent, outlives a killed parent for a moment, in which its
run cannot be gone on with; a handler in C needs a compiler.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
from collections.abc import Iterator
from typing import NoReturn

from magi_lite.errors import CheckpointError


@contextlib.contextmanager
def sentence(kept: str, *, ours: bool) -> Iterator[None]:
    """In the block, a fault in mapped memory ends the program with a sentence and the exit code for weights.

    Args:
        kept: what is left then, as a main clause.
        ours: whether the process is this program's; in somebody else's nothing is done, nor where no such fault is.
    """
    if not ours or not hasattr(signal, "SIGBUS"):
        yield
        return
    text = (
        "\nerror: A file of the model was cut short while it was in use, or its disk failed (SIGBUS); "
        f"{kept}. Download the model again.\n"
    ).encode()

    speaks = [True]

    def handle(_: int) -> NoReturn:
        try:
            speaks.pop()
        except IndexError:  # another thread met it too, and is about to end the program
            while True:
                time.sleep(1.0)
        with contextlib.suppress(OSError):
            os.write(2, text)  # whatever print does may be in the middle of something
        os._exit(CheckpointError.exit_code)

    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(handle)
    install = ctypes.CDLL(None).signal
    install.restype, install.argtypes = ctypes.c_void_p, (ctypes.c_int, ctypes.c_void_p)
    before = install(signal.SIGBUS, ctypes.cast(handler, ctypes.c_void_p))
    try:
        yield
    finally:
        install(signal.SIGBUS, before)
